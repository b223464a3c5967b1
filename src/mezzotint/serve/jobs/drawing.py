"""One job's pictures drawn, told and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mezzotint.core import MAX_DEADLINE_SECONDS, GenerationRequest, Queued
from mezzotint.errors import (
    DeadlineUnreachable,
    MezzotintError,
    ReplicaLost,
    RequestCancelled,
    StoreUnavailable,
)
from mezzotint.serve.access.access import Access
from mezzotint.serve.access.admission import Admission
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.background import in_background
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.jobs.patience import insist
from mezzotint.serve.jobs.work import WAITING_SECONDS, Work
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.several import together, watch
from mezzotint.serve.stores.images import ImageStore
from mezzotint.serve.stores.job import Job
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.wire import Drawn, Step

__all__ = ["Drawing"]

# At most four events of progress a second.
NEWS_SECONDS = 0.25
# How often a picture asks for room that another of its job has found.
ROOM_SECONDS = 1.0


class Drawing:
    """Draws what is missing of `job`, which `owner` holds.

    admitted: set as soon as the limits of its key let it begin.
    is_given_up: whether it is stopped for another to go on with.
    ttl_s: for how long a finished job is kept, and its pictures with it.
    """

    def __init__(
        self,
        job: Job,
        owner: str,
        *,
        admitted: asyncio.Event,
        is_given_up: Callable[[], bool],
        gateway: Gateway,
        access: Access,
        store: JobStore,
        images: ImageStore,
        ttl_s: float,
    ) -> None:
        self._job, self._owner, self._ttl_s = job, owner, ttl_s
        self._gateway, self._access, self._store, self._images = gateway, access, store, images
        self._work = Work.from_json(job.request)
        # Of the pictures that were missing; how many each has of the total.
        self._steps: dict[int, int] = {}
        self._total_steps = 0
        # Those that no engine has refused, as far as is known.
        self._going: set[int] = set()
        self._queued: Queued | None = None
        self._began: float | None = None
        self._news = asyncio.Event()
        self._admitted = admitted
        self._is_given_up = is_given_up
        self._admission = Admission(0)

    async def run(self, left_s: float | None) -> None:
        """Until every picture is kept. `left_s` until the job's deadline.

        Raises:
            MezzotintError: why not; those that were finished are kept.
        """
        # Its key may have been revoked since.
        caller = await self._access.find(self._job.caller)
        request = replace(await self._work.to_request(self._images), deadline_s=left_s)
        finished = {image.index for image in self._job.images}
        missing = [number for number in range(self._job.n) if number not in finished]
        requests = {number: await self._prepare(number, request, caller) for number in missing}
        if not requests:
            return
        self._steps = dict.fromkeys(missing, 0)
        self._total_steps = requests[missing[0]].request.steps_taken
        # Asking for the job was its one request.
        caller = replace(caller, requests_per_minute=None)
        self._going = set(missing)
        cost_s = self._gateway.cost_s(list(requests.values()))
        async with (
            self._access.admit(caller, images=len(requests), compute_s=cost_s) as self._admission,
            in_background(self._tell_progress()),
        ):
            self._admitted.set()
            try:
                admitted = self._gateway.admit(list(requests.values()), at_once=False)
                numbered = zip(missing, admitted, strict=True)
                await together(*(self._draw(number, prepared) for number, prepared in numbered))
            except asyncio.CancelledError:
                self._admission.goes_on = self._is_given_up()
                raise

    async def _prepare(self, number: int, request: GenerationRequest, caller: Caller) -> PreparedRequest:
        return await self._gateway.prepare(
            replace(request, seed=self._work.first_seed + number),
            format=self._work.format,
            compression=self._work.compression,
            model=self._work.model,
            caller=caller,
            request_id=self._job.id,
            # Nobody waits for it: the service's own deadline is not its.
            longest_s=MAX_DEADLINE_SECONDS,
        )

    async def _draw(self, number: int, prepared: PreparedRequest) -> None:
        """One picture. While others of the job go on, it waits for room instead of ending them; not after a
        loss, which it may have made."""
        while True:
            self._going.add(number)
            try:
                await watch(self._gateway, number, prepared, self._take)
                return
            except MezzotintError as error:
                # Too late for this one is not too late for those that go on, which are kept.
                may_wait = error.retryable or isinstance(error, DeadlineUnreachable)
                if not may_wait or isinstance(error, ReplicaLost) or not self._going - {number}:
                    raise
            finally:
                self._going.discard(number)
            await asyncio.sleep(ROOM_SECONDS)

    async def _take(self, number: int, event: Queued | Step | Drawn) -> None:
        match event:
            case Queued():
                self._queued = event
            case Step():
                self._began = self._began or time.monotonic()
                self._steps[number] = event.step
                # The one after the last step would be the picture itself.
                if event.preview is not None and event.step < event.total:
                    await self._keep_preview(number, event, event.preview)
            case Drawn():
                self._steps[number] = self._total_steps
                await self._keep(number, event)
        self._news.set()

    async def _keep(self, number: int, drawn: Drawn) -> None:
        ttl_s = self._ttl_s + WAITING_SECONDS
        name = await insist(lambda: self._images.put(drawn.data, drawn.format, ttl_s))
        if not await insist(
            lambda: self._store.set_image(self._job.id, self._owner, number, name, drawn.receipt)
        ):
            self._admission.goes_on = True
            with suppress(StoreUnavailable):
                await self._images.delete([name])
            raise RequestCancelled("another has taken the job over")
        self._admission.drawn += 1

    async def _keep_preview(self, number: int, step: Step, preview: bytes) -> None:
        # Whoever follows can do without one.
        with suppress(StoreUnavailable):
            name = await self._images.put(preview, self._work.format)
            await self._tell(
                "preview", {"index": number, "step": step.step, "total": step.total, "name": name}
            )

    async def _tell_progress(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._tell("progress", self._progress())
            # All jobs at the same moments: what is told together is written together.
            await asyncio.sleep(NEWS_SECONDS - time.monotonic() % NEWS_SECONDS)

    def _progress(self) -> dict[str, Any]:
        steps = [self._steps.get(number, self._total_steps) for number in range(self._job.n)]
        progress = sum(steps) / (self._total_steps * self._job.n)
        waiting = self._queued if self._began is None else None
        return {
            "progress": round(progress, 4),
            "steps": steps,
            "total_steps": self._total_steps,
            "position": None if waiting is None else waiting.position,
            "eta_s": self._eta_s(progress),
        }

    def _eta_s(self, progress: float) -> float | None:
        if self._began is None:
            return None if self._queued is None else round(self._queued.eta_s, 2)
        elapsed = time.monotonic() - self._began
        return round(elapsed / progress - elapsed, 2) if progress else None

    async def _tell(self, kind: str, data: Mapping[str, Any]) -> None:
        # The pictures matter more than news of them. The database itself logs that it does not answer, once.
        with suppress(StoreUnavailable):
            await self._store.events.append(self._job.id, self._owner, kind, data)
