"""One engine as a Ray Serve deployment. Knows the engine and the file formats, nothing of HTTP.

The event loop here only passes events on: steps run on the engine's loop thread, decoding on its decoder,
encoding on a pool of this module. So health checks and cancellations are answered while the device computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mezzotint.backends.base import BackendInfo
from mezzotint.config import Settings
from mezzotint.core import Cancelled, Done, Event, Failed, GenerationRequest, Image
from mezzotint.errors import MezzotintError, RequestCancelled
from mezzotint.serve.wire import Drawn, Refused, WireEvent

if TYPE_CHECKING:
    from mezzotint.engine.engine import Engine

__all__ = ["EngineReplica"]

# Encoding a 1024² PNG takes about a tenth of a second; two keep up with more than one core's denoising.
ENCODERS = 2


class EngineReplica:
    """Loads the model and draws its warm-up image before it counts as running."""

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self._engine = _load(settings) if engine is None else engine
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="mezzotint-encode")

    async def info(self) -> BackendInfo:
        info = self._engine.info
        return replace(info, versions=dict(info.versions))

    async def generate(
        self, request: GenerationRequest, format: str, progress: bool = False
    ) -> AsyncGenerator[WireEvent]:
        """Events up to one `Drawn` or `Refused`; without `progress`, that one alone.

        Closing the iterator, or cancelling the task that reads it, cancels the request in the engine.
        """
        try:
            async with aclosing(self._engine.stream(request)) as events:
                async for event in events:
                    answer = await self._answer(event, format)
                    if progress or isinstance(answer, Drawn | Refused):
                        yield answer
        except MezzotintError as error:
            yield Refused.from_error(error)

    async def _answer(self, event: Event, format: str) -> WireEvent:
        match event:
            case Done():
                return await self._encode(event, format)
            case Failed(error=error):
                return Refused.from_error(error)
            case Cancelled():
                return Refused.from_error(RequestCancelled("the request was cancelled"))
            case _:
                return event

    async def _encode(self, done: Done, format: str) -> Drawn:
        encode = partial(Image.encode, done.image, format)
        data = await asyncio.get_running_loop().run_in_executor(self._encoders, encode)
        return Drawn(data, format, done.image.receipt.to_dict(), done.queue_s, done.compute_s)

    async def status(self) -> dict[str, float]:
        """The engine's counters by name, for the gateway's operations routes."""
        status = self._engine.status()
        return {"queued": status.queued, "running": status.running, "decoding": status.decoding}

    def check_health(self) -> None:
        """Ray Serve calls this; raising has the replica replaced."""
        if not self._engine.alive:
            raise RuntimeError("the engine's loop has ended")

    def close(self) -> None:
        self._engine.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def __del__(self) -> None:
        # Ray Serve calls this once the replica's last request has ended, and the collector once more.
        if hasattr(self, "_encoders"):
            self.close()
            del self._encoders


def _load(settings: Settings) -> Engine:
    from mezzotint.engine.engine import Engine

    return Engine.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        compile=settings.compile,
        threads=settings.threads,
        max_width=settings.max_width,
        max_queue=settings.max_queue,
    )
