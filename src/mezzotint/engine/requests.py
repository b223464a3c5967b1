"""The requests of one engine: their places in the scheduler, their tickets, and how each one ends.

Every way a request can end passes through here, once: the scheduler's table forbids a second. Nothing here
computes, waits or locks; the engine holds its lock around every call.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Mapping
from functools import partial

from mezzotint.core import Cancelled, Done, Event, Failed, Image, Pixels, Progress, Queued, ResolvedRequest
from mezzotint.engine.admission import seconds_until_room
from mezzotint.engine.cost import StepCost
from mezzotint.engine.observer import Observer
from mezzotint.engine.rows import WEIGHTS, BatchKey, batch_key, measured_as, stages_of
from mezzotint.engine.rules import Plan
from mezzotint.engine.scheduler import Scheduler
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import DeadlineExceeded, DeadlineUnreachable, MezzotintError, QueueFull

__all__ = ["QUEUE_NEWS_SECONDS", "RequestTable"]

# How often those who wait are told where they stand.
QUEUE_NEWS_SECONDS = 0.5


class RequestTable:
    """`max_queue` bounds the requests that wait for their first pass, `max_backlog_s` the seconds of
    work, decoding included, until all that are here are done."""

    def __init__(self, cost: StepCost, max_queue: int, max_backlog_s: float = math.inf) -> None:
        self._cost = cost
        self.scheduler = Scheduler(cost)
        self.tickets: dict[str, Ticket] = {}
        self.max_queue = max_queue
        self.max_backlog_s = max_backlog_s
        self._cancels: set[str] = set()
        self._to_decode: list[str] = []
        # The decoder has it in hand; the backend must not forget it before it lets go.
        self._in_decoder: str | None = None
        self._ended: deque[str] = deque()
        # Between two stages, with something of the first in the backend.
        self._over: set[str] = set()
        self._queue_news_at = 0.0
        self.observer = Observer()

    def submit(self, ticket: Ticket) -> None:
        """Queue a request and tell it where it stands.

        Raises:
            QueueFull: there is no room, or the tenant has its share of it.
            DeadlineUnreachable: it takes longer than it may, by what is ahead of it or by itself.
        """
        request, deadline = ticket.request, ticket.deadline
        stages, tenant = stages_of(request), request.tenant
        # Its own company is not what a picture waits for: they are let in together.
        company = {id for id, each in self.tickets.items() if ticket.group and each.group == ticket.group}
        self._check_room(self.scheduler.seconds_of_work(stages), tenant, company)
        outlook = partial(
            self.scheduler.outlook, stages, ticket.submitted, tenant=tenant, priority=request.priority
        )
        standing = outlook()
        # An assumed cost is no reason to refuse anyone.
        if self._cost.is_measured and request.deadline_s is not None:
            _check_deadline(request.deadline_s, standing.eta_s, outlook(among=company).eta_s, company)
        self.scheduler.submit(
            ticket.request_id,
            stages,
            ticket.submitted,
            deadline,
            tenant=tenant,
            priority=request.priority,
        )
        self.tickets[ticket.request_id] = ticket
        ticket.stream.put(Queued(ticket.request_id, standing.position, standing.eta_s))

    def _check_room(self, work_s: float, tenant: str, company: Collection[str]) -> None:
        backlog = self.scheduler.backlog_seconds(without=company)
        queued = self.queued - sum(self.tickets[id].started is None for id in company)
        wait = seconds_until_room(
            work_s + self.scheduler.backlog_seconds() - backlog,
            own_s=self.scheduler.backlog_seconds(tenant, without=company),
            backlog_s=backlog,
            queued=queued,
            max_queue=self.max_queue,
            max_backlog_s=self.max_backlog_s,
        )
        if wait is not None:
            raise QueueFull(
                f"{queued} requests are waiting, {backlog:.0f} s of work, and there is no room for this one; "
                f"try again in {math.ceil(wait)} s",
                retry_after_s=wait,
            )

    @property
    def queued(self) -> int:
        """How many wait for their first pass."""
        return sum(ticket.started is None for ticket in self.tickets.values())

    def ask_to_cancel(self, request_id: str) -> None:
        """Cancel before the next plan. Nothing happens to a request that has ended."""
        if request_id in self.tickets:
            self._cancels.add(request_id)

    def plan(self, now: float) -> Plan:
        """Carry out the cancels and deadlines that are due, then plan the next pass."""
        for request_id in self._cancels & self.tickets.keys():
            self.scheduler.cancel(request_id)
            self._end(request_id, Cancelled(request_id))
        self._cancels.clear()
        plan = self.scheduler.plan(now)
        for request_id in plan.expired:
            self.fail(request_id, DeadlineExceeded("the request's deadline passed"))
        if now >= self._queue_news_at:
            self._queue_news_at = now + QUEUE_NEWS_SECONDS
            for standing in self.scheduler.waiting(now):
                ticket = self.tickets[standing.id]
                # Between its stages a request waits too, and has shown how far it is.
                if ticket.started is None:
                    ticket.stream.put(Queued(standing.id, standing.position, standing.eta_s))
        return plan

    def start(self, request_id: str, warnings: tuple[str, ...]) -> None:
        """The backend has started the request, or its next stage."""
        ticket = self.tickets[request_id]
        ticket.started = ticket.started or time.monotonic()
        # Of each stage they are for the most part the same.
        ticket.warnings = tuple(dict.fromkeys((*ticket.warnings, *warnings)))
        self._over.discard(request_id)
        self.scheduler.start(request_id)

    def keys(self, plan: Plan) -> list[BatchKey]:
        """Of each image in the pass."""
        return [batch_key(self.tickets[request_id].stages[0]) for request_id in plan.request_ids]

    def expected_seconds(self, plan: Plan) -> float:
        """Of the pass."""
        key, batch = measured_as(self.keys(plan))
        return self._cost.seconds(key, batch)

    def wants_preview(self, request_id: str) -> bool:
        """Whether one is due after the evaluation that has just run and is not settled yet."""
        every = self.tickets[request_id].request.preview_every
        left = self.scheduler.evaluations_left(request_id) - 1
        return every > 0 and left > 0 and left % every == 0

    def settle(
        self, plan: Plan, failed: Mapping[str, MezzotintError], previews: Mapping[str, Pixels]
    ) -> tuple[str, ...]:
        """The pass ran: fail, tell progress. Returns the requests to decode."""
        finished = self.scheduler.stepped(plan, failed)
        for request_id, error in failed.items():
            self.fail(request_id, error)
        now = time.monotonic()
        for request_id in plan.request_ids:
            if request_id not in failed:
                ticket = self.tickets[request_id]
                ticket.evaluated += 1
                ticket.first_step = ticket.first_step or now
                ticket.last_step = now if request_id in finished else None
                ticket.stream.put(self._progress(request_id, previews.get(request_id)))
        self._to_decode += finished
        return finished

    def take_to_decode(self) -> Ticket | None:
        """The request that the decoder turns to: the one that has waited longest, an hour of high priority as
        long as four of normal. None when there is none left to decode."""
        now = time.monotonic()
        for request_id in list(self._to_decode):
            deadline = self.tickets[request_id].deadline
            if deadline is not None and deadline <= now:
                self.fail(request_id, DeadlineExceeded("the request's deadline passed"))

        def waited(request_id: str) -> float:
            ticket = self.tickets[request_id]
            return (now - (ticket.last_step or now)) * WEIGHTS[ticket.request.priority]

        if not self._to_decode:
            return None
        self._in_decoder = max(self._to_decode, key=waited)
        self._to_decode.remove(self._in_decoder)
        ticket = self.tickets[self._in_decoder]
        ticket.decoding = now
        return ticket

    def decoded(
        self, request_id: str, outcome: Image | ResolvedRequest | MezzotintError, decode_s: float | None
    ) -> None:
        """The decoder lets go of a request, with its picture, its next stage, or an error. Decoding took
        `decode_s` seconds, where there was any."""
        self._in_decoder = None
        ticket = self.tickets.get(request_id)
        if ticket is None:
            # Cancelled meanwhile: it has been answered, and only waits to be forgotten.
            self._ended.append(request_id)
            return
        if decode_s is not None:
            self._cost.observe_decode(batch_key(ticket.stages[0]), decode_s)
        if isinstance(outcome, ResolvedRequest):
            self.scheduler.go_on(request_id)
            self._over.add(request_id)
            ticket.stages = (outcome, *ticket.stages[2:])
            ticket.last_step = ticket.decoding = None
        elif isinstance(outcome, Image):
            now, started = time.monotonic(), ticket.started or ticket.submitted
            self.scheduler.finish(request_id)
            self._end(request_id, Done(request_id, outcome, started - ticket.submitted, now - started))
        else:
            self.fail(request_id, outcome)

    def fail(self, request_id: str, error: MezzotintError) -> None:
        self.scheduler.fail(request_id)
        self._end(request_id, Failed(request_id, error))

    def fail_all(self, error: MezzotintError) -> None:
        for request_id in list(self.tickets):
            self.fail(request_id, error)

    @property
    def has_ended(self) -> bool:
        """Whether `take_ended` has something to tell."""
        return bool(self._ended or self._over)

    def take_ended(self) -> tuple[list[str], list[str]]:
        """Request ids that ended, and ids of which only a stage ended; the backend may drop their state. Each
        is returned once; one whose next stage has started is not returned."""
        told = list(self._ended), list(self._over)
        self._ended.clear()
        self._over.clear()
        return told

    def _end(self, request_id: str, event: Event) -> None:
        ticket = self.tickets.pop(request_id)
        ticket.stream.put(event)
        self.observer.ended(ticket, event)
        if request_id in self._to_decode:
            self._to_decode.remove(request_id)
        if request_id != self._in_decoder:
            self._ended.append(request_id)

    def _progress(self, request_id: str, preview: Pixels | None) -> Progress:
        request = self.tickets[request_id].request
        evaluated = request.evaluations - self.scheduler.evaluations_left(request_id)
        # Second-order samplers evaluate more often than they step; callers count steps.
        step = evaluated * request.steps_taken // request.evaluations
        return Progress(request_id, step, request.steps_taken, preview)


def _check_deadline(deadline_s: float, eta_s: float, alone_s: float, company: Collection[str]) -> None:
    """alone_s: what the picture takes, with its company, on an engine that has nothing else to do."""
    if eta_s <= deadline_s:
        return
    # What is left of it is a little less than was asked for.
    told = f"and the deadline is {round(deadline_s, 2):g} s"
    if alone_s > deadline_s:
        besides, fewer = (" but others of its request", "fewer pictures, ") if company else ("", "")
        raise DeadlineUnreachable(
            f"the picture takes {alone_s:.1f} s with nothing ahead of it{besides}, {told}; "
            f"{fewer}fewer steps or a smaller size take less",
            param="deadline_s",
        )
    raise DeadlineUnreachable(
        f"the picture would take {eta_s:.1f} s now, {told}",
        param="deadline_s",
        retry_after_s=max(eta_s - deadline_s, 1.0),
    )
