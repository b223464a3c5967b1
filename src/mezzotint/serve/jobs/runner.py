"""Draws the jobs that this gateway claims, as many at once as keep the engines busy.

A job belongs to whoever holds its lease. A gateway that stops gives its jobs back; one that is killed loses
them when their leases end, and another goes on: what was finished is kept, and the rest comes out the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from mezzotint.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    MezzotintError,
    QueueFull,
    RateLimited,
    ReplicaLost,
    StoreUnavailable,
)
from mezzotint.serve.access.access import Access
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.jobs.drawing import Drawing
from mezzotint.serve.jobs.patience import insist
from mezzotint.serve.stores.images import ImageStore
from mezzotint.serve.stores.job import Job, JobState
from mezzotint.serve.stores.jobs import JobStore

__all__ = ["JobRunner"]

logger = logging.getLogger(__name__)

# How soon a job is found that another gateway made, and how soon its cancellation is seen.
TICK_SECONDS = 0.4
# How long a killed gateway's jobs lie.
LEASE_SECONDS = 10.0
# How often it says that it still holds them.
RENEW_SECONDS = 2.5
# Pictures claimed for each place in a step: as many wait at the engines as are drawn.
CLAIMED_PER_PLACE = 2
MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
# How long no job is claimed after the engines had no room; it may have been one key's share that was used up.
PAUSE_SECONDS = 2.0
# How long jobs are claimed in a row, and the next one waits for one to be admitted.
CLAIMING_SECONDS = 1.0


@dataclass
class _Held:
    """A job of this runner's. admitted: its key's limits let it begin. stopped: why it was told to stop.

    Of a lost one nothing is said to the store, which might hear it: this runner may have claimed it again.
    """

    job: Job
    task: asyncio.Task[None] = field(init=False)
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: Literal["", "cancelled", "lost", "closing"] = ""


class JobRunner:
    """A context manager: within, jobs are claimed and drawn. On the way out they are given back."""

    def __init__(
        self,
        gateway: Gateway,
        access: Access,
        store: JobStore,
        images: ImageStore,
        *,
        gateways: int,
        ttl_s: float,
    ) -> None:
        """gateways: how many share the engines. ttl_s: for how long a finished job is kept."""
        self._gateway, self._access, self._store, self._images = gateway, access, store, images
        self._gateways, self._ttl_s = gateways, ttl_s
        self._owner = f"runner-{secrets.token_hex(8)}"
        self._held: dict[str, _Held] = {}
        # On `time.monotonic`'s clock, as the next two: when the leases are to be renewed.
        self._renew_at = 0.0
        # The engines had no room: nothing is claimed before.
        self._full_until = 0.0
        # These callers' limits were used up: nothing of theirs is claimed before, unless one of theirs ends.
        self._limited_until: dict[str, float] = {}
        # The engines refused these callers, whose share of them may be used up: the others are asked first.
        self._refused_until: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    async def __aenter__(self) -> JobRunner:
        self._main = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._main is not None
        for held in self._held.values():
            held.stopped = held.stopped or "closing"
        tasks = [self._main, *(held.task for held in self._held.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Something was queued or cancelled here: look at once, not at the next tick."""
        self._woken.set()

    async def _run(self) -> None:
        is_waiting = False
        while True:
            try:
                await self._keep()
                # Whether or not there is room to claim: a deadline passes all the same.
                await self._store.settle()
                await self._claim()
                is_waiting = False
            except StoreUnavailable as error:
                # What runs goes on; its lease is renewed when the database is back, unless another has it.
                if not is_waiting:
                    # Told once, for this comes back with each tick until then.
                    logger.warning("jobs wait: %s", error.message)
                is_waiting = True
            except Exception:
                logger.exception("the job runner goes on after an internal error")
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._woken.wait()
            self._woken.clear()

    async def _keep(self) -> None:
        """Renew the leases when it is time; stop what is cancelled or lost."""
        asked = [id for id, held in self._held.items() if not held.stopped]
        if time.monotonic() < self._renew_at:
            kept = await self._store.held(asked, self._owner)
        else:
            kept = await self._store.renew(asked, self._owner, LEASE_SECONDS)
            self._renew_at = time.monotonic() + RENEW_SECONDS
        for id in asked:
            held = self._held.get(id)
            if held is not None and kept.get(id, True):
                held.stopped = "cancelled" if id in kept else "lost"
                held.task.cancel()

    async def _claim(self) -> None:
        room, began = await self._room(), time.monotonic()
        # Not for long: leases are to be renewed.
        while self._full_until < time.monotonic() < began + CLAIMING_SECONDS and self._pictures() < room:
            job = await self._claimed()
            if job is None and self._refused_until:
                # All others were asked.
                self._refused_until.clear()
                continue
            if job is None:
                return
            before = self._held.get(job.id)
            if before is not None:
                # Lost, and claimed again before that was noticed, or before its end.
                before.stopped = "lost"
                before.task.cancel()
            held = self._held[job.id] = _Held(job)
            held.task = asyncio.create_task(self._draw(held))
            held.task.add_done_callback(partial(self._ended, held))
            # So that of a key at its limit one job is refused, and not each that there is room for.
            with suppress(TimeoutError):
                async with asyncio.timeout(CLAIMING_SECONDS):
                    await held.admitted.wait()

    async def _claimed(self) -> Job | None:
        """The next job. What the store gives while this gateway is told to stop goes back at once."""
        claiming = asyncio.ensure_future(
            self._store.claim(self._owner, LEASE_SECONDS, not_of=self._excluded())
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                if (job := await claiming) is not None:
                    await self._store.release(job.id, self._owner, 0.0)
            raise

    def _pictures(self) -> int:
        return sum(held.job.n for held in self._held.values())

    def _excluded(self) -> tuple[str, ...]:
        now = time.monotonic()
        self._limited_until = {id: until for id, until in self._limited_until.items() if until > now}
        self._refused_until = {id: until for id, until in self._refused_until.items() if until > now}
        return (*self._limited_until, *self._refused_until)

    async def _room(self) -> float:
        try:
            info = await self._gateway.served()
        except MezzotintError:
            return 0.0
        places = info.max_batch * max(1, len(self._gateway.reports))
        return max(1.0, CLAIMED_PER_PLACE * places / self._gateways)

    def _ended(self, held: _Held, task: asyncio.Task[None]) -> None:
        if self._held.get(held.job.id) is held:
            del self._held[held.job.id]
        if held.admitted.is_set():
            self._limited_until.pop(held.job.caller, None)
        # Whoever waits for this to begin need not.
        held.admitted.set()
        self._woken.set()
        if not task.cancelled() and task.exception() is not None:
            logger.error("job %s is left to another runner", held.job.id, exc_info=task.exception())

    async def _draw(self, held: _Held) -> None:
        """The job to its end, or back to the queue. Whatever is not heard in time ends with the lease."""
        job = held.job
        try:
            await self._draw_in_time(held)
        except asyncio.CancelledError:
            if held.stopped == "cancelled":
                await self._finish(held, "cancelled")
                return
            if held.stopped != "lost":
                # This gateway stops.
                await self._store.release(job.id, self._owner, 0.0)
            raise
        except MezzotintError as error:
            await self._after(held, error)
        except Exception:
            logger.exception("job %s ended in an internal error", job.id)
            failure = MezzotintError("internal error; the job's id names it in the log")
            await self._finish(held, "failed", failure)
        else:
            await self._finish(held, "done")

    async def _draw_in_time(self, held: _Held) -> None:
        job = held.job
        left_s = None if job.deadline is None else job.deadline - (job.started or job.created)
        if left_s is not None and left_s <= 0:
            raise DeadlineExceeded("the job's deadline passed")
        drawing = Drawing(
            job,
            self._owner,
            admitted=held.admitted,
            is_given_up=lambda: held.stopped in ("lost", "closing"),
            gateway=self._gateway,
            access=self._access,
            store=self._store,
            images=self._images,
            ttl_s=self._ttl_s,
        )
        try:
            async with asyncio.timeout(left_s):
                await drawing.run(left_s)
        except TimeoutError:
            raise DeadlineExceeded("the job's deadline passed") from None

    async def _after(self, held: _Held, error: MezzotintError) -> None:
        job = held.job
        if not error.retryable:
            await self._finish(held, "failed", error)
            return
        # No room, no replica or no store just now: the job is in no hurry.
        wait_s = min(max(error.retry_after_s or 0.0, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
        if isinstance(error, StoreUnavailable):
            # It may be its own picture alone that cannot be read: after the pause others are tried first.
            wait_s = MAX_RETRY_SECONDS
        if isinstance(error, RateLimited):
            # Its key's other jobs would only be told the same, unless one ends; one's end here is noticed.
            drawn = any(h.job.caller == job.caller and h.admitted.is_set() for h in self._held.values())
            self._limited_until[job.caller] = time.monotonic() + (MAX_RETRY_SECONDS if drawn else wait_s)
            wait_s = 0.0
        elif not isinstance(error, DeadlineUnreachable):
            self._full_until = time.monotonic() + PAUSE_SECONDS
            if isinstance(error, QueueFull):
                # With those refused before: else the first would be asked again before the last ever was.
                until = self._full_until + wait_s
                self._refused_until = dict.fromkeys((*self._refused_until, job.caller), until)
        # What ends every replica that draws it must not go on for ever.
        lost = isinstance(error, ReplicaLost)
        if held.stopped != "lost":
            await insist(lambda: self._store.release(job.id, self._owner, wait_s, lost=lost))

    async def _finish(self, held: _Held, state: JobState, error: MezzotintError | None = None) -> None:
        told = None if error is None else error.to_dict()
        # What it had of the engines is free again.
        self._refused_until.pop(held.job.caller, None)
        if held.stopped != "lost":
            await insist(lambda: self._store.finish(held.job.id, self._owner, state, told))
