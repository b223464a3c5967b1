"""How decodes make way for passes: on a clock of the tests' own, and in the engine beside real passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mezzotint.backends.base import MakeWay, go_straight_on
from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, Pixels
from mezzotint.engine.engine import Engine
from mezzotint.engine.pace import SHARE, DecodePace, Passes
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import GenerationFailed, RequestCancelled
from tests.waiting import wait_until

LIMIT_SECONDS = 60.0
PASS_SECONDS = 10.0
PIECE_SECONDS = 1.0


class Device:
    """One decode of pieces of a second each, in a thread, beside passes that the test begins and ends."""

    def __init__(self, decodes: int = 1) -> None:
        self.now = 0.0
        self.pieces = 0
        self.passes = Passes(threading.Condition())
        self.decodes = decodes

    def pace(self) -> DecodePace:
        return DecodePace(self.passes, lambda: self.decodes, clock=lambda: self.now)

    def decode(self, pace: DecodePace, pieces: int) -> None:
        for _ in range(pieces):
            self.pieces += 1
            pace(self._finish)

    def _finish(self) -> None:
        self.now += PIECE_SECONDS

    @contextmanager
    def decoding(self, pace: DecodePace, pieces: int) -> Iterator[None]:
        thread = threading.Thread(target=self.decode, args=(pace, pieces))
        thread.start()
        try:
            yield
        finally:
            self.passes.stop()
            thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()

    def rests_after(self, pieces: int) -> None:
        """A decode makes way once it has done so many pieces."""
        wait_until(lambda: self.pieces == pieces and bool(self.passes._changed._waiters))  # type: ignore[attr-defined]


@pytest.mark.parametrize("decodes", [1, 2])
def test_in_each_pass_each_decode_works_its_share_of_what_the_pass_takes(decodes: int) -> None:
    device = Device(decodes)
    # Two of ten seconds.
    share = int(SHARE * PASS_SECONDS / PIECE_SECONDS) * decodes
    device.passes.begin(PASS_SECONDS)
    with device.decoding(device.pace(), 5 * share):
        device.rests_after(share)
        device.passes.begin(PASS_SECONDS)
        device.rests_after(2 * share)
    assert device.pieces == 5 * share, "with no pass under way there is nobody to make way for"


def test_a_decode_after_another_in_one_pass_has_what_that_one_left() -> None:
    device = Device()
    device.passes.begin(PASS_SECONDS)
    device.decode(device.pace(), 1)
    with device.decoding(device.pace(), 3):
        device.rests_after(2)


def test_without_passes_the_device_is_not_waited_for() -> None:
    device = Device()
    pace = device.pace()
    device.decode(pace, 50)
    assert (device.now, pace.rested) == (0.0, 0.0)


def test_a_pass_that_takes_far_longer_than_expected_is_not_made_way_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mezzotint.engine.pace.LATE_SECONDS", 0.05)
    device = Device()
    # No other comes.
    device.passes.begin(0.0)
    decoding = threading.Thread(target=device.decode, args=(device.pace(), 100), daemon=True)
    decoding.start()
    decoding.join(LIMIT_SECONDS)
    assert device.pieces == 100
    assert device.now == PIECE_SECONDS, "whoever works beside a late one does not wait for its work"
    device.passes.begin(PASS_SECONDS)
    assert device.passes.are_under_way


def test_what_it_rested_is_told_apart_from_what_it_worked() -> None:
    device = Device()
    device.passes.begin(2 * PIECE_SECONDS)
    pace = device.pace()
    with device.decoding(pace, 1):
        device.rests_after(1)
        device.now += 7.0
    assert (device.now, pace.rested) == (PIECE_SECONDS + 7.0, 7.0)


def ask(prompt: str = "a fox", steps: int = 4) -> GenerationRequest:
    return GenerationRequest(prompt, seed=1, steps=steps)


class Timed(FakeBackend):
    """Knows how many passes there were beside each decode, and how long it was at it."""

    def __init__(self) -> None:
        super().__init__(pass_seconds=0.02, decode_seconds=0.08)
        self.beside: list[int] = []
        self.seconds: list[float] = []

    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        passes, began = self.passes, time.monotonic()
        pixels = super().decode(request_id, make_way)
        self.seconds.append(time.monotonic() - began)
        self.beside.append(self.passes - passes)
        return pixels


def test_a_decode_is_spread_over_passes_and_its_rests_cost_nobody_anything() -> None:
    backend = Timed()
    with Engine(backend) as engine:
        others = engine.submit(ask(steps=150))
        wait_until(lambda: backend.passes > 5)
        engine.generate(ask())
        # Each of its four pieces is more than a share of a pass.
        assert backend.beside[0] >= 4
        learnt = engine.cost.decode_seconds(BatchKey(128, 128, guided=True))
        assert 0.08 <= learnt < backend.seconds[0]
        others.cancel()


def test_alone_a_decode_goes_straight_on() -> None:
    backend = Timed()
    with Engine(backend) as engine:
        engine.generate(ask())
    assert backend.beside == [0]


def test_a_decode_whose_picture_nobody_wants_any_more_is_given_up() -> None:
    at_it, cancelled, given_up = threading.Event(), threading.Event(), []

    class Held(FakeBackend):
        def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
            def wait_first(finish: Callable[[], None]) -> None:
                at_it.set()
                assert cancelled.wait(LIMIT_SECONDS)
                try:
                    make_way(finish)
                except GenerationFailed as error:
                    given_up.append(error)
                    raise

            return super().decode(request_id, wait_first)

    backend = Held()
    with Engine(backend) as engine:
        ticket = engine.submit(ask())
        assert at_it.wait(LIMIT_SECONDS)
        ticket.cancel()
        wait_until(lambda: engine.status().decoding == 0)
        cancelled.set()
        with pytest.raises(RequestCancelled):
            ticket.result(LIMIT_SECONDS)
        wait_until(lambda: backend.held == 0)
        assert len(given_up) == 1
        engine.generate(ask())


def test_an_engine_that_closes_does_not_wait_for_a_decode_that_makes_way() -> None:
    engine = Engine(FakeBackend(pass_seconds=0.3, decode_seconds=0.08))
    engine.submit(ask(steps=150))
    engine.submit(ask(steps=1))
    # While there are passes, nobody else waits so.
    wait_until(lambda: engine.status().decoding == 1 and bool(engine._changed._waiters))  # type: ignore[attr-defined]
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(10)
    try:
        assert not closing.is_alive()
    finally:
        # Left to wait, it would keep the tests from ending.
        engine._under_way.stop()
