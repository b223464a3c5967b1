"""What a gateway decides from reports. No replica runs; the clock is the test's."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.core import GenerationRequest, Hires, Lora, ResolvedRequest, ServedLora
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import MAX_RETRY_AFTER_SECONDS
from mezzotint.resolving import resolve
from mezzotint.serve.fleet import STALE_SECONDS, Fleet
from mezzotint.serve.wire import Report

KEY = BatchKey(128, 128, True)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def report(replica: str, backlog: float = 0.0, **changes: Any) -> Report:
    told = {
        "replica": replica,
        "info": FakeBackend().info,
        "healthy": True,
        "queued": 0,
        "max_queue": 10,
        "max_backlog_s": 60.0,
        "backlogs": {"other": backlog} if backlog else {},
        "costs": {KEY: 0.1},
    }
    return Report(**{**told, **changes})


def request(steps: int = 10, **fields: Any) -> ResolvedRequest:
    return resolve(GenerationRequest("a", steps=steps, **fields), FAKE_LIMITS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(clock: Clock) -> Fleet:
    return Fleet(clock)


def test_the_replica_that_would_have_it_done_first_is_chosen(fleet: Fleet) -> None:
    fleet.update([report("a", 5.0), report("b", 4.0), report("c", 6.0)], 0.0)
    assert fleet.choose(request()) == "b"
    # With less behind it, a slow engine is not the first to finish.
    fleet.update([report("b", 4.0, costs={KEY: 1.0})], 0.0)
    assert fleet.choose(request()) == "a"


def test_a_full_replica_is_chosen_only_when_all_are(fleet: Fleet) -> None:
    # The tenant holds half of what a takes on; b, with more behind it, has room for it.
    mine = {"backlogs": {"mine": 30.0}}
    fleet.update([report("a", **mine), report("b", 35.0)], 0.0)
    assert fleet.choose(request(tenant="mine")) == "b"
    assert fleet.choose(request(tenant="other")) == "a"
    fleet.update([report("b", backlogs={"mine": 40.0})], 0.0)
    assert fleet.choose(request(tenant="mine")) == "a"


def test_of_anothers_work_only_a_fair_share_comes_first(fleet: Fleet) -> None:
    fleet.update([report("a", backlogs={"mine": 20.0}), report("b", 29.0)], 0.0)
    # Six seconds after 20 of one's own, or with six of the other's.
    assert fleet.choose(request(steps=60, tenant="mine")) == "b"
    with fleet.sending("b", request(steps=50, tenant="mine")):
        # With 11 of the other's, after five of one's own.
        assert fleet.choose(request(steps=60, tenant="mine")) == "b"
    # Done as soon on both, it goes where less is left for those who come next.
    assert fleet.choose(request(tenant="third")) == "a"


def test_only_a_replica_that_serves_its_loras_is_chosen(fleet: Fleet) -> None:
    info = FakeBackend(loras=(ServedLora("ink", "Ink", "a" * 64),)).info
    fleet.update([report("with", 5.0, info=info), report("without")], 0.0)
    inked = resolve(GenerationRequest("a", loras=(Lora("ink"),)), info.limits)
    assert fleet.choose(inked) == "with"
    assert fleet.choose(request()) == "without"


def test_what_was_sent_since_the_report_counts_and_ends(fleet: Fleet) -> None:
    fleet.update([report("a", 1.0), report("b", 1.5)], 0.0)
    with fleet.sending("a", request()):
        assert fleet.choose(request()) == "b"
    assert fleet.choose(request()) == "a"


def test_a_later_report_has_counted_what_was_sent_before(fleet: Fleet, clock: Clock) -> None:
    fleet.update([report("a"), report("b", 1.5)], 0.0)
    with fleet.sending("a", request()):
        clock.now = 1.0
        fleet.update([report("a", 1.0)], 0.5)
        assert fleet.choose(request()) == "a"


def test_what_was_sent_after_a_report_was_asked_for_is_kept(fleet: Fleet, clock: Clock) -> None:
    fleet.update([report("a"), report("b", 0.5)], 0.0)
    clock.now = 1.0
    with fleet.sending("a", request()):
        fleet.update([report("a")], 0.9)
        assert fleet.choose(request()) == "b"


def test_a_sick_an_avoided_a_forgotten_and_a_silent_replica_are_not_chosen(
    fleet: Fleet, clock: Clock
) -> None:
    fleet.update([report("sick", healthy=False), report("a", 9.0)], 0.0)
    assert fleet.choose(request()) == "a"
    assert fleet.choose(request(), avoid=("a",)) == ""
    fleet.forget("a")
    assert fleet.choose(request()) == ""
    fleet.update([report("a", 9.0)], 0.0)
    clock.now = STALE_SECONDS + 1
    fleet.update([report("b", 50.0)], clock.now)
    assert fleet.choose(request()) == "b"


def test_a_replica_whose_model_does_not_draw_the_size_is_not_chosen(fleet: Fleet) -> None:
    small = FakeBackend().info
    object.__setattr__(small, "limits", FAKE_LIMITS.__class__(**{**vars(FAKE_LIMITS), "max_size": 256}))
    fleet.update([report("small", info=small), report("large", 9.0)], 0.0)
    assert fleet.choose(request(width=512, height=512)) == "large"
    assert fleet.choose(request(width=256, height=256)) == "small"


def test_a_replica_that_has_not_compiled_the_size_is_not_chosen(fleet: Fleet) -> None:
    info = FakeBackend().info
    small = replace(info, limits=replace(FAKE_LIMITS, served=((64, 64), (256, 256))))
    large = replace(info, limits=replace(FAKE_LIMITS, served=((64, 64), (128, 128))))
    fleet.update([report("small", info=small), report("large", 9.0, info=large)], 0.0)
    assert fleet.choose(request(width=128, height=128)) == "large"
    assert fleet.choose(request(width=64, height=64)) == "small"


def test_a_replica_that_does_not_draw_the_second_stage_is_not_chosen(fleet: Fleet) -> None:
    info = FakeBackend().info
    small = replace(info, limits=replace(FAKE_LIMITS, max_size=128))
    fleet.update([report("small", info=small), report("large", 9.0, info=info)], 0.0)
    assert fleet.choose(request(hires=Hires(1.5))) == "large"
    assert fleet.choose(request()) == "small"


def test_a_second_stage_costs_besides(fleet: Fleet) -> None:
    fleet.update([report("a", decode_s_a_pixel=0.5 / (128 * 128))], 0.0)
    # Ten steps and five of four times the area, each with its decoding.
    assert fleet.cost_s(request(steps=10, hires=Hires(2.0, 0.5))) == pytest.approx(1.5 + 2.0 + 2.0)


def test_a_shape_that_was_never_run_costs_as_its_area(fleet: Fleet) -> None:
    fleet.update([report("a")], 0.0)
    assert fleet.cost_s(request(steps=10)) == pytest.approx(1.0)
    assert fleet.cost_s(request(steps=10, width=256)) == pytest.approx(2.0)
    assert fleet.cost_s(request(steps=10, guidance_scale=0.0)) == pytest.approx(0.5)
    assert Fleet().cost_s(request()) == 0.0


def test_decoding_costs_once_a_picture_by_the_pixel_and_nothing_where_it_is_not_told(fleet: Fleet) -> None:
    telling = report("a", decode_s_a_pixel=0.5 / (128 * 128))
    fleet.update([telling], 0.0)
    assert fleet.cost_s(request(steps=10)) == pytest.approx(1.5)
    assert fleet.cost_s(request(steps=20)) == pytest.approx(2.5)
    assert fleet.cost_s(request(steps=10, width=256)) == pytest.approx(3.0)
    # As a replica of an earlier version sends it.
    earlier = object.__new__(Report)
    vars(earlier).update({name: told for name, told in vars(telling).items() if name != "decode_s_a_pixel"})
    fleet.update([pickle.loads(pickle.dumps(earlier))], 0.0)
    assert fleet.cost_s(request(steps=10)) == pytest.approx(1.0)


def test_a_replica_that_calls_its_batch_otherwise_is_read_too() -> None:
    info = report("a").info
    earlier = object.__new__(type(info))
    vars(earlier).update({name: told for name, told in vars(info).items() if name != "max_batch"})
    assert pickle.loads(pickle.dumps(earlier)).max_batch == 1


def test_only_when_no_replica_has_room_is_the_request_refused(fleet: Fleet) -> None:
    fleet.update([report("a", 59.5), report("b", 58.0)], 0.0)
    assert fleet.refusal(request(steps=10)) is None
    refusal = fleet.refusal(request(steps=40))
    assert refusal is not None
    # The first to have room for four seconds is b, in two.
    assert refusal.retry_after_s == pytest.approx(2.0)
    assert fleet.refusal(request(steps=40), avoid=("b",)).retry_after_s == pytest.approx(3.5)


def test_several_that_ask_as_one_need_room_together_unless_a_replica_is_idle(fleet: Fleet) -> None:
    fleet.update([report("a", 57.0)], 0.0)
    assert fleet.refusal(request(steps=10), count=3) is None
    refusal = fleet.refusal(request(steps=10), count=5)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(2.0)
    fleet.update([report("b", 57.0)], 0.0)
    assert fleet.refusal(request(steps=10), count=5) is None
    fleet.update([report("a")], 0.0)
    assert fleet.refusal(request(steps=10), count=1_000) is None


def test_a_tenant_that_holds_half_is_refused_and_another_is_not(fleet: Fleet) -> None:
    fleet.update([report("a", backlogs={"flood": 30.0})], 0.0)
    assert fleet.refusal(request(tenant="flood")) is not None
    assert fleet.refusal(request(tenant="other")) is None


def test_a_queue_at_its_bound_is_no_room(fleet: Fleet) -> None:
    fleet.update([report("a", 20.0, queued=10)], 0.0)
    assert fleet.refusal(request()).retry_after_s == pytest.approx(2.0)


def test_nothing_is_refused_while_nothing_is_known(fleet: Fleet) -> None:
    assert fleet.refusal(request()) is None
    assert fleet.choose(request()) == ""


def test_the_refused_are_told_to_come_back_one_after_the_other(fleet: Fleet, clock: Clock) -> None:
    fleet.update([report("a", 60.0), report("b", 60.0)], 0.0)
    wanted = request(steps=20)

    def told(tenant: str) -> float:
        refusal = fleet.refusal(wanted)
        assert refusal is not None
        promise = fleet.promise(refusal, replace(wanted, tenant=tenant))
        assert promise.retry_after_s is not None
        return promise.retry_after_s

    # Two engines take two seconds of work each: one request a second.
    assert [told("x") for _ in range(4)] == pytest.approx([2.0, 3.0, 4.0, 5.0])
    assert told("y") == pytest.approx(2.0)
    clock.now += 4.0
    fleet.update([report("a", 60.0), report("b", 60.0)], clock.now)
    assert told("x") == pytest.approx(2.0)
    assert max(told("x") for _ in range(500)) <= MAX_RETRY_AFTER_SECONDS
