"""The loop: plan → run → settle, one pass of the UNet at a time.

The life of a request:

1. `submit` resolves it against the model's limits and puts it in the scheduler (`Queued`).
2. The loop thread plans a pass; a request chosen for the first time is started in the backend.
3. The pass runs; each request in it has moved one evaluation on (`Progress`).
4. A request with no evaluation left goes to the decoding thread, and the loop goes on without it.
5. Its pixels become an `Image` with a receipt (`Done`). On any way out, the backend forgets it.

Three kinds of thread meet here: callers, the loop, and the decoder. One lock guards the scheduler, the cost
table and the tickets; it is never held while the backend computes.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mezzotint.backends.base import Backend, BackendInfo
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
    resolve,
)
from mezzotint.engine.calibration import measure_passes
from mezzotint.engine.cost import StepCost
from mezzotint.engine.scheduler import Plan, Scheduler, State, batch_key
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import (
    DeadlineExceeded,
    GenerationFailed,
    MezzotintError,
    QueueFull,
    ShuttingDown,
)

__all__ = ["Engine", "EngineStatus", "Ticket"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_QUEUE = 256
MAX_RUNNING = 32
# How often those who wait are told where they stand.
QUEUE_NEWS_SECONDS = 0.5
WARM_UP_PROMPT = "a mezzotint"


@dataclass(frozen=True)
class EngineStatus:
    """A look at the engine. Seconds are summed over its life, apart from `backlog_s`."""

    queued: int
    running: int
    decoding: int
    backlog_s: float
    passes: int
    images_stepped: int
    pass_s: float
    busy_s: float


class Engine:
    """Draws many requests at once on one backend. Thread-safe; also a context manager."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        max_width: int | None = None,
    ) -> None:
        self._backend = backend
        self._max_queue = max_queue
        widest = min(max_width or backend.info.max_width, backend.info.max_width)
        self.cost = StepCost(widest)
        self._scheduler = Scheduler(self.cost, max_running=MAX_RUNNING)
        self._tickets: dict[str, Ticket] = {}
        self._cancels: set[str] = set()
        # Ended requests the backend has yet to forget, which only the loop may ask of it.
        self._ended: deque[str] = deque()
        # Requests the decoder has in hand; they are forgotten once it lets go of them.
        self._in_decoder: set[str] = set()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._accepting = True
        self._closing = False
        self._passes = self._images_stepped = 0
        self._pass_s = self._busy_s = 0.0
        self._queue_news_at = 0.0
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-decode")
        self._thread = threading.Thread(target=self._loop, name="mezzotint-loop", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        model: str = "demo",
        *,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        threads: int | None = None,
        max_width: int | None = None,
        max_queue: int = DEFAULT_MAX_QUEUE,
        warm_up: bool = True,
    ) -> Engine:
        """An engine on a model by name, folder or single `.safetensors` file.

        Raises:
            ModelNotFound, ModelInvalid: there is no such model, or its files are not what they should be.
            SettingInvalid: this machine has no such device, or cannot compute in `dtype`.
        """
        # Here and not above: whoever brings a backend of their own needs no torch.
        from mezzotint.models.loading import load_backend

        backend = load_backend(model, device=device, dtype=dtype, compile=compile, threads=threads)
        engine = cls(backend, max_queue=max_queue, max_width=max_width)
        if warm_up:
            try:
                engine.warm_up()
            except BaseException:
                engine.close()
                raise
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # For callers

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    @property
    def alive(self) -> bool:
        """Whether the loop is there to serve. False after `close` or a fault of the engine itself."""
        return self._accepting and not self._closing and self._thread.is_alive()

    def generate(self, request: GenerationRequest) -> Image:
        """Draw one picture and wait for it.

        Raises:
            MezzotintError: why there is none.
        """
        ticket = self.submit(request)
        try:
            return ticket.result()
        except BaseException:
            ticket.cancel()
            raise

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Draw one picture, event by event. Leaving the iteration cancels the request.

        Raises:
            InvalidRequest, QueueFull, ShuttingDown: nothing was started. Later failures are events.
        """
        ticket = self.submit(request)
        try:
            async for event in ticket.stream:
                yield event
        finally:
            ticket.cancel()

    def submit(self, request: GenerationRequest) -> Ticket:
        """Queue one picture.

        Raises:
            InvalidRequest: a field is not accepted.
            QueueFull: `max_queue` requests wait already; carries the seconds until there is room.
            ShuttingDown: the engine is closing.
        """
        resolved = resolve(request, self.info.limits)
        ticket = Ticket(uuid.uuid4().hex, resolved, self._request_cancel)
        deadline = None if resolved.deadline_s is None else ticket.submitted + resolved.deadline_s
        with self._changed:
            if not self.alive:
                raise ShuttingDown("the engine is shutting down; try another replica")
            self._check_room()
            self._scheduler.submit(
                ticket.request_id, batch_key(resolved), resolved.evaluations, ticket.submitted, deadline
            )
            self._tickets[ticket.request_id] = ticket
            _, position, eta_s = self._scheduler.waiting()[-1]
            ticket.stream.put(Queued(ticket.request_id, position, eta_s))
            self._changed.notify_all()
        return ticket

    def warm_up(self) -> Image:
        """Measure what a pass costs by width, then draw one image as a request would.

        Raises:
            MezzotintError: the model cannot draw.
        """
        done: Future[None] = Future()
        with self._changed:
            if not self.alive:
                raise ShuttingDown("the engine is shutting down")
            self._jobs.append((self._calibrate, done))
            self._changed.notify_all()
        done.result()
        return self.generate(GenerationRequest(WARM_UP_PROMPT, seed=0))

    def status(self) -> EngineStatus:
        with self._changed:
            scheduler = self._scheduler
            return EngineStatus(
                queued=scheduler.count(State.QUEUED),
                running=scheduler.count(State.RUNNING),
                decoding=scheduler.count(State.DECODING),
                backlog_s=scheduler.backlog_seconds(),
                passes=self._passes,
                images_stepped=self._images_stepped,
                pass_s=self._pass_s,
                busy_s=self._busy_s,
            )

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Take no more requests; end those here (`drain`: once they are done), then stop the threads."""
        with self._changed:
            self._accepting = False
            if drain:
                self._changed.wait_for(lambda: not self._tickets or not self._thread.is_alive(), timeout)
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._decoder.shutdown(wait=True)
        self._backend.close()

    # The loop

    def _loop(self) -> None:
        error: MezzotintError = ShuttingDown("the engine shut down before the picture was done")
        try:
            while self._wait_for_work():
                self._run_jobs()
                began = time.perf_counter()
                self.step()
                self._busy_s += time.perf_counter() - began
        except Exception:
            logger.exception("the engine's loop failed")
            error = GenerationFailed("the engine failed; its replica must be restarted")
        finally:
            with self._changed:
                self._closing = True
            self._fail_all(error)

    def step(self) -> None:
        """One turn of the loop. Called by the loop's own thread only."""
        plan = self._plan()
        began = time.perf_counter()
        failed = self._run(plan)
        self._settle(plan, failed, time.perf_counter() - began)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or self._jobs
                    or self._ended
                    or self._cancels
                    or self._scheduler.count(State.QUEUED)
                    or self._scheduler.count(State.RUNNING)
                )
            )
            return not self._closing

    def _plan(self) -> Plan:
        self._forget_ended()
        now = time.monotonic()
        with self._changed:
            for request_id in self._cancels:
                if self._scheduler.state(request_id) is not None:
                    self._scheduler.cancel(request_id)
                    self._end(request_id, Cancelled(request_id))
            self._cancels.clear()
            plan = self._scheduler.plan(now)
            for request_id in plan.expired:
                self._fail(request_id, DeadlineExceeded("the request's deadline passed"))
            if now >= self._queue_news_at:
                self._queue_news_at = now + QUEUE_NEWS_SECONDS
                for request_id, position, eta_s in self._scheduler.waiting():
                    self._tickets[request_id].stream.put(Queued(request_id, position, eta_s))
        return self._start(plan)

    def _start(self, plan: Plan) -> Plan:
        """Start the plan's newcomers; the plan without those that could not be."""
        refused = set()
        for request_id in plan.starting:
            ticket = self._tickets[request_id]
            try:
                ticket.warnings = self._backend.start(request_id, ticket.request)
            except Exception as error:
                refused.add(request_id)
                with self._changed:
                    self._fail(request_id, _as_error(error))
                continue
            ticket.started = time.monotonic()
            with self._changed:
                self._scheduler.start(request_id)
        rows = tuple(request_id for request_id in plan.rows if request_id not in refused)
        return Plan(rows, plan.starting, plan.expired, plan.passed_over)

    def _run(self, plan: Plan) -> Mapping[str, MezzotintError]:
        if not plan.rows:
            return {}
        try:
            return self._backend.step(plan.rows)
        except Exception as error:
            return dict.fromkeys(plan.rows, _as_error(error))

    def _settle(self, plan: Plan, failed: Mapping[str, MezzotintError], seconds: float) -> None:
        if not plan.rows:
            return
        previews = self._previews(plan, failed)
        with self._changed:
            key = batch_key(self._tickets[plan.rows[0]].request)
            if not failed:
                self.cost.observe(key, len(plan.rows), seconds)
            self._passes += 1
            self._images_stepped += len(plan.rows)
            self._pass_s += seconds
            finished = self._scheduler.stepped(plan, failed)
            for request_id, error in failed.items():
                self._fail(request_id, error)
            for request_id in plan.rows:
                if request_id not in failed:
                    self._tickets[request_id].stream.put(self._progress(request_id, previews))
            self._in_decoder.update(finished)
        for request_id in finished:
            self._decoder.submit(self._decode, request_id)

    def _progress(self, request_id: str, previews: Mapping[str, Pixels]) -> Progress:
        request = self._tickets[request_id].request
        evaluated = request.evaluations - self._scheduler.remaining(request_id)
        # Second-order samplers evaluate more often than they step; callers count in the steps they asked for.
        step = evaluated * request.steps // request.evaluations
        return Progress(request_id, step, request.steps, previews.get(request_id))

    def _previews(self, plan: Plan, failed: Mapping[str, MezzotintError]) -> dict[str, Pixels]:
        previews = {}
        for request_id in plan.rows:
            every = self._tickets[request_id].request.preview_every
            left = self._scheduler.remaining(request_id) - 1
            if every and request_id not in failed and left and left % every == 0:
                try:
                    previews[request_id] = self._backend.preview(request_id)
                except Exception:
                    # A look on the way is a courtesy; the picture does not hang on it.
                    logger.exception("no preview for a request")
        return previews

    # The decoder

    def _decode(self, request_id: str) -> None:
        outcome: Image | MezzotintError | None = None
        with self._changed:
            # None once the request was cancelled: then there is nothing to decode for.
            ticket = self._tickets.get(request_id)
        if ticket is not None:
            try:
                pixels = self._backend.decode(request_id)
                pixels.flags.writeable = False
                outcome = Image(pixels, self.info.receipt(ticket.request, ticket.warnings))
            except Exception as error:
                outcome = _as_error(error)
        with self._changed:
            self._in_decoder.discard(request_id)
            # Cancelled meanwhile: it has been answered, and only waits to be forgotten.
            if ticket is None or outcome is None or self._scheduler.state(request_id) is None:
                self._ended.append(request_id)
                self._changed.notify_all()
            elif isinstance(outcome, Image):
                self._finish(request_id, ticket, outcome)
            else:
                self._fail(request_id, outcome)

    # Under the lock

    def _check_room(self) -> None:
        queued = self._scheduler.count(State.QUEUED)
        if queued >= self._max_queue:
            wait = self._scheduler.backlog_seconds()
            raise QueueFull(
                f"{queued} requests are waiting, the most this engine takes; try again in {wait:.0f} s",
                retry_after_s=max(wait, 1.0),
            )

    def _request_cancel(self, request_id: str) -> None:
        with self._changed:
            if request_id in self._tickets:
                self._cancels.add(request_id)
                self._changed.notify_all()

    def _finish(self, request_id: str, ticket: Ticket, image: Image) -> None:
        now, started = time.monotonic(), ticket.started or ticket.submitted
        self._scheduler.finish(request_id)
        self._end(request_id, Done(request_id, image, started - ticket.submitted, now - started))

    def _fail(self, request_id: str, error: MezzotintError) -> None:
        self._scheduler.fail(request_id)
        self._end(request_id, Failed(request_id, error))

    def _end(self, request_id: str, event: Event) -> None:
        self._tickets.pop(request_id).stream.put(event)
        if request_id not in self._in_decoder:
            self._ended.append(request_id)
        self._changed.notify_all()

    # On the loop's thread

    def _forget_ended(self) -> None:
        while self._ended:
            self._backend.release(self._ended.popleft())

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def _fail_all(self, error: MezzotintError) -> None:
        with self._changed:
            for request_id in list(self._tickets):
                with suppress(KeyError):
                    self._fail(request_id, error)
            jobs, self._jobs = self._jobs, deque()
        for _, future in jobs:
            future.set_exception(error)

    def _calibrate(self) -> None:
        request = resolve(GenerationRequest(WARM_UP_PROMPT, seed=0), self.info.limits)
        key = batch_key(request)
        for width, seconds in measure_passes(self._backend, request, self.cost.max_width):
            with self._changed:
                self.cost.observe(key, width, seconds)


def _as_error(error: Exception) -> MezzotintError:
    if isinstance(error, MezzotintError):
        return error
    logger.error("a backend raised what it should not", exc_info=error)
    return GenerationFailed(f"the backend failed ({type(error).__name__})")
