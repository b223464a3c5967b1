"""Between the HTTP surfaces and the replicas: completes a request, asks a replica, gives picture or error.

Random seeds are drawn here, so that a request sent on is complete: asking a second replica after the first
was lost gives the same picture. Ray is not known here; `Replicas` is what there is to ask.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from mezzotint.backends.base import BackendInfo
from mezzotint.core import GenerationRequest, ResolvedRequest, resolve
from mezzotint.errors import (
    GenerationFailed,
    MezzotintError,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
)
from mezzotint.serve.wire import Drawn, Refused, WireEvent

__all__ = ["Gateway", "Plate", "Replicas"]

# How long a route waits for a replica to say what it has loaded.
INFO_SECONDS = 5.0
RETRY_AFTER_SECONDS = 2.0


class Replicas(Protocol):
    """The engine replicas, whichever of them answers."""

    def info(self) -> Awaitable[BackendInfo]:
        """What a replica has loaded. Raises `ModelLoading`: there is none; `QueueFull`: all are full."""
        ...

    def generate(self, request: GenerationRequest, format: str) -> AsyncGenerator[WireEvent]:
        """Events up to `Drawn` or `Refused`; closing it cancels. Raises as `info`: lost, or full."""
        ...


@dataclass(frozen=True)
class Plate:
    """A complete request and how its picture is wanted.

    `etag` names the picture that follows from it, weakly (RFC 9110, 8.8.1): drawn in a batch, a channel may
    differ by 1/255 from the same picture drawn alone.
    """

    request: ResolvedRequest
    format: str
    etag: str


class Gateway:
    def __init__(self, replicas: Replicas, deadline_s: float) -> None:
        self._replicas = replicas
        self._deadline_s = deadline_s
        self._info: BackendInfo | None = None

    async def start(self) -> None:
        """Wait until a replica has said what it serves, however long loading takes."""
        while self._info is None:
            try:
                self._info = await self._replicas.info()
            except (ModelLoading, QueueFull):
                await asyncio.sleep(RETRY_AFTER_SECONDS)

    async def ready(self) -> BackendInfo:
        """What is served, asked anew.

        Raises:
            ModelLoading, QueueFull: no replica answered, or all of them have too much to do for that.
        """
        try:
            async with asyncio.timeout(INFO_SECONDS):
                self._info = await self._replicas.info()
        except TimeoutError:
            raise ModelLoading("the model is loading", retry_after_s=RETRY_AFTER_SECONDS) from None
        return self._info

    async def prepare(self, request: GenerationRequest, format: str, model: str | None = None) -> Plate:
        """Check the request against the served model and fill in its defaults.

        Raises:
            InvalidRequest: a field is not accepted.
            ModelNotFound: `model` is not the one that is served.
            ModelLoading: no replica has said yet what it serves.
        """
        info = self._info or await self.ready()
        if model is not None and model != info.model:
            raise ModelNotFound(f"no model {model!r} here; {info.model} is served", param="model")
        resolved = resolve(request, info.limits)
        deadline = min(resolved.deadline_s or self._deadline_s, self._deadline_s)
        drawn = {**asdict(resolved), "deadline_s": None, "preview_every": 0}
        made_by = [info.model, info.revision, info.backend, info.device, info.dtype, dict(info.versions)]
        name = hashlib.sha256(json.dumps([drawn, format, made_by], sort_keys=True).encode()).hexdigest()
        return Plate(replace(resolved, deadline_s=deadline), format, f'W/"{name[:32]}"')

    async def draw(self, plate: Plate) -> Drawn:
        """Draw the plate; once more on another replica when the first was lost or is closing.

        Raises:
            MezzotintError: why there is no picture.
        """
        try:
            return await self._draw(plate)
        except (ModelLoading, ShuttingDown):
            return await self._draw(plate)

    async def _draw(self, plate: Plate) -> Drawn:
        request = GenerationRequest(**asdict(plate.request))
        final: WireEvent | None = None
        async with aclosing(self._replicas.generate(request, plate.format)) as events:
            async for final in events:
                if isinstance(final, Refused):
                    raise _told(final.to_error())
        if not isinstance(final, Drawn):
            raise GenerationFailed("the replica ended without a picture")
        return final


def _told(error: MezzotintError) -> MezzotintError:
    # The client knows the time of a retry only when the server says one.
    if error.status in (429, 503) and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_SECONDS
    return error
