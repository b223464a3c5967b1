"""The scheduler on a virtual clock: what a load would see, without drawing anything.

The very `Scheduler` that serves runs here, with passes that take what a cost says. Used to choose its
constants, and by the tests, which check thousands of requests in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mezzotint.engine.rows import BatchKey, Cost, Stage, State, measured_as
from mezzotint.engine.scheduler import Scheduler

__all__ = ["Arrival", "Outcome", "simulate"]


@dataclass(frozen=True, order=True)
class Arrival:
    """A request that comes at `at` seconds and needs `evaluations` passes."""

    at: float
    id: str
    key: BatchKey
    evaluations: int


@dataclass(frozen=True)
class Outcome:
    """When a request's latents were final."""

    arrival: Arrival
    finished: float

    @property
    def latency(self) -> float:
        return self.finished - self.arrival.at


def simulate(
    arrivals: Iterable[Arrival], cost: Cost, *, scheduler: Scheduler | None = None
) -> Iterator[Outcome]:
    """Run a scheduler over `arrivals` until all are done, each as it ends. Decoding takes no time here.

    scheduler: a new one of other rules; by default the one that serves.
    """
    scheduler = scheduler or Scheduler(cost)
    coming = deque(sorted(arrivals))
    here: dict[str, Arrival] = {}
    now = 0.0
    while coming or here:
        if not here:
            now = max(now, coming[0].at)
        while coming and coming[0].at <= now:
            arrival = coming.popleft()
            scheduler.submit(arrival.id, [Stage(arrival.key, arrival.evaluations)], arrival.at)
            here[arrival.id] = arrival
        plan = scheduler.plan(now)
        for request_id in plan.starting:
            scheduler.start(request_id)
        now += cost.seconds(*measured_as([here[request_id].key for request_id in plan.request_ids]))
        for request_id in scheduler.stepped(plan):
            assert scheduler.state(request_id) is State.DECODING
            scheduler.finish(request_id)
            yield Outcome(here.pop(request_id), now)
