"""Which requests share the next denoising step. Pure: no tensor, no thread, no clock, no I/O.

The rules, in order:

0. The passes are shared fairly among *tenants*: each is charged the seconds of its rows in a pass and of
   their decoding, less for high priority and more for low, and the one that was charged least goes first
   (start-time fair queuing; Goyal, Vin and Cheng, 1996). The rules below order the requests of one tenant,
   and those of all while there is one. (`scheduler` keeps the charges.)
1. Requests share a pass when their pictures have one shape, with guidance or without, held by ControlNets or
   not: a guided picture is two rows of the UNet's batch, another one. Each shape has a *window*: the requests
   that may run, no more than its knee (`cost.knee`), beyond which a wider pass buys no throughput.
2. The window takes *overdue* requests first, in order of arrival, up to `overdue_share` of its places; then
   those of higher priority; then those with the fewest evaluations left, ties in order of arrival. (One of a
   later, larger stage counts as many as take its time.) Overdue means: in the system for more than `stretch`
   times what the request would take alone. Where they take all places, as where there is one, they have
   that share of the passes. So nothing waits for ever, a backlog drains first come, first served instead of
   sharing itself slow, and a short job still passes the backlog.
3. The pass takes the head of the window, as wide as lowers the total waiting most: the width w with the
   highest Σ weight/(evaluations left) ÷ (seconds of a pass of width w). This is Smith's rule (W. E. Smith,
   1956) for a server that takes batches: equals go together, and a nearly finished request does not pay for
   its neighbours. The weight is the response ratio, (age + seconds alone) ÷ seconds alone (P. Brinch Hansen,
   1971), so that waiting counts. A pass narrower than the window must be `narrowing` times as good, since
   wide ones save work.
4. Of several windows, the one whose best pass is worth most. But a request in a window is passed over at
   most `patience` times in a row, a new one at most once, and once more for each other shape whose turn is
   due: then its shape is served, in a pass wide enough for it.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from mezzotint.engine.rows import BatchKey, Cost, Row, State, evaluation_seconds, pass_seconds, within

__all__ = ["TENANT_SHARE", "Moment", "Plan", "Ranked", "Rules"]

# What one tenant may hold of `max_running`, so that another always finds a place.
TENANT_SHARE = 0.75

# The least goes first; `Row.order` makes it unique.
Rank = tuple[int, float, float, int]
Ranked = tuple[Rank, Row]


@dataclass(frozen=True)
class Rules:
    """The constants of the rules, as measured (docs/decisions/0002)."""

    stretch: float = 2.0
    overdue_share: float = 0.75
    patience: int = 8
    narrowing: float = 2.0


@dataclass(frozen=True)
class Plan:
    """`request_ids` make the next pass, `starting` among them their first; `expired` are past their
    deadline."""

    request_ids: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """All that a plan depends on: the requests, what each tenant was charged (seconds), and the time."""

    requests: Collection[Row]
    charged: Mapping[str, float]
    cost: Cost
    rules: Rules
    max_running: int
    now: float

    def plan(self) -> Plan:
        """The next pass; empty when nothing can run."""
        active = [row for row in self.requests if row.active]
        expired = [row for row in active if row.deadline is not None and row.deadline <= self.now]
        gone = set(expired)
        found = self._windows([row for row in active if row not in gone])
        windows = self._in_turn([window for window, _ in found])
        chosen = self._pass(windows)
        going = set(chosen)
        giving_way = [row for window, row in found if row is not None and going & set(window)]
        return Plan(
            request_ids=tuple(row.id for row in chosen),
            starting=tuple(row.id for row in chosen if row.state is State.QUEUED),
            expired=tuple(row.id for row in expired),
            passed_over=tuple(row.id for row in chain(*windows, giving_way) if row not in going),
        )

    def ranked(self, row: Row) -> Ranked:
        """The request in its place among its tenant's, for those who sort them all."""
        return self._rank(row, overdue=self._overdue(row)), row

    # Rule 0: whose turn it is

    def _in_turn(self, windows: list[list[Row]]) -> list[list[Row]]:
        """The windows that hold something of the tenant that was charged least."""
        if len(self.charged) < 2 or not windows:
            return windows
        first = min(chain(*windows), key=lambda row: (self.charged[row.tenant], row.order))
        return [window for window in windows if any(row.tenant == first.tenant for row in window)]

    def _fairly(self, ranked: list[Ranked], count: int) -> list[Ranked]:
        """The first `count`, tenants taking turns: always the one that would be charged least so far."""
        if len(self.charged) == 1:
            return heapq.nsmallest(count, ranked)
        queues: dict[str, deque[Ranked]] = {}
        for each in sorted(ranked):
            queues.setdefault(each[1].tenant, deque()).append(each)
        turns = [(self.charged[tenant], own[0][1].order, tenant) for tenant, own in queues.items()]
        heapq.heapify(turns)
        chosen: list[Ranked] = []
        while turns and len(chosen) < count:
            charged, _, tenant = heapq.heappop(turns)
            own = queues[tenant]
            chosen.append(own.popleft())
            if own:
                charged += self._usual_charge(chosen[-1][1])
                heapq.heappush(turns, (charged, own[0][1].order, tenant))
        return chosen

    def _usual_charge(self, row: Row) -> float:
        """What a pass costs its tenant for it among as many as pay."""
        return evaluation_seconds(self.cost, row.key) / row.weight

    # Rules 1 and 2: who may run

    def _windows(self, rows: list[Row]) -> list[tuple[list[Row], Row | None]]:
        """Those of each shape, in the order in which they take places in a pass; none is empty. And the
        overdue request that gives way there, if one does."""
        shapes: dict[BatchKey, list[Row]] = {}
        for row in rows:
            shapes.setdefault(row.key.shape, []).append(row)
        windows = [self._window(alike) for alike in shapes.values()]
        return [(window, giving_way) for window, giving_way in windows if window]

    def _window(self, rows: list[Row]) -> tuple[list[Row], Row | None]:
        keys = {row.key for row in rows}
        most = max(self.cost.knee(key) for key in keys)
        room = max(key.unet_rows * self.cost.knee(key) for key in keys)
        overdue = sorted((row for row in rows if self._overdue(row)), key=lambda row: row.order)
        share = self.rules.overdue_share
        first = within(int(share * room), overdue) or overdue[:1]
        window = self._places(rows, first, most, room)
        if not window or not set(window) <= set(first):
            return window, None
        # They have all the places there are: so these are shared in turns.
        others = self._places(rows, [], most, room)
        is_due = window[0].unbroken * (1 - share) >= share
        return (others, window[0]) if is_due and others[0] not in window else (window, None)

    def _places(self, rows: list[Row], first: Collection[Row], most: int, room: int) -> list[Row]:
        """Who has the places, `first` before the others."""
        # Those overdue that are beyond their share rank as if they were not.
        ranked = [(self._rank(row, overdue=row in first), row) for row in rows]
        running = [each for each in ranked if each[1].state is State.RUNNING]
        newcomers = [each for each in ranked if each[1].state is State.QUEUED]
        return within(room, [row for _, row in self._fairly(running + self._with_room(newcomers), most)])

    @cached_property
    def _held(self) -> Counter[str]:
        """How many of each tenant hold latents."""
        return Counter(row.tenant for row in self.requests if row.state is not State.QUEUED)

    def _with_room(self, newcomers: list[Ranked]) -> list[Ranked]:
        """Those that may hold latents beside the requests that do."""
        held = self._held
        room = self.max_running - held.total()
        most = max(1, int(TENANT_SHARE * self.max_running))
        tenants: dict[str, list[Ranked]] = {}
        for each in newcomers:
            tenants.setdefault(each[1].tenant, []).append(each)
        chosen: list[Ranked] = []
        for tenant, own in tenants.items():
            chosen += heapq.nsmallest(min(room, most - held[tenant]), own)
        return self._fairly(chosen, room)

    def _rank(self, row: Row, *, overdue: bool) -> Rank:
        return (0, 0.0, 0.0, row.order) if overdue else (1, -row.weight, self._left(row), row.order)

    def _overdue(self, row: Row) -> bool:
        return self.now - row.arrived > self.rules.stretch * self._alone(row)

    def _alone(self, row: Row) -> float:
        """The seconds the request would take by itself."""
        seconds = 0.0
        # Asked of each request in each plan: a generator would cost more than what it adds up.
        for stage in row.stages:
            seconds += stage.evaluations * self.cost.seconds(stage.key, 1)
        return max(seconds, 1e-9)

    def _left(self, row: Row) -> float:
        """The evaluations that it needs until the picture, counted in such as are its next."""
        if not row.later:
            return row.remaining
        later = sum(each.evaluations * self.cost.seconds(each.key, 1) for each in row.later)
        return row.remaining + later / max(self.cost.seconds(row.key, 1), 1e-9)

    # Rules 3 and 4: which window, and how much of it

    def _pass(self, windows: list[list[Row]]) -> list[Row]:
        if not windows:
            return []
        impatient = [row for row in chain(*windows) if self._overtaken(row) >= 0]
        if impatient:
            first = max(impatient, key=lambda row: (self._overtaken(row), -row.order))
            window = next(each for each in windows if first in each)
        else:
            window = max(windows, key=lambda each: self._worth(each[: self._best(each)]))
        return window[: self._width(window)]

    def _width(self, window: list[Row]) -> int:
        narrowest = max((i for i, row in enumerate(window, 1) if self._overtaken(row) >= 0), default=1)
        best = self._best(window, narrowest)
        gain = self._worth(window[:best]) / self._worth(window)
        return best if gain > self.rules.narrowing else len(window)

    def _best(self, window: list[Row], narrowest: int = 1) -> int:
        """The width of the pass that is worth most."""
        return max(range(narrowest, len(window) + 1), key=lambda width: self._worth(window[:width]))

    def _worth(self, rows: list[Row]) -> float:
        """Of a pass of these."""
        gain = sum((1 + (self.now - row.arrived) / self._alone(row)) / self._left(row) for row in rows)
        return gain / max(pass_seconds(self.cost, rows), 1e-9)

    def _overtaken(self, row: Row) -> int:
        """How often the row was passed over beyond what it bears; from 0 on, its turn is due."""
        return row.passed_over - (1 if row.state is State.QUEUED else self.rules.patience)
