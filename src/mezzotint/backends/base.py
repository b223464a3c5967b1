"""The protocol between the engine's loop and whatever computes.

The engine knows requests by id and never sees a tensor; a backend keeps latents, embeddings and samplers
keyed by that id, from `start` to `release`, and knows nothing of queues, clocks or clients.

Threads: `start`, `step`, `preview` and `release` are called from the engine's loop thread, one at a time;
`decode` and `latents` from another, while the loop goes on with the steps of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mezzotint.core import (
    Latents,
    ModelLimits,
    Pixels,
    Receipt,
    ResolvedRequest,
    Upscaler,
    UsedControl,
    UsedEmbedding,
    UsedImagePrompt,
    UsedLora,
)
from mezzotint.errors import MezzotintError
from mezzotint.imaging.inputs import pixels_sha256

__all__ = ["Backend", "BackendInfo", "MakeWay", "PendingPreview", "go_straight_on"]


@dataclass(frozen=True)
class BackendInfo:
    """What is loaded, for receipts and capabilities. `max_batch` bounds the images in one step."""

    model: str
    revision: str
    backend: str
    device: str
    dtype: str
    limits: ModelLimits
    # A default for what a replica of an earlier version tells, which calls it otherwise.
    max_batch: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)

    def receipt(self, request: ResolvedRequest, warnings: tuple[str, ...] = ()) -> Receipt:
        """How to draw `request`'s picture again, with this backend."""
        hashes = {lora.name: lora.sha256 for lora in self.limits.loras}
        controlnets = {each.name: each.sha256 for each in self.limits.controlnets}
        adapters = {each.name: each for each in self.limits.ip_adapters}
        embeddings = {each.name: each.sha256 for each in self.limits.embeddings}
        return Receipt(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            scheduler=request.scheduler,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            model=self.model,
            revision=self.revision,
            backend=self.backend,
            dtype=self.dtype,
            versions=dict(self.versions),
            warnings=warnings,
            strength=request.strength,
            image_sha256=None if request.image is None else pixels_sha256(request.image),
            mask_sha256=None if request.mask is None else pixels_sha256(request.mask),
            loras=tuple(UsedLora(lora.name, lora.scale, hashes[lora.name]) for lora in request.loras),
            controls=tuple(
                UsedControl(
                    name=each.name,
                    preprocessor=each.preprocessor,
                    scale=each.scale,
                    start=each.start,
                    end=each.end,
                    image_sha256=pixels_sha256(each.image),
                    sha256=controlnets[each.name],
                )
                for each in request.controls
            ),
            image_prompts=tuple(
                UsedImagePrompt(
                    each.name,
                    each.scale,
                    pixels_sha256(each.image),
                    adapters[each.name].sha256,
                    adapters[each.name].encoder_sha256,
                )
                for each in request.image_prompts
            ),
            embeddings=tuple(UsedEmbedding(name, embeddings[name]) for name in request.embeddings),
            emphasis=request.emphasis,
            hires=request.hires,
        )


PendingPreview = Callable[[], Pixels | None]
"""A preview to come: called, its pixels, or None as long as the device is still at them."""


MakeWay = Callable[[Callable[[], None]], None]
"""Called between the pieces of a decode, for the passes beside it: it may rest for a while, or raise where
nobody wants the picture any more. It is given what waits until the device has done the pieces so far."""


def go_straight_on(finish: Callable[[], None]) -> None:
    """A decode that makes way for nobody."""


class Backend(Protocol):
    """Seven methods, a description and counters."""

    @property
    def info(self) -> BackendInfo: ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What the backend counts since it was loaded, by name: prompt_cache_hits, prompt_cache_misses."""
        ...

    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        """Encode the prompts and the input image, draw the initial noise. Returns warnings for the receipt.

        Raises:
            MezzotintError: this request cannot be drawn; nothing is kept of it.
        """
        ...

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        """Advance each request by one UNet evaluation, all in one pass.

        The requests share latent size and LoRAs; some may be guided and others not. Returns those of them
        that failed, in this pass or, where the device runs behind the host, in the one before; the others
        have moved on by one.

        Raises:
            MezzotintError: the pass as a whole failed (out of memory, device lost); none has moved.
        """
        ...

    def preview(self, request_id: str) -> PendingPreview:
        """A cheap image of the running picture: latent height × latent width × 3, or the picture's size."""
        ...

    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        """The finished latents as pixels, height × width × 3. Where decoding has pieces, `make_way` is
        called between them.

        Raises:
            MezzotintError: no usable picture came out. And what `make_way` raises.
        """
        ...

    def latents(self, request_id: str, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        """The finished latents, enlarged by one of `UPSCALERS` that enlarge latents to those of a picture of
        `size` (width, height), for a second stage.

        Raises:
            MezzotintError: they are no finite numbers.
        """
        ...

    def release(self, request_id: str) -> None:
        """Forget the request. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...
