"""How many replicas a backlog asks for."""

from __future__ import annotations

from random import Random

import pytest

from mezzotint.engine.rows import BatchKey, Stage
from mezzotint.engine.scheduler import Scheduler

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own, when it is imported


@pytest.mark.parametrize(
    ("backlogs", "current", "wanted"),
    [
        ([], 1, 1),
        ([0.0], 1, 1),
        ([10.0], 1, 1),
        ([10.1], 1, 2),
        ([95.0], 1, 10),
        # Two are kept until one alone would need no more than half the time.
        ([5.0, 4.0], 2, 2),
        ([2.5, 2.5], 2, 1),
        # One by one.
        ([0.0, 0.0, 0.0, 0.0], 4, 3),
        ([6.0, 6.0, 0.0, 0.0], 4, 3),
    ],
)
def test_replicas_follow_the_backlog_with_room_between_up_and_down(
    backlogs: list[float], current: int, wanted: int
) -> None:
    from mezzotint.serve.scaling import wanted_replicas

    assert wanted_replicas(backlogs, current, target_s=10.0) == wanted


def test_at_the_same_backlog_a_number_is_reached_and_kept() -> None:
    from mezzotint.serve.scaling import wanted_replicas

    for work in range(1, 200):
        for current in range(1, 20):
            numbers = [current]
            for _ in range(20):
                numbers.append(wanted_replicas([float(work)], numbers[-1], target_s=10.0))
            assert numbers in (sorted(numbers), sorted(numbers, reverse=True))
            assert numbers[-1] == numbers[-2]


# --- a service on a virtual clock ---

STEPS, PASS_SECONDS = 4, 3.0
PICTURE_SECONDS = STEPS * PASS_SECONDS
UP_SECONDS, DOWN_SECONDS, START_SECONDS = 30.0, 900.0, 180.0
LEAST, MOST = 2, 8
KEY = BatchKey(1024, 1024, guided=True)


class Steady:
    """One picture at a time, 12 s each; in few passes, so that the simulation is quick."""

    def seconds(self, key: BatchKey, batch: int) -> float:
        return PASS_SECONDS * batch

    def knee(self, key: BatchKey) -> int:
        return 1

    def decode_seconds(self, key: BatchKey) -> float:
        return 0.0


def replicas_over_time(load: float, hours: float, seed: int = 0) -> list[int]:
    """How many engines there are at each pass, with the target that is the default and the overlays' delays;
    pictures come at random, `load` of what `LEAST` engines draw.
    """
    from mezzotint.config import Settings
    from mezzotint.serve.scaling import wanted_replicas

    target_s = Settings().target_backlog_s
    random = Random(seed)
    engines = [Scheduler(Steady()) for _ in range(LEAST)]
    # When each began to serve: what is started takes a while.
    serves_from = [0.0] * LEAST
    counts: list[int] = []
    above_since: float | None = None
    below_since: float | None = None
    next_arrival, number = 0.0, 0
    for turn in range(int(hours * 3_600 / PASS_SECONDS)):
        now = turn * PASS_SECONDS
        ready = [engine for engine, begins in zip(engines, serves_from, strict=True) if begins <= now]
        while next_arrival <= now:
            engine = min(ready, key=lambda each: each.backlog_seconds())
            engine.submit(f"r{number}", [Stage(KEY, STEPS)], now)
            number += 1
            next_arrival += random.expovariate(load * LEAST / PICTURE_SECONDS)
        backlogs = [engine.backlog_seconds() for engine in ready]
        for engine in ready:
            plan = engine.plan(now)
            for each in plan.starting:
                engine.start(each)
            for each in engine.stepped(plan):
                engine.finish(each)
        wanted = max(LEAST, min(MOST, wanted_replicas(backlogs, len(engines), target_s)))
        above_since = (now if above_since is None else above_since) if wanted > len(engines) else None
        below_since = (now if below_since is None else below_since) if wanted < len(engines) else None
        if above_since is not None and now - above_since >= UP_SECONDS:
            serves_from += [now + START_SECONDS] * (wanted - len(engines))
            engines += [Scheduler(Steady()) for _ in range(wanted - len(engines))]
            above_since = None
        elif below_since is not None and now - below_since >= DOWN_SECONDS:
            # Those with the least to do, and Ray lets them finish that.
            kept = sorted(zip(engines, serves_from, strict=True), key=lambda each: -each[0].backlog_seconds())
            engines, serves_from = [list(each) for each in zip(*kept[:wanted], strict=True)]
            below_since = None
        counts.append(len(engines))
    return counts


def test_two_engines_at_half_their_load_stay_two_though_a_picture_takes_long() -> None:
    for seed in range(3):
        counts = replicas_over_time(0.49, hours=8, seed=seed)
        assert sum(counts) / len(counts) < 2.1


def test_a_load_that_takes_four_engines_has_about_as_many() -> None:
    counts = replicas_over_time(1.6, hours=8)
    later = counts[len(counts) // 4 :]
    assert min(later) >= 3
    assert sum(later) / len(later) < 6


def test_a_fixed_number_of_replicas_is_not_scaled() -> None:
    from mezzotint.config import Settings
    from mezzotint.serve.scaling import autoscaling

    assert autoscaling(Settings(replicas=2)) is None
    assert autoscaling(Settings(replicas=2, max_replicas=2)) is None
    config = autoscaling(Settings(replicas=1, max_replicas=3))
    assert config is not None
    assert (config.min_replicas, config.max_replicas) == (1, 3)
