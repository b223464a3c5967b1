"""The cost model: what a pass takes, and where wider stops paying."""

from __future__ import annotations

import pytest

from mezzotint.engine.cost import StepCost
from mezzotint.engine.scheduler import BatchKey

SMALL = BatchKey(128, 128, True)
LARGE = BatchKey(256, 256, True)
HALF = BatchKey(128, 128, False)


def measured(curve: dict[int, float]) -> StepCost:
    cost = StepCost(8)
    for width, seconds in curve.items():
        cost.observe(SMALL, width, seconds)
    return cost


def test_between_measured_widths_seconds_are_interpolated() -> None:
    assert measured({1: 0.03, 2: 0.04, 4: 0.06}).seconds(SMALL, 3) == pytest.approx(0.05)


def test_beyond_the_widest_measured_width_no_gain_is_assumed() -> None:
    assert measured({1: 0.03, 2: 0.04}).seconds(SMALL, 8) == pytest.approx(0.16)


def test_a_shape_never_run_borrows_by_pixels() -> None:
    cost = measured({1: 0.03, 2: 0.04, 4: 0.06, 8: 0.12})
    assert cost.seconds(LARGE, 1) == pytest.approx(cost.seconds(SMALL, 4))
    assert cost.seconds(HALF, 2) == pytest.approx(cost.seconds(SMALL, 1))


def test_the_knee_is_the_narrowest_width_near_the_best_throughput() -> None:
    assert measured({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118}).knee(SMALL) == 4
    assert measured({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}).knee(SMALL) == 1
    assert measured({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}).knee(SMALL) == 8


def test_a_larger_shape_has_a_narrower_knee() -> None:
    cost = measured({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118})
    assert cost.knee(LARGE) < cost.knee(SMALL)


def test_observations_move_the_estimate_without_one_slow_pass_ruling_it() -> None:
    cost = measured({1: 0.03})
    cost.observe(SMALL, 1, 3.0)
    assert cost.seconds(SMALL, 1) < 0.5
    for _ in range(60):
        cost.observe(SMALL, 1, 0.06)
    assert cost.seconds(SMALL, 1) == pytest.approx(0.06, rel=0.1)


def test_with_nothing_measured_the_widest_pass_is_allowed() -> None:
    cost = StepCost(8)
    assert cost.knee(SMALL) == 8
    assert cost.seconds(SMALL, 2) > cost.seconds(SMALL, 1) > 0
