"""How many replicas a backlog asks for."""

from __future__ import annotations

import pytest

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
        ([0.0, 0.0, 0.0, 0.0], 4, 1),
        ([6.0, 6.0, 0.0, 0.0], 4, 3),
    ],
)
def test_replicas_follow_the_backlog_with_room_between_up_and_down(
    backlogs: list[float], current: int, wanted: int
) -> None:
    from mezzotint.serve.scaling import wanted_replicas

    assert wanted_replicas(backlogs, current, target_s=10.0) == wanted


def test_a_number_that_was_reached_is_kept_at_the_same_backlog() -> None:
    from mezzotint.serve.scaling import wanted_replicas

    for work in range(1, 200):
        for current in range(1, 20):
            reached = wanted_replicas([float(work)], current, target_s=10.0)
            assert wanted_replicas([float(work)], reached, target_s=10.0) == reached


def test_a_fixed_number_of_replicas_is_not_scaled() -> None:
    from mezzotint.config import Settings
    from mezzotint.serve.scaling import autoscaling

    assert autoscaling(Settings(replicas=2)) is None
    assert autoscaling(Settings(replicas=2, max_replicas=2)) is None
    config = autoscaling(Settings(replicas=1, max_replicas=3))
    assert config is not None
    assert (config.min_replicas, config.max_replicas) == (1, 3)
