"""The engine's loop on the fake backend: every request ends once, and nothing waits without need."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import psutil
import pytest

from mezzotint.backends.base import MakeWay, PendingPreview, go_straight_on
from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.core import (
    UPSCALERS,
    Cancelled,
    Done,
    Event,
    Failed,
    GenerationRequest,
    Hires,
    Pixels,
    Progress,
    Queued,
    ResolvedRequest,
)
from mezzotint.engine.cost import StepCost
from mezzotint.engine.engine import Engine
from mezzotint.engine.requests import QUEUE_NEWS_SECONDS, RequestTable
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.rules import TENANT_SHARE, Plan
from mezzotint.engine.scheduler import MAX_RUNNING, Scheduler
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    MezzotintError,
    QueueFull,
    RequestCancelled,
    SettingInvalid,
    ShuttingDown,
)
from mezzotint.resolving import resolve
from tests.backends import Instrumented
from tests.waiting import wait_until

LIMIT_SECONDS = 60.0
MakeBackend = Callable[..., FakeBackend | Instrumented]


def ask(prompt: str = "a fox", **fields: object) -> GenerationRequest:
    return GenerationRequest(prompt, **{"seed": 1, **fields})  # type: ignore[arg-type]


@pytest.fixture(params=["fake", "modules", "graphs"])
def make_backend(request: pytest.FixtureRequest) -> MakeBackend:
    """Makes a backend of each kind, with `FakeBackend`'s options; the real ones draw with the tiny SDXL."""
    if request.param == "fake":
        return FakeBackend
    return partial(Instrumented, request.getfixturevalue(f"tiny_{request.param}_backend"))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def engine(backend: FakeBackend) -> Iterator[Engine]:
    with Engine(backend) as engine:
        yield engine


def test_a_request_becomes_an_image_with_its_receipt(engine: Engine) -> None:
    image = engine.generate(ask(steps=3, width=64, height=96, negative_prompt="dull"))
    assert image.pixels.shape == (96, 64, 3)
    receipt = image.receipt
    assert (receipt.prompt, receipt.negative_prompt, receipt.seed, receipt.steps) == ("a fox", "dull", 1, 3)
    assert (receipt.width, receipt.height, receipt.scheduler) == (64, 96, "Euler")
    assert receipt.model == "fake"


def test_the_same_request_twice_gives_the_same_bytes(engine: Engine) -> None:
    first, second = engine.generate(ask(steps=3)), engine.generate(ask(steps=3))
    assert np.array_equal(first.pixels, second.pixels)
    other = engine.generate(ask(steps=3, seed=2))
    assert not np.array_equal(first.pixels, other.pixels)


def test_pixels_cannot_be_written(engine: Engine) -> None:
    with pytest.raises(ValueError):
        engine.generate(ask(steps=1)).pixels[0, 0, 0] = 1


class Turnstile:
    """A fault that is none: each pass waits until it is let through."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)

    def __call__(self, where: str, request: ResolvedRequest, done: int) -> None:
        if where == "step":
            assert self._passes.acquire(timeout=LIMIT_SECONDS)

    def let_one_through(self) -> None:
        self._passes.release()


async def test_a_stream_is_queued_then_progress_then_done() -> None:
    turnstile, events = Turnstile(), []
    with Engine(FakeBackend(fault=turnstile)) as engine:
        async for event in engine.stream(ask(steps=4, preview_every=1)):
            # The next pass only once this event has been read, so that none overtakes another.
            if isinstance(event, Progress) or not events:
                turnstile.let_one_through()
            events.append(event)
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], Done)
    progress = [event for event in events if isinstance(event, Progress)]
    assert len([event for event in events if isinstance(event, Done)]) == 1
    assert [event.step for event in progress] == [1, 2, 3, 4]
    assert all(event.total == 4 for event in progress)
    previews = [event.preview for event in progress if event.preview is not None]
    assert len(previews) == 3
    assert previews[0].shape == (16, 16, 3)


async def test_progress_counts_the_steps_asked_for_whatever_the_sampler_evaluates() -> None:
    with Engine(FakeBackend(pass_seconds=0.01)) as engine:
        events = [event async for event in engine.stream(ask(steps=5, scheduler="Heun"))]
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps[-1] == 5
    assert steps == sorted(steps)
    assert all(event.total == 5 for event in events if isinstance(event, Progress))


@pytest.mark.parametrize("make_backend", ["modules", "graphs"], indirect=True)
def test_a_second_stage_draws_what_image_to_image_of_the_first_draws(make_backend: MakeBackend) -> None:
    fields = {"steps": 6, "width": 64, "height": 32, "guidance_scale": 5.0, "scheduler": "Euler a"}
    backend = make_backend()
    with Engine(backend) as engine:
        first = engine.generate(ask(**fields))
        second = engine.generate(
            ask(**{**fields, "width": 128, "height": 64}, image=first.pixels, strength=0.5)
        )
        passes = backend.passes
        # Beside others of either size.
        sizes = ({}, {"width": 128, "height": 64})
        others = [engine.submit(ask(**{**fields, "seed": 2, **size})) for size in sizes]
        drawn = engine.generate(ask(**fields, hires=Hires(2.0, 0.5)))
        assert drawn.pixels.shape == (64, 128, 3)
        assert np.abs(drawn.pixels.astype(int) - second.pixels.astype(int)).max() <= 1
        assert backend.passes >= passes + 9
        receipt = drawn.receipt
        assert (receipt.width, receipt.height, receipt.steps) == (64, 32, 6)
        assert (receipt.hires, receipt.strength, receipt.image_sha256) == (Hires(2.0, 0.5, 6), None, None)
        for other in others:
            other.result(LIMIT_SECONDS)
        wait_until(lambda: backend.held == 0)


def test_a_second_stage_from_enlarged_latents_takes_one_decoding() -> None:
    decoded = []

    class Watched(FakeBackend):
        def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
            pixels = super().decode(request_id, make_way)
            decoded.append(pixels.shape)
            return pixels

    backend = Watched(decode_seconds=0.1)
    with Engine(backend) as engine:
        drawn = [
            engine.generate(ask(steps=2, hires=Hires(2.0, 1.0, upscaler=each))) for each in UPSCALERS[1:]
        ]
        # What took no decoding is no measure of one.
        assert engine.cost.decode_seconds_a_pixel >= 0.1 / 256**2
        wait_until(lambda: backend.held == 0)
    assert decoded == [(256, 256, 3)] * len(drawn)
    assert len({each.pixels.tobytes() for each in drawn}) == len(drawn)
    assert [each.receipt.hires for each in drawn] == [Hires(2.0, 1.0, 2, each) for each in UPSCALERS[1:]]


async def test_both_stages_are_one_request_to_whoever_listens() -> None:
    turnstile, events = Turnstile(), []
    with Engine(FakeBackend(fault=turnstile, pass_seconds=0.01)) as engine:
        async for event in engine.stream(ask(steps=4, preview_every=1, hires=Hires(2.0, 0.5))):
            if isinstance(event, Progress) or not events:
                turnstile.let_one_through()
            events.append(event)
            # After the last it may be done by now.
            if isinstance(event, Progress) and event.step < event.total:
                status = engine.status()
                assert status.queued + status.running + status.decoding == 1
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == [1, 2, 3, 4, 5, 6]
    assert {event.total for event in progress} == {6}
    # The sixth is the picture. One of the first stage's end is a look too.
    shapes = [event.preview.shape for event in progress if event.preview is not None]
    assert shapes == [(16, 16, 3)] * 4 + [(32, 32, 3)]
    assert [type(event) for event in events if not isinstance(event, Progress)] == [Queued, Done]


def test_whatever_ends_a_request_ends_it_between_its_stages_too() -> None:
    stages = []

    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        if where == "start":
            stages.append(request.width)
        failing = request.prompt == "fails" and request.image is not None and where == "start"
        return GenerationFailed("no second stage") if failing else None

    hires = Hires(2.0, 1.0)
    backend = FakeBackend(fault=fault, decode_seconds=0.2)
    with Engine(backend) as engine:
        with pytest.raises(GenerationFailed, match="no second stage"):
            engine.generate(ask("fails", steps=2, hires=hires))
        assert stages == [128, 256]
        cancelled = engine.submit(ask(steps=2, hires=hires))
        # While the first stage's picture is decoded.
        wait_until(lambda: engine.status().decoding == 1)
        cancelled.cancel()
        with pytest.raises(RequestCancelled):
            cancelled.result(LIMIT_SECONDS)
        with pytest.raises(DeadlineExceeded):
            engine.generate(ask(steps=2, hires=hires, deadline_s=0.1))
        assert stages == [128, 256, 128, 128]
        wait_until(lambda: backend.held == 0)
        status = engine.status()
        assert (status.queued, status.running, status.decoding) == (0, 0, 0)


def test_between_its_stages_a_request_holds_no_latents_and_no_place_in_the_queue() -> None:
    resolved = resolve(ask(steps=1, hires=Hires(2.0, 1.0)), FAKE_LIMITS)
    table = RequestTable(StepCost(8), max_queue=1)

    def drawn_once(request_id: str) -> Ticket:
        ticket = Ticket(request_id, resolved, lambda _: None)
        table.submit(ticket)
        plan = table.plan(time.monotonic())
        table.start(request_id, ())
        assert table.settle(plan, {}, {}) == (request_id,)
        assert table.take_to_decode() is ticket
        picture = np.zeros((128, 128, 3), np.uint8)
        table.decoded(request_id, ticket.stages[1].begun_from(picture), 0.1)
        return ticket

    ticket = drawn_once("a")
    assert (table.queued, table.has_ended) == (0, True)
    assert table.take_ended() == ([], ["a"])
    assert not table.has_ended
    assert isinstance(ticket.stream.get(0), Queued)
    assert isinstance(ticket.stream.get(0), Progress)
    # When those who wait hear where they stand, it hears nothing: it has shown how far it is.
    assert table.plan(time.monotonic() + 2 * QUEUE_NEWS_SECONDS).starting == ("a",)
    with pytest.raises(TimeoutError):
        ticket.stream.get(0)
    table.start("a", ())
    table.fail("a", GenerationFailed("over"))
    assert table.take_ended() == (["a"], [])
    # Where the next stage is begun first, its latents are there in place of the others.
    drawn_once("b")
    assert table.plan(time.monotonic()).starting == ("b",)
    table.start("b", ())
    assert table.take_ended() == ([], [])


def test_the_decoder_turns_to_whoever_has_waited_longest_by_the_weight_of_its_priority() -> None:
    table = RequestTable(StepCost(8), max_queue=8)
    waited: Mapping[str, float] = {"normal": 10.0, "low": 30.0, "high": 3.0, "normal and late": 90.0}
    for name in waited:
        deadline_s = 60.0 if "late" in name else None
        request = resolve(ask(steps=1, priority=name.split()[0], deadline_s=deadline_s), FAKE_LIMITS)
        table.submit(Ticket(name, request, lambda _: None))
    plan = table.plan(time.monotonic())
    for name in waited:
        table.start(name, ())
    table.settle(plan, {}, {})
    for name, seconds in waited.items():
        ticket = table.tickets[name]
        ticket.submitted = ticket.last_step = time.monotonic() - seconds
    late = table.tickets["normal and late"]
    table.ask_to_cancel("low")
    taken = [table.take_to_decode()]
    assert table.take_ended() == (["normal and late"], [])
    table.plan(time.monotonic())
    # Whoever is cancelled before the decoder turns to it has no more to wait for.
    assert table.take_ended() == (["low"], [])
    taken += [table.take_to_decode(), table.take_to_decode()]
    assert [each and each.request_id for each in taken] == ["high", "normal", None]
    assert isinstance(list(late.stream)[-1], Failed)


def test_the_second_stage_counts_in_the_wait_before_it_is_there() -> None:
    with Engine(FakeBackend(pass_seconds=0.2)) as engine:
        engine.warm_up()
        work = engine.status().backlog_s
        engine.submit(ask(steps=20))
        plain = engine.status().backlog_s - work
        engine.submit(ask(steps=20, hires=Hires(2.0, 1.0)))
        assert engine.status().backlog_s > 2.5 * plain


def test_a_bad_request_is_refused_before_it_is_queued(engine: Engine) -> None:
    with pytest.raises(InvalidRequest) as refused:
        engine.submit(ask(steps=0))
    assert refused.value.param == "steps"
    assert engine.status().queued == 0


def test_cancelling_stops_within_a_step(make_backend: MakeBackend) -> None:
    backend = make_backend(pass_seconds=0.2)
    with Engine(backend) as engine:
        ticket = engine.submit(ask(steps=150))
        wait_until(lambda: backend.passes >= 3)
        ticket.cancel()
        passes = backend.passes
        with pytest.raises(RequestCancelled):
            ticket.result(LIMIT_SECONDS)
        # The pass under way when the cancel came, and no other.
        assert backend.passes <= passes + 1
        wait_until(lambda: backend.held == 0)


async def test_leaving_a_stream_cancels_its_request(make_backend: MakeBackend) -> None:
    backend = make_backend(pass_seconds=0.05)
    with Engine(backend) as engine:
        stream = engine.stream(ask(steps=150))
        async for event in stream:
            if isinstance(event, Progress):
                break
        await stream.aclose()
        passes = backend.passes
        await asyncio.to_thread(wait_until, lambda: backend.held == 0)
        # It ended because it was left, not because its 150 steps were done.
        assert backend.passes <= passes + 1


def test_cancelling_while_decoding_ends_it_once_and_frees_it(make_backend: MakeBackend) -> None:
    go_on = threading.Event()

    def hold(where: str, request: ResolvedRequest, _: int) -> MezzotintError | None:
        assert where != "decode" or go_on.wait(LIMIT_SECONDS)
        return None

    backend = make_backend(fault=hold)
    with Engine(backend) as engine:
        ticket = engine.submit(ask(steps=1))
        wait_until(lambda: engine.status().decoding == 1)
        ticket.cancel()
        wait_until(lambda: engine.status().decoding == 0)
        assert backend.held == 1, "the backend forgot what the decoder has in hand"
        go_on.set()
        endings = [event for event in ticket.events() if not isinstance(event, Queued | Progress)]
        assert [type(event) for event in endings] == [Cancelled]
        wait_until(lambda: backend.held == 0)
        engine.generate(ask(steps=1))


def test_decoding_does_not_stall_the_steps_of_others(make_backend: MakeBackend) -> None:
    decoding, go_on = threading.Event(), threading.Event()

    def hold(where: str, request: ResolvedRequest, _: int) -> MezzotintError | None:
        if where == "decode" and request.prompt == "held":
            decoding.set()
            assert go_on.wait(LIMIT_SECONDS)
        return None

    backend = make_backend(fault=hold)
    with Engine(backend) as engine:
        held = engine.submit(ask("held", steps=1))
        assert decoding.wait(LIMIT_SECONDS)
        before = backend.passes
        other = engine.submit(ask("other", steps=20))
        wait_until(lambda: backend.passes >= before + 20)
        go_on.set()
        held.result(LIMIT_SECONDS)
        other.result(LIMIT_SECONDS)


def test_a_fault_in_one_row_fails_that_request_alone() -> None:
    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        bad = where == "step" and request.prompt == "bad" and done == 3
        return GenerationFailed("latents are not finite") if bad else None

    shared: set[int] = set()
    all_here = threading.Event()

    class Watched(FakeBackend):
        def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
            assert all_here.wait(LIMIT_SECONDS)
            shared.add(len(request_ids))
            return super().step(request_ids)

    backend = Watched(fault=fault)
    with Engine(backend) as engine:
        good = [engine.submit(ask(f"good {i}", steps=8)) for i in range(3)]
        bad = engine.submit(ask("bad", steps=8))
        all_here.set()
        with pytest.raises(GenerationFailed, match="not finite"):
            bad.result(LIMIT_SECONDS)
        for ticket in good:
            ticket.result(LIMIT_SECONDS)
        wait_until(lambda: backend.held == 0)
    assert max(shared) > 1, "no pass was shared, so nothing was shown"


@pytest.mark.parametrize("where", ["start", "decode"])
def test_a_fault_at_start_or_decode_fails_that_request_alone(where: str, make_backend: MakeBackend) -> None:
    def fault(place: str, request: ResolvedRequest, _: int) -> MezzotintError | None:
        return GenerationFailed("no") if place == where and request.prompt == "bad" else None

    with Engine(make_backend(fault=fault)) as engine:
        good, bad = engine.submit(ask(steps=4)), engine.submit(ask("bad", steps=4))
        with pytest.raises(GenerationFailed):
            bad.result(LIMIT_SECONDS)
        good.result(LIMIT_SECONDS)
        assert engine.alive


def test_an_exception_a_backend_should_not_raise_fails_the_pass_and_not_the_engine() -> None:
    class Broken(FakeBackend):
        def step(self, request_ids):  # type: ignore[no-untyped-def]
            if self.passes == 2:
                self.passes += 1
                raise RuntimeError("CUDA error")
            return super().step(request_ids)

    with Engine(Broken()) as engine:
        with pytest.raises(GenerationFailed, match="RuntimeError"):
            engine.generate(ask(steps=5))
        engine.generate(ask(steps=5))


class CrampedBackend(FakeBackend):
    """Has memory for passes of three images."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        if len(request_ids) > 3:
            raise GenerationFailed("a pass of the UNet ran out of memory; try a smaller size")
        self.widths.append(len(request_ids))
        return super().step(request_ids)


def test_a_pass_that_is_too_wide_for_the_device_is_run_in_halves_and_nobody_fails() -> None:
    with Engine(CrampedBackend()) as engine:
        tickets = [engine.submit(ask(steps=4, seed=i)) for i in range(8)]
        assert all(ticket.result(LIMIT_SECONDS) for ticket in tickets)


def test_warm_up_stops_at_the_width_that_the_device_has_room_for() -> None:
    backend = CrampedBackend()
    with Engine(backend) as engine:
        engine.warm_up()
        assert max(backend.widths) == 2
        assert engine.generate(ask()).width == 128


def test_a_failing_preview_costs_the_preview_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Blind(FakeBackend):
        def preview(self, request_id: str) -> PendingPreview:
            raise RuntimeError("no preview")

    with Engine(Blind()) as engine:
        assert engine.generate(ask(steps=4, preview_every=1)).width == 128
    assert "no preview" in caplog.text


def test_a_deadline_ends_the_request(make_backend: MakeBackend) -> None:
    with Engine(make_backend(pass_seconds=0.02)) as engine, pytest.raises(DeadlineExceeded):
        engine.generate(ask(steps=150, deadline_s=0.1))


def test_a_deadline_ends_a_request_that_waits_for_its_decoding() -> None:
    with Engine(FakeBackend(decode_seconds=0.3)) as engine:
        tickets = [engine.submit(ask(steps=1, deadline_s=0.5)) for _ in range(8)]
        endings = []
        for ticket in tickets:
            try:
                endings.append(ticket.result(LIMIT_SECONDS))
            except DeadlineExceeded as error:
                endings.append(error)
        # Eight decodes take 2.4 s, one after the other.
        assert isinstance(endings[-1], DeadlineExceeded)


def test_a_result_can_be_asked_for_again_and_times_out_when_it_says() -> None:
    with Engine(FakeBackend(pass_seconds=0.2)) as engine:
        slow = engine.submit(ask(steps=150))
        with pytest.raises(TimeoutError):
            slow.result(0.1)
        slow.cancel()
        ticket = engine.submit(ask(steps=1))
        first = ticket.result(LIMIT_SECONDS)
        assert ticket.result(LIMIT_SECONDS) is first
        assert [type(event) for event in ticket.events()] == [Done]


def test_a_readers_event_loop_that_closes_early_harms_nobody() -> None:
    async def leave(engine: Engine) -> None:
        stream = engine.submit(ask(steps=100)).stream
        aiter(stream)
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await reading
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0)
        reading.cancel()

    with Engine(FakeBackend(pass_seconds=0.01)) as engine:
        asyncio.run(leave(engine))
        assert engine.generate(ask(steps=3)).width == 128
        assert engine.alive


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("max_batch", 0, "max_batch must be 1…8"),
        ("max_batch", 9, "max_batch must be 1…8"),
        ("max_queue", 0, "max_queue must be at least 1"),
    ],
)
def test_an_engine_setting_out_of_range_is_refused_by_name(setting: str, value: int, told: str) -> None:
    with pytest.raises(SettingInvalid, match=told) as refused:
        Engine(FakeBackend(max_batch=8), **{setting: value})
    assert refused.value.param == setting


def test_a_warm_up_size_that_the_model_does_not_draw_is_refused_by_the_setting_s_name() -> None:
    with pytest.raises(
        SettingInvalid, match=r"^warm_up_sizes: width must be a multiple of 8 from"
    ) as refused:
        Engine.load("fake", warm_up_sizes=[(64, 64), (8, 8)])
    assert refused.value.param == "warm_up_sizes"


def test_a_full_queue_refuses_with_the_seconds_to_wait(make_backend: MakeBackend) -> None:
    with Engine(make_backend(pass_seconds=0.5, max_batch=1), max_queue=3) as engine:
        first = engine.submit(ask(steps=50))
        wait_until(lambda: engine.status().running == 1)
        for _ in range(3):
            engine.submit(ask(steps=50))
        with pytest.raises(QueueFull) as refused:
            engine.submit(ask(steps=50))
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1.0
        first.cancel()


def test_closing_ends_every_request_and_refuses_new_ones(make_backend: MakeBackend) -> None:
    engine = Engine(make_backend(pass_seconds=0.2))
    tickets = [engine.submit(ask(steps=150)) for _ in range(20)]
    engine.close()
    for ticket in tickets:
        with pytest.raises(ShuttingDown):
            ticket.result(LIMIT_SECONDS)
    with pytest.raises(ShuttingDown):
        engine.submit(ask())
    assert not engine.alive


def test_the_loop_sleeps_while_the_decoder_holds_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, plans = threading.Event(), 0
    plan = Scheduler.plan

    def count(self: Scheduler, now: float) -> Plan:
        nonlocal plans
        plans += 1
        return plan(self, now)

    def hold(where: str, request: ResolvedRequest, _: int) -> MezzotintError | None:
        if where == "decode":
            assert go_on.wait(LIMIT_SECONDS)
        return None

    monkeypatch.setattr(Scheduler, "plan", count)
    with Engine(FakeBackend(fault=hold)) as engine:
        tickets = [engine.submit(ask(steps=1)) for _ in range(MAX_RUNNING + 8)]
        # All that one tenant may hold.
        wait_until(lambda: engine.status().decoding == int(TENANT_SHARE * MAX_RUNNING))
        before, began = plans, time.monotonic()
        # Something to happen meanwhile: a hundred looks at the engine, none of which wakes its loop.
        for _ in range(100):
            engine.status()
            time.sleep(0.001)
        assert plans - before <= 3 + (time.monotonic() - began) / QUEUE_NEWS_SECONDS
        go_on.set()
        for ticket in tickets:
            ticket.result(LIMIT_SECONDS)


def test_a_slow_reader_costs_no_memory() -> None:
    with Engine(FakeBackend()) as engine:
        ticket = engine.submit(ask(steps=150))
        wait_until(lambda: engine.status().running + engine.status().queued + engine.status().decoding == 0)
        assert [type(event) for event in ticket.events()] == [Queued, Progress, Done]


def test_warm_up_measures_the_cost_of_a_pass() -> None:
    with Engine(FakeBackend(pass_seconds=0.02, row_seconds=0.001)) as engine:
        engine.warm_up()
        key = BatchKey(128, 128, True)
        # Sleeping takes at least as long as was asked for, however busy the machine; what that added, the
        # correction by the last picture's own passes takes off again, of all widths in proportion.
        assert engine.cost.seconds(key, 1) >= 0.9 * 0.021
        assert engine.cost.seconds(key, 4) >= 0.9 * 0.024
        assert engine.cost.knee(key) > 1


def test_warm_up_draws_at_each_size_it_is_given_with_and_without_guidance() -> None:
    seen = set()

    def note(where: str, request: ResolvedRequest, _: int) -> MezzotintError | None:
        seen.add((request.width, request.height, request.guided))
        return None

    with Engine(FakeBackend(fault=note)) as engine:
        engine.warm_up([(64, 96), (256, 128)])
    assert seen == {
        (*size, guided) for size in [(64, 96), (256, 128), (128, 128)] for guided in (True, False)
    }


def test_warm_up_measures_each_size_it_is_given_by_width() -> None:
    backend = FakeBackend(pass_seconds=0.002, row_seconds=0.001)
    with Engine(backend) as engine:
        engine.warm_up([(64, 96)])
        one, eight = (engine.cost.seconds(BatchKey(64, 96, True), width) for width in (1, 8))
    # Were it guessed from 128×128's curve, its passes would cost a third in proportion at width 8.
    assert one >= 0.003
    assert eight >= 0.010


def test_a_model_that_cannot_draw_fails_its_warm_up(make_backend: MakeBackend) -> None:
    def fault(where: str, _: ResolvedRequest, done: int) -> MezzotintError | None:
        return GenerationFailed("latents are not finite") if where == "step" else None

    with Engine(make_backend(fault=fault)) as engine, pytest.raises(GenerationFailed):
        engine.warm_up()


def test_waiting_requests_hear_where_they_stand() -> None:
    with Engine(FakeBackend(pass_seconds=0.05, max_batch=1)) as engine:
        first = engine.submit(ask(steps=100))
        second = engine.submit(ask(steps=150))
        events = second.events()
        for _ in range(2):  # One at submission, and another as the queue moves.
            event = next(events)
            assert isinstance(event, Queued)
            assert event.position >= 1
            assert event.eta_s > 0
        first.cancel()
        second.cancel()


def test_every_request_ends_exactly_once_under_random_cancels_and_failures(make_backend: MakeBackend) -> None:
    rng = random.Random(3)

    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        broken = request.seed % 7 == 0 and where == ("start", "step", "decode")[request.seed % 3]
        return GenerationFailed("fault") if broken else None

    endings: dict[str, list[Event]] = {}

    def listen(events: Iterator[Event], into: list[Event]) -> None:
        into.extend(event for event in events if not isinstance(event, Queued | Progress))

    backend = make_backend(pass_seconds=0.0005, fault=fault)
    with Engine(backend) as engine:
        threads, tickets = [], []
        for seed in range(200):
            ticket = engine.submit(
                ask(seed=seed, steps=rng.randint(1, 12), guidance_scale=rng.choice((0.0, 5.0)))
            )
            tickets.append(ticket)
            into = endings.setdefault(ticket.request_id, [])
            threads.append(threading.Thread(target=listen, args=(ticket.events(), into)))
            threads[-1].start()
            if seed % 3 == 0:
                rng.choice(tickets).cancel()
        for thread in threads:
            thread.join(LIMIT_SECONDS)
            assert not thread.is_alive(), "a request never ended"
        wait_until(lambda: backend.held == 0)
    assert all(len(events) == 1 for events in endings.values())
    kinds = {type(events[0]) for events in endings.values()}
    assert kinds == {Done, Failed, Cancelled}


def test_ten_thousand_requests_leave_memory_flat() -> None:
    process = psutil.Process()

    def draw(engine: Engine, count: int) -> None:
        waiting = []
        for i in range(count):
            waiting.append(engine.submit(ask(seed=i, steps=1 + i % 4, width=64, height=64)))
            if len(waiting) == 100:
                for ticket in waiting:
                    ticket.result(LIMIT_SECONDS)
                waiting.clear()

    backend = FakeBackend()
    with Engine(backend) as engine:
        draw(engine, 2_000)
        gc.collect()
        before = process.memory_info().rss
        draw(engine, 10_000)
        gc.collect()
        grown = process.memory_info().rss - before
        wait_until(lambda: backend.held == 0)
    assert grown < 16 * 2**20, f"{grown / 2**20:.1f} MiB more after 10,000 requests"
