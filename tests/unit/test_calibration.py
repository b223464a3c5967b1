"""What is measured before the first request, by a clock that moves when the backend computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest
from mezzotint.engine import calibration
from mezzotint.engine.calibration import CALIBRATION_SECONDS, PASSES, measure_passes
from mezzotint.errors import MezzotintError
from mezzotint.resolving import resolve


class Slow(FakeBackend):
    """`first`: seconds of the first pass of each width. `rest`: of the others, an image."""

    def __init__(self, *, first: float, rest: float) -> None:
        super().__init__()
        self.now, self._first, self._rest, self._met = 0.0, first, rest, set[int]()

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        width = len(request_ids)
        self.now += self._rest * width if width in self._met else self._first
        self._met.add(width)
        return super().step(request_ids)


def measure(backend: Slow, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: backend.now))
    request = resolve(GenerationRequest("a fox", seed=0, steps=PASSES), backend.info.limits)
    return dict(measure_passes(backend, request, 8))


def test_what_the_first_pass_of_a_width_compiles_keeps_no_wider_one_from_being_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = measure(Slow(first=10 * CALIBRATION_SECONDS, rest=0.01), monkeypatch)
    assert found == pytest.approx({1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08})


def test_a_slow_device_is_asked_for_narrow_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Slow(first=0.0, rest=CALIBRATION_SECONDS / (4 * PASSES))
    assert list(measure(backend, monkeypatch)) == [1, 2]
    assert backend.now <= CALIBRATION_SECONDS
