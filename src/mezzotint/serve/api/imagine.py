"""`GET /imagine?prompt=…`: the answer is the picture."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from mezzotint.core import GenerationRequest
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.imaging.size import parse_size
from mezzotint.serve.api.dependencies import gateway_of, one_value_each
from mezzotint.serve.gateway import Gateway, Plate
from mezzotint.serve.wire import Drawn

__all__ = ["router"]

# The same plate gives the same picture to within one level of 255, whichever others it was batched with: as
# good to whoever asks again, so a cache may keep it. A shared one may not, for a prompt is the caller's own.
REPRODUCIBLE = "private, max-age=3600"
NOT_REPRODUCIBLE = "no-store"


class ImagineQuery(BaseModel):
    """The fields of the query string. What is left out is the model's default."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="what to draw")
    negative_prompt: str | None = Field(None, description="what to steer away from; empty means none")
    width: int | None = Field(None, description="pixels, a multiple of 8")
    height: int | None = Field(None, description="pixels, a multiple of 8")
    size: str | None = Field(None, description="WIDTHxHEIGHT, instead of width and height")
    steps: int | None = Field(None, description="denoising steps")
    guidance_scale: float | None = Field(None, description="at most 1 turns guidance off")
    seed: int | None = Field(None, description="makes the answer reproducible")
    scheduler: str | None = Field(None, description="the sampler's name")
    format: Literal["png", "jpeg", "jpg", "webp"] = "png"
    model: str | None = Field(None, description="the served model's name, to be sure of it")

    def to_request(self) -> GenerationRequest:
        width, height = self.width, self.height
        if self.size is not None:
            if width is not None or height is not None:
                raise InvalidRequest("give either size or width and height", param="size")
            width, height = parse_size(self.size)
        return GenerationRequest(
            prompt=self.prompt,
            # A form that is left empty sends the empty string; the model's own "no text" is meant.
            negative_prompt=self.negative_prompt or None,
            width=width,
            height=height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            seed=self.seed,
        )


router = APIRouter()


@router.get(
    "/imagine",
    dependencies=[Depends(one_value_each)],
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}}},
    summary="Draw one picture",
)
async def imagine(
    query: Annotated[ImagineQuery, Query()],
    request: Request,
    gateway: Annotated[Gateway, Depends(gateway_of)],
) -> Response:
    format = "jpeg" if query.format == "jpg" else query.format
    plate = await gateway.prepare(query.to_request(), format, query.model)
    caching = _caching(plate, reproducible=query.seed is not None)
    if query.seed is not None and _has(request, plate.etag):
        return Response(status_code=304, headers=caching)
    drawn = await gateway.draw(plate)
    return Response(drawn.data, 200, {**_facts(drawn), **caching}, CONTENT_TYPES[drawn.format])


def _caching(plate: Plate, *, reproducible: bool) -> dict[str, str]:
    if not reproducible:
        return {"Cache-Control": NOT_REPRODUCIBLE}
    return {"ETag": plate.etag, "Cache-Control": REPRODUCIBLE}


def _has(request: Request, etag: str) -> bool:
    """Whether the client's `If-None-Match` names this picture (RFC 9110, 13.1.2: weak comparison)."""
    named = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag.removeprefix("W/") in named or "*" in named


def _facts(drawn: Drawn) -> dict[str, str]:
    seed = str(drawn.receipt["seed"])
    return {
        "x-mezzotint-seed": seed,
        "x-mezzotint-queue-ms": f"{drawn.queue_s * 1000:.1f}",
        "x-mezzotint-compute-ms": f"{drawn.compute_s * 1000:.1f}",
        "Content-Disposition": f'inline; filename="plate-{seed}.{drawn.format}"',
        "X-Content-Type-Options": "nosniff",
    }
