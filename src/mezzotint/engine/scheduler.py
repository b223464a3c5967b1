"""Which requests share the next denoising step. Pure: no tensor, no thread, no clock, no I/O.

The engine tells it what happened (`submit`, `start`, `stepped`, `finish`, `fail`, `cancel`) and asks what to
do (`plan`). Time is an argument. A move the table forbids raises `IllegalMove` and changes nothing; a
request that has ended is forgotten.

The rules of `plan`, in order:

1. Requests share a pass when their `BatchKey`s are equal. Each key has a *window*: the requests that may run,
   no more than the key's knee (`cost.knee`), beyond which a wider pass buys no throughput.
2. The window takes *overdue* requests first, in order of arrival; then those with the fewest evaluations
   left, ties in order of arrival. Overdue means: in the system for more than `STRETCH` times what the request
   would take alone. So short jobs pass long ones, nothing waits for ever, and a backlog drains first come,
   first served instead of sharing itself slow.
3. The pass takes the head of the window, as wide as lowers the total waiting most: the width w with the
   highest Σ 1/(evaluations left) ÷ (seconds of a pass of width w). This is Smith's rule (W. E. Smith, 1956)
   for a server that takes batches: equals go together, and a nearly finished request does not pay for its
   neighbours. A pass narrower than the window must be `NARROWING` times as good, since wide ones save work.
4. A request in a window is passed over at most `PATIENCE` times in a row, a new one at most once, and once
   more for each other key whose turn is due: then its key is served, in a pass wide enough for it.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Protocol

from mezzotint.core import ResolvedRequest

__all__ = ["TRANSITIONS", "BatchKey", "Cost", "IllegalMove", "Plan", "Scheduler", "State", "batch_key"]

STRETCH = 8.0
PATIENCE = 4
NARROWING = 1.5


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
    """What requests must have in common to share a pass. Sizes in pixels."""

    width: int
    height: int
    guided: bool
    adapters: tuple[str, ...] = ()

    @property
    def area(self) -> int:
        """Pixels of one image in a pass; a guided image is two rows of the UNet's batch."""
        return self.width * self.height * (2 if self.guided else 1)


def batch_key(request: ResolvedRequest) -> BatchKey:
    """The key of a request's passes."""
    return BatchKey(request.width, request.height, request.guided)


class Cost(Protocol):
    """What the scheduler asks of `cost.StepCost`."""

    def seconds(self, key: BatchKey, width: int) -> float: ...

    def knee(self, key: BatchKey) -> int: ...


@dataclass
class _Row:
    id: str
    key: BatchKey
    evaluations: int
    arrived: float
    deadline: float | None
    order: int
    remaining: int
    state: State = State.QUEUED
    passed_over: int = 0

    @property
    def patience(self) -> int:
        return 1 if self.state is State.QUEUED else PATIENCE


@dataclass(frozen=True)
class Plan:
    """`rows` make the next pass, `starting` among them their first; `expired` are past their deadline."""

    rows: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


class Scheduler:
    """The requests of one engine. `max_running` bounds those that hold latents at a time."""

    def __init__(self, cost: Cost, *, max_running: int = 32) -> None:
        self._cost = cost
        self._max_running = max_running
        self._rows: dict[str, _Row] = {}
        self._submitted = 0

    # What happened

    def submit(
        self, id: str, key: BatchKey, evaluations: int, now: float, deadline: float | None = None
    ) -> None:
        """A new request needs `evaluations` (≥1) passes; `deadline` is on the clock of `now`."""
        if id in self._rows or evaluations < 1:
            raise IllegalMove(f"cannot submit {id}: known already, or {evaluations} evaluations")
        self._submitted += 1
        self._rows[id] = _Row(id, key, evaluations, now, deadline, self._submitted, evaluations)

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
        impatient = [row for w in windows for row in w if row.passed_over >= row.patience]
        if impatient:
            first = max(impatient, key=lambda row: (row.passed_over - row.patience, -row.order))
            window = next(w for w in windows if first in w)
        else:
            window = max(windows, key=lambda w: max(self._worth(w, n) for n in range(1, len(w) + 1)))
        chosen = window[: self._width(window)]
        rows = {row.id for row in chosen}
        return Plan(
            rows=tuple(row.id for row in chosen),
            starting=tuple(row.id for row in chosen if row.state is State.QUEUED),
            expired=expired,
            passed_over=tuple(row.id for w in windows for row in w if row.id not in rows),
        )

    def _windows(self, now: float, skip: set[str]) -> list[list[_Row]]:
        holding = sum(row.state is not State.QUEUED for row in self._rows.values())
        groups: dict[BatchKey, list[_Row]] = {}
        for row in self._active():
            if row.id not in skip:
                groups.setdefault(row.key, []).append(row)
        room = max(self._max_running - holding, 0)
        windows = []
        for key, rows in groups.items():
            ranked = [(self._rank(row, now), row) for row in rows]
            running = [entry for entry in ranked if entry[1].state is State.RUNNING]
            newcomers = [entry for entry in ranked if entry[1].state is State.QUEUED]
            eligible = running + heapq.nsmallest(room, newcomers, key=itemgetter(0))
            window = heapq.nsmallest(self._cost.knee(key), eligible, key=itemgetter(0))
            windows.append([row for _, row in window])
        return windows

    def _rank(self, row: _Row, now: float) -> tuple[int, float, int]:
        alone = row.evaluations * self._cost.seconds(row.key, 1)
        if now - row.arrived > STRETCH * alone:
            return (0, 0.0, row.order)
        return (1, row.remaining, row.order)

    def _worth(self, window: list[_Row], width: int) -> float:
        gain = sum(1 / row.remaining for row in window[:width])
        return gain / max(self._cost.seconds(window[0].key, width), 1e-9)

    def _width(self, window: list[_Row]) -> int:
        impatient = [i for i, row in enumerate(window, 1) if row.passed_over >= row.patience]
        narrowest = max(impatient, default=1)
        best = max(range(narrowest, len(window) + 1), key=lambda n: self._worth(window, n))
        full = len(window)
        return best if self._worth(window, best) > NARROWING * self._worth(window, full) else full

    # What is here

    def state(self, id: str) -> State | None:
        """None when the request has ended or never was."""
        row = self._rows.get(id)
        return row.state if row else None

    def remaining(self, id: str) -> int:
        return self._row(id).remaining

    def count(self, state: State) -> int:
        return sum(row.state is state for row in self._rows.values())

    def backlog_seconds(self) -> float:
        """Seconds of passes until everything here is done, each key at its knee."""
        return sum(self._seconds_of(row) for row in self._active())

    def waiting(self) -> list[tuple[str, int, float]]:
        """Each queued request: id, how many are ahead of it, seconds until its picture."""
        ahead, queue = 0.0, []
        for position, row in enumerate(sorted(self._active(), key=lambda row: row.order)):
            if row.state is State.QUEUED:
                knee = self._cost.knee(row.key)
                queue.append((row.id, position, ahead + row.remaining * self._cost.seconds(row.key, knee)))
            ahead += self._seconds_of(row)
        return queue

    def _seconds_of(self, row: _Row) -> float:
        knee = self._cost.knee(row.key)
        return row.remaining * self._cost.seconds(row.key, knee) / knee

    def _active(self) -> list[_Row]:
        return [row for row in self._rows.values() if row.state in (State.QUEUED, State.RUNNING)]

    def _row(self, id: str) -> _Row:
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
