"""OpenAI's Images API: generations, edits, variations and models, as its official clients call them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from mezzotint.core import Mask, Pixels
from mezzotint.errors import InvalidRequest, ModelNotFound, NotSupported
from mezzotint.imaging.uploads import check_mask_size, read_mask, read_upload
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.api.dependencies import CallerOf, KeyedRoute, ServicesOf
from mezzotint.serve.api.documented import DRAWN, answers, headers
from mezzotint.serve.api.json_bodies import JsonRoute, forget_body
from mezzotint.serve.api.naming import named_as_sent
from mezzotint.serve.api.openai_answers import Answer, ImagesAnswer
from mezzotint.serve.api.openai_schemas import (
    ALIASES,
    NOT_SERVED,
    SENT_AS,
    EditFields,
    GenerationFields,
    ImageFields,
    VariationFields,
    is_alias,
)
from mezzotint.serve.api.uploads import form_schema, read_form
from mezzotint.serve.prepared import PreparedRequest, with_pictures_of
from mezzotint.serve.services import Services

__all__ = ["prepare_all", "router"]


async def take_api_version(
    api_version: Annotated[
        str | None, Query(alias="api-version", description="accepted, and not used")
    ] = None,
) -> None:
    """Clients of Azure's variant of this API send it, Open WebUI with every edit."""


router = APIRouter(tags=["OpenAI"], route_class=KeyedRoute, dependencies=[Depends(take_api_version)])

DRAWING = {
    200: {
        "model": ImagesAnswer,
        "description": "the pictures; with `stream`, events",
        "content": {"text/event-stream": {}},
        **headers(*DRAWN),
    },
    **answers(404, 415, 504),
}


async def generations(
    fields: GenerationFields, request: Request, services: ServicesOf, caller: CallerOf
) -> Response:
    return await _answer("image_generation", fields, request, services, caller, {})


router.add_api_route(
    "/v1/images/generations",
    generations,
    methods=["POST"],
    route_class_override=JsonRoute,
    responses=DRAWING,
    summary="Draw pictures from a prompt",
)


@router.post(
    "/v1/images/edits",
    responses=DRAWING,
    openapi_extra=form_schema(EditFields, ["image"], ["mask"]),
    summary="Draw a picture anew, or the part of it that a mask leaves open",
)
async def edits(request: Request, services: ServicesOf, caller: CallerOf) -> Response:
    fields, files = await read_form(request, EditFields, ("image", "mask"), NOT_SERVED)
    return await _answer("image_edit", fields, request, services, caller, files)


@router.post(
    "/v1/images/variations",
    responses=DRAWING,
    openapi_extra=form_schema(VariationFields, ["image"]),
    summary="Draw pictures that are like a picture",
)
async def variations(request: Request, services: ServicesOf, caller: CallerOf) -> Response:
    fields, files = await read_form(request, VariationFields, ("image",), NOT_SERVED)
    return await _answer("image_variation", fields, request, services, caller, files)


def _only(files: list[bytes], param: str) -> bytes:
    if not files:
        raise InvalidRequest(f"{param} is required", param=param)
    if len(files) > 1:
        raise NotSupported(f"{param}: one picture at a time is supported", param=param)
    return files[0]


# A large picture takes a tenth of a second, which the loop has other uses for.
def _image(data: bytes) -> Pixels:
    return read_upload(data, param="image")


def _mask(data: bytes) -> Mask:
    return read_mask(data, param="mask", redraw="transparent")


async def _answer(
    kind: str,
    fields: ImageFields,
    request: Request,
    services: Services,
    caller: Caller,
    files: dict[str, list[bytes]],
) -> Response:
    requests = await _prepared(fields, services, caller, files)
    # They are decoded and brought to size, and may wait for long.
    files.clear()
    fields.forget_pictures()
    forget_body(request)
    answer = Answer(kind, fields, requests, services, caller)
    if fields.stream:
        return await answer.streamed()
    return await answer.whole(request)


async def _prepared(
    fields: ImageFields, services: Services, caller: Caller, files: Mapping[str, list[bytes]]
) -> list[PreparedRequest]:
    image = mask = None
    if "image" in files:
        image = await asyncio.to_thread(_image, _only(files["image"], "image"))
    if files.get("mask"):
        mask = await asyncio.to_thread(_mask, _only(files["mask"], "mask"))
    return await prepare_all(fields, services, caller, image=image, mask=mask)


async def prepare_all(
    fields: ImageFields,
    services: Services,
    caller: Caller,
    *,
    image: Pixels | None,
    mask: Mask | None,
) -> list[PreparedRequest]:
    """A prepared request for each picture, checked against the served model.

    Raises:
        MezzotintError: as `Gateway.prepare`, in the names of the fields that were sent.
    """
    if image is not None and mask is not None:
        check_mask_size(mask, image)
    gateway = services.gateway
    limits = (await gateway.served()).limits
    controls, prompts = await asyncio.to_thread(fields.read_conditioning, limits)
    requests: list[PreparedRequest] = []
    for each in fields.to_requests(limits):
        asked = replace(each, image=image, mask=mask, controls=controls, image_prompts=prompts)
        if requests:
            asked = with_pictures_of(requests[0].request, asked)
        with named_as_sent(asked, limits, SENT_AS):
            prepared = await gateway.prepare(
                asked,
                format=fields.format,
                compression=fields.output_compression,
                model=fields.model_unless_alias(aliases=services.settings.model_aliases),
                caller=caller,
            )
        requests.append(_with_previews(prepared, fields.partial_images or 0))
    return requests


def _with_previews(prepared: PreparedRequest, count: int) -> PreparedRequest:
    """`count` previews at even distances; of very few steps there may be more of them."""
    if not count:
        return prepared
    steps = prepared.request.evaluations
    # Rounded up: rounded down, one more would come before them, of noise.
    every = -(-steps // (count + 1))
    if (steps - 1) // every < count:
        every = max(1, steps // (count + 1))
    return prepared.with_previews(every)


@router.get("/v1/models", responses=answers(404), summary="The served model, and its aliases")
async def models(services: ServicesOf, caller: CallerOf) -> dict[str, Any]:
    return {"object": "list", "data": [_model(name) for name in await _names(services, caller)]}


# A model may be named by its folder, with slashes.
@router.get("/v1/models/{name:path}", responses=answers(404), summary="One of them")
async def model(name: str, services: ServicesOf, caller: CallerOf) -> dict[str, Any]:
    names = await _names(services, caller)
    if name not in names and not (names and services.settings.model_aliases and is_alias(name)):
        raise ModelNotFound(f"no model {name!r} here", param="model")
    return _model(name)


async def _names(services: Services, caller: Caller) -> list[str]:
    served = (await services.gateway.served()).model
    if caller.models is not None and served not in caller.models:
        return []
    aliases = ALIASES if services.settings.model_aliases else ()
    return [served, *(name for name in aliases if name != served)]


def _model(name: str) -> dict[str, Any]:
    # When a model was made is not known here.
    return {"id": name, "object": "model", "created": 0, "owned_by": "mezzotint"}
