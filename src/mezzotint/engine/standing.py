"""Where requests stand: how many should be done before each, and in how many seconds it should be. Pure.

An estimate by the `rules`, not a simulation of them: quick enough to be told to everybody who
waits, twice a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mezzotint.engine.rows import BatchKey, Cost, Row, State, evaluation_seconds
from mezzotint.engine.rules import Ranked

__all__ = ["Standing", "seconds_of_work", "standings"]


@dataclass(frozen=True)
class Standing:
    """`position` requests should be done before this one, which should be in `eta_s` seconds."""

    id: str
    state: State
    position: int
    eta_s: float


@dataclass(frozen=True)
class _Work:
    """What requests have before them: how many they are, seconds, and what their tenant is charged for it."""

    count: int = 0
    seconds: float = 0.0
    charge: float = 0.0

    def plus(self, row: Row, cost: Cost) -> _Work:
        seconds = seconds_of_work(cost, row.key, row.remaining)
        return _Work(self.count + 1, self.seconds + seconds, self.charge + seconds / row.weight)

    def until(self, charge: float) -> float:
        """The share of this work that is done when its tenant has been charged so much."""
        return min(1.0, charge / max(self.charge, 1e-9))


def seconds_of_work(cost: Cost, key: BatchKey, evaluations: int) -> float:
    """What a request adds to a backlog: its share of its passes, and its decoding."""
    return evaluations * evaluation_seconds(cost, key) + cost.decode_seconds(key)


def standings(ranked: Iterable[Ranked], cost: Cost) -> Iterator[Standing]:
    """Of each request that is not decoding yet, as if nobody else came. The rank orders those of one tenant.

    A request takes its own passes and decoding or, where that is longer, the work up to its end: that of its
    tenant's requests up to itself and, the passes being shared fairly, as much of every other tenant's as
    that tenant is charged the same for.
    """
    tenants: dict[str, list[Ranked]] = {}
    for each in ranked:
        tenants.setdefault(each[1].tenant, []).append(each)
    company = Counter(row.key for own in tenants.values() for _, row in own)
    whole = {tenant: _sum(own, cost) for tenant, own in tenants.items()}
    for tenant, own in tenants.items():
        others = [work for other, work in whole.items() if other != tenant]
        done = _Work()
        for _, row in sorted(own):
            done = done.plus(row, cost)
            shares = [(work.until(done.charge), work) for work in others]
            position = done.count - 1 + int(sum(share * work.count for share, work in shares))
            passes = row.remaining * cost.seconds(row.key, min(company[row.key], cost.knee(row.key)))
            alone = passes + cost.decode_seconds(row.key)
            together = done.seconds + sum(share * work.seconds for share, work in shares)
            yield Standing(row.id, row.state, position, max(alone, together))


def _sum(own: Iterable[Ranked], cost: Cost) -> _Work:
    work = _Work()
    for _, row in own:
        work = work.plus(row, cost)
    return work
