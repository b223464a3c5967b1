"""The cost model: what a pass takes, and where wider stops paying."""

from __future__ import annotations

import pytest

from mezzotint.engine.cost import MAX_KEYS, StepCost
from mezzotint.engine.rows import BatchKey

SMALL = BatchKey(128, 128, True)
LARGE = BatchKey(256, 256, True)
HALF = BatchKey(128, 128, False)
# What two CPU cores measured on the demo model.
CURVE = {1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118}


def measured(curve: dict[int, float]) -> StepCost:
    cost = StepCost(8)
    cost.calibrate(SMALL, curve)
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
    assert measured({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118}).knee(SMALL) == 6
    assert measured({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}).knee(SMALL) == 1
    assert measured({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}).knee(SMALL) == 8


def test_a_larger_shape_has_a_narrower_knee() -> None:
    cost = measured({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118})
    assert cost.knee(LARGE) < cost.knee(SMALL)


def test_observations_move_the_estimate_without_one_slow_pass_ruling_it() -> None:
    cost = measured({1: 0.03})
    for _ in range(3):
        cost.observe(SMALL, 1, 0.03)
    cost.observe(SMALL, 1, 3.0)
    assert cost.seconds(SMALL, 1) < 0.5
    for _ in range(60):
        cost.observe(SMALL, 1, 0.06)
    assert cost.seconds(SMALL, 1) == pytest.approx(0.06, rel=0.1)


def test_a_shape_that_was_measured_has_a_curve_and_a_knee_of_its_own() -> None:
    cost = measured({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8})
    assert cost.knee(LARGE) == 1
    cost.learn(LARGE, {1: 0.2, 2: 0.21, 4: 0.22, 8: 0.9})
    assert cost.seconds(LARGE, 4) == pytest.approx(0.22)
    assert cost.knee(LARGE) == 4
    assert cost.knee(SMALL) == 1
    # What is served corrects it, as it does every other.
    cost.observe(LARGE, 4, 0.4)
    assert cost.seconds(LARGE, 4) > 0.22


def test_the_first_pass_of_a_width_is_cold_and_does_not_count() -> None:
    cost = measured(CURVE)
    cost.observe(HALF, 1, 9.0)
    assert cost.seconds(HALF, 1) < 0.1


@pytest.mark.parametrize("key", [SMALL, LARGE, HALF])
def test_lone_passes_of_a_shape_do_not_make_wider_ones_look_hopeless(key: BatchKey) -> None:
    cost = measured(CURVE)
    knee = cost.knee(key)
    for _ in range(20):
        cost.observe(key, 1, 1.1 * cost.seconds(key, 1))
    assert cost.knee(key) == knee
    assert cost.seconds(key, 2) < 2 * cost.seconds(key, 1) or key == LARGE


def test_a_shape_that_turns_out_saturated_gets_a_narrower_knee() -> None:
    cost = measured(CURVE)
    for _ in range(40):
        for width in (1, 2, 4, 8):
            cost.observe(HALF, width, 0.05 * width)
    assert cost.knee(HALF) == 1


def test_corrections_are_kept_for_a_bounded_number_of_shapes() -> None:
    cost = measured(CURVE)
    for side in range(64, 64 + 8 * 1000, 8):
        key = BatchKey(side, 64, True)
        cost.observe(key, 1, 0.1)
        cost.observe(key, 1, 0.1)
    assert len(cost._factors) == MAX_KEYS
    for side in range(64, 64 + 8 * 1000, 8):
        assert cost.knee(BatchKey(side, 64, True)) >= 1
        assert len(cost._knees) <= MAX_KEYS
        assert len(cost._known) <= MAX_KEYS * cost.max_batch


def test_with_nothing_measured_sharing_is_assumed_to_pay() -> None:
    cost = StepCost(8)
    assert cost.knee(SMALL) > 1
    assert cost.seconds(SMALL, 2) > cost.seconds(SMALL, 1) > 0


def seconds_of(width: int) -> float:
    """What a pass of `SMALL` really takes."""
    return measured(CURVE).seconds(SMALL, width)


def test_a_stalled_pass_narrows_the_knee_for_a_while_and_not_for_ever() -> None:
    cost = measured(CURVE)
    widest = cost.knee(SMALL)
    assert widest > 1
    for width in (1, 2, widest):
        for _ in range(3):
            cost.observe(SMALL, width, seconds_of(width))
    while cost.knee(SMALL) == widest:
        cost.observe(SMALL, widest, 100 * cost.seconds(SMALL, widest))
    # From now on a full queue runs what the knee allows, and every pass takes what it did before.
    true = {width: seconds_of(width) for width in range(1, 9)}
    for _ in range(5_000):
        cost.observe(SMALL, cost.knee(SMALL), true[cost.knee(SMALL)])
    assert cost.knee(SMALL) == widest


def test_decoding_costs_by_the_pixel_and_one_stall_does_not_count() -> None:
    cost = measured(CURVE)
    assert cost.decode_seconds(SMALL) == 0.0
    cost.observe_decode(SMALL, 0.1)
    cost.observe_decode(SMALL, 100.0)
    assert cost.decode_seconds(SMALL) == pytest.approx(0.11)
    assert cost.decode_seconds(LARGE) == pytest.approx(
        0.11 * LARGE.width * LARGE.height / (SMALL.width * SMALL.height)
    )
