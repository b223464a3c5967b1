"""Between the HTTP surfaces and the replicas: completes a request, asks a replica, gives picture or error.

Random seeds are drawn here, so that a request sent on is complete: asking a second replica after the first
was lost gives the same picture. Ray is not known here; `Replicas` is what there is to ask.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from mezzotint.backends.base import BackendInfo
from mezzotint.core import GenerationRequest, Queued
from mezzotint.errors import (
    RETRY_AFTER_SECONDS,
    DeadlineExceeded,
    DeadlineUnreachable,
    GenerationFailed,
    MezzotintError,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    ReplicaLost,
    ShuttingDown,
)
from mezzotint.resolving import resolve
from mezzotint.serve.access.caller import ANYONE, Caller
from mezzotint.serve.background import in_background
from mezzotint.serve.fleet import Fleet
from mezzotint.serve.plate import Plate, draw_the_same
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.telemetry.record import current
from mezzotint.serve.telemetry.tracing import OFF, Tracing, headers_of
from mezzotint.serve.wire import Drawn, Order, Refused, Report, Step, WireEvent

__all__ = ["Gateway", "Replicas", "open_gateway"]

logger = logging.getLogger(__name__)

# How long a route waits for a replica to say what it has loaded.
INFO_SECONDS = 5.0
# Between two reports of a replica; a gateway counts what it sends in between.
REPORT_SECONDS = 0.3


class Replicas(Protocol):
    """The engine replicas, whichever of them answers."""

    def info(self) -> Awaitable[BackendInfo]:
        """What a replica has loaded. Raises `ModelLoading`: there is none; `QueueFull`: all are full."""
        ...

    def reports(self) -> Awaitable[Sequence[Report]]:
        """How those stand that answer at once; empty when there is none."""
        ...

    def metrics(self) -> Awaitable[Sequence[Families]]:
        """What each of those that answer has counted."""
        ...

    def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        """Events up to `Drawn` or `Refused`; closing it cancels. Raises as `info`, and `ReplicaLost`."""
        ...


class Gateway:
    """Opened by `open_gateway`."""

    def __init__(
        self, replicas: Replicas, deadline_s: float, tracing: Tracing = OFF, *, gateways: int = 1
    ) -> None:
        self._replicas = replicas
        self._tracing = tracing
        self._deadline_s = deadline_s
        self._info: BackendInfo | None = None
        self._fleet = Fleet(gateways=gateways)

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

    def foresees(self, plate: Plate) -> bool:
        """Whether each replica that may get the plate draws what it was prepared for: not while replicas of
        one model are being replaced by those of another."""
        return all(draw_the_same(each.info, plate.info) for each in self.reports if each.healthy)

    def cost_s(self, plates: Iterable[Plate]) -> float:
        """Seconds of an engine that the plates take, as the engines have measured; 0 before they have."""
        return sum(self._fleet.cost_s(plate.request) for plate in plates)

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
    ) -> Plate:
        """Check the request against the served model and fill in its defaults.

        longest_s: the most that the deadline may be, by default the gateway's own.

        Raises:
            InvalidRequest: a field is not accepted.
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
        if request.image is None and not request.controls:
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
        return Plate(order, caller, info, time.monotonic() + deadline_s)

    def admit(self, plates: Sequence[Plate], *, at_once: bool = True) -> list[Plate]:
        """The plates of one request, let in or refused as one: none of them is in the way of another.

        at_once: there must be room for all of them; else for one, and an engine may yet refuse the others.

        Raises:
            QueueFull: by the latest reports, there is none.
        """
        # One alone is judged when it is sent, in the same moment as what is sent is counted.
        if len(plates) == 1:
            return list(plates)
        request, count = plates[0].request, len(plates) if at_once else 1
        refusal = self._fleet.refusal(request, count=count)
        if refusal is not None:
            raise self._fleet.promise(refusal, request, count=count)
        group = secrets.token_hex(8)
        return [replace(plate, order=replace(plate.order, group=group)) for plate in plates]

    async def draw(self, plate: Plate) -> Drawn:
        """Draw the plate.

        Raises:
            MezzotintError: why there is no picture.
        """
        async with aclosing(self.stream(plate, progress=False)) as events:
            async for event in events:
                if isinstance(event, Drawn):
                    return event
        raise GenerationFailed("the replica ended without a picture")

    async def stream(self, plate: Plate, *, progress: bool = True) -> AsyncGenerator[Queued | Step | Drawn]:
        """Draw the plate, event by event up to `Drawn`. Closing the iterator cancels the work.

        The replica that finishes it first draws it, and another once more when that was lost, is closing or
        had no room after all. The picture is the same, for the order leaves nothing open.

        progress: whether to tell how far it is.

        Raises:
            MezzotintError: why there is no picture.
        """
        avoid: tuple[str, ...] = ()
        lost: MezzotintError | None = None
        while True:
            with self._tracing.span("admission"):
                admitted = lost is not None or bool(plate.order.group)
                order = self._order(plate, avoid, progress, admitted=admitted)
            try:
                async with aclosing(self._once(order, plate, retry=bool(avoid))) as events:
                    async for event in events:
                        yield event
                return
            except (QueueFull, DeadlineUnreachable) as error:
                if lost is not None:
                    # It had a place already, and waits for another as long as its deadline lets it. It
                    # looks again soon, whatever this replica says: another may have room before.
                    left = max(0.0, plate.deadline - time.monotonic())
                    wait = error.retry_after_s or RETRY_AFTER_SECONDS
                    await asyncio.sleep(min(wait, RETRY_AFTER_SECONDS, left))
                    continue
                if isinstance(error, DeadlineUnreachable):
                    raise
                # Whoever knows of no other would only wait for the same one.
                if avoid or not self._fleet.choose(plate.request, avoid=(order.replica,)):
                    raise self._fleet.promise(error, plate.request) from None
            except (ModelLoading, ReplicaLost, ShuttingDown) as error:
                self._fleet.forget(order.replica)
                if lost is not None:
                    # Whether drawing it ended a replica is worth more than that there is none now.
                    raise (lost if isinstance(lost, ReplicaLost) else error) from None
                lost = error
            avoid = (order.replica,) if order.replica else ()
            current().retries += 1

    async def _once(
        self, order: Order, plate: Plate, *, retry: bool
    ) -> AsyncGenerator[Queued | Step | Drawn]:
        with (
            self._fleet.sending(order.replica, plate.request),
            self._tracing.span("order", {"mezzotint.replica": order.replica, "retry": retry}) as span,
        ):
            order = replace(order, trace=headers_of(span))
            async with aclosing(self._attempt(order, plate.deadline)) as events:
                async for event in events:
                    yield event

    def _order(self, plate: Plate, avoid: tuple[str, ...], progress: bool, *, admitted: bool) -> Order:
        """What is asked of a replica now. What was admitted once is not refused here again.

        Raises:
            DeadlineExceeded: there is no time left.
            QueueFull: by the latest reports, none has room.
        """
        left = plate.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's deadline passed")
        refusal = None if admitted else self._fleet.refusal(plate.request, avoid)
        if refusal is not None:
            raise self._fleet.promise(refusal, plate.request)
        return replace(
            plate.order,
            request=replace(plate.request, deadline_s=left),
            progress=progress,
            replica=self._fleet.choose(plate.request, avoid),
            avoid=avoid,
        )

    async def _attempt(self, order: Order, deadline: float) -> AsyncGenerator[Queued | Step | Drawn]:
        """The order's events; at the deadline it ends, whatever the replica does."""
        async with aclosing(self._replicas.generate(order)) as events:
            while True:
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        event = await anext(events, None)
                except TimeoutError:
                    raise DeadlineExceeded("the request's deadline passed") from None
                if event is None:
                    return
                if isinstance(event, Refused):
                    raise _told(event.to_error())
                if isinstance(event, Drawn):
                    current().note_drawn(event.queue_s, event.compute_s)
                    yield event
                    # Whatever becomes of the replica, or of the deadline, after the picture is nobody's loss.
                    return
                yield event


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


def _told(error: MezzotintError) -> MezzotintError:
    # The client knows the time of a retry only when the server says one.
    if error.retryable and error.status in (429, 503) and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_SECONDS
    return error
