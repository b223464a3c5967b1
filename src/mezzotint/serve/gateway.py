"""Between the HTTP surfaces and the replicas: completes a request, lets it in, gives picture or error.

Random seeds are drawn here, so that a request sent on is complete: asking a second replica after the first
was lost gives the same picture. Which replica is asked, and when another, `dispatch.py` knows.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from mezzotint.backends.base import BackendInfo
from mezzotint.core import GenerationRequest, Queued, has_pictures
from mezzotint.errors import RETRY_AFTER_SECONDS, GenerationFailed, ModelLoading, ModelNotFound, QueueFull
from mezzotint.resolving import resolve
from mezzotint.serve.access.caller import ANYONE, Caller
from mezzotint.serve.background import in_background
from mezzotint.serve.dispatch import Dispatcher, Replicas
from mezzotint.serve.fleet import Fleet
from mezzotint.serve.prepared import PreparedRequest, draw_the_same
from mezzotint.serve.telemetry.record import current
from mezzotint.serve.telemetry.tracing import OFF, Tracing
from mezzotint.serve.wire import Drawn, Order, Report, Step

__all__ = ["Gateway", "open_gateway"]

logger = logging.getLogger(__name__)

# How long a route waits for a replica to say what it has loaded.
INFO_SECONDS = 5.0
# Between two reports of a replica; a gateway counts what it sends in between.
REPORT_SECONDS = 0.3


class Gateway:
    """Opened by `open_gateway`."""

    def __init__(
        self, replicas: Replicas, deadline_s: float, tracing: Tracing = OFF, *, gateways: int = 1
    ) -> None:
        self._replicas = replicas
        self._deadline_s = deadline_s
        self._info: BackendInfo | None = None
        self._fleet = Fleet(gateways=gateways)
        self._dispatcher = Dispatcher(replicas, self._fleet, tracing)

    async def watch(self) -> None:
        """Ask the replicas how they stand, again and again, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            try:
                await self.look()
            except Exception:
                # Without reports requests are still drawn, by whichever replica.
                logger.exception("no reports of the replicas")

    async def look(self) -> None:
        """Ask them once."""
        asked = time.monotonic()
        reports = await self._replicas.reports()
        self._fleet.update(reports, asked)
        for report in reports:
            # Replicas may be replaced by those of another model while the gateway stays.
            if report.healthy:
                self._info = report.info

    @property
    def reports(self) -> list[Report]:
        """How the replicas stand, as last heard."""
        return self._fleet.reports

    @property
    def retries(self) -> int:
        """How many pictures needed a second replica."""
        return self._dispatcher.retries

    def foresees(self, prepared: PreparedRequest) -> bool:
        """Whether each replica that may get the request draws what it was prepared for: not while replicas of
        one model are being replaced by those of another."""
        return all(draw_the_same(each.info, prepared.info) for each in self.reports if each.healthy)

    def cost_s(self, requests: Iterable[PreparedRequest]) -> float:
        """Seconds of an engine that the requests take, as the engines have measured; 0 before they have."""
        return sum(self._fleet.cost_s(prepared.request) for prepared in requests)

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
            ModelLoading, QueueFull: no replica answered or is healthy, or all have too much to do for that.
        """
        try:
            async with asyncio.timeout(INFO_SECONDS):
                self._info = await self._replicas.info()
        except TimeoutError:
            raise ModelLoading("the model is loading", retry_after_s=RETRY_AFTER_SECONDS) from None
        if self.reports and not any(report.healthy for report in self.reports):
            raise ModelLoading("every replica is being replaced", retry_after_s=RETRY_AFTER_SECONDS)
        return self._info

    async def served(self) -> BackendInfo:
        """What is served, as last heard.

        Raises:
            ModelLoading, QueueFull: nothing was heard yet, and no replica answers.
        """
        return self._info or await self.ready()

    async def prepare(
        self,
        request: GenerationRequest,
        *,
        format: str = "png",
        compression: int | None = None,
        model: str | None = None,
        caller: Caller = ANYONE,
        request_id: str = "",
        longest_s: float | None = None,
    ) -> PreparedRequest:
        """Check the request against the served model and fill in its defaults.

        longest_s: the most that the deadline may be, by default the gateway's own.

        Raises:
            InvalidRequest, NotSupported: a field is not accepted.
            ModelNotFound: `model` is not the one that is served.
            PermissionDenied: the caller's key may not use the model, or not at this priority.
            ModelLoading: no replica has said yet what it serves.
        """
        current().note_prompt(request.prompt)
        info = await self.served()
        if model is not None and model != info.model:
            raise ModelNotFound(f"no model {model!r} here; {info.model} is served", param="model")
        priority = request.priority or caller.usual_priority
        request = replace(request, tenant=caller.id, priority=priority)
        if not has_pictures(request):
            resolved = resolve(request, info.limits)
        else:
            # Pictures are brought to size, which the loop need not wait for.
            resolved = await asyncio.to_thread(resolve, request, info.limits)
        current().note_seed(resolved.seed)
        caller.check(info.model, resolved.priority)
        longest_s = self._deadline_s if longest_s is None else longest_s
        deadline_s = min(resolved.deadline_s or longest_s, longest_s)
        order = Order(
            replace(resolved, deadline_s=deadline_s),
            format,
            compression,
            request_id=request_id or current().request_id,
        )
        return PreparedRequest(order, caller, info, time.monotonic() + deadline_s)

    def admit(self, requests: Sequence[PreparedRequest], *, at_once: bool = True) -> list[PreparedRequest]:
        """The pictures of one request, let in or refused as one: none of them is in the way of another.

        at_once: there must be room for all of them; else for one, and an engine may yet refuse the others.

        Raises:
            QueueFull: by the latest reports, there is none.
        """
        # One alone is judged when it is sent, in the same moment as what is sent is counted.
        if len(requests) == 1:
            return list(requests)
        request, count = requests[0].request, len(requests) if at_once else 1
        refusal = self._fleet.refusal(request, count=count)
        if refusal is not None:
            raise self._fleet.promise(refusal, request, count=count)
        group = secrets.token_hex(8)
        return [replace(prepared, order=replace(prepared.order, group=group)) for prepared in requests]

    async def draw(self, prepared: PreparedRequest) -> Drawn:
        """Draw the picture.

        Raises:
            MezzotintError: why there is no picture.
        """
        async with aclosing(self.stream(prepared, progress=False)) as events:
            async for event in events:
                if isinstance(event, Drawn):
                    return event
        raise GenerationFailed("the replica ended without a picture")

    def stream(
        self, prepared: PreparedRequest, *, progress: bool = True
    ) -> AsyncGenerator[Queued | Step | Drawn]:
        """Draw the picture, event by event up to `Drawn`. Closing the iterator cancels the work.

        progress: whether to tell how far it is.

        Raises:
            MezzotintError: why there is no picture.
        """
        return self._dispatcher.stream(prepared, progress=progress)


@asynccontextmanager
async def open_gateway(
    replicas: Replicas, deadline_s: float, tracing: Tracing = OFF, *, gateways: int = 1
) -> AsyncIterator[Gateway]:
    """Once a replica has loaded. Within, how they stand is known, at most `REPORT_SECONDS` ago."""
    gateway = Gateway(replicas, deadline_s, tracing, gateways=gateways)
    await gateway.start()
    await gateway.look()
    async with in_background(gateway.watch()):
        yield gateway
