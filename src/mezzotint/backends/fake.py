"""A backend that draws nothing real, quickly and always the same: for tests, clients and load tools.

Pixels are noise that follows from the resolved request alone. Times and faults are settable, so that whatever
stands on the engine can be tried against a slow, a failing or a full device without one. No torch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mezzotint.backends.base import BackendInfo, MakeWay, PendingPreview, go_straight_on
from mezzotint.core import (
    PIXELS_PER_LATENT,
    UPSCALERS,
    Latents,
    ModelLimits,
    Pixels,
    ResolvedRequest,
    ServedControlNet,
    ServedEmbedding,
    ServedIpAdapter,
    ServedLora,
    Upscaler,
)
from mezzotint.errors import GenerationFailed, InvalidRequest, MezzotintError
from mezzotint.imaging.inputs import pixels_sha256

__all__ = ["FAKE_LIMITS", "FakeBackend", "Fault"]

FAKE_LIMITS = ModelLimits(
    default_width=128,
    default_height=128,
    default_steps=20,
    default_guidance_scale=5.0,
    default_scheduler="Euler",
    min_size=64,
    max_size=1024,
    max_pixels=1024 * 1024,
)

DECODE_PIECES = 4

Fault = Callable[[str, ResolvedRequest, int], MezzotintError | None]
"""Asked at each "start", "step" and "decode" with the request and its evaluations so far."""


class FakeBackend:
    """`pass_seconds` + `row_seconds` × images seconds a pass, `decode_seconds` a decode.

    After `blank_after` pictures every further one is of one colour, after `nan_after` none is finite: what a
    device makes that has gone wrong.
    """

    def __init__(
        self,
        *,
        pass_seconds: float = 0.0,
        row_seconds: float = 0.0,
        decode_seconds: float = 0.0,
        max_batch: int = 8,
        fault: Fault | None = None,
        blank_after: float = math.inf,
        nan_after: float = math.inf,
        loras: Sequence[ServedLora] = (),
        controlnets: Sequence[ServedControlNet] = (),
        embeddings: Sequence[ServedEmbedding] = (),
        ip_adapters: Sequence[ServedIpAdapter] = (),
    ) -> None:
        self._pass_seconds = pass_seconds
        self._row_seconds = row_seconds
        self._decode_seconds = decode_seconds
        self._fault = fault
        self._blank_after, self._nan_after = blank_after, nan_after
        self._decoded = 0
        self._rows: dict[str, tuple[ResolvedRequest, int]] = {}
        self.passes: int = 0
        self._info = BackendInfo(
            model="fake",
            revision="1",
            backend="fake",
            device="none",
            dtype="none",
            limits=replace(
                FAKE_LIMITS,
                loras=tuple(loras),
                controlnets=tuple(controlnets),
                embeddings=tuple(embeddings),
                ip_adapters=tuple(ip_adapters),
            ),
            max_batch=max_batch,
        )

    @classmethod
    def from_name(cls, name: str) -> FakeBackend:
        """From `fake` or `fake:pass_seconds=0.05,decode_seconds=0.1`.

        Raises:
            InvalidRequest: on `model`, when an option is unknown or not a number.
        """
        _, _, options = name.partition(":")
        accepted = ("pass_seconds", "row_seconds", "decode_seconds", "max_batch", "blank_after", "nan_after")
        values: dict[str, Any] = {}
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if key not in accepted or not 0 <= number < 3600:
                raise InvalidRequest(
                    f"fake takes {', '.join(accepted)} as numbers from 0, not {option!r}", param="model"
                )
            values[key] = max(1, int(number)) if key == "max_batch" else number
        return cls(**values)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def counters(self) -> Mapping[str, int]:
        return {}

    @property
    def held(self) -> int:
        """How many requests hold state here."""
        return len(self._rows)

    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        self._raise_fault("start", request, 0)
        self._rows[request_id] = (request, 0)
        return ()

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        if not 1 <= len(request_ids) <= self._info.max_batch:
            raise AssertionError(f"a pass of {len(request_ids)} images; at most {self._info.max_batch}")
        self.passes += 1
        _sleep(self._pass_seconds + self._row_seconds * len(request_ids))
        failed: dict[str, MezzotintError] = {}
        for request_id in request_ids:
            request, done = self._rows[request_id]
            self._rows[request_id] = (request, done + 1)
            error = self._fault("step", request, done + 1) if self._fault else None
            if error is not None:
                failed[request_id] = error
        return failed

    def preview(self, request_id: str) -> PendingPreview:
        request, done = self._rows[request_id]
        height, width = (side // PIXELS_PER_LATENT for side in (request.height, request.width))
        pixels = _noise(request, height, width, salt=done)
        return lambda: pixels

    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        request, done = self._rows[request_id]
        if done != request.evaluations:
            raise AssertionError(f"decoded after {done} of {request.evaluations} evaluations")
        for _ in range(DECODE_PIECES):
            _sleep(self._decode_seconds / DECODE_PIECES)
            make_way(lambda: None)
        self._raise_fault("decode", request, done)
        self._decoded += 1
        if self._decoded > self._nan_after:
            raise GenerationFailed("the decoded picture holds values that are not finite numbers")
        if self._decoded > self._blank_after:
            return np.zeros((request.height, request.width, 3), np.uint8)
        return _noise(request, request.height, request.width)

    def latents(self, request_id: str, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        request, done = self._rows[request_id]
        if done != request.evaluations:
            raise AssertionError(f"enlarged after {done} of {request.evaluations} evaluations")
        height, width = (side // PIXELS_PER_LATENT for side in reversed(size))
        noise = _noise(request, height, width, salt=UPSCALERS.index(upscaler))
        return np.moveaxis(noise[..., [0, 1, 2, 0]], 2, 0).astype(np.float32)

    def release(self, request_id: str) -> None:
        self._rows.pop(request_id, None)

    def close(self) -> None:
        self._rows.clear()

    def _raise_fault(self, where: str, request: ResolvedRequest, done: int) -> None:
        error = self._fault(where, request, done) if self._fault else None
        if error is not None:
            raise error


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _noise(request: ResolvedRequest, height: int, width: int, salt: int = 0) -> Pixels:
    # What does not change the picture must not change the noise.
    drawn = replace(request, deadline_s=None, preview_every=0, tenant="", priority="normal")
    pictures = (
        *(request.image, request.mask, request.latents),
        *(each.image for each in request.controls),
        *(each.image for each in request.image_prompts),
    )
    digest = hashlib.sha256(f"{drawn}{[_seen(each) for each in pictures]}{salt}".encode()).digest()
    return np.random.default_rng(list(digest)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _seen(pixels: NDArray[Any] | None) -> str:
    return "" if pixels is None else pixels_sha256(pixels)
