"""For those who run the server: does it live, can it draw; and for clients that adapt: what it draws."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from mezzotint import __version__
from mezzotint.backends.base import BackendInfo
from mezzotint.core import (
    MAX_CONTROL_SCALE,
    MAX_CONTROLS,
    MAX_DEADLINE_SECONDS,
    MAX_HIRES_SCALE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_PROMPT_CHARACTERS,
    PREPROCESSORS,
    PRIORITIES,
    UPSCALERS,
)
from mezzotint.errors import PermissionDenied
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.imaging.uploads import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS
from mezzotint.samplers import SAMPLERS
from mezzotint.serve.api.bounds import MAX_IMAGES
from mezzotint.serve.api.dependencies import CallerOf, ServicesOf, caller_of, check_query
from mezzotint.serve.api.documented import OPEN
from mezzotint.serve.telemetry.exposition import CONTENT_TYPE

__all__ = ["router"]

FEATURES = {
    "negative_prompt": True,
    "emphasis": True,
    "edits": True,
    "inpainting": True,
    "variations": True,
    "jobs": True,
    "hires": True,
    "streaming": True,
    "previews": True,
    "refiner": False,
    "upscaling": False,
}
SIZE_STEP = 8

router = APIRouter()
# Not of the health routes: a probe that adds a field of its own must not make a sound server look ill.
CHECKED = [Depends(caller_of), Depends(check_query)]


# Load balancers ask with HEAD as well.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", openapi_extra=OPEN, summary="Whether the process is alive")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    openapi_extra=OPEN,
    summary="Whether a model is loaded and has drawn its warm-up image; 503 until then",
)
async def readyz(services: ServicesOf) -> dict[str, Any]:
    info = await services.gateway.ready()
    return {"status": "ready", "model": info.model, "revision": info.revision}


@router.get(
    "/metrics",
    dependencies=CHECKED,
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {}}}},
    summary="What the whole service has counted, for Prometheus",
)
async def metrics(caller: CallerOf, services: ServicesOf) -> Response:
    """Tells of every key's use: on a server with keys, for keys made with `--admin`."""
    if not caller.is_admin:
        raise PermissionDenied("the metrics tell of every key; they take a key made with --admin")
    return Response(await services.series.text(), media_type=CONTENT_TYPE)


@router.get(
    "/v1/capabilities",
    dependencies=CHECKED,
    summary="What this server draws, and what the caller may ask for",
)
async def capabilities(caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    info, settings = await services.gateway.served(), services.settings
    return {
        "version": __version__,
        "models": [
            {"id": info.model, "revision": info.revision, "backend": info.backend, "dtype": info.dtype}
        ],
        **_drawing(info),
        "formats": list(CONTENT_TYPES),
        "priorities": PRIORITIES[: PRIORITIES.index(caller.max_priority) + 1],
        "limits": {
            "prompt_characters": MAX_PROMPT_CHARACTERS,
            "prompt_tokens": info.limits.prompt_tokens,
            "images": MAX_IMAGES,
            "steps": info.limits.max_steps,
            "guidance_scale": info.limits.max_guidance_scale,
            "loras": MAX_LORAS,
            "lora_scale": MAX_LORA_SCALE,
            "controls": MAX_CONTROLS,
            "control_scale": MAX_CONTROL_SCALE,
            "image_prompts": MAX_CONTROLS,
            "image_prompt_scale": MAX_CONTROL_SCALE,
            "hires_scale": MAX_HIRES_SCALE,
            "hires_upscalers": UPSCALERS,
            "body_mb": settings.max_body_mb,
            "upload_bytes": MAX_UPLOAD_BYTES,
            "upload_pixels": MAX_UPLOAD_PIXELS,
            "deadline_s": settings.deadline_s,
            "job_deadline_s": MAX_DEADLINE_SECONDS,
            "job_ttl_s": settings.job_ttl_s,
            "image_ttl_s": settings.image_ttl_s,
        },
        "features": {
            **FEATURES,
            "loras": bool(info.limits.loras),
            "controlnet": bool(info.limits.controlnets),
            "image_prompts": bool(info.limits.ip_adapters),
        },
        "caller": {
            "name": caller.name,
            "requests_per_minute": caller.requests_per_minute,
            "concurrent_images": caller.concurrent_images,
            "compute_s_per_day": caller.compute_s_per_day,
            "models": caller.models,
        },
    }


def _drawing(info: BackendInfo) -> dict[str, Any]:
    limits = info.limits
    return {
        "sizes": {
            "default": f"{limits.default_width}x{limits.default_height}",
            "min": limits.min_size,
            "max": limits.max_size,
            "max_pixels": limits.max_pixels,
            "multiple_of": SIZE_STEP,
            # The only ones there are, where shapes are compiled ahead.
            "served": None
            if limits.served is None
            else [f"{width}x{height}" for width, height in limits.served],
        },
        "defaults": {
            "steps": limits.default_steps,
            "guidance_scale": limits.default_guidance_scale,
            "scheduler": limits.default_scheduler,
        },
        "loras": [
            {
                "name": each.name,
                "title": each.title,
                "sha256": each.sha256,
                "defaults": {
                    "steps": each.steps,
                    "guidance_scale": each.guidance_scale,
                    "scheduler": each.scheduler,
                },
            }
            for each in limits.loras
        ],
        "controlnets": [{"name": each.name, "sha256": each.sha256} for each in limits.controlnets],
        "preprocessors": PREPROCESSORS,
        "ip_adapters": [{"name": each.name, "sha256": each.sha256} for each in limits.ip_adapters],
        "embeddings": [
            {"name": each.name, "vectors": each.vectors, "sha256": each.sha256} for each in limits.embeddings
        ],
        "samplers": [
            {
                "name": each.name,
                "aliases": [each.diffusers_class, *each.aliases],
                "max_steps": min(each.max_steps, limits.max_steps),
            }
            for each in SAMPLERS
        ],
    }
