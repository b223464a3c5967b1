"""A1111's API, for the many clients that were written for it. Shapes and names are its own."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from mezzotint.backends.base import BackendInfo
from mezzotint.core import UPSCALERS, GenerationRequest, Hires
from mezzotint.errors import ModelNotFound, NotSupported
from mezzotint.imaging.metadata import read_parameters
from mezzotint.imaging.uploads import check_mask_size, decode_base64, read_mask_text, read_upload_text
from mezzotint.samplers import SAMPLERS
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.api.a1111_answers import (
    ERRORS,
    A1111Error,
    Answer,
    echo_of,
    info_of,
    state_of,
    written,
)
from mezzotint.serve.api.a1111_controls import with_controls
from mezzotint.serve.api.a1111_fields import check_neutral
from mezzotint.serve.api.a1111_schemas import NO_UPSCALER, SENT_AS, Img2Img, Txt2Img
from mezzotint.serve.api.bounds import seeds_of
from mezzotint.serve.api.dependencies import CallerOf, ServicesOf
from mezzotint.serve.api.documented import DRAWN, answers, headers
from mezzotint.serve.api.fields import Fields
from mezzotint.serve.api.json_bodies import JsonRoute, forget_body
from mezzotint.serve.api.naming import named_as_sent
from mezzotint.serve.prepared import PreparedRequest, with_pictures_of
from mezzotint.serve.runs import Run
from mezzotint.serve.services import Services

__all__ = ["router"]


DRAWING = {200: {"model": Answer, **headers(*DRAWN)}, **answers(404, 415, 504, model=A1111Error)}


router = APIRouter(
    prefix="/sdapi/v1",
    tags=["A1111"],
    route_class=JsonRoute,
    responses=ERRORS,
    # Dify does not say that its body is JSON.
    strict_content_type=False,
)


@router.post("/txt2img", responses=DRAWING, summary="Draw pictures")
async def txt2img(fields: Txt2Img, request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    return await _answer(fields, request, caller, services)


@router.post(
    "/img2img", responses=DRAWING, summary="Draw pictures from a picture; with a mask, a part of it anew"
)
async def img2img(fields: Img2Img, request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    return await _answer(fields, request, caller, services)


def _with_uploads(fields: Img2Img, request: GenerationRequest) -> GenerationRequest:
    if len(fields.init_images) != 1:
        raise NotSupported("init_images: one picture is served, not several", param="init_images")
    image = read_upload_text(fields.init_images[0], "init_images")
    mask = None
    if fields.mask:
        mask = read_mask_text(fields.mask, "mask", redraw="white")
        check_mask_size(mask, image)
    return fields.with_pictures(request, image, mask)


async def _wanted(fields: Txt2Img, services: Services) -> GenerationRequest:
    """With its pictures decoded."""
    wanted = fields.to_request()
    if isinstance(fields, Img2Img):
        wanted = await asyncio.to_thread(_with_uploads, fields, wanted)
    if fields.alwayson_scripts:
        limits = (await services.gateway.served()).limits
        with named_as_sent(wanted, limits, SENT_AS):
            wanted = await asyncio.to_thread(with_controls, wanted, fields.alwayson_scripts, limits)
    return wanted


async def _answer(fields: Txt2Img, request: Request, caller: Caller, services: Services) -> Response:
    requests = await _prepare(fields, await _wanted(fields, services), caller, services)
    fields.forget_pictures()
    forget_body(request)
    # Before anything is drawn for an answer that cannot be written.
    echo = echo_of(fields)
    cost_s = services.gateway.cost_s(requests)
    run = Run(requests)
    # Told of before it is let in, so that an interruption in between is not lost.
    with services.runs.entered(caller.id, run):
        async with services.access.admit(caller, images=len(requests), compute_s=cost_s) as admission:
            drawn = await run.draw(services.gateway, admission)
    images = await written(drawn if fields.send_images else ())
    info = json.dumps(info_of(fields, requests[0], drawn, run))
    rest = f',"parameters":{echo},"info":{json.dumps(info)}}}'
    return Response(b'{"images":' + images + rest.encode(), media_type="application/json")


async def _prepare(
    fields: Txt2Img, wanted: GenerationRequest, caller: Caller, services: Services
) -> list[PreparedRequest]:
    limits = (await services.gateway.served()).limits

    async def prepare(wanted: GenerationRequest) -> PreparedRequest:
        with named_as_sent(wanted, limits, SENT_AS):
            prepared = await services.gateway.prepare(
                wanted, format=fields.format, model=fields.model, caller=caller
            )
        # A setting of the client's, and not of this request: it may be more than there are steps.
        return prepared.with_previews(min(fields.preview_every, prepared.request.steps))

    first = await prepare(wanted)
    drawn = first.request
    wanted = with_pictures_of(drawn, wanted)
    seeds = seeds_of(drawn.seed, fields.images)
    return [await prepare(replace(wanted, seed=seed)) for seed in seeds]


@router.get("/progress", summary="How far this key's last request is")
async def progress(
    caller: CallerOf,
    services: ServicesOf,
    skip_current_image: bool = False,
    skip_it: Annotated[bool, Query(alias="skipCurrentImage", description="the same")] = False,
) -> dict[str, Any]:
    run = await services.runs.latest(caller.id, preview=not (skip_current_image or skip_it))
    preview = None if run is None else run.preview
    return {
        "progress": 0.0 if run is None else run.progress,
        "eta_relative": 0.0 if run is None else run.eta_s,
        "state": state_of(run),
        "current_image": None if preview is None else base64.b64encode(preview).decode(),
        "textinfo": None,
    }


@router.post("/interrupt", summary="Stop this key's requests; they answer what is finished")
async def interrupt(caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    await services.runs.interrupt(caller.id)
    return {}


class PngToRead(Fields):
    """`POST /sdapi/v1/png-info`."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="a PNG file in base64, or a data: URL of it")


@router.post(
    "/png-info", responses=answers(415, model=A1111Error), summary="What a PNG says of how it was drawn"
)
async def png_info(fields: PngToRead, _: CallerOf) -> dict[str, Any]:
    text = await asyncio.to_thread(_parameters_in, fields.image)
    return {"info": text, "items": {"parameters": text}}


def _parameters_in(image: str) -> str:
    return read_parameters(decode_base64(image, "image"), param="image")


@router.get("/options", summary="The settings that clients read")
async def options(_: CallerOf, services: ServicesOf) -> dict[str, Any]:
    return _options(await services.gateway.served())


@router.post(
    "/options", responses=answers(404, model=A1111Error), summary="Accepted as long as it changes nothing"
)
async def set_options(changes: dict[str, Any], _: CallerOf, services: ServicesOf) -> None:
    current = _options(await services.gateway.served())
    checkpoint = changes.get("sd_model_checkpoint") or current["sd_model_checkpoint"]
    if checkpoint != current["sd_model_checkpoint"]:
        served = current["sd_model_checkpoint"]
        raise ModelNotFound(f"no model {checkpoint!r} here; {served} is served", param="sd_model_checkpoint")
    # The settings are everybody's: what a picture needs comes in its override_settings.
    check_neutral({**changes, "sd_model_checkpoint": None}, current)


def _options(info: BackendInfo) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": info.model,
        "sd_checkpoint_hash": info.revision,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "emphasis": "No norm",
        "show_progress_every_n_steps": 0,
        "img2img_fix_steps": False,
        "return_grid": False,
    }


@router.get("/sd-models", summary="The served model")
async def sd_models(_: CallerOf, services: ServicesOf) -> list[dict[str, Any]]:
    info = await services.gateway.served()
    model = {"title": info.model, "model_name": info.model, "filename": info.model}
    return [{**model, "hash": info.revision[:10], "sha256": None, "config": None}]


@router.get("/samplers", summary="The samplers")
async def samplers(_: CallerOf) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "aliases": [*each.aliases, each.diffusers_class], "options": {}}
        for each in SAMPLERS
    ]


@router.get("/schedulers", summary="The noise schedules, which go with some samplers")
async def schedulers(_: CallerOf) -> list[dict[str, Any]]:
    names = {"automatic": "Automatic", "karras": "Karras"}
    unused = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": name, "label": label, **unused} for name, label in names.items()]


@router.get("/loras", summary="The LoRAs that a prompt may name as <lora:name:scale>")
async def loras(_: CallerOf, services: ServicesOf) -> list[dict[str, Any]]:
    served = (await services.gateway.served()).limits.loras
    return [
        {
            "name": each.name,
            "alias": each.name,
            "path": each.name,
            "metadata": {"title": each.title, "sha256": each.sha256},
        }
        for each in served
    ]


@router.get("/embeddings", summary="The textual inversions that a prompt may name")
async def embeddings(_: CallerOf, services: ServicesOf) -> dict[str, Any]:
    served = (await services.gateway.served()).limits.embeddings
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0}
    return {"loaded": {each.name: {**unknown, "vectors": each.vectors} for each in served}, "skipped": {}}


async def nothing(_: CallerOf) -> list[dict[str, Any]]:
    """Clients ask on their start, and show an empty list."""
    return []


@router.get("/upscalers", summary="What enlarges a picture for its second stage")
async def upscalers(_: CallerOf) -> list[dict[str, Any]]:
    # None of them is a model.
    of_a_model = dict.fromkeys(("model_name", "model_path", "model_url", "scale"))
    names = (NO_UPSCALER, *(name for name in UPSCALERS if not Hires(upscaler=name).of_latents))
    return [{"name": name, **of_a_model} for name in names]


@router.get("/latent-upscale-modes", summary="What enlarges its latents instead")
async def latent_upscale_modes(_: CallerOf) -> list[dict[str, str]]:
    return [{"name": name} for name in UPSCALERS if Hires(upscaler=name).of_latents]


for name in (
    "sd-vae",
    "hypernetworks",
    "prompt-styles",
    "face-restorers",
):
    router.add_api_route(f"/{name}", nothing, methods=["GET"], name=name, summary="None are served")
