"""What an engine takes in: seconds of work, fair parts of them, deadlines that can be met."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import DeadlineUnreachable, QueueFull

LIMIT_SECONDS = 60.0
# 20 steps of a second: 20 s of work each.
REQUEST = GenerationRequest("a fox", steps=20, seed=1)


class Gate:
    """A fault that is none: passes wait until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, where: str, request: ResolvedRequest, done: int) -> None:
        assert where != "step" or self.opened.wait(LIMIT_SECONDS)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def engine(gate: Gate) -> Iterator[Engine]:
    with Engine(FakeBackend(fault=gate, max_batch=4), max_backlog_s=200.0) as engine:
        # As if measured, and not: a sleep takes longer on a busy machine. Nothing is gained by width, so a
        # request's work is its seconds alone.
        engine.cost.calibrate(BatchKey(128, 128, True), {1: 1.0, 2: 2.0, 4: 4.0})
        yield engine
        gate.opened.set()


def fill(engine: Engine, tenant: str, group: str = "") -> list[Ticket]:
    tickets: list[Ticket] = []
    while len(tickets) < 100:
        try:
            tickets.append(engine.submit(replace(REQUEST, tenant=tenant), group=group))
        except QueueFull:
            return tickets
    raise AssertionError("the engine took a hundred requests and was not full")


def count_of(engine: Engine) -> int:
    """Those that are here; the first of them may be about to begin."""
    status = engine.status()
    return status.queued + status.running


def test_one_tenant_fills_half_of_the_backlog_and_another_half_of_the_rest(engine: Engine) -> None:
    first, second, third = (len(fill(engine, tenant)) for tenant in "abc")
    assert 4 <= first <= 6
    assert 2 <= second <= 3
    assert 1 <= third <= 2


def test_an_idle_engine_takes_a_request_that_is_longer_than_the_whole_backlog(engine: Engine) -> None:
    engine.submit(replace(REQUEST, steps=150, width=256, height=256)).cancel()


def test_an_idle_engine_takes_the_whole_of_a_request_of_several_pictures(engine: Engine) -> None:
    long = replace(REQUEST, steps=150)
    tickets = [engine.submit(long, group="ten") for _ in range(10)]
    # Nor is that room for others.
    with pytest.raises(QueueFull):
        engine.submit(long, group="two")
    for ticket in tickets:
        ticket.cancel()


def test_a_busy_engine_counts_the_pictures_of_a_request_together(engine: Engine) -> None:
    fill(engine, "a")
    # Two seconds are left, and as much would be taken of one picture.
    assert 4 <= len(fill(engine, "b", "several")) <= 6


def test_a_refusal_says_when_to_come_back_and_keeps_its_word_roughly(engine: Engine) -> None:
    fill(engine, "a")
    with pytest.raises(QueueFull) as refused:
        engine.submit(replace(REQUEST, tenant="a"))
    assert refused.value.retry_after_s is not None
    # In as long as the first of those before takes.
    assert 10.0 <= refused.value.retry_after_s <= 30.0


def test_a_deadline_that_cannot_be_met_now_is_refused_at_once_with_when_it_can(engine: Engine) -> None:
    fill(engine, "")
    here = count_of(engine)
    with pytest.raises(
        DeadlineUnreachable, match=r"would take [\d.]+ s now, and the deadline is 30 s"
    ) as refused:
        engine.submit(replace(REQUEST, tenant="another", deadline_s=29.99966))
    assert refused.value.param == "deadline_s"
    assert refused.value.retryable
    assert refused.value.retry_after_s is not None
    assert count_of(engine) == here


def test_who_asks_for_more_than_its_deadline_allows_even_alone_is_not_told_to_ask_again(
    engine: Engine,
) -> None:
    for _ in ("idle", "busy"):
        with pytest.raises(
            DeadlineUnreachable, match=r"takes 20\.0 s with nothing ahead of it, and the deadline is 10 s; "
        ) as refused:
            engine.submit(replace(REQUEST, deadline_s=9.99966))
        assert refused.value.param == "deadline_s"
        assert not refused.value.retryable
        assert refused.value.retry_after_s is None
        fill(engine, "another")


def test_who_asks_for_more_pictures_than_its_deadline_allows_is_not_told_to_ask_again(engine: Engine) -> None:
    wanted = replace(REQUEST, deadline_s=50.0)
    engine.submit(wanted, group="three")
    engine.submit(wanted, group="three")
    with pytest.raises(
        DeadlineUnreachable, match=r"takes 60\.0 s with nothing ahead of it but others of its request, "
    ) as refused:
        engine.submit(wanted, group="three")
    assert not refused.value.retryable
    # To others they are ahead, and will be done.
    with pytest.raises(DeadlineUnreachable) as told:
        engine.submit(wanted)
    assert told.value.retryable


def test_a_short_request_is_not_refused_for_the_long_ones_it_will_pass(engine: Engine, gate: Gate) -> None:
    for _ in range(3):
        engine.submit(REQUEST)
    short = engine.submit(replace(REQUEST, steps=2, deadline_s=50.0))
    gate.opened.set()
    assert short.result(LIMIT_SECONDS)


def test_another_tenants_backlog_counts_no_more_than_ones_own(engine: Engine, gate: Gate) -> None:
    fill(engine, "flood")
    quiet = engine.submit(replace(REQUEST, steps=4, tenant="quiet", deadline_s=100.0))
    gate.opened.set()
    assert quiet.result(LIMIT_SECONDS)
