"""`mezzotint bench scheduler`: the scheduler's constants against others, on the virtual clock.

What docs/decisions/0002 quotes. Nothing is drawn and nothing timed: passes take what two CPU cores measured
on the demo model, so the figures are the same on every machine.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

from rich.table import Table

from mezzotint.engine.cost import StepCost
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.rules import Rules
from mezzotint.engine.scheduler import Scheduler
from mezzotint.engine.simulate import Arrival, Outcome, simulate

__all__ = ["Comparison", "compare_rules", "rules_table"]

GUIDED, UNGUIDED = BatchKey(128, 128, True), BatchKey(128, 128, False)
# Seconds of a guided pass by width, as measured; and of a device that gains nothing from width.
BATCHES = {1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118}
SATURATED = {1: 0.12, 2: 0.24, 4: 0.48, 8: 0.96}
STEPS = (4, 8, 12, 20, 30, 50)
LOADS = (0.5, 0.7, 0.9)
SEEDS = (1, 2, 3)
ARRIVALS = 1500


VARIANTS = (
    Rules(),
    Rules(stretch=1),
    Rules(stretch=4),
    Rules(stretch=8),
    Rules(overdue_share=0.5),
    Rules(overdue_share=1.0),
    Rules(patience=4),
    Rules(patience=16),
    Rules(narrowing=1.0),
    Rules(narrowing=1.5),
    Rules(narrowing=1.75),
    Rules(narrowing=float("inf")),
)


@dataclass(frozen=True)
class Comparison:
    """One set of rules. `latency` holds (mean, p99) seconds for each of `LOADS`."""

    rules: Rules
    latency: tuple[tuple[float, float], ...]
    short_among_long: float
    saturated: float


def compare_rules(variants: Sequence[Rules] = VARIANTS, *, arrivals: int = ARRIVALS) -> list[Comparison]:
    """What each set of rules would make of the same arrivals."""
    return [
        Comparison(
            rules,
            tuple(_latency(rules, load, arrivals) for load in LOADS),
            _short_among_long(rules),
            _saturated(rules, arrivals),
        )
        for rules in variants
    ]


def rules_table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(
        title=f"{len(SEEDS)} × {ARRIVALS} Poisson arrivals, a quarter unguided; mean / p99 in seconds"
    )
    for field in fields(Rules):
        table.add_column(field.name.replace("_", " "), justify="right")
    for load in LOADS:
        table.add_column(f"{load:.0%}", justify="right")
    table.add_column("short", justify="right")
    table.add_column("saturated", justify="right")
    for each in comparisons:
        table.add_row(
            *(f"{constant:g}" for constant in astuple(each.rules)),
            *(f"{mean:.2f} / {p99:.1f}" for mean, p99 in each.latency),
            f"{each.short_among_long:.2f}",
            f"{each.saturated:.2f}",
        )
    return table


def _simulate(rules: Rules, arrivals: Sequence[Arrival], curve: dict[int, float]) -> Iterator[Outcome]:
    cost = _cost(curve)
    return simulate(arrivals, cost, scheduler=Scheduler(cost, rules=rules))


def _cost(curve: dict[int, float]) -> StepCost:
    cost = StepCost(max_batch=8)
    cost.calibrate(GUIDED, curve)
    return cost


def _latency(rules: Rules, load: float, count: int) -> tuple[float, float]:
    """(mean, p99) seconds, each the mean over `SEEDS`."""
    cost, means, tails = _cost(BATCHES), [], []
    per_step = 0.75 * cost.seconds(GUIDED, 4) / 4 + 0.25 * cost.seconds(UNGUIDED, 4) / 4
    rate = load / (statistics.fmean(STEPS) * per_step)
    for seed in SEEDS:
        rng, at, arrivals = random.Random(seed), 0.0, []
        for number in range(count):
            at += rng.expovariate(rate)
            key = UNGUIDED if rng.random() < 0.25 else GUIDED
            arrivals.append(Arrival(at, str(number), key, rng.choice(STEPS)))
        latencies = sorted(outcome.latency for outcome in _simulate(rules, arrivals, BATCHES))
        means.append(statistics.fmean(latencies))
        tails.append(latencies[int(0.99 * len(latencies))])
    return statistics.fmean(means), statistics.fmean(tails)


def _short_among_long(rules: Rules) -> float:
    """Latency of 4 steps that come among fourteen jobs of 50, over their seconds alone."""
    arrivals = [Arrival(0.0, f"long {i}", GUIDED, 50) for i in range(14)] + [Arrival(0.5, "short", GUIDED, 4)]
    short = next(o for o in _simulate(rules, arrivals, BATCHES) if o.arrival.id == "short")
    return short.latency / (4 * _cost(BATCHES).seconds(GUIDED, 1))


def _saturated(rules: Rules, count: int) -> float:
    """Mean latency over that of first come, first served, where width gains nothing; 70 % load."""
    rng, at, arrivals = random.Random(SEEDS[0]), 0.0, []
    steps = [s for s in STEPS if s <= 20]
    rate = 0.7 / (statistics.fmean(steps) * SATURATED[1])
    for number in range(count):
        at += rng.expovariate(rate)
        arrivals.append(Arrival(at, str(number), GUIDED, rng.choice(steps)))
    free, first_come = 0.0, 0.0
    for arrival in arrivals:
        free = max(free, arrival.at) + arrival.evaluations * SATURATED[1]
        first_come += free - arrival.at
    return sum(outcome.latency for outcome in _simulate(rules, arrivals, SATURATED)) / first_come
