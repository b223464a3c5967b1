"""The queue of passes, on a device that exists in the test alone: who is told what, and when."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mezzotint.backends.passes import PassQueue
from mezzotint.backends.streams import HostStreams


@dataclass(eq=False)
class Row:
    finite: bool = True


class Device:
    """Works through its queue by a clock that moves when somebody waits for it."""

    queues = True

    def __init__(self, seconds: float, handing: float = 0.0) -> None:
        self.seconds, self.handing = seconds, handing
        self.now = self.free_at = 0.0
        self.idle = 0.0
        self.in_flight: list[Any] = []
        self.most = 0

    def steps(self) -> Any:
        return nullcontext()

    decodes = steps

    def begin(self) -> Any:
        self.now += self.handing
        return None

    def fetch(self, tensor: torch.Tensor, begun: Any = None) -> Any:
        if self.free_at:
            self.idle += max(0.0, self.now - self.free_at)
        self.free_at = max(self.now, self.free_at) + self.seconds
        fetched = _Fetched(self, self.free_at, tensor, self.seconds)
        self.in_flight.append(fetched)
        self.most = max(self.most, sum(not each.arrived() for each in self.in_flight))
        return fetched

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds

    def queue(self) -> PassQueue:
        return PassQueue(self, clock=self.clock, sleep=self.sleep)


class _Fetched:
    def __init__(self, device: Device, at: float, tensor: torch.Tensor, seconds: float) -> None:
        self._device, self._at, self._tensor, self._seconds = device, at, tensor, seconds

    def arrived(self) -> bool:
        return self._device.now >= self._at

    def wait(self) -> torch.Tensor:
        self._device.now = max(self._device.now, self._at)
        return self._tensor

    def device_seconds(self) -> float:
        return self._seconds


def run(queue: PassQueue, rows: list[Row], finite: list[bool] | None = None, kind: str = "a") -> Any:
    queue.begin()
    return queue.end(kind, rows, torch.tensor(finite or [True] * len(rows)))


def test_a_cpus_rows_are_told_in_the_same_pass() -> None:
    sound, broken = Row(), Row()
    run(PassQueue(HostStreams()), [sound, broken], [True, False])
    assert (sound.finite, broken.finite) == (True, False)


def test_a_gpus_rows_are_told_in_the_next_pass_each_for_itself() -> None:
    device = Device(seconds=1.0)
    queue = device.queue()
    sound, broken = Row(), Row()
    run(queue, [sound, broken])
    run(queue, [sound, broken], [True, False])
    assert broken.finite
    run(queue, [sound])
    assert (sound.finite, broken.finite) == (True, False)


def test_whoever_looks_at_a_pass_waits_for_it_and_is_told() -> None:
    device = Device(seconds=1.0)
    queue = device.queue()
    row = Row()
    run(queue, [row])
    this = run(queue, [row], [False])
    ends = device.free_at
    this.look()
    this.look()
    assert device.now == ends
    assert not row.finite


def test_the_device_is_never_idle_and_gets_the_next_pass_just_before_it_wants_it() -> None:
    device = Device(seconds=0.1, handing=0.004)
    queue = device.queue()
    row = Row()
    for _ in range(3):
        run(queue, [row])
    device.idle, early = 0.0, []
    for _ in range(20):
        run(queue, [row])
        early.append(device.free_at - device.now)
    assert device.idle == 0.0
    assert device.most <= 2
    # Whoever comes in the rest of the pass is in time for the next.
    assert max(early) < 0.1 * 0.1


def test_a_pass_of_an_unknown_kind_is_waited_for_so_that_it_can_be_measured() -> None:
    device = Device(seconds=0.1)
    queue = device.queue()
    began = device.now
    run(queue, [Row()])
    assert device.now - began == pytest.approx(0.1)


def test_passes_of_two_kinds_in_turn_take_each_its_own_time() -> None:
    device = Device(seconds=0.0, handing=0.001)
    queue = device.queue()
    row = Row()
    took: dict[str, list[float]] = {"short": [], "long": []}
    for turn in range(40):
        kind = ("short", "long")[turn % 2]
        device.seconds = {"short": 0.02, "long": 0.1}[kind]
        before = device.now
        run(queue, [row], kind=kind)
        took[kind].append(device.now - before)
    # What the engine's cost model learns from.
    assert took["short"][-1] == pytest.approx(0.02, abs=0.005)
    assert took["long"][-1] == pytest.approx(0.1, abs=0.005)


def test_a_host_that_is_slower_than_the_device_does_not_sleep() -> None:
    device = Device(seconds=0.01, handing=0.03)
    queue = device.queue()
    for _ in range(3):
        run(queue, [Row()])
    before = device.now
    run(queue, [Row()])
    assert device.now - before == pytest.approx(0.03)
