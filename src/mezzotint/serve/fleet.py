"""What one gateway knows of the engine replicas: who finishes first, and whether anyone has room.

Reports are a moment old, so what this gateway has sent since is added to them. Other gateways' sendings are
known with the next report. Pure but for its clock and the chance that settles a tie; the engines stay the
authority on what they take.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mezzotint.core import ModelLimits, ResolvedRequest
from mezzotint.engine.admission import seconds_until_room
from mezzotint.engine.rows import BatchKey, stages_of
from mezzotint.errors import MAX_RETRY_AFTER_SECONDS, DeadlineUnreachable, QueueFull
from mezzotint.serve.wire import Report

__all__ = ["Fleet"]

# A replica that has not reported for so long is asked only when no other is known.
STALE_SECONDS = 3.0


@dataclass(eq=False)
class _Sent:
    at: float
    tenant: str
    work_s: float


@dataclass
class _Known:
    report: Report
    asked: float
    sent: list[_Sent] = field(default_factory=list)

    def backlogs_s(self) -> dict[str, float]:
        """By tenant."""
        backlogs = dict(self.report.backlogs)
        for each in self.sent:
            backlogs[each.tenant] = backlogs.get(each.tenant, 0.0) + each.work_s
        return backlogs


class Fleet:
    """`gateways` share the replicas, and what they refuse comes back to any of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, gateways: int = 1) -> None:
        self._clock = clock
        self._gateways = gateways
        self._known: dict[str, _Known] = {}
        # When each tenant's last refused request was told to come back.
        self._promised: dict[str, float] = {}

    def update(self, reports: Iterable[Report], asked: float) -> None:
        """Take in `reports`, asked for at `asked` on the clock."""
        for report in reports:
            before = self._known.get(report.replica)
            # What was sent before the question has been counted in the answer.
            since = [] if before is None else [each for each in before.sent if each.at >= asked]
            self._known[report.replica] = _Known(report, asked, since)
        oldest = self._clock() - STALE_SECONDS
        self._known = {name: known for name, known in self._known.items() if known.asked >= oldest}

    def forget(self, replica: str) -> None:
        """The replica is gone."""
        self._known.pop(replica, None)

    @property
    def reports(self) -> list[Report]:
        return [known.report for known in self._known.values()]

    def cost_s(self, request: ResolvedRequest) -> float:
        """Seconds of an engine that the request takes, the cheapest replica's; 0 while none is known."""
        costs = [_work_s(known.report, request) for known in self._known.values()]
        return min(costs, default=0.0)

    def check_deadline(self, request: ResolvedRequest) -> None:
        """An engine refuses it too, but what is too short for a picture may be too short to reach one.

        Raises:
            DeadlineUnreachable: no replica draws it in so short a time, even with nothing else to do.
        """
        if request.deadline_s is not None and request.deadline_s < self.cost_s(request):
            raise DeadlineUnreachable(
                f"the picture takes longer than its deadline, {request.deadline_s:.2g} s, with nothing ahead "
                "of it; fewer steps or a smaller size take less",
                param="deadline_s",
            )

    def choose(self, request: ResolvedRequest, avoid: Collection[str] = ()) -> str:
        """Of the replicas that have room, or else of all, the one that would have it done first; the empty
        name when none is known to be able to."""

        def rank(name: str) -> tuple[bool, float, float, float]:
            is_full = self._wait_s(name, request, 1) is not None
            backlog_s = sum(self._known[name].backlogs_s().values())
            # Gateways that know the same must not all choose the same.
            return is_full, self._finish_s(name, request), backlog_s, random.random()

        return min(self._able(request, avoid), key=rank, default="")

    def refusal(
        self, request: ResolvedRequest, avoid: Collection[str] = (), *, count: int = 1
    ) -> QueueFull | None:
        """Why no known replica takes the request now, with the time until the first has room.

        count: so many of it ask as one, and all replicas share them.
        """
        able = self._able(request, avoid)
        waits = [self._wait_s(name, request, math.ceil(count / len(able))) for name in able]
        if not waits or None in waits:
            return None
        wait = min(wait for wait in waits if wait is not None)
        queued = sum(report.queued for report in self.reports)
        return QueueFull(
            f"{queued} requests are waiting and there is no room for this one; try again in "
            f"{math.ceil(wait)} s",
            retry_after_s=wait,
        )

    def promise(self, refusal: QueueFull, request: ResolvedRequest, *, count: int = 1) -> QueueFull:
        """The refusal as the client is told it: in the order of asking, each when there is room for it too.

        The other gateways are taken to refuse as many. At most `MAX_RETRY_AFTER_SECONDS` ahead.
        """
        now = self._clock()
        self._promised = {tenant: at for tenant, at in self._promised.items() if at > now}
        wait = refusal.retry_after_s or 0.0
        drain_s = count * self.cost_s(request) * self._gateways / max(1, len(self._known))
        at = max(now + wait, self._promised.get(request.tenant, 0.0) + drain_s)
        at = self._promised[request.tenant] = min(at, now + max(wait, MAX_RETRY_AFTER_SECONDS))
        return QueueFull(
            f"there is no room for this request now; try again in {math.ceil(at - now)} s",
            retry_after_s=at - now,
        )

    @contextmanager
    def sending(self, replica: str, request: ResolvedRequest) -> Iterator[None]:
        """Within, the request is on `replica`."""
        known = self._known.get(replica)
        if known is None:
            yield
            return
        sent = _Sent(self._clock(), request.tenant, _work_s(known.report, request))
        known.sent.append(sent)
        try:
            yield
        finally:
            now_known = self._known.get(replica)
            if now_known is not None and sent in now_known.sent:
                now_known.sent.remove(sent)

    def _able(self, request: ResolvedRequest, avoid: Collection[str]) -> list[str]:
        return [
            name
            for name, known in self._known.items()
            if name not in avoid and known.report.healthy and _draws(known.report, request)
        ]

    def _finish_s(self, name: str, request: ResolvedRequest) -> float:
        """As the engine expects it, where all have one priority: passes are shared fairly, so of every other
        tenant's work as much comes first as the request's own tenant will have had."""
        known = self._known[name]
        others = known.backlogs_s()
        own_s = others.pop(request.tenant, 0.0) + _work_s(known.report, request)
        return own_s + sum(min(backlog_s, own_s) for backlog_s in others.values())

    def _wait_s(self, name: str, request: ResolvedRequest, count: int) -> float | None:
        report, backlogs_s = self._known[name].report, self._known[name].backlogs_s()
        return seconds_until_room(
            count * _work_s(report, request),
            own_s=backlogs_s.get(request.tenant, 0.0),
            backlog_s=sum(backlogs_s.values()),
            queued=report.queued,
            max_queue=report.max_queue,
            max_backlog_s=report.max_backlog_s,
        )


def _draws(report: Report, request: ResolvedRequest) -> bool:
    limits = report.info.limits
    # While versions or settings change, some replicas serve what others do not yet.
    has_loras = {lora.name for lora in request.loras} <= {lora.name for lora in limits.loras}
    has_nets = {each.name for each in request.controls} <= {each.name for each in limits.controlnets}
    has_adapters = {each.name for each in request.image_prompts} <= {each.name for each in limits.ip_adapters}
    has_words = set(request.embeddings) <= {each.name for each in limits.embeddings}
    fits = all(_fits(limits, stage.width, stage.height) for stage in request.stages)
    return has_loras and has_nets and has_adapters and has_words and fits


def _fits(limits: ModelLimits, width: int, height: int) -> bool:
    fits = limits.min_size <= min(width, height) and max(width, height) <= limits.max_size
    is_compiled = limits.served is None or (width, height) in limits.served
    return fits and is_compiled and width * height <= limits.max_pixels


def _work_s(report: Report, request: ResolvedRequest) -> float:
    """As the replica's own engine expects it."""
    return sum(
        stage.evaluations * _evaluation_s(report, stage.key.cost_key)
        + stage.key.width * stage.key.height * report.decode_s_a_pixel
        for stage in stages_of(request)
    )


def _evaluation_s(report: Report, key: BatchKey) -> float:
    """For a shape that the replica has not run, in proportion to the area."""
    cost = report.costs.get(key)
    if cost is None:
        nearest = min(report.costs, key=lambda other: abs(math.log(other.area / key.area)), default=key)
        cost = report.costs.get(nearest, 0.0) * key.area / nearest.area
    return cost
