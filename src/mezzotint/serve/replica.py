"""One engine as a Ray Serve deployment. Knows the engine and the file formats, nothing of HTTP.

The event loop here only passes events on: steps run on the engine's loop thread, decoding on its decoder,
encoding on a pool of this module. So health checks and cancellations are answered while the device computes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from opentelemetry.trace import Span

from mezzotint.backends.base import BackendInfo
from mezzotint.config import Settings
from mezzotint.core import (
    Cancelled,
    Done,
    Event,
    Failed,
    GenerationRequest,
    Image,
    Pixels,
    Progress,
    Queued,
    ResolvedRequest,
)
from mezzotint.engine.events import is_final
from mezzotint.errors import GenerationFailed, MezzotintError, ReplicaLost, RequestCancelled
from mezzotint.imaging.previews import encode_preview
from mezzotint.serve.health import Health, check_picture
from mezzotint.serve.telemetry.engine_metrics import EngineMetrics
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.telemetry.tracing import Tracing
from mezzotint.serve.wire import Drawn, Order, Refused, Report, Step, WireEvent

if TYPE_CHECKING:
    from mezzotint.engine.engine import Engine

__all__ = ["EngineReplica"]

_Picture = TypeVar("_Picture")
# Encoding a 1024² picture takes some hundredths of a second; two keep up with more than one core's denoising.
ENCODERS = 2


class EngineReplica:
    """Loads the model and draws its warm-up image before it counts as running."""

    def __init__(self, settings: Settings, engine: Engine | None = None, name: str = "here") -> None:
        self._name = name
        self._engine = _load(settings) if engine is None else engine
        self._health = Health(self._engine)
        self._metrics = EngineMetrics(self._engine, name)
        self._tracing = Tracing.to(settings.otlp_endpoint, "engine", name)
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="mezzotint-encode")

    async def info(self) -> BackendInfo:
        return self._engine.info

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        """Events up to one `Drawn` or `Refused`; unless the order asks for progress, that one alone.

        Closing the iterator, or cancelling the task that reads it, cancels the request in the engine.
        """
        about = {"mezzotint.replica": self._name, "mezzotint.request_id": order.request_id}
        try:
            with self._tracing.span("generate", about, below=order.trace) as span:
                ticket = self._engine.submit(_as_request(order.request), group=order.group)
                try:
                    async for event in ticket.stream:
                        if is_final(event):
                            self._tracing.ran(span, ticket, event)
                        if order.progress or not isinstance(event, Queued | Progress):
                            yield await self._answer(event, order, span)
                finally:
                    ticket.cancel()
        except MezzotintError as error:
            yield Refused.from_error(self._judge(error))

    async def _answer(self, event: Event, order: Order, span: Span) -> WireEvent:
        match event:
            case Done():
                began = time.perf_counter()
                try:
                    with self._tracing.span("encode", {"format": order.format}, below=span):
                        drawn = await self._encode(event, order)
                except BaseException as error:
                    self._metrics.unused(error, order.request.evaluations)
                    raise
                self._metrics.encoded(order.format, time.perf_counter() - began)
                return drawn
            case Failed(error=error):
                raise error
            case Cancelled():
                raise RequestCancelled("the request was cancelled")
            case Progress(preview=preview) if preview is not None:
                return Step(event.step, event.total, await self._encoded(_as_preview, preview, order))
            case Progress():
                return Step(event.step, event.total)
            case _:
                return event

    def _judge(self, error: MezzotintError) -> MezzotintError:
        if not isinstance(error, GenerationFailed):
            return error
        if not self._engine.alive:
            # Not the request's fault: another replica draws it.
            return ReplicaLost("the engine has failed; its replica is being replaced")
        self._health.failed()
        return error

    async def _encode(self, done: Done, order: Order) -> Drawn:
        data = await self._encoded(_as_file, done.image, order)
        self._health.succeeded()
        return Drawn(data, order.format, done.image.receipt.to_dict(), done.queue_s, done.compute_s)

    async def _encoded(
        self, encode: Callable[[_Picture, Order], bytes], picture: _Picture, order: Order
    ) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._encoders, encode, picture, order)

    async def report(self) -> Report:
        """For the gateways, which ask several times a second."""
        outlook = self._engine.outlook()
        return Report(
            replica=self._name,
            info=await self.info(),
            healthy=self._health.good,
            queued=outlook.queued,
            max_queue=outlook.max_queue,
            max_backlog_s=outlook.max_backlog_s,
            backlogs=outlook.backlogs,
            costs=outlook.costs,
            decode_s_a_pixel=outlook.decode_s_a_pixel,
        )

    async def metrics(self) -> Families:
        """What this replica has counted."""
        return self._metrics.families()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks, where the number of replicas may change."""
        return {"backlog_s": sum(self._engine.outlook().backlogs.values())}

    async def check_health(self) -> None:
        """Ray Serve calls this; raising has the replica replaced."""
        await self._health.check()

    def close(self) -> None:
        self._engine.close()
        self._tracing.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def __del__(self) -> None:
        # Ray Serve calls this once the replica's last request has ended, and the collector once more.
        if hasattr(self, "_encoders"):
            self.close()
            del self._encoders


def _as_file(image: Image, order: Order) -> bytes:
    check_picture(image)
    return image.encode(order.format, order.compression)


def _as_preview(preview: Pixels, order: Order) -> bytes:
    return encode_preview(preview, *order.request.size, order.format, order.compression)


def _as_request(resolved: ResolvedRequest) -> GenerationRequest:
    return GenerationRequest(
        **{field.name: getattr(resolved, field.name) for field in fields(GenerationRequest)}
    )


def _load(settings: Settings) -> Engine:
    from mezzotint.engine.engine import Engine

    return Engine.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        tuning=settings.tuning(),
        threads=settings.threads,
        stand_in=settings.stand_in,
        loras=settings.loras,
        controlnets=settings.controlnets,
        embeddings=settings.embeddings,
        ip_adapters=settings.ip_adapters,
        image_encoder=settings.image_encoder,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_backlog_s=settings.max_backlog_s,
        warm_up_sizes=settings.warm_up_sizes,
    )
