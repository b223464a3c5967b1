"""The requests of one engine as a state machine. Pure: no tensor, no thread, no clock, no I/O.

The engine tells it what happened (`submit`, `start`, `stepped`, `go_on`, `finish`, `fail`, `cancel`) and asks
what to do (`plan`); which requests share a pass is for the `rules` to say. Time is an argument. A move the
table forbids raises `IllegalMove` and changes nothing; a request that has ended is forgotten.

It keeps what each tenant was charged for its rows in passes and for their decoding, in seconds, divided by
the weight of their priority. One that comes, or comes back, starts level with the least charged; one that
wants less than its share saves up no more than `patience` passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from mezzotint.core import Priority
from mezzotint.engine.rows import TRANSITIONS, WEIGHTS, Cost, Row, Stage, State, pass_seconds
from mezzotint.engine.rules import Moment, Plan, Rules
from mezzotint.engine.standing import Standing, seconds_of_work, standings

__all__ = ["MAX_RUNNING", "IllegalMove", "Scheduler"]

MAX_RUNNING = 32


class IllegalMove(Exception):
    """A move outside `TRANSITIONS`, or of a request that is not here. Nothing has changed."""


class Scheduler:
    """The requests of one engine. `max_running` bounds those that hold latents at a time."""

    def __init__(self, cost: Cost, *, max_running: int = MAX_RUNNING, rules: Rules | None = None) -> None:
        self._cost = cost
        self._max_running = max_running
        self._rules = rules or Rules()
        self._rows: dict[str, Row] = {}
        self._submitted = 0
        # Seconds of work by tenant, for those that have requests here.
        self._charged: dict[str, float] = {}

    # What happened

    def submit(
        self,
        id: str,
        stages: Sequence[Stage],
        now: float,
        deadline: float | None = None,
        *,
        tenant: str = "",
        priority: Priority = "normal",
    ) -> None:
        """A new request, of one stage or more, each of one evaluation or more; `deadline` is on the clock of
        `now`."""
        if id in self._rows or not stages or any(stage.evaluations < 1 for stage in stages):
            raise IllegalMove(f"cannot submit {id}: known already, or a stage without evaluations")
        self._submitted += 1
        self._rows[id] = Row(id, tuple(stages), now, deadline, self._submitted, tenant, WEIGHTS[priority])
        if tenant not in self._charged:
            self._charged[tenant] = min(self._charged.values(), default=0.0)

    def start(self, id: str) -> None:
        """The backend holds the request's latents; it joins the passes."""
        self._move(id, State.RUNNING)

    def stepped(self, plan: Plan, failed: Collection[str] = ()) -> tuple[str, ...]:
        """The pass ran. Returns the requests whose latents are final; `failed` ones must be failed next."""
        moved = [self._row(id) for id in plan.request_ids if id not in failed]
        for row in moved:
            if row.state is not State.RUNNING or row.remaining < 1:
                raise IllegalMove(f"{row.id} is {row.state.value} and cannot step")
        for row in moved:
            row.step()
            self._charged[row.tenant] += self._share(row, moved)
            if row.remaining == 0:
                self._charged[row.tenant] += self._cost.decode_seconds(row.key) / row.weight
        self._level(plan, self._rules.patience * pass_seconds(self._cost, moved) if moved else 0.0)
        for id in plan.passed_over:
            if id in self._rows:
                self._rows[id].pass_over()
        finished = tuple(row.id for row in moved if row.remaining == 0)
        for id in finished:
            self._move(id, State.DECODING)
        return finished

    def go_on(self, id: str) -> None:
        """The picture of a stage is there to begin the next from, in the place that the request has."""
        row = self._row(id)
        if not row.later:
            raise IllegalMove(f"{id} has no other stage")
        self._move(id, State.QUEUED)
        row.go_on()

    def finish(self, id: str) -> None:
        self._move(id, State.DONE)

    def fail(self, id: str) -> None:
        self._move(id, State.FAILED)

    def cancel(self, id: str) -> None:
        self._move(id, State.CANCELLED)

    # What to do

    def plan(self, now: float) -> Plan:
        """The next pass; empty when nothing can run. Changes nothing."""
        return self._at(now).plan()

    def _at(self, now: float) -> Moment:
        return Moment(self._rows.values(), self._charged, self._cost, self._rules, self._max_running, now)

    # What is charged

    def _share(self, row: Row, company: Sequence[Row]) -> float:
        """What a pass of `company` costs the row's tenant for it."""
        load = sum(each.key.load for each in company)
        return pass_seconds(self._cost, company) * row.key.load / load / row.weight

    def _level(self, plan: Plan, credit: float) -> None:
        """Whoever had places for all it has is owed `credit` seconds at most: it could not use its share."""
        rode = set(plan.request_ids)
        waiting = {row.tenant for row in self._active() if row.id not in rode}
        charges = [self._charged[tenant] for tenant in waiting]
        level = min(charges) if charges else max(self._charged.values(), default=0.0)
        for tenant in self._charged.keys() - waiting:
            self._charged[tenant] = max(self._charged[tenant], level - credit)

    # What is here

    def state(self, id: str) -> State | None:
        """None when the request has ended or never was."""
        row = self._rows.get(id)
        return row.state if row else None

    def evaluations_left(self, id: str) -> int:
        """Until the picture."""
        return self._row(id).evaluations_left

    def count(self, state: State) -> int:
        return sum(row.state is state for row in self._rows.values())

    def backlog_seconds(self, tenant: str | None = None, without: Collection[str] = ()) -> float:
        """Seconds of work until everything here is done (of one tenant alone; but these), each key at its
        knee."""
        rows = [row for row in self._rows.values() if tenant in (None, row.tenant) and row.id not in without]
        return sum(self._seconds_of(row) for row in rows)

    def backlogs(self) -> dict[str, float]:
        """`backlog_seconds` of each tenant that has something here."""
        backlogs: dict[str, float] = {}
        for row in self._rows.values():
            backlogs[row.tenant] = backlogs.get(row.tenant, 0.0) + self._seconds_of(row)
        return backlogs

    def outlook(
        self,
        stages: Sequence[Stage],
        now: float,
        *,
        tenant: str = "",
        priority: Priority = "normal",
        among: Collection[str] | None = None,
    ) -> Standing:
        """Where a request would stand that came now. `among`: as if these alone were here."""
        row = Row("", tuple(stages), now, None, self._submitted + 1, tenant, WEIGHTS[priority])
        here = self._rows.values() if among is None else [self._rows[id] for id in among]
        return next(each for each in self._standings(now, (*here, row)) if each.id == row.id)

    def waiting(self, now: float) -> list[Standing]:
        """Where each queued request stands."""
        here = self._standings(now, self._rows.values())
        return [standing for standing in here if standing.state is State.QUEUED]

    def seconds_of_work(self, stages: Sequence[Stage]) -> float:
        """What a request adds to the backlog: its share of its passes, and its decoding."""
        return seconds_of_work(self._cost, stages)

    def _standings(self, now: float, rows: Iterable[Row]) -> Iterator[Standing]:
        moment = self._at(now)
        return standings([moment.ranked(row) for row in rows if row.evaluations_left], self._cost)

    def _seconds_of(self, row: Row) -> float:
        return self.seconds_of_work(row.left)

    def _active(self) -> list[Row]:
        return [row for row in self._rows.values() if row.active]

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
