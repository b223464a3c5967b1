"""Where requests stand: how many should be done before each, and in how many seconds it should be. Pure.

An estimate by the `rules`, not a simulation of them: quick enough to be told to everybody who
waits, twice a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from mezzotint.engine.rows import BatchKey, Cost, Row, Stage, State, evaluation_seconds
from mezzotint.engine.rules import Ranked

__all__ = ["Standing", "seconds_of_work", "standings"]

# A tenant that is charged nothing has all done at once.
MIN_CHARGE = 1e-9
# What a sum of shares may fall short of the whole number that it is.
ROUNDING = 1e-6


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
        seconds = seconds_of_work(cost, row.left)
        return _Work(self.count + 1, self.seconds + seconds, self.charge + seconds / row.weight)

    def until(self, charge: float) -> float:
        """The share of this work that is done when its tenant has been charged so much."""
        return min(1.0, charge / max(self.charge, MIN_CHARGE))


class _Shares:
    """Sums over tenants of the shares of what they have that are done at one charge of each.

    A share grows with the charge until it is whole. So of the tenants in the order of their charges, those
    that are through by then give all that they have, the others by their rates; a search tells them apart.
    """

    def __init__(self, tenants: Iterable[tuple[float, float]]) -> None:
        """Of each its charge in all, and what it has."""
        ordered = sorted((max(charge, MIN_CHARGE), amount) for charge, amount in tenants)
        self._charges = [charge for charge, _ in ordered]
        # Of as many of the first, and of all but these.
        self._amounts = list(accumulate((amount for _, amount in ordered), initial=0.0))
        rates = (amount / charge for charge, amount in reversed(ordered))
        self._rates = list(accumulate(rates, initial=0.0))[::-1]

    def until(self, charge: float) -> float:
        through = bisect_left(self._charges, charge)
        return self._amounts[through] + charge * self._rates[through]


def seconds_of_work(cost: Cost, stages: Iterable[Stage]) -> float:
    """What these stages add to a backlog: their share of their passes, and their decoding."""
    return sum(
        stage.evaluations * evaluation_seconds(cost, stage.key) + cost.decode_seconds(stage.key)
        for stage in stages
    )


def seconds_alone(cost: Cost, stages: Iterable[Stage], company: Mapping[BatchKey, int]) -> float:
    """What these stages take with nothing before them, in passes as wide as `company` says of a key."""

    def batch(key: BatchKey) -> int:
        return min(company.get(key, 1), cost.knee(key))

    return sum(
        stage.evaluations * cost.seconds(stage.key, batch(stage.key)) + cost.decode_seconds(stage.key)
        for stage in stages
    )


def standings(ranked: Iterable[Ranked], cost: Cost) -> Iterator[Standing]:
    """Of each request that wants passes, now or once its stage is decoded, as if nobody else came. The rank
    orders those of one tenant.

    A request takes its own passes and decoding or, where that is longer, the work up to its end: that of its
    tenant's requests up to itself and, the passes being shared fairly, as much of every other tenant's as
    that tenant is charged the same for.
    """
    tenants: dict[str, list[Ranked]] = {}
    for each in ranked:
        tenants.setdefault(each[1].tenant, []).append(each)
    company = Counter(row.key for own in tenants.values() for _, row in own)
    whole = {tenant: _sum(own, cost) for tenant, own in tenants.items()}
    counts = _Shares((work.charge, work.count) for work in whole.values())
    seconds = _Shares((work.charge, work.seconds) for work in whole.values())
    for tenant, own in tenants.items():
        mine, done = whole[tenant], _Work()
        for _, row in sorted(own):
            done = done.plus(row, cost)
            # What is done of the others' is what is done of all, without one's own part in that.
            share = mine.until(done.charge)
            ahead = counts.until(done.charge) - share * mine.count
            position = done.count - 1 + int(ahead + ROUNDING)
            alone = seconds_alone(cost, row.left, company)
            together = done.seconds + seconds.until(done.charge) - share * mine.seconds
            yield Standing(row.id, row.state, position, max(alone, together))


def _sum(own: Iterable[Ranked], cost: Cost) -> _Work:
    work = _Work()
    for _, row in own:
        work = work.plus(row, cost)
    return work
