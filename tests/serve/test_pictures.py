"""Pictures through a replica: previews at full size, compression as asked, images and masks drawn from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.config import Settings
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.imaging.inputs import pixels_sha256
from mezzotint.resolving import resolve
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.wire import Drawn, Order, Step, WireEvent


@pytest.fixture
def replica() -> Iterator[EngineReplica]:
    replica = EngineReplica(Settings(model="fake"), Engine(FakeBackend(pass_seconds=0.01)))
    yield replica
    replica.close()


async def drawn(replica: EngineReplica, *, format: str = "png", **fields: Any) -> list[WireEvent]:
    compression = fields.pop("compression", None)
    request = resolve(GenerationRequest(**{"prompt": "a fox", "seed": 1, "steps": 4, **fields}), FAKE_LIMITS)
    order = Order(request, format, compression, progress=True)
    return [event async for event in replica.generate(order)]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_a_preview_has_the_pictures_size_and_format(replica: EngineReplica, format: str) -> None:
    events = await drawn(replica, format=format, preview_every=1, width=96, height=64)
    previews = [event.preview for event in events if isinstance(event, Step) and event.preview]
    assert previews
    for preview in previews:
        with PilImage.open(io.BytesIO(preview)) as picture:
            assert (picture.format, picture.size) == (format.upper(), (96, 64))
    assert isinstance(events[-1], Drawn)


async def test_no_preview_is_encoded_that_nobody_asked_for(replica: EngineReplica) -> None:
    assert all(event.preview is None for event in await drawn(replica) if isinstance(event, Step))


async def test_the_orders_compression_reaches_the_file(replica: EngineReplica) -> None:
    sizes = []
    for compression in (5, 95):
        last = (await drawn(replica, format="jpeg", compression=compression))[-1]
        assert isinstance(last, Drawn)
        sizes.append(len(last.data))
    assert sizes[0] < sizes[1] / 2


async def test_a_picture_from_an_image_and_a_mask_says_so_in_its_receipt(replica: EngineReplica) -> None:
    image, mask = np.zeros((70, 100, 3), np.uint8), np.full((70, 100), 255, np.uint8)
    last = (await drawn(replica, image=image, mask=mask, strength=0.5))[-1]
    assert isinstance(last, Drawn)
    assert (last.receipt["width"], last.receipt["height"], last.receipt["strength"]) == (96, 64, 0.5)
    assert last.receipt["image_sha256"] == pixels_sha256(image[:64, :96])
    assert last.receipt["mask_sha256"] == pixels_sha256(mask[:64, :96])
