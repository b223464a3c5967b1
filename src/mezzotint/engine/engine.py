"""The loop: plan → run → settle, one pass of the UNet at a time.

The life of a request:

1. `submit` resolves it against the model's limits and puts it in the scheduler (`Queued`).
2. The loop thread plans a pass; a request chosen for the first time is started in the backend.
3. The pass runs; each request in it has moved one evaluation on (`Progress`).
4. A request with no evaluation left goes to the decoding thread, and the loop goes on without it.
5. Its pixels become an `Image` with a receipt (`Done`), or what its next stage begins from: back to 2, in the
   place that it has. On any way out, the backend forgets it.

Three kinds of thread meet here: callers, the loop, and the decoder. One lock guards the requests and the cost
table; it is never held while the backend computes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from mezzotint.backends.base import Backend, BackendInfo
from mezzotint.core import Event, GenerationRequest, Image, ResolvedRequest
from mezzotint.engine.calibration import WARM_UP_PROMPT, calibrate
from mezzotint.engine.cost import StepCost
from mezzotint.engine.observer import Observer
from mezzotint.engine.outlook import EngineStatus, Outlook
from mezzotint.engine.pace import DecodePace, Passes
from mezzotint.engine.previews import Previews
from mezzotint.engine.requests import QUEUE_NEWS_SECONDS, RequestTable
from mezzotint.engine.rows import State, batch_key, evaluation_seconds, measured_as, tells_of
from mezzotint.engine.rules import Plan
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import GenerationFailed, InvalidRequest, MezzotintError, SettingInvalid, ShuttingDown
from mezzotint.resolving import resolve
from mezzotint.tuning import Tuning

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_QUEUE = 256
# Shapes whose cost an outlook tells.
MAX_OUTLOOK_KEYS = 64


class Engine:
    """Draws many requests at once on one backend. Thread-safe; also a context manager."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_queue: int = DEFAULT_MAX_QUEUE,
        max_backlog_s: float = math.inf,
        max_batch: int | None = None,
    ) -> None:
        most = backend.info.max_batch
        max_batch = most if max_batch is None else max_batch
        if max_queue < 1:
            raise SettingInvalid(f"max_queue must be at least 1, not {max_queue}", param="max_queue")
        if not 1 <= max_batch <= most:
            raise SettingInvalid(
                f"max_batch must be 1…{most}, the most that this backend takes, not {max_batch}",
                param="max_batch",
            )
        self._backend = backend
        self.cost = StepCost(max_batch)
        self._requests = RequestTable(self.cost, max_queue, max_backlog_s)
        # The loop's alone.
        self._previews = Previews(backend)
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        # What decodes make way for.
        self._under_way = Passes(self._changed)
        self._closing = False
        self._passes = 0
        self._pass_s = self._busy_s = 0.0
        self._turn_began: float | None = None
        # Seconds by phase, of an engine that `load` made.
        self.cold_start_s: Mapping[str, float] = {}
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
        tuning: Tuning | None = None,
        threads: int | None = None,
        stand_in: bool = False,
        max_batch: int | None = None,
        max_queue: int = DEFAULT_MAX_QUEUE,
        max_backlog_s: float = math.inf,
        warm_up: bool = True,
        warm_up_sizes: Sequence[tuple[int, int]] = (),
        loras: Sequence[str] = (),
        controlnets: Sequence[str] = (),
        embeddings: Sequence[str] = (),
        ip_adapters: Sequence[str] = (),
        image_encoder: str = "",
    ) -> Engine:
        """An engine on a model by name, folder or single `.safetensors` file.

        tuning: what speed is bought with.
        warm_up_sizes: (width, height), of which passes are measured, compiled and recorded before the first
            request wants them.
        stand_in: with device "neuron", run an artefact that was compiled for `cpu` in the chip's place.
        loras: files that requests may name, PATH or NAME=PATH, beside those in the model's own folder.
        controlnets: the same, files or folders. embeddings: files of textual inversions that prompts may
            name. ip_adapters: files that requests may name.
        image_encoder: the folder of what IP-Adapters read pictures by; empty is the model's own.

        Raises:
            ModelNotFound, ModelInvalid: there is no such model, or its files are not what they should be.
            SettingInvalid: this machine has no such device, or cannot compute in `dtype`; the model does not
                draw a size of `warm_up_sizes`.
        """
        began = time.monotonic()
        backend: Backend
        # Each imported where it is wanted: only what computes on a device needs torch.
        if model.partition(":")[0] == "fake":
            from mezzotint.backends.fake import FakeBackend

            backend = FakeBackend.from_name(model)
        else:
            from mezzotint.models.loading import load_backend

            backend = load_backend(
                model,
                device=device,
                dtype=dtype,
                tuning=tuning,
                threads=threads,
                stand_in=stand_in,
                loras=loras,
                controlnets=controlnets,
                embeddings=embeddings,
                ip_adapters=ip_adapters,
                image_encoder=image_encoder,
            )
        loaded = time.monotonic()
        for width, height in warm_up_sizes:
            try:
                resolve(GenerationRequest(WARM_UP_PROMPT, width=width, height=height), backend.info.limits)
            except InvalidRequest as error:
                raise SettingInvalid(f"warm_up_sizes: {error.message}", param="warm_up_sizes") from None
        engine = cls(backend, max_queue=max_queue, max_backlog_s=max_backlog_s, max_batch=max_batch)
        if warm_up:
            try:
                engine.warm_up(warm_up_sizes)
            except BaseException:
                engine.close()
                raise
        engine.cold_start_s = {"load": loaded - began, "warm_up": time.monotonic() - loaded}
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # For callers

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of every pass and every end from now on."""
        with self._changed:
            self._requests.observer = observer

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    @property
    def alive(self) -> bool:
        """Whether the loop is there to serve. False after `close` or a fault of the engine itself."""
        return not self._closing and self._thread.is_alive()

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
            InvalidRequest, NotSupported, QueueFull, DeadlineUnreachable, ShuttingDown: at the first event;
                nothing was started. Later failures are events.
        """
        ticket = self.submit(request)
        try:
            async for event in ticket.stream:
                yield event
        finally:
            ticket.cancel()

    def submit(self, request: GenerationRequest, *, group: str = "") -> Ticket:
        """Queue one picture. Those of the same `group` are let in as if they were one request.

        Raises:
            InvalidRequest, NotSupported: a field is not accepted.
            QueueFull: `max_queue` requests wait already, or their work exceeds `max_backlog_s`; carries the
                seconds until there is room.
            DeadlineUnreachable: it takes longer than its deadline, by what is ahead of it or by itself.
            ShuttingDown: the engine is closing.
        """
        ticket = Ticket(uuid.uuid4().hex, resolve(request, self.info.limits), self._cancel, group)
        with self._changed:
            if not self.alive:
                raise ShuttingDown("the engine is shutting down; try another replica")
            self._requests.submit(ticket)
            self._changed.notify_all()
        return ticket

    @property
    def counters(self) -> Mapping[str, int]:
        """What the backend counts since it was loaded, by name."""
        return self._backend.counters

    def warm_up(self, sizes: Sequence[tuple[int, int]] = ()) -> Image:
        """Measure what a pass costs by batch, of the default size and each of `sizes` (width, height); draw
        once at each of them with and without guidance, the default size as a request would, and last. Where
        sizes are compiled ahead, those are drawn by default.

        Raises:
            MezzotintError: the model cannot draw.
        """
        done: Future[None] = Future()
        with self._changed:
            if not self.alive:
                raise ShuttingDown("the engine is shutting down")
            self._jobs.append((partial(calibrate, self._backend, self.cost, sizes, self._changed), done))
            self._changed.notify_all()
        done.result()
        limits = self.info.limits
        kinds = [(size, scale) for size in sizes or limits.served or () for scale in (0.0, 5.0)]
        # One row alone is computed by other kernels than two.
        other = 5.0 if limits.default_guidance_scale <= 1 else 0.0
        kinds.append(((limits.default_width, limits.default_height), other))
        for (width, height), guidance_scale in dict.fromkeys(kinds):
            self.generate(
                GenerationRequest(
                    WARM_UP_PROMPT,
                    width=width,
                    height=height,
                    steps=1,
                    guidance_scale=guidance_scale,
                    seed=0,
                )
            )
        # With a look on the way, for the first of these pays for what the later ones find ready.
        halfway = max(1, limits.default_steps // 2)
        return self.generate(GenerationRequest(WARM_UP_PROMPT, seed=0, preview_every=halfway))

    def status(self) -> EngineStatus:
        with self._changed:
            scheduler, queued = self._requests.scheduler, self._requests.queued
            decoding = scheduler.count(State.DECODING)
            return EngineStatus(
                queued=queued,
                # One that waits between its stages is under way.
                running=len(self._requests.tickets) - queued - decoding,
                decoding=decoding,
                backlog_s=scheduler.backlog_seconds(),
                passes=self._passes,
                pass_s=self._pass_s,
                busy_s=self._busy_s,
            )

    def outlook(self) -> Outlook:
        limits = self.info.limits
        default = batch_key(resolve(GenerationRequest(WARM_UP_PROMPT), limits))
        with self._changed:
            table = self._requests
            keys = [default, *self.cost.known()[-MAX_OUTLOOK_KEYS:]]
            began = self._turn_began
            return Outlook(
                queued=table.queued,
                max_queue=table.max_queue,
                max_backlog_s=table.max_backlog_s,
                backlogs=table.scheduler.backlogs(),
                costs={key: evaluation_seconds(self.cost, key) for key in keys},
                decode_s_a_pixel=self.cost.decode_seconds_a_pixel,
                pass_age_s=0.0 if began is None else time.monotonic() - began,
            )

    def close(self) -> None:
        """Take no more requests; end those here, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._decoder.shutdown(wait=True)
        self._backend.close()

    # The loop

    def _loop(self) -> None:
        error: MezzotintError = ShuttingDown("the engine shut down before the picture was done")
        try:
            while (plan := self._next_plan()) is not None:
                began = time.perf_counter()
                self._turn_began = time.monotonic()
                self._step(plan)
                self._turn_began = None
                self._busy_s += time.perf_counter() - began
        except Exception:
            logger.exception("the engine's loop failed")
            error = GenerationFailed("the engine failed; its replica must be restarted")
        finally:
            self._end_all(error)

    def _step(self, plan: Plan) -> None:
        plan = self._start(plan)
        if not plan.request_ids:
            return
        began = time.perf_counter()
        failed = self._run(plan.request_ids)
        self._settle(plan, failed, time.perf_counter() - began)

    def _next_plan(self) -> Plan | None:
        """Wait until there is a pass to run; None once the engine closes."""
        while True:
            self._run_jobs()
            self._forget_ended()
            with self._changed:
                if self._closing:
                    return None
                plan = self._requests.plan(time.monotonic())
                if plan.request_ids:
                    self._under_way.begin(self._requests.expected_seconds(plan))
                    return plan
                self._under_way.stop()
                if not self._jobs and not self._requests.has_ended:
                    # Those who wait although nothing can run (the decoder holds every slot) have deadlines,
                    # and want to hear where they stand.
                    queued = self._requests.scheduler.count(State.QUEUED)
                    self._changed.wait(QUEUE_NEWS_SECONDS if queued else None)

    def _start(self, plan: Plan) -> Plan:
        """Start the plan's newcomers and next stages; the plan without those that could not be."""
        refused = set()
        for request_id in plan.starting:
            # Of a stage that is over there may be something yet.
            self._backend.release(request_id)
            try:
                warnings = self._backend.start(request_id, self._requests.tickets[request_id].stages[0])
            except Exception as error:
                refused.add(request_id)
                with self._changed:
                    self._requests.fail(request_id, _as_error(error))
            else:
                with self._changed:
                    self._requests.start(request_id, warnings)
        return replace(plan, request_ids=tuple(each for each in plan.request_ids if each not in refused))

    def _run(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        """One evaluation for each; those that failed. A pass that fails as a whole is run again in halves, so
        that what is wrong with one request, or with so wide a pass, is not its neighbours' end."""
        try:
            return self._backend.step(request_ids)
        except MezzotintError as error:
            if len(request_ids) == 1:
                return {request_ids[0]: error}
            logger.warning("a pass of %d images failed; it runs again in halves", len(request_ids))
        except Exception as error:
            return dict.fromkeys(request_ids, _as_error(error))
        half = len(request_ids) // 2
        return {**self._run(request_ids[:half]), **self._run(request_ids[half:])}

    def _settle(self, plan: Plan, failed: Mapping[str, MezzotintError], seconds: float) -> None:
        with self._changed:
            moved = (each for each in plan.request_ids if each not in failed)
            due = [each for each in moved if self._requests.wants_preview(each)]
        previews = self._previews.collect(plan.request_ids, due)
        with self._changed:
            keys = self._requests.keys(plan)
            key, batch = measured_as(keys)
            if not failed and tells_of(key, batch, keys):
                self.cost.observe(key, round(batch), seconds)
            tenants = [self._requests.tickets[each].request.tenant for each in plan.request_ids]
            self._requests.observer.passed(key, tenants, seconds)
            self._passes += 1
            self._pass_s += seconds
            finished = self._requests.settle(plan, failed, previews)
        for _ in finished:
            self._decoder.submit(self._decode)

    def _forget_ended(self) -> None:
        with self._changed:
            ended, over = self._requests.take_ended()
        for request_id in ended:
            self._previews.forget(request_id)
        for request_id in (*ended, *over):
            self._backend.release(request_id)

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def _end_all(self, error: MezzotintError) -> None:
        with self._changed:
            self._closing = True
            self._requests.fail_all(error)
            self._under_way.stop()
            jobs, self._jobs = self._jobs, deque()
        for _, future in jobs:
            future.set_exception(error)

    # The decoder's thread

    def _decode(self) -> None:
        """One of those that wait for it; nothing where one of them has ended meanwhile."""
        with self._changed:
            ticket = self._requests.take_to_decode()
            self._changed.notify_all()
        if ticket is None:
            return
        outcome: Image | ResolvedRequest | MezzotintError
        decode_s = None
        try:
            outcome, decode_s = self._what_follows(ticket)
        except Exception as error:
            outcome = _as_error(error)
        with self._changed:
            self._requests.decoded(ticket.request_id, outcome, decode_s)
            self._changed.notify_all()

    def _what_follows(self, ticket: Ticket) -> tuple[Image | ResolvedRequest, float | None]:
        """The picture, or the stage that begins from it; and the seconds of decoding, where there was any."""
        later, hires = ticket.stages[1:], ticket.request.hires
        if later and hires is not None and hires.of_latents:
            size = (later[0].width, later[0].height)
            latents = self._backend.latents(ticket.request_id, size, hires.upscaler)
            return replace(later[0], latents=latents), None
        began = time.monotonic()
        pace = DecodePace(self._under_way, partial(self._decodes, ticket.request_id))
        pixels = self._backend.decode(ticket.request_id, pace)
        decode_s = time.monotonic() - began - pace.rested
        pixels.flags.writeable = False
        if later:
            return later[0].begun_from(pixels), decode_s
        return Image(pixels, self.info.receipt(ticket.request, ticket.warnings)), decode_s

    def _decodes(self, request_id: str) -> int:
        """How many pictures are to be decoded, of which this is one; raises where it no longer is."""
        with self._changed:
            if request_id not in self._requests.tickets:
                raise GenerationFailed("nobody waits for the picture any more")
            return self._requests.scheduler.count(State.DECODING)

    # Any thread

    def _cancel(self, request_id: str) -> None:
        with self._changed:
            self._requests.ask_to_cancel(request_id)
            self._changed.notify_all()


def _as_error(error: Exception) -> MezzotintError:
    if isinstance(error, MezzotintError):
        return error
    logger.error("a backend raised what it should not", exc_info=error)
    return GenerationFailed(f"the backend failed ({type(error).__name__})")
