"""What a job is to draw, as the job store keeps it. Nothing is left open when the job is made, so whoever
draws it, whenever and however often, draws the same.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image as PilImage

from mezzotint.core import (
    Control,
    GenerationRequest,
    Hires,
    ImagePrompt,
    Lora,
    Pixels,
    ResolvedRequest,
    known_fields,
    size_of,
)
from mezzotint.serve.stores.images import ImageStore
from mezzotint.serve.stores.job import UPLOADS

__all__ = ["WAITING_SECONDS", "Work"]

# A job's pictures are deleted with it, which is `job_ttl_s` after its end. Nobody knows that end before; they
# are kept for so much longer, if it does not come.
WAITING_SECONDS = 30 * 24 * 3_600.0
# The pictures are in the image store; the others are the job's own, or the key's that it is drawn for.
NOT_KEPT = ("image", "mask", "controls", "image_prompts", "tenant", "deadline_s")
# Of the former, those that are lists of pictures with what is made of each.
READ: Mapping[str, type[Control | ImagePrompt]] = {"controls": Control, "image_prompts": ImagePrompt}


@dataclass(frozen=True)
class Work:
    """request: the first picture's; picture i has seed + i.

    cost_s: seconds of an engine that all of them take, as it was estimated when the job was made.
    image, mask: names in the image store.
    controls, image_prompts: each as `Control` or `ImagePrompt` has it, its `image` a name in the image store.
    """

    request: GenerationRequest
    model: str
    format: str = "png"
    compression: int | None = None
    cost_s: float = 0.0
    image: str | None = None
    mask: str | None = None
    controls: tuple[Mapping[str, Any], ...] = ()
    image_prompts: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, resolved: ResolvedRequest, **rest: Any) -> Work:
        """From what the gateway resolved."""
        names = [field.name for field in fields(GenerationRequest) if field.name not in NOT_KEPT]
        return cls(GenerationRequest(**{name: getattr(resolved, name) for name in names}), **rest)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Work:
        """As `to_json` wrote it. What a later version knew besides is left out."""
        request = known_fields(GenerationRequest, told["request"])
        request["loras"] = tuple(Lora(**known_fields(Lora, lora)) for lora in request.get("loras", ()))
        hires = request.get("hires")
        request["hires"] = None if hires is None else Hires(**known_fields(Hires, hires))
        read = {
            name: tuple(known_fields(kind, each) for each in told.get(name, ()))
            for name, kind in READ.items()
        }
        return cls(**{**known_fields(cls, told), **read, "request": GenerationRequest(**request)})

    def to_json(self) -> dict[str, Any]:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        request = {field.name: getattr(self.request, field.name) for field in fields(self.request)}
        request["loras"] = [asdict(lora) for lora in self.request.loras]
        request["hires"] = None if self.request.hires is None else asdict(self.request.hires)
        request = {name: request[name] for name in request if name not in NOT_KEPT}
        # For the store, which need not know what they are for.
        return {**told, "request": request, UPLOADS: self.uploads}

    async def with_pictures_of(self, drawn: ResolvedRequest, images: ImageStore, ttl_s: float) -> Work:
        """With what `drawn` starts from and is held to, kept without loss until the job is forgotten.

        ttl_s: for how long a finished job is kept.

        Raises:
            StoreUnavailable: they cannot be kept, and none of them is.
        """
        kept: list[str] = []

        async def keep(pixels: Pixels | None) -> str | None:
            if pixels is None:
                return None
            data = await asyncio.to_thread(_encode, pixels)
            kept.append(await images.put(data, "png", ttl_s + WAITING_SECONDS))
            return kept[-1]

        try:
            image, mask = await keep(drawn.image), await keep(drawn.mask)
            read: dict[str, Any] = {}
            for name in READ:
                asked = getattr(drawn, name)
                told = [{**_without_image(each), "image": await keep(each.image)} for each in asked]
                read[name] = tuple(told)
        except BaseException:
            await images.delete(kept)
            raise
        return replace(self, image=image, mask=mask, **read)

    @property
    def uploads(self) -> list[str]:
        """Names in the image store."""
        read = (each["image"] for each in (*self.controls, *self.image_prompts))
        names = (self.image, self.mask, *read)
        return [name for name in names if name is not None]

    @property
    def first_seed(self) -> int:
        assert self.request.seed is not None
        return self.request.seed

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        width, height = self.request.width, self.request.height
        assert width is not None
        assert height is not None
        return size_of(width, height, self.request.hires)

    async def to_request(self, images: ImageStore) -> GenerationRequest:
        """The first picture's request, with the pictures it starts from.

        Raises:
            ImageNotFound, StoreUnavailable: they cannot be had.
        """
        image, mask = await _fetch(images, self.image), await _fetch(images, self.mask)
        read: dict[str, Any] = {}
        for name, kind in READ.items():
            told = getattr(self, name)
            read[name] = tuple(
                [kind(**{**each, "image": await _read(images, each["image"])}) for each in told]
            )
        return replace(self.request, image=image, mask=mask, **read)


def _without_image(read: Control | ImagePrompt) -> dict[str, Any]:
    """All of it but its picture."""
    return {each.name: getattr(read, each.name) for each in fields(read) if each.name != "image"}


async def _fetch(images: ImageStore, name: str | None) -> Pixels | None:
    return None if name is None else await _read(images, name)


async def _read(images: ImageStore, name: str) -> Pixels:
    data, _ = await images.get(name)
    return await asyncio.to_thread(_decode, data)


def _encode(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _decode(data: bytes) -> Pixels:
    with PilImage.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.array(picture, dtype=np.uint8)
