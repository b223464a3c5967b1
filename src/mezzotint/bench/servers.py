"""The servers that are compared, on the same weights: the engine, and the two ways others serve diffusion.

- `engine_server`: this project, scheduling single steps.
- `request_batch_server`: request-level batching keyed by parameters, as `@serve.batch` does it: requests with
  the same steps, guidance and size that come within a short wait go through one pipeline call together, and
  all wait for its end.
- `blocking_server`: one pipeline call at a time, first come, first served, as a blocking endpoint serves.
  Given a backlog, it is diffusers in a serial loop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mezzotint.backends.base import Backend, BackendInfo, MakeWay, PendingPreview, go_straight_on
from mezzotint.bench.load import Server
from mezzotint.core import (
    Cancelled,
    Done,
    Failed,
    GenerationRequest,
    Latents,
    Pixels,
    ResolvedRequest,
    Upscaler,
)
from mezzotint.engine.engine import Engine
from mezzotint.errors import MezzotintError

__all__ = [
    "MAX_BATCH",
    "Draw",
    "Pass",
    "RecordingBackend",
    "blocking_server",
    "engine_server",
    "request_batch_server",
]

Draw = Callable[[Sequence[GenerationRequest]], Any]
"""One pipeline call: requests that differ only in prompt and seed, to their images."""

MAX_BATCH = 8
BATCH_WAIT_SECONDS = 0.05


@contextmanager
def engine_server(engine: Engine) -> Iterator[Server]:
    """The engine as a server. One listening thread a request, which costs the engine nothing."""

    def serve(request: GenerationRequest) -> Future[None]:
        ticket, future = engine.submit(request), Future[None]()

        def listen() -> None:
            for event in ticket.events():
                match event:
                    case Done():
                        future.set_result(None)
                    case Failed(error=error):
                        future.set_exception(error)
                    case Cancelled():
                        future.cancel()

        threading.Thread(target=listen, daemon=True).start()
        return future

    yield serve


@contextmanager
def blocking_server(draw: Draw) -> Iterator[Server]:
    with request_batch_server(draw, max_batch=1, wait_seconds=0.0) as server:
        yield server


@contextmanager
def request_batch_server(
    draw: Draw, *, max_batch: int = MAX_BATCH, wait_seconds: float = BATCH_WAIT_SECONDS
) -> Iterator[Server]:
    """Batches of equal parameters; the key whose first request came first goes next."""
    incoming: queue.Queue[tuple[GenerationRequest, Future[None]] | None] = queue.Queue()
    worker = threading.Thread(target=_serve_batches, args=(draw, incoming, max_batch, wait_seconds))
    worker.start()

    def serve(request: GenerationRequest) -> Future[None]:
        future: Future[None] = Future()
        incoming.put((request, future))
        return future

    try:
        yield serve
    finally:
        incoming.put(None)
        worker.join()


def _serve_batches(
    draw: Draw,
    incoming: queue.Queue[tuple[GenerationRequest, Future[None]] | None],
    max_batch: int,
    wait_seconds: float,
) -> None:
    waiting: list[tuple[GenerationRequest, Future[None]]] = []
    closed = False
    while not closed or waiting:
        if not waiting and not closed:
            item = incoming.get()
            if item is None:
                closed = True
                continue
            waiting.append(item)
        first = waiting[0][0]
        deadline = time.perf_counter() + wait_seconds
        while sum(_same(first, request) for request, _ in waiting) < max_batch:
            try:
                item = incoming.get(timeout=max(0.0, deadline - time.perf_counter()))
            except queue.Empty:
                break
            if item is None:
                closed = True
                break
            waiting.append(item)
        batch = [entry for entry in waiting if _same(first, entry[0])][:max_batch]
        waiting = [entry for entry in waiting if entry not in batch]
        try:
            draw([request for request, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for _, future in batch:
                future.set_result(None)


def _same(one: GenerationRequest, other: GenerationRequest) -> bool:
    return _parameters(one) == _parameters(other)


def _parameters(request: GenerationRequest) -> tuple[object, ...]:
    return (request.steps, request.guidance_scale, request.width, request.height, request.scheduler)


@dataclass(frozen=True)
class Pass:
    """One pass as it happened, on `time.perf_counter`'s clock; `beside_s` went to something else after it."""

    began: float
    ended: float
    request_ids: tuple[str, ...]
    beside_s: float = 0.0


@dataclass(eq=False)
class RecordingBackend:
    """A backend that notes each pass of the one it wraps, and runs `beside`, when set, after each."""

    inner: Backend
    passes: list[Pass] = field(default_factory=list)
    beside: Callable[[], None] | None = None

    @property
    def info(self) -> BackendInfo:
        return self.inner.info

    @property
    def counters(self) -> Mapping[str, int]:
        return self.inner.counters

    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        return self.inner.start(request_id, request)

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        began = time.perf_counter()
        failed = self.inner.step(request_ids)
        ended = time.perf_counter()
        if self.beside is not None:
            self.beside()
        self.passes.append(Pass(began, ended, tuple(request_ids), time.perf_counter() - ended))
        return failed

    def preview(self, request_id: str) -> PendingPreview:
        return self.inner.preview(request_id)

    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        return self.inner.decode(request_id, make_way)

    def latents(self, request_id: str, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        return self.inner.latents(request_id, size, upscaler)

    def release(self, request_id: str) -> None:
        self.inner.release(request_id)

    def close(self) -> None:
        self.inner.close()
