"""`GET /imagine?prompt=…`: the answer is the picture, or with `Accept: text/event-stream` its events."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from mezzotint.core import GenerationRequest, Hires, Queued
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.imaging.size import parse_size
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.api.dependencies import CallerOf, ServicesOf
from mezzotint.serve.api.documented import DRAWN, answers, headers
from mezzotint.serve.api.drawing import draw_all, stream_all
from mezzotint.serve.api.fields import Fields
from mezzotint.serve.api.naming import named_as_sent
from mezzotint.serve.api.sse import EventStream, ServerEvent, opened
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.services import Services
from mezzotint.serve.wire import Drawn, Step

__all__ = ["router"]

# The same request gives the same picture to within one level of 255, whichever others it was batched with: as
# good to whoever asks again, so a cache may keep it. A shared one may not, for a prompt is the caller's own.
REPRODUCIBLE = "private, max-age=3600"
NOT_REPRODUCIBLE = "no-store"
EVENTS = "text/event-stream"
NOT_WANTED = re.compile(r"q=0(\.0*)?")


class ImagineQuery(Fields):
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
    emphasis: bool = Field(
        False, description="whether (words:1.2) and [words] weigh words and BREAK parts them, as in A1111"
    )
    hires_scale: float | None = Field(
        None, description="draw it so many times larger, in a second stage; above 1…4"
    )
    format: Literal["png", "jpeg", "jpg", "webp"] = "png"
    model: str | None = Field(None, description="the served model's name, to be sure of it")

    @property
    def sent_as(self) -> dict[str, str]:
        """By which of its fields the size was said."""
        size = {"size": "width"} if self.size is None else {"width": "size", "height": "size"}
        return {**size, "hires.scale": "hires_scale"}

    def to_request(self) -> GenerationRequest:
        width, height = self.width, self.height
        if self.size is not None:
            if width is not None or height is not None:
                raise InvalidRequest("give either size or width and height", param="size")
            width, height = parse_size(self.size)
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            seed=self.seed,
            emphasis=self.emphasis,
            hires=None if self.hires_scale is None else Hires(self.hires_scale),
        )


router = APIRouter()


@router.get(
    "/imagine",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {} for kind in (*CONTENT_TYPES.values(), EVENTS)},
            **headers("ETag", *DRAWN),
        },
        304: {
            "description": "`If-None-Match` names the picture that the request would draw",
            **headers("ETag", *DRAWN),
        },
        **answers(404, 504),
    },
    summary="Draw one picture",
)
async def imagine(
    query: Annotated[ImagineQuery, Query()],
    request: Request,
    services: ServicesOf,
    caller: CallerOf,
) -> Response:
    asked, gateway = query.to_request(), services.gateway
    with named_as_sent(asked, (await gateway.served()).limits, query.sent_as):
        prepared = await gateway.prepare(
            asked,
            format="jpeg" if query.format == "jpg" else query.format,
            model=query.model,
            caller=caller,
        )
    if _wants_events(request):
        return EventStream(await opened(_events(services, caller, prepared)))
    reproducible = query.seed is not None
    if reproducible and gateway.foresees(prepared) and _has(request, prepared.etag):
        return Response(status_code=304, headers=_cached(prepared.etag))
    (drawn,) = await draw_all(services, caller, [prepared])
    told = {
        **(_cached(prepared.etag_of(drawn)) if reproducible else {"Cache-Control": NOT_REPRODUCIBLE}),
        "Content-Disposition": f'inline; filename="plate-{prepared.request.seed}.{drawn.format}"',
    }
    return Response(drawn.data, 200, told, CONTENT_TYPES[drawn.format])


async def _events(
    services: Services, caller: Caller, prepared: PreparedRequest
) -> AsyncGenerator[ServerEvent | None]:
    """`queued`, `progress` with every step, and `done` with the picture as a data URL."""
    async with aclosing(stream_all(services, caller, [prepared])) as told:
        async for _, event in told:
            match event:
                case Queued():
                    yield ServerEvent({"position": event.position, "eta_s": event.eta_s}, "queued")
                case Step():
                    yield ServerEvent({"step": event.step, "total": event.total}, "progress")
                case Drawn():
                    yield ServerEvent(_done(event), "done")


def _done(drawn: Drawn) -> dict[str, object]:
    picture = base64.b64encode(drawn.data).decode()
    return {
        "image": f"data:{CONTENT_TYPES[drawn.format]};base64,{picture}",
        "seed": drawn.receipt["seed"],
        "receipt": drawn.receipt,
        "queue_ms": round(drawn.queue_s * 1000, 1),
        "compute_ms": round(drawn.compute_s * 1000, 1),
    }


def _cached(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": REPRODUCIBLE, "Vary": "Accept"}


def _wants_events(request: Request) -> bool:
    """Whether `Accept` names them, and does not say that they are not wanted (RFC 9110, 12.5.1)."""
    for line in request.headers.getlist("accept"):
        for wanted in line.lower().split(","):
            kind, *parameters = (part.strip() for part in wanted.split(";"))
            if kind == EVENTS and not any(NOT_WANTED.fullmatch(each) for each in parameters):
                return True
    return False


def _has(request: Request, etag: str) -> bool:
    """Whether the client's `If-None-Match` names this picture (RFC 9110, 13.1.2: weak comparison)."""
    lines = request.headers.getlist("if-none-match")
    named = [tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")]
    return etag.removeprefix("W/") in named or "*" in named
