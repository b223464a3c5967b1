"""What A1111's clients read."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from mezzotint import __version__
from mezzotint.core import Receipt
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.metadata import hires_settings, parameters_text
from mezzotint.serve.api.a1111_schemas import Txt2Img
from mezzotint.serve.api.documented import PLAIN, answers
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.runs import Run
from mezzotint.serve.wire import Drawn, RunStatus

__all__ = ["ERRORS", "A1111Error", "Answer", "echo_of", "info_of", "state_of", "written"]


class A1111Error(BaseModel):
    """error: its kind. detail, errors: a sentence that names the field and says what is accepted."""

    error: str
    detail: str
    body: str = ""
    errors: str


ERRORS = answers(*PLAIN, model=A1111Error)
"""Of every route that A1111's clients know."""


class Answer(BaseModel):
    """images: files in base64. parameters: the request. info: JSON in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def echo_of(fields: Txt2Img) -> str:
    """The request, as JSON.

    Raises:
        InvalidRequest: a field that nobody looked at holds a number that JSON does not know.
    """
    # A key that SillyTavern leaves in the body too.
    echo = fields.model_dump(exclude={"auth"})
    if "init_images" in echo:
        echo["init_images"] = echo["init_images"] or None
    written = []
    for name, value in echo.items():
        # Of A1111's own defaults one is infinite.
        told = None if value == math.inf else value
        try:
            written.append(f"{json.dumps(name)}:{json.dumps(told, allow_nan=False)}")
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{name} holds what JSON cannot tell", param=name) from None
    return f"{{{','.join(written)}}}"


def info_of(fields: Txt2Img, prepared: PreparedRequest, drawn: list[Drawn], run: Run) -> dict[str, Any]:
    """What A1111 puts into the answer's `info`, which is JSON in a string.

    Its lists go along with the pictures: after an interruption, those that were drawn.
    """
    request = prepared.request
    receipts = [Receipt.from_dict(each.receipt) for each in drawn]
    seeds = [receipt.seed for receipt in receipts]
    return {
        "prompt": request.prompt,
        "all_prompts": [receipt.prompt for receipt in receipts],
        "negative_prompt": request.negative_prompt or "",
        "all_negative_prompts": [receipt.negative_prompt or "" for receipt in receipts],
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": request.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.scheduler,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": fields.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": receipts[0].model if receipts else None,
        "sd_model_hash": receipts[0].revision if receipts else None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength if request.hires is None else request.hires.strength,
        "extra_generation_params": hires_settings(request.hires),
        "index_of_first_image": 0,
        "infotexts": [parameters_text(receipt) for receipt in receipts],
        "styles": [],
        "job_timestamp": _timestamp(run.began),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"mezzotint {__version__}",
        "interrupted": run.interrupted,
    }


async def written(drawn: Sequence[Drawn]) -> bytes:
    """The files as a list of JSON."""
    files = []
    for each in drawn:
        # In base64 there is nothing to escape.
        files.append(b'"' + base64.b64encode(each.data) + b'"')
        # Ten large pictures take half a second to write down; between two of them others are served.
        await asyncio.sleep(0)
    return b"[" + b",".join(files) + b"]"


def state_of(run: RunStatus | None) -> dict[str, Any]:
    """As A1111's `shared.state` tells it; without a run, that of a server with nothing to do."""
    interrupted = run is not None and run.interrupted
    return {
        "skipped": False,
        "interrupted": interrupted,
        "stopping_generation": interrupted,
        "job": "" if run is None else "draw",
        "job_count": 0 if run is None else run.images,
        "job_timestamp": "0" if run is None else _timestamp(run.began),
        "job_no": 0 if run is None else run.drawn,
        "sampling_step": 0 if run is None else run.step,
        "sampling_steps": 0 if run is None else run.total,
    }


def _timestamp(began: datetime) -> str:
    return began.strftime("%Y%m%d%H%M%S")
