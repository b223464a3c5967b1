"""What the gateway makes of its replicas: which one, when another, when none. Real engines, no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.fake import FakeBackend
from mezzotint.config import Settings
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    GenerationFailed,
    MezzotintError,
    ModelLoading,
    QueueFull,
    ReplicaLost,
    ShuttingDown,
)
from mezzotint.serve.dispatch import Replicas
from mezzotint.serve.gateway import Gateway, open_gateway
from mezzotint.serve.health import FAILURES_IN_A_ROW
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.several import together
from mezzotint.serve.wire import Drawn, Order, Refused, Report, WireEvent

LIMIT_SECONDS = 60.0
SICK = "sick"


class Several(Replicas):
    """Replicas of this process by name, each order to the one it asks for."""

    def __init__(self, replicas: dict[str, EngineReplica]) -> None:
        self.replicas = replicas
        self.asked: list[str] = []
        self.faults: dict[str, MezzotintError] = {}
        # Of whichever is asked first, second, …
        self.first_faults: list[MezzotintError] = []
        # After the first event of whichever begins first, second, …
        self.late_faults: list[MezzotintError] = []
        self.hanging: set[str] = set()
        self.cancelled = 0

    async def info(self) -> BackendInfo:
        return await next(iter(self.replicas.values())).info()

    async def reports(self) -> list[Report]:
        return [await replica.report() for replica in self.replicas.values()]

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        name = order.replica or next(each for each in self.replicas if each not in order.avoid)
        self.asked.append(name)
        if name in self.hanging:
            try:
                await asyncio.sleep(3600)
            finally:
                self.cancelled += 1
        if self.first_faults:
            raise self.first_faults.pop(0)
        if name in self.faults:
            raise self.faults[name]
        async for event in self.replicas[name].generate(order):
            yield event
            if self.late_faults:
                raise self.late_faults.pop(0)


@asynccontextmanager
async def gateway_over(
    backends: dict[str, FakeBackend], deadline_s: float = LIMIT_SECONDS, **engine: Any
) -> AsyncIterator[tuple[Gateway, Several]]:
    replicas = {
        name: EngineReplica(Settings(), Engine(backend, **engine), name=name)
        for name, backend in backends.items()
    }
    try:
        several = Several(replicas)
        async with open_gateway(several, deadline_s) as gateway:
            yield gateway, several
    finally:
        for replica in replicas.values():
            await asyncio.to_thread(replica.close)


async def draw(gateway: Gateway, **fields: Any) -> Drawn:
    return await gateway.draw(await gateway.prepare(GenerationRequest("a", **{"steps": 1, **fields})))


def two(**options: Any) -> dict[str, FakeBackend]:
    return {"a": FakeBackend(**options), "b": FakeBackend(**options)}


@pytest.mark.parametrize(
    "fault",
    [
        ModelLoading("none"),
        ReplicaLost("lost"),
        ShuttingDown("closing"),
        QueueFull("full", retry_after_s=1.0),
    ],
)
async def test_what_one_replica_cannot_take_is_drawn_by_another_and_the_same(fault: MezzotintError) -> None:
    async with gateway_over(two()) as (gateway, several):
        prepared = await gateway.prepare(GenerationRequest("a", steps=2))
        undisturbed = await gateway.draw(prepared)
        several.asked.clear()
        several.first_faults = [fault]
        assert (await gateway.draw(prepared)).data == undisturbed.data
        assert sorted(several.asked) == ["a", "b"]
        assert gateway.retries == 1


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_picture_is_counted_once_however_many_replicas_could_not_take_it(has_begun: bool) -> None:
    async with gateway_over(two()) as (gateway, several):
        several.first_faults = [QueueFull("full", retry_after_s=1.0)]
        (several.late_faults if has_begun else several.first_faults).append(ReplicaLost("lost"))
        prepared = await gateway.prepare(GenerationRequest("a", steps=2))
        assert isinstance([event async for event in gateway.stream(prepared)][-1], Drawn)
        assert len(several.asked) == 3
        assert gateway.retries == 1


async def test_a_picture_that_no_replica_has_room_for_needed_no_second_one_however_often_it_asks() -> None:
    async with gateway_over(two()) as (gateway, several):
        # As a job's, which asks again and again until there is room.
        picture, _ = gateway.admit([await gateway.prepare(GenerationRequest("a", steps=1))] * 2)
        several.faults = dict.fromkeys("ab", QueueFull("full", retry_after_s=1.0))
        for _ in range(3):
            with pytest.raises(QueueFull):
                await gateway.draw(picture)
        assert len(several.asked) == 6
        several.faults = {}
        await gateway.draw(picture)
        assert gateway.retries == 0


async def test_a_picture_costs_at_the_gateway_what_its_engine_counts_for_it() -> None:
    engine = Engine(FakeBackend())
    key = BatchKey(128, 128, True)
    engine.cost.calibrate(key, {1: 0.1})
    engine.cost.observe_decode(key, 0.3)
    replica = EngineReplica(Settings(), engine, name="a")
    try:
        async with open_gateway(Several({"a": replica}), LIMIT_SECONDS) as gateway:
            for steps in (1, 50):
                prepared = await gateway.prepare(GenerationRequest("a", steps=steps))
                assert gateway.cost_s([prepared]) == pytest.approx(steps * 0.1 + 0.3)
    finally:
        await asyncio.to_thread(replica.close)


async def test_a_second_loss_is_told_and_not_a_third_attempt_made() -> None:
    async with gateway_over(two()) as (gateway, several):
        several.faults = {"a": ModelLoading("lost"), "b": ModelLoading("lost")}
        with pytest.raises(ModelLoading):
            await draw(gateway)
        assert sorted(several.asked) == ["a", "b"]


async def test_a_loss_while_drawing_is_told_as_one_though_no_other_replica_is_ready() -> None:
    async with gateway_over(two()) as (gateway, several):
        prepared = await gateway.prepare(GenerationRequest("a", steps=1))
        faults: list[MezzotintError] = [ReplicaLost("lost"), ModelLoading("none")]

        async def lose(order: Order) -> AsyncGenerator[WireEvent]:
            raise faults.pop(0)
            yield

        several.generate = lose  # type: ignore[method-assign]
        with pytest.raises(ReplicaLost):
            await gateway.draw(prepared)
        assert faults == []


async def test_a_replica_that_is_lost_after_the_picture_has_nothing_drawn_again() -> None:
    async with gateway_over(two()) as (gateway, several):
        prepared = await gateway.prepare(GenerationRequest("a", steps=1))
        original, asked = several.generate, 0

        async def lose_after(order: Order) -> AsyncGenerator[WireEvent]:
            nonlocal asked
            asked += 1
            async for event in original(order):
                yield event
            raise ReplicaLost("lost")

        several.generate = lose_after  # type: ignore[method-assign]
        events = [event async for event in gateway.stream(prepared)]
        assert [isinstance(event, Drawn) for event in events].count(True) == 1
        assert asked == 1


async def test_who_takes_the_picture_only_after_the_deadline_hears_of_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway_over(two()) as (gateway, several):
        prepared = await gateway.prepare(GenerationRequest("a", steps=1, deadline_s=60.0))
        original, drawn = several.generate, 0

        async def never_end(order: Order) -> AsyncGenerator[WireEvent]:
            async for event in original(order):
                yield event
            await asyncio.Event().wait()

        several.generate = never_end  # type: ignore[method-assign]
        late = SimpleNamespace(monotonic=lambda: prepared.deadline + 0.01)
        # For this block alone: servers of other tests have gateways in threads of this process.
        with monkeypatch.context() as patched:
            async for event in gateway.stream(prepared):
                if isinstance(event, Drawn):
                    drawn += 1
                    patched.setattr("mezzotint.serve.dispatch.time", late)
        assert drawn == 1


@pytest.mark.parametrize(
    "full", [QueueFull("full", retry_after_s=600.0), DeadlineUnreachable("too long", retry_after_s=600.0)]
)
async def test_what_a_lost_replica_had_waits_for_room_on_another(
    full: MezzotintError, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that has no room for long does not keep it from another that has.
    monkeypatch.setattr("mezzotint.serve.dispatch.RETRY_AFTER_SECONDS", 0.05)
    async with gateway_over(two()) as (gateway, several):
        prepared = await gateway.prepare(GenerationRequest("a", steps=1))
        asked: list[str] = []
        original = several.generate

        async def lose_then_fill(order: Order) -> AsyncGenerator[WireEvent]:
            asked.append(order.replica)
            if len(asked) == 1:
                raise ModelLoading("lost")
            if len(asked) < 4:
                raise full
            async for event in original(order):
                yield event

        several.generate = lose_then_fill  # type: ignore[method-assign]
        await gateway.draw(prepared)
        assert asked[0] not in asked[1:]
        assert len(asked) == 4


async def test_a_request_that_fails_by_itself_is_not_drawn_again() -> None:
    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        return GenerationFailed("no usable picture") if where == "decode" else None

    async with gateway_over(two(fault=fault)) as (gateway, several):
        with pytest.raises(GenerationFailed):
            await draw(gateway)
        assert len(several.asked) == 1


async def test_an_engine_whose_loop_dies_has_its_requests_drawn_by_another() -> None:
    class Dying(FakeBackend):
        def release(self, request_id: str) -> None:
            raise OSError("the device is gone")

    async with gateway_over({"a": Dying(), "b": FakeBackend()}) as (gateway, several):
        # The first picture's release ends the loop of a; whatever it still has is drawn by b.
        pictures = await asyncio.gather(*(draw(gateway, seed=seed, steps=20) for seed in range(8)))
        assert len(pictures) == 8
        # The picture is told before it is released.
        async with asyncio.timeout(LIMIT_SECONDS):
            while several.replicas["a"]._engine.alive:
                await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="loop has ended"):
            await several.replicas["a"].check_health()


async def test_at_the_deadline_it_ends_whatever_the_replica_does() -> None:
    async with gateway_over(two(), deadline_s=0.5) as (gateway, several):
        several.hanging = {"a", "b"}
        began = time.monotonic()
        prepared = await gateway.prepare(GenerationRequest("a", steps=1, deadline_s=3600))
        with pytest.raises(DeadlineExceeded):
            await gateway.draw(prepared)
        assert 0.4 <= time.monotonic() - began < LIMIT_SECONDS
        assert several.cancelled == 1
        # What is left of the deadline is nothing: no replica is asked again.
        with pytest.raises(DeadlineExceeded):
            await gateway.draw(prepared)
        assert len(several.asked) == 1


@pytest.mark.parametrize("count", [1, 2])
async def test_a_deadline_too_short_for_any_replica_is_refused_and_not_missed(count: int) -> None:
    async with gateway_over(two()) as (gateway, several):
        asked = GenerationRequest("a", steps=20, deadline_s=1e-6)
        admitted = gateway.admit([await gateway.prepare(asked) for _ in range(count)])
        with pytest.raises(DeadlineUnreachable) as refused:
            await together(*(gateway.draw(prepared) for prepared in admitted))
        # Whoever asks again is told the same.
        assert not refused.value.retryable
        assert several.asked == []


async def test_a_second_attempt_has_what_is_left_of_the_deadline() -> None:
    async with gateway_over(two()) as (gateway, several):
        seen: list[float] = []
        prepared = await gateway.prepare(GenerationRequest("a", steps=1, deadline_s=60))
        original = several.generate

        async def slow_loss(order: Order) -> AsyncGenerator[WireEvent]:
            seen.append(order.request.deadline_s or 0)
            if len(seen) == 1:
                await asyncio.sleep(0.3)
                raise ModelLoading("lost")
            async for event in original(order):
                yield event

        several.generate = slow_loss  # type: ignore[method-assign]
        await gateway.draw(prepared)
        assert seen[0] - seen[1] >= 0.3


async def test_requests_spread_over_replicas_by_the_work_that_each_has() -> None:
    def slow(where: str, request: ResolvedRequest, done: int) -> None:
        # The long one is still being drawn when the last of the others has been.
        if where == "step" and request.steps == 150:
            time.sleep(0.5)

    async with gateway_over(two(pass_seconds=0.05, max_batch=1, fault=slow)) as (gateway, several):
        long = asyncio.create_task(draw(gateway, steps=150))
        async with asyncio.timeout(LIMIT_SECONDS):
            while not several.asked:
                await asyncio.sleep(0.01)
        busy = several.asked[0]
        for seed in range(10):
            await draw(gateway, seed=seed)
        assert busy not in several.asked[1:]
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long


async def test_where_none_has_room_the_refusal_asks_no_replica() -> None:
    # Each has work for 15 s, and takes on 16 s.
    backends = two(pass_seconds=0.1, max_batch=1)
    async with gateway_over(backends, max_backlog_s=16.0) as (gateway, several):
        held = [asyncio.create_task(draw(gateway, steps=150, seed=seed)) for seed in range(2)]
        async with asyncio.timeout(LIMIT_SECONDS):
            while not all(sum(report.backlogs.values()) > 4.0 for report in gateway.reports):
                await asyncio.sleep(0.05)
        asked = len(several.asked)
        with pytest.raises(QueueFull) as refused:
            await draw(gateway, steps=150)
        assert len(several.asked) == asked
        assert refused.value.retry_after_s
        assert refused.value.retry_after_s >= 1
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_the_cost_of_requests_is_their_seconds_of_an_engine() -> None:
    async with gateway_over({"a": FakeBackend(pass_seconds=0.05, max_batch=1)}) as (gateway, _):
        requests = [await gateway.prepare(GenerationRequest("a", steps=10))] * 2
        async with asyncio.timeout(LIMIT_SECONDS):
            # What a pass takes is learnt from each; on a busy machine one may take twice its time.
            while not 0.8 <= gateway.cost_s(requests) <= 2.0:
                await draw(gateway, steps=5)


async def test_a_model_that_draws_one_colour_is_never_a_picture_and_its_replica_is_replaced() -> None:
    class Blank(FakeBackend):
        def decode(self, request_id: str, make_way: Any = None) -> Any:
            return super().decode(request_id) * 0

    async with gateway_over({"a": Blank()}) as (gateway, several):
        replica = several.replicas["a"]
        for seed in range(FAILURES_IN_A_ROW):
            await replica.check_health()
            with pytest.raises(GenerationFailed):
                await draw(gateway, seed=seed)
        assert not (await replica.report()).healthy
        async with asyncio.timeout(LIMIT_SECONDS):
            while any(report.healthy for report in gateway.reports):
                await asyncio.sleep(0.02)
        with pytest.raises(ModelLoading):
            await gateway.ready()
        with pytest.raises(RuntimeError, match="draws nothing"):
            await replica.check_health()


async def test_requests_that_no_model_can_draw_do_not_cost_a_sound_replica_its_place() -> None:
    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        return GenerationFailed("no usable picture") if request.prompt == SICK else None

    async with gateway_over({"a": FakeBackend(fault=fault)}) as (gateway, several):
        replica = several.replicas["a"]
        for seed in range(2 * FAILURES_IN_A_ROW):
            prepared = await gateway.prepare(GenerationRequest(SICK, steps=1, seed=seed))
            with pytest.raises(GenerationFailed):
                await gateway.draw(prepared)
        assert not (await replica.report()).healthy
        await replica.check_health()
        assert (await replica.report()).healthy


async def test_an_engine_that_hangs_in_a_pass_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.serve.health.MAX_PASS_SECONDS", 0.2)
    go_on = threading.Event()

    def hang(where: str, request: ResolvedRequest, done: int) -> None:
        assert where != "step" or go_on.wait(LIMIT_SECONDS)

    async with gateway_over({"a": FakeBackend(fault=hang)}) as (gateway, several):
        replica = several.replicas["a"]
        await replica.check_health()
        drawing = asyncio.create_task(draw(gateway))
        async with asyncio.timeout(LIMIT_SECONDS):
            while (await replica.report()).healthy:
                await asyncio.sleep(0.02)
        with pytest.raises(RuntimeError, match="hangs"):
            await replica.check_health()
        go_on.set()
        await drawing
        # The picture is told in the turn of the loop that hung, and so before that turn ends.
        async with asyncio.timeout(LIMIT_SECONDS):
            while not (await replica.report()).healthy:
                await asyncio.sleep(0.02)
        await replica.check_health()


async def test_pictures_of_which_one_is_cancelled_by_nobody_are_a_fault_and_not_left_unanswered() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled"):
        await together(asyncio.sleep(0), cancelled())


async def test_a_refusal_of_the_request_itself_is_told_at_once() -> None:
    async with gateway_over(two()) as (gateway, several):
        refused = Refused.from_error(GenerationFailed("no"))

        async def refuse(order: Order) -> AsyncGenerator[WireEvent]:
            several.asked.append(order.replica)
            yield refused

        several.generate = refuse  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed):
            await draw(gateway)
        assert len(several.asked) == 1
