"""Which requests share the next denoising step. Pure: no tensor, no thread, no clock, no I/O.

The engine tells it what happened (`submit`, `start`, `stepped`, `finish`, `fail`, `cancel`) and asks what to
do (`plan`). Time is an argument. A move the table forbids raises `IllegalMove` and changes nothing; a
request that has ended is forgotten.

The rules of `plan`, in order:

0. The passes are shared fairly among *tenants*: each is charged the seconds of its rows in a pass, less for
   high priority and more for low, and the one that was charged least goes first (start-time fair queuing;
   Goyal, Vin and Cheng, 1996). One that comes, or comes back, starts level with the least charged; one that
   wants less than its share saves up no more than `PATIENCE` passes. The rules below order the requests of
   one tenant, and those of all while there is one.
1. Requests share a pass when their pictures have one shape, with guidance or without: a guided picture is two
   rows of the UNet's batch, another one. Each shape has a *window*: the requests that may run, no more than
   its knee (`cost.knee`), beyond which a wider pass buys no throughput.
2. The window takes *overdue* requests first, in order of arrival, up to `OVERDUE_SHARE` of its places; then
   those of higher priority; then those with the fewest evaluations left, ties in order of arrival. Overdue
   means: in the system for more than `STRETCH` times what the request would take alone. So nothing waits for
   ever, a backlog drains first come, first served instead of sharing itself slow, and a short job still
   passes the backlog where a window has room for two.
3. The pass takes the head of the window, as wide as lowers the total waiting most: the width w with the
   highest Σ weight/(evaluations left) ÷ (seconds of a pass of width w). This is Smith's rule (W. E. Smith,
   1956) for a server that takes batches: equals go together, and a nearly finished request does not pay for
   its neighbours. The weight is the response ratio, (age + seconds alone) ÷ seconds alone (P. Brinch Hansen,
   1971), so that waiting counts. A pass narrower than the window must be `NARROWING` times as good, since
   wide ones save work.
4. Of several windows, the one whose best pass is worth most. But a request in a window is passed over at
   most `PATIENCE` times in a row, a new one at most once, and once more for each other shape whose turn is
   due: then its shape is served, in a pass wide enough for it.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Protocol

from mezzotint.core import Lora, Priority, ResolvedRequest
from mezzotint.engine.standing import Standing, seconds_of_work, standings

__all__ = [
    "TRANSITIONS",
    "BatchKey",
    "Cost",
    "IllegalMove",
    "Plan",
    "Row",
    "Scheduler",
    "State",
    "batch_key",
    "measured_as",
]

STRETCH = 2.0
OVERDUE_SHARE = 0.75
PATIENCE = 8
NARROWING = 1.75
# A priority's share of the engine against normal.
WEIGHTS: Mapping[Priority, float] = MappingProxyType({"low": 0.25, "normal": 1.0, "high": 4.0})
# What one tenant may hold of `max_running`, so that another always finds a place.
TENANT_SHARE = 0.75


class State(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
        State.RUNNING: frozenset({State.DECODING, State.FAILED, State.CANCELLED}),
        State.DECODING: frozenset({State.DONE, State.FAILED, State.CANCELLED}),
        State.DONE: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)


class IllegalMove(Exception):
    """A move outside `TRANSITIONS`, or of a request that is not here. Nothing has changed."""


@dataclass(frozen=True)
class BatchKey:
    """What an image's passes depend on. Sizes in pixels. What they cost depends on all but `loras`."""

    width: int
    height: int
    guided: bool
    loras: tuple[Lora, ...] = ()

    @property
    def rows(self) -> int:
        """Of the UNet's batch that one image takes."""
        return 2 if self.guided else 1

    @property
    def area(self) -> int:
        """Pixels of one image's rows."""
        return self.width * self.height * self.rows

    @property
    def cost_key(self) -> BatchKey:
        """The key that costs as much, without LoRAs: they are in the weights while they are worn."""
        return replace(self, loras=()) if self.loras else self

    @property
    def shape(self) -> BatchKey:
        """What requests must have in common to share a pass: the key of those without guidance."""
        return replace(self, guided=False)


def batch_key(request: ResolvedRequest) -> BatchKey:
    """The key of a request's passes."""
    return BatchKey(request.width, request.height, request.guided, request.loras)


def measured_as(keys: Sequence[BatchKey]) -> tuple[BatchKey, int]:
    """The key and the width that a pass of images of these keys, all of one shape, costs as much as.

    Guided and others together cost what as many rows of guided ones do; an odd row counts as two.
    """
    rows = sum(key.rows for key in keys)
    if rows == len(keys):
        return keys[0], rows
    return replace(keys[0], guided=True), (rows + 1) // 2


class Cost(Protocol):
    """What the scheduler asks of `cost.StepCost`."""

    def seconds(self, key: BatchKey, width: int) -> float: ...

    def knee(self, key: BatchKey) -> int: ...

    def decode_seconds(self, key: BatchKey) -> float: ...


@dataclass
class Row:
    """A request that has not ended. `remaining` counts its evaluations that are left."""

    id: str
    key: BatchKey
    evaluations: int
    arrived: float
    deadline: float | None
    order: int
    remaining: int
    tenant: str
    weight: float
    state: State = State.QUEUED
    passed_over: int = 0


# The least goes first; `order` makes it unique.
Rank = tuple[int, float, int, int]
Ranked = tuple[Rank, Row]


@dataclass(frozen=True)
class Plan:
    """`rows` make the next pass, `starting` among them their first; `expired` are past their deadline."""

    rows: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


class Scheduler:
    """The requests of one engine. `max_running` bounds those that hold latents at a time."""

    def __init__(
        self,
        cost: Cost,
        *,
        max_running: int = 32,
        stretch: float = STRETCH,
        overdue_share: float = OVERDUE_SHARE,
        patience: int = PATIENCE,
        narrowing: float = NARROWING,
    ) -> None:
        self._cost = cost
        self._max_running = max_running
        self._stretch = stretch
        self._overdue_share = overdue_share
        self._patience = patience
        self._narrowing = narrowing
        self._rows: dict[str, Row] = {}
        self._submitted = 0
        # Seconds of passes by tenant, for those that have requests here.
        self._charged: dict[str, float] = {}

    # What happened

    def submit(
        self,
        id: str,
        key: BatchKey,
        evaluations: int,
        now: float,
        deadline: float | None = None,
        *,
        tenant: str = "",
        priority: Priority = "normal",
    ) -> None:
        """A new request needs `evaluations` (≥1) passes; `deadline` is on the clock of `now`."""
        if id in self._rows or evaluations < 1:
            raise IllegalMove(f"cannot submit {id}: known already, or {evaluations} evaluations")
        self._submitted += 1
        self._rows[id] = Row(
            id, key, evaluations, now, deadline, self._submitted, evaluations, tenant, WEIGHTS[priority]
        )
        if tenant not in self._charged:
            self._charged[tenant] = min(self._charged.values(), default=0.0)

    def start(self, id: str) -> None:
        """The backend holds the request's latents; it joins the passes."""
        self._move(id, State.RUNNING)

    def stepped(self, plan: Plan, failed: Collection[str] = ()) -> tuple[str, ...]:
        """The pass ran. Returns the requests whose latents are final; `failed` ones must be failed next."""
        moved = [self._row(id) for id in plan.rows if id not in failed]
        for row in moved:
            if row.state is not State.RUNNING or row.remaining < 1:
                raise IllegalMove(f"{row.id} is {row.state.value} and cannot step")
        for row in moved:
            row.remaining -= 1
            row.passed_over = 0
            self._charged[row.tenant] += self._share(row, moved)
            if row.remaining == 0:
                self._charged[row.tenant] += self._cost.decode_seconds(row.key) / row.weight
        self._level(plan, PATIENCE * self._seconds(moved) if moved else 0.0)
        for id in plan.passed_over:
            if id in self._rows:
                self._rows[id].passed_over += 1
        finished = tuple(row.id for row in moved if row.remaining == 0)
        for id in finished:
            self._move(id, State.DECODING)
        return finished

    def finish(self, id: str) -> None:
        self._move(id, State.DONE)

    def fail(self, id: str) -> None:
        self._move(id, State.FAILED)

    def cancel(self, id: str) -> None:
        self._move(id, State.CANCELLED)

    # What to do

    def plan(self, now: float) -> Plan:
        """The next pass; empty when nothing can run. Changes nothing."""
        expired = tuple(r.id for r in self._active() if r.deadline is not None and r.deadline <= now)
        windows = [w for w in self._windows(now, skip=set(expired)) if w]
        if not windows:
            return Plan(expired=expired)
        if len(self._charged) > 1:
            poorest = min(chain(*windows), key=lambda row: (self._charged[row.tenant], row.order)).tenant
            windows = [w for w in windows if any(row.tenant == poorest for row in w)]
        impatient = [row for w in windows for row in w if self._overtaken(row) >= 0]
        if impatient:
            first = max(impatient, key=lambda row: (self._overtaken(row), -row.order))
            window = next(w for w in windows if first in w)
        else:
            window = max(windows, key=lambda w: max(self._worth(w, n, now) for n in range(1, len(w) + 1)))
        chosen = window[: self._width(window, now)]
        rows = {row.id for row in chosen}
        return Plan(
            rows=tuple(row.id for row in chosen),
            starting=tuple(row.id for row in chosen if row.state is State.QUEUED),
            expired=expired,
            passed_over=tuple(row.id for w in windows for row in w if row.id not in rows),
        )

    def _windows(self, now: float, skip: set[str]) -> list[list[Row]]:
        groups: dict[BatchKey, list[Row]] = {}
        for row in self._active():
            if row.id not in skip:
                groups.setdefault(row.key.shape, []).append(row)
        windows = []
        for rows in groups.values():
            keys = {row.key for row in rows}
            most = max(self._cost.knee(key) for key in keys)
            room = max(key.rows * self._cost.knee(key) for key in keys)
            ranked = self._ranked(rows, now, room)
            running = [each for each in ranked if each[1].state is State.RUNNING]
            newcomers = [each for each in ranked if each[1].state is State.QUEUED]
            window = [row for _, row in self._fairly(running + self._with_room(newcomers), most)]
            windows.append(_within(room, window))
        return windows

    def _ranked(self, rows: list[Row], now: float, room: int) -> list[Ranked]:
        """Those for a window with such room. Overdue ones beyond their share rank as if they were not."""
        overdue = sorted((row for row in rows if self._overdue(row, now)), key=lambda row: row.order)
        first = {row.id for row in (_within(int(self._overdue_share * room), overdue) or overdue[:1])}
        return [(self._rank(row, overdue=row.id in first), row) for row in rows]

    def _with_room(self, newcomers: list[Ranked]) -> list[Ranked]:
        """Those that may hold latents beside the requests that do."""
        held = Counter(row.tenant for row in self._rows.values() if row.state is not State.QUEUED)
        room = self._max_running - held.total()
        most = max(1, int(TENANT_SHARE * self._max_running))
        chosen: list[Ranked] = []
        for tenant in {row.tenant for _, row in newcomers}:
            own = [each for each in newcomers if each[1].tenant == tenant]
            chosen += heapq.nsmallest(min(room, most - held[tenant]), own)
        return self._fairly(chosen, room)

    def _fairly(self, ranked: list[Ranked], count: int) -> list[Ranked]:
        """The first `count`, tenants taking turns: always the one that would be charged least so far."""
        if len(self._charged) == 1:
            return heapq.nsmallest(count, ranked)
        queues: dict[str, deque[Ranked]] = {}
        for each in sorted(ranked):
            queues.setdefault(each[1].tenant, deque()).append(each)
        charged = dict(self._charged)
        chosen: list[Ranked] = []
        while queues and len(chosen) < count:
            tenant = min(queues, key=lambda t: (charged[t], queues[t][0][1].order))
            chosen.append(queues[tenant].popleft())
            charged[tenant] += self._usual_charge(chosen[-1][1])
            if not queues[tenant]:
                del queues[tenant]
        return chosen

    def _share(self, row: Row, company: Sequence[Row]) -> float:
        """What a pass of `company` costs the row's tenant for it."""
        rows = sum(each.key.rows for each in company)
        return self._seconds(company) * row.key.rows / rows / row.weight

    def _usual_charge(self, row: Row) -> float:
        """What a pass costs its tenant for it among as many as pay."""
        knee = self._cost.knee(row.key)
        return self._cost.seconds(row.key, knee) / knee / row.weight

    def _seconds(self, rows: Sequence[Row]) -> float:
        return self._cost.seconds(*measured_as([row.key for row in rows]))

    def _level(self, plan: Plan, credit: float) -> None:
        """Whoever had places for all it has is owed `credit` seconds at most: it could not use its share."""
        rode = set(plan.rows)
        waiting = {row.tenant for row in self._active() if row.id not in rode}
        charges = [self._charged[tenant] for tenant in waiting]
        level = min(charges) if charges else max(self._charged.values(), default=0.0)
        for tenant in self._charged.keys() - waiting:
            self._charged[tenant] = max(self._charged[tenant], level - credit)

    def _overdue(self, row: Row, now: float) -> bool:
        return now - row.arrived > self._stretch * self._alone(row)

    def _rank(self, row: Row, *, overdue: bool) -> Rank:
        return (0, 0.0, 0, row.order) if overdue else (1, -row.weight, row.remaining, row.order)

    def _worth(self, window: list[Row], width: int, now: float) -> float:
        gain = sum((1 + (now - row.arrived) / self._alone(row)) / row.remaining for row in window[:width])
        return gain / max(self._seconds(window[:width]), 1e-9)

    def _width(self, window: list[Row], now: float) -> int:
        narrowest = max((i for i, row in enumerate(window, 1) if self._overtaken(row) >= 0), default=1)
        best = max(range(narrowest, len(window) + 1), key=lambda n: self._worth(window, n, now))
        full = len(window)
        gain = self._worth(window, best, now) / self._worth(window, full, now)
        return best if gain > self._narrowing else full

    def _alone(self, row: Row) -> float:
        """The seconds the request would take by itself."""
        return max(row.evaluations * self._cost.seconds(row.key, 1), 1e-9)

    def _overtaken(self, row: Row) -> int:
        """How often the row was passed over beyond what it bears; from 0 on, its turn is due."""
        return row.passed_over - (1 if row.state is State.QUEUED else self._patience)

    # What is here

    def state(self, id: str) -> State | None:
        """None when the request has ended or never was."""
        row = self._rows.get(id)
        return row.state if row else None

    def remaining(self, id: str) -> int:
        return self._row(id).remaining

    def count(self, state: State) -> int:
        return sum(row.state is state for row in self._rows.values())

    def backlog_seconds(self, tenant: str | None = None) -> float:
        """Seconds of work until everything here is done (of one tenant alone), each key at its knee."""
        return sum(self._seconds_of(row) for row in self._rows.values() if tenant in (None, row.tenant))

    def backlogs(self) -> dict[str, float]:
        """`backlog_seconds` of each tenant that has something here."""
        backlogs: dict[str, float] = {}
        for row in self._rows.values():
            backlogs[row.tenant] = backlogs.get(row.tenant, 0.0) + self._seconds_of(row)
        return backlogs

    def outlook(
        self, key: BatchKey, evaluations: int, now: float, *, tenant: str = "", priority: Priority = "normal"
    ) -> Standing:
        """Where a request would stand that came now."""
        row = Row(
            "", key, evaluations, now, None, self._submitted + 1, evaluations, tenant, WEIGHTS[priority]
        )
        return next(standing for standing in self._standings(now, row) if standing.id == row.id)

    def waiting(self, now: float) -> list[Standing]:
        """Where each queued request stands."""
        return [standing for standing in self._standings(now) if standing.state is State.QUEUED]

    def seconds_of_work(self, key: BatchKey, evaluations: int) -> float:
        """What a request adds to the backlog: its share of its passes, and its decoding."""
        return seconds_of_work(self._cost, key, evaluations)

    def _standings(self, now: float, *newcomers: Row) -> Iterator[Standing]:
        rows = [
            (self._rank(row, overdue=self._overdue(row, now)), row) for row in (*self._active(), *newcomers)
        ]
        return standings(rows, self._cost)

    def _seconds_of(self, row: Row) -> float:
        return self.seconds_of_work(row.key, row.remaining)

    def _active(self) -> list[Row]:
        return [row for row in self._rows.values() if row.state in (State.QUEUED, State.RUNNING)]

    def _row(self, id: str) -> Row:
        if id not in self._rows:
            raise IllegalMove(f"no request {id} here")
        return self._rows[id]

    def _move(self, id: str, to: State) -> None:
        row = self._row(id)
        if to not in TRANSITIONS[row.state]:
            raise IllegalMove(f"{id} is {row.state.value} and cannot become {to.value}")
        row.state = to
        if not TRANSITIONS[to]:
            del self._rows[id]
            if all(other.tenant != row.tenant for other in self._rows.values()):
                del self._charged[row.tenant]


def _within(room: int, rows: list[Row]) -> list[Row]:
    """As many of the first as there is room for, in rows of the UNet's batch."""
    ends = accumulate(row.key.rows for row in rows)
    return [row for row, end in zip(rows, ends, strict=True) if end <= room]
