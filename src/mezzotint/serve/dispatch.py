"""A prepared request on its way: which replica is asked, and another when that one is lost, closing or full.

Ray is not known here; `Replicas` is what there is to ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from mezzotint.backends.base import BackendInfo
from mezzotint.core import Queued
from mezzotint.errors import (
    RETRY_AFTER_SECONDS,
    DeadlineExceeded,
    DeadlineUnreachable,
    MezzotintError,
    ModelLoading,
    QueueFull,
    ReplicaLost,
    ShuttingDown,
)
from mezzotint.serve.fleet import Fleet
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.telemetry.record import current
from mezzotint.serve.telemetry.tracing import Tracing, headers_of
from mezzotint.serve.wire import Drawn, Order, Refused, Report, Step, WireEvent

__all__ = ["Dispatcher", "Replicas"]


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


class Dispatcher:
    """Asks `replicas` in the order that `fleet` recommends, which learns from it."""

    def __init__(self, replicas: Replicas, fleet: Fleet, tracing: Tracing) -> None:
        self._replicas = replicas
        self._fleet = fleet
        self._tracing = tracing
        # Pictures that needed a second replica.
        self.retries = 0

    async def stream(
        self, prepared: PreparedRequest, *, progress: bool = True
    ) -> AsyncGenerator[Queued | Step | Drawn]:
        """Draw the picture, event by event up to `Drawn`. Closing the iterator cancels the work.

        The replica that finishes it first draws it, and another once more when that was lost, is closing or
        had no room after all. The picture is the same, for the order leaves nothing open.

        progress: whether to tell how far it is.

        Raises:
            MezzotintError: why there is no picture.
        """
        self._fleet.check_deadline(prepared.request)
        avoid: tuple[str, ...] = ()
        lost: MezzotintError | None = None
        was_full = counted = False
        while True:
            with self._tracing.span("admission"):
                admitted = lost is not None or bool(prepared.order.group)
                order = self._order(prepared, avoid, progress, admitted=admitted)
            try:
                async with aclosing(self._once(order, prepared, retry=bool(avoid))) as events:
                    async for event in events:
                        # Counted when another takes it: one that no replica has room for may ask for long.
                        self.retries += was_full and not counted
                        counted = counted or was_full
                        yield event
                return
            except (QueueFull, DeadlineUnreachable) as error:
                if lost is not None:
                    # It had a place already, and waits for another as long as its deadline lets it. It
                    # looks again soon, whatever this replica says: another may have room before.
                    left = max(0.0, prepared.deadline - time.monotonic())
                    wait = error.retry_after_s or RETRY_AFTER_SECONDS
                    await asyncio.sleep(min(wait, RETRY_AFTER_SECONDS, left))
                    continue
                if isinstance(error, DeadlineUnreachable):
                    raise
                # Whoever knows of no other would only wait for the same one.
                if avoid or not self._fleet.choose(prepared.request, avoid=(order.replica,)):
                    raise self._fleet.promise(error, prepared.request) from None
                was_full = True
            except (ModelLoading, ReplicaLost, ShuttingDown) as error:
                self._fleet.forget(order.replica)
                if lost is not None:
                    # Whether drawing it ended a replica is worth more than that there is none now.
                    raise (lost if isinstance(lost, ReplicaLost) else error) from None
                lost = error
                self.retries += not counted
                counted = True
            avoid = (order.replica,) if order.replica else ()
            current().retries += 1

    async def _once(
        self, order: Order, prepared: PreparedRequest, *, retry: bool
    ) -> AsyncGenerator[Queued | Step | Drawn]:
        with (
            self._fleet.sending(order.replica, prepared.request),
            self._tracing.span("order", {"mezzotint.replica": order.replica, "retry": retry}) as span,
        ):
            order = replace(order, trace=headers_of(span))
            async with aclosing(self._attempt(order, prepared.deadline)) as events:
                async for event in events:
                    yield event

    def _order(
        self, prepared: PreparedRequest, avoid: tuple[str, ...], progress: bool, *, admitted: bool
    ) -> Order:
        """What is asked of a replica now. What was admitted once is not refused here again.

        Raises:
            DeadlineExceeded: there is no time left.
            QueueFull: by the latest reports, none has room.
        """
        left = prepared.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the request's deadline passed")
        refusal = None if admitted else self._fleet.refusal(prepared.request, avoid)
        if refusal is not None:
            raise self._fleet.promise(refusal, prepared.request)
        return replace(
            prepared.order,
            request=replace(prepared.request, deadline_s=left),
            progress=progress,
            replica=self._fleet.choose(prepared.request, avoid),
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
                    raise _with_retry_after(event.to_error())
                if isinstance(event, Drawn):
                    current().note_drawn(event.queue_s, event.compute_s)
                    yield event
                    # Whatever becomes of the replica, or of the deadline, after the picture is nobody's loss.
                    return
                yield event


def _with_retry_after(error: MezzotintError) -> MezzotintError:
    # The client knows the time of a retry only when the server says one.
    if error.retryable and error.status in (429, 503) and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_SECONDS
    return error
