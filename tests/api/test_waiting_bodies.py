"""What a client sent is not kept while its picture waits: it is let go of once it is decoded."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ResolvedRequest, ServedControlNet
from mezzotint.errors import MezzotintError
from tests.api.inprocess import gate, replica_of, settings_of
from tests.waiting import until

LIMIT_SECONDS = 60.0
# Of noise, so that as a file it is as large as it looks.
SIDE = 2048
SMALL = {"prompt": "a fox", "steps": 2, "width": 64, "height": 64}
ASKED = {"prompt": "a fox", "num_inference_steps": 2, "size": "64x64"}


@pytest.fixture(scope="module")
def file() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, "PNG")
    return into.getvalue()


def as_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Sent in pieces that the client does not keep."""
    body = json.dumps(fields).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    return {"content": pieces(), "headers": {"content-type": "application/json"}}


def sent(kind: str, file: bytes) -> tuple[str, dict[str, Any]]:
    text = base64.b64encode(file).decode()
    if kind == "img2img":
        return "/sdapi/v1/img2img", as_json({**SMALL, "init_images": [text], "denoising_strength": 1})
    if kind == "ControlNet extension":
        units = {"controlnet": {"args": [{"model": "lines", "image": text}]}}
        return "/sdapi/v1/txt2img", as_json({**SMALL, "alwayson_scripts": units})
    if kind == "generations":
        return "/v1/images/generations", as_json({**ASKED, "controls": [{"name": "lines", "image": text}]})
    return "/v1/images/edits", {"data": {**ASKED, "strength": 1}, "files": {"image": file}}


@pytest.mark.parametrize("kind", ["img2img", "ControlNet extension", "generations", "edits"])
async def test_while_a_picture_waits_nobody_keeps_what_it_is_drawn_from_as_it_was_sent(
    kind: str, file: bytes, tmp_path: Path
) -> None:
    go_on = threading.Event()

    def hold(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        assert where != "step" or go_on.wait(LIMIT_SECONDS)
        return None

    settings = settings_of(tmp_path)
    backend = FakeBackend(fault=hold, controlnets=[ServedControlNet("lines", "0" * 64)])
    replica = replica_of(settings, backend)
    try:
        async with gate(settings, replica) as its:
            path, body = sent(kind, file)
            gc.collect()
            tracemalloc.start()
            try:
                answer = asyncio.create_task(its.client.post(path, **body))
                # In its first pass, which is held up.
                await until(lambda: backend.passes > 0, "the pass")
                gc.collect()
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
                go_on.set()
            response = await answer
            assert response.status_code == 200, response.text
            assert kept < len(file) / 2, f"{kept / len(file):.2f} of what was sent"
    finally:
        await asyncio.to_thread(replica.close)
