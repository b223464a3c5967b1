"""What an engine takes in: seconds of work, fair parts of them, deadlines that can be met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import DeadlineUnreachable, QueueFull

# 20 steps of 20 ms: 0.4 s of work each.
REQUEST = GenerationRequest("a fox", steps=20, seed=1)


@pytest.fixture
def engine() -> Iterator[Engine]:
    # Nothing is gained by width: a request's work is its seconds alone.
    backend = FakeBackend(pass_seconds=0.0, row_seconds=0.02, max_width=4)
    with Engine(backend, max_backlog_s=4.0) as engine:
        engine.warm_up()
        yield engine


def fill(engine: Engine, tenant: str, group: str = "") -> list[Ticket]:
    tickets: list[Ticket] = []
    while len(tickets) < 100:
        try:
            tickets.append(engine.submit(replace(REQUEST, tenant=tenant), group=group))
        except QueueFull:
            return tickets
    raise AssertionError("the engine took a hundred requests and was not full")


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
    assert 1.0 <= refused.value.retry_after_s <= 3.0


def test_a_deadline_that_cannot_be_met_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(
        DeadlineUnreachable, match=r"would take [\d.]+ s now, and the deadline is 0.2 s"
    ) as refused:
        engine.submit(replace(REQUEST, deadline_s=0.2))
    assert refused.value.param == "deadline_s"
    assert engine.status().queued == 0


def test_a_short_request_is_not_refused_for_the_long_ones_it_will_pass(engine: Engine) -> None:
    for _ in range(3):
        engine.submit(REQUEST)
    engine.submit(replace(REQUEST, steps=2, deadline_s=1.0)).result(20)


def test_another_tenants_backlog_counts_no_more_than_ones_own(engine: Engine) -> None:
    fill(engine, "flood")
    engine.submit(replace(REQUEST, steps=4, tenant="quiet", deadline_s=2.0)).result(20)
