"""The scheduler alone: events in, plan out. No clock, no thread, no backend."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mezzotint.core import PRIORITIES, Lora, Priority
from mezzotint.engine.cost import StepCost
from mezzotint.engine.rows import TRANSITIONS, WEIGHTS, BatchKey, Stage, State, measured_as, tells_of
from mezzotint.engine.rules import TENANT_SHARE, Rules
from mezzotint.engine.scheduler import IllegalMove, Scheduler
from mezzotint.engine.simulate import Arrival, simulate

GUIDED = BatchKey(128, 128, True)
UNGUIDED = BatchKey(128, 128, False)
WIDE = BatchKey(160, 96, True)


def cost_of(curve: dict[int, float], max_batch: int = 8) -> StepCost:
    cost = StepCost(max_batch)
    cost.calibrate(GUIDED, curve)
    return cost


# What two CPU cores measured on the demo model: wider passes pay up to four images.
BATCHES = cost_of({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.129})
SATURATED = cost_of({1: 0.12, 2: 0.24, 4: 0.48, 8: 0.96})


def run_pass(scheduler: Scheduler, now: float = 0.0) -> tuple[str, ...]:
    plan = scheduler.plan(now)
    for id in plan.starting:
        scheduler.start(id)
    for id in scheduler.stepped(plan):
        scheduler.finish(id)
    return plan.request_ids


def test_equal_requests_share_a_pass_up_to_the_knee() -> None:
    scheduler = Scheduler(BATCHES)
    for id in "abcdef":
        scheduler.submit(id, [Stage(GUIDED, 10)], 0.0)
    assert scheduler.plan(0.0).request_ids == ("a", "b", "c", "d")


def test_different_shapes_never_share_a_pass() -> None:
    scheduler = Scheduler(BATCHES)
    adapted = replace(GUIDED, loras=(Lora("ink"),))
    for id, key in (("a", GUIDED), ("b", adapted), ("c", WIDE)):
        scheduler.submit(id, [Stage(key, 10)], 0.0)
    assert {run_pass(scheduler) for _ in range(12)} == {("a",), ("b",), ("c",)}


def test_guided_requests_and_others_share_a_pass_of_as_many_rows_as_pay() -> None:
    assert (BATCHES.knee(GUIDED), BATCHES.knee(UNGUIDED)) == (4, 7)
    scheduler = Scheduler(BATCHES)
    for id, key in zip("aubvcwd", (GUIDED, UNGUIDED) * 3 + (GUIDED,), strict=True):
        scheduler.submit(id, [Stage(key, 10)], 0.0)
    # Eight rows of the UNet, which is what four guided images take.
    assert scheduler.plan(0.0).request_ids == tuple("aubvc")


def test_a_pass_of_both_costs_what_its_rows_do() -> None:
    assert measured_as([GUIDED]) == (GUIDED, 1)
    assert measured_as([UNGUIDED] * 3) == (UNGUIDED, 3)
    assert measured_as([UNGUIDED, GUIDED, UNGUIDED]) == (GUIDED, 2)
    assert measured_as([GUIDED, UNGUIDED]) == (GUIDED, 2)


def test_in_a_pass_of_both_each_is_charged_for_its_rows() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("g", [Stage(GUIDED, 10)], 0.0, tenant="g")
    scheduler.submit("u", [Stage(UNGUIDED, 10)], 0.0, tenant="u")
    assert set(run_pass(scheduler)) == {"g", "u"}
    assert scheduler._charged["g"] == pytest.approx(2 * scheduler._charged["u"])
    assert sum(scheduler._charged.values()) == pytest.approx(BATCHES.seconds(GUIDED, 2))


def test_those_with_controlnets_share_passes_with_those_without() -> None:
    held = replace(GUIDED, controls=(1.0,))
    scheduler = Scheduler(BATCHES)
    for id, key in (("a", GUIDED), ("b", held), ("c", UNGUIDED)):
        scheduler.submit(id, [Stage(key, 10)], 0.0)
    assert set(scheduler.plan(0.0).request_ids) == {"a", "b", "c"}


def test_a_pass_with_controlnets_costs_what_its_work_does() -> None:
    held = replace(GUIDED, controls=(1.0,))
    assert held.load == pytest.approx(1.45 * GUIDED.load)
    assert measured_as([held, held]) == (held, 2)
    # 2 + 2.9 + 1 rows of work.
    key, batch = measured_as([GUIDED, held, UNGUIDED])
    assert (key, batch) == (held, pytest.approx(5.9 / 2.9))
    assert BATCHES.seconds(held, 2) < BATCHES.seconds(key, batch) < BATCHES.seconds(held, 3)
    assert BATCHES.seconds(held, 1) > BATCHES.seconds(GUIDED, 1)


def test_only_passes_of_one_kind_tell_what_controlnets_cost() -> None:
    held, partly = replace(GUIDED, controls=(1.0,)), replace(GUIDED, controls=(0.5,))
    for keys, told in (
        ([held, held], True),
        ([held, GUIDED], False),
        ([partly, partly], False),
        ([replace(GUIDED, controls=(0.5, 0.5))], False),
        ([GUIDED, GUIDED, UNGUIDED, UNGUIDED], True),
        ([GUIDED, UNGUIDED], False),
    ):
        assert tells_of(*measured_as(keys), keys) is told


def test_in_a_pass_with_controlnets_each_is_charged_for_its_own() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("h", [Stage(replace(GUIDED, controls=(1.0,)), 10)], 0.0, tenant="h")
    scheduler.submit("g", [Stage(GUIDED, 10)], 0.0, tenant="g")
    assert set(run_pass(scheduler)) == {"g", "h"}
    assert scheduler._charged["h"] == pytest.approx(1.45 * scheduler._charged["g"])


def test_a_newcomer_joins_the_next_pass_when_there_is_room() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("a", [Stage(GUIDED, 50)], 0.0)
    run_pass(scheduler)
    scheduler.submit("b", [Stage(GUIDED, 50)], 0.1)
    assert set(scheduler.plan(0.1).request_ids) == {"a", "b"}


def test_a_newcomer_is_passed_over_at_most_once() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("short", [Stage(GUIDED, 4)], 0.0)
    run_pass(scheduler)
    scheduler.submit("long", [Stage(GUIDED, 50)], 0.0)
    assert "long" in run_pass(scheduler) + run_pass(scheduler)


def test_a_short_job_passes_long_ones() -> None:
    scheduler = Scheduler(BATCHES)
    for id in "abcdefgh":
        scheduler.submit(id, [Stage(GUIDED, 50)], 0.0)
    run_pass(scheduler)
    scheduler.submit("short", [Stage(GUIDED, 4)], 0.0)
    passes = 0
    while scheduler.state("short"):
        run_pass(scheduler)
        passes += 1
    assert passes <= 5


def test_a_saturated_shape_runs_one_at_a_time_in_order_of_arrival() -> None:
    scheduler = Scheduler(SATURATED)
    for id in "abc":
        scheduler.submit(id, [Stage(GUIDED, 3)], 0.0)
    assert [run_pass(scheduler) for _ in range(9)] == [("a",)] * 3 + [("b",)] * 3 + [("c",)] * 3


def test_of_two_keys_the_one_whose_request_has_waited_longer_goes_first() -> None:
    def chosen(now: float) -> tuple[str, ...]:
        scheduler = Scheduler(SATURATED)
        scheduler.submit("old", [Stage(GUIDED, 12)], 0.0)
        scheduler.submit("new", [Stage(UNGUIDED, 10)], now)
        return scheduler.plan(now).request_ids

    assert chosen(0.0) == ("new",)
    assert chosen(5.0) == ("old",)


def test_an_overdue_request_goes_before_shorter_newcomers() -> None:
    scheduler = Scheduler(SATURATED)
    scheduler.submit("old", [Stage(GUIDED, 20)], 0.0)
    scheduler.submit("new", [Stage(GUIDED, 2)], 1000.0)
    assert scheduler.plan(1000.0).request_ids == ("old",)


def test_a_short_job_passes_a_backlog_that_is_overdue_and_the_backlog_keeps_its_order() -> None:
    scheduler = Scheduler(BATCHES)
    places = BATCHES.knee(GUIDED)
    overdue = [f"long {number}" for number in range(2 * places)]
    for id in overdue:
        scheduler.submit(id, [Stage(GUIDED, 50)], 0.0)
    scheduler.submit("short", [Stage(GUIDED, 4)], 1000.0)
    plan = scheduler.plan(1000.0)
    assert plan.request_ids == (*overdue[: places - 1], "short")


@pytest.mark.parametrize(("steps", "priority"), [(200, "high"), (4, "normal")])
def test_where_there_is_one_place_what_is_overdue_leaves_each_fourth_pass_to_the_best_of_the_others(
    steps: int, priority: Priority
) -> None:
    scheduler = Scheduler(SATURATED)
    for id in ("old", "younger", "youngest"):
        scheduler.submit(id, [Stage(GUIDED, 100)], 0.0)
    scheduler.submit("better", [Stage(GUIDED, steps)], 1000.0, priority=priority)
    assert [run_pass(scheduler, 1000.0) for _ in range(12)] == [*[("old",)] * 3, ("better",)] * 3


def test_places_that_the_overdue_fill_are_shared_in_turns_whoever_else_waits() -> None:
    cost = cost_of({1: 0.12, 2: 0.24})
    cost.learn(UNGUIDED, {1: 0.06, 2: 0.12})
    scheduler = Scheduler(cost)
    for id in ("old", "younger"):
        scheduler.submit(id, [Stage(UNGUIDED, 100)], 0.0)
    # With it a pass has room for two rows, and still for one image.
    scheduler.submit("guided", [Stage(GUIDED, 100)], 1000.0)
    scheduler.submit("better", [Stage(UNGUIDED, 4)], 1000.0, priority="high")
    passes = [run_pass(scheduler, 1000.0) for _ in range(8)]
    assert sum("better" in each for each in passes) == 2


def test_the_turn_of_the_best_does_not_begin_anew_with_each_that_is_better() -> None:
    scheduler = Scheduler(SATURATED)
    scheduler.submit("old", [Stage(GUIDED, 100)], 0.0)
    passes = []
    for number in range(12):
        scheduler.submit(f"better {number}", [Stage(GUIDED, 90 - number)], 1000.0, priority="high")
        passes += run_pass(scheduler, 1000.0)
    assert passes.count("old") == 9


@pytest.mark.parametrize(("cost", "most"), [(BATCHES, 50), (SATURATED, 50 * 4 // 3)])
def test_a_lasting_stream_of_short_jobs_does_not_starve_an_overdue_one(cost: StepCost, most: int) -> None:
    scheduler = Scheduler(cost)
    scheduler.submit("long", [Stage(GUIDED, 50)], 0.0)
    passes = 0
    while scheduler.state("long"):
        for id in range(8):
            scheduler.submit(f"{passes}/{id}", [Stage(GUIDED, 1)], 1000.0)
        run_pass(scheduler, 1000.0)
        passes += 1
    assert passes <= most


def test_max_running_bounds_the_requests_that_hold_latents() -> None:
    scheduler = Scheduler(BATCHES, max_running=2)
    for id in "abcd":
        scheduler.submit(id, [Stage(GUIDED, 10)], 0.0)
    for _ in range(5):
        run_pass(scheduler)
        assert scheduler.count(State.RUNNING) + scheduler.count(State.DECODING) <= 2


def test_waiting_newcomers_leave_the_running_their_pass() -> None:
    # Of six places one tenant may hold four.
    scheduler = Scheduler(BATCHES, max_running=6)
    for id in "abcd":
        scheduler.submit(id, [Stage(GUIDED, 50)], 0.0)
    run_pass(scheduler)
    for id in "vwxyz":
        scheduler.submit(id, [Stage(GUIDED, 2)], 0.0)
    assert set(scheduler.plan(0.0).request_ids) == set("abcd")


def test_with_many_keys_nobody_waits_more_than_a_pass_of_each() -> None:
    scheduler = Scheduler(BATCHES)
    keys = [BatchKey(64 + 8 * i, 64, True) for i in range(10)]
    for i, key in enumerate(keys):
        scheduler.submit(f"{i}", [Stage(key, 40)], 0.0)
    last_seen = dict.fromkeys((f"{i}" for i in range(10)), 0)
    for turn in range(1, 200):
        for id in run_pass(scheduler):
            assert turn - last_seen[id] <= Rules.patience + 1 + len(keys)
            last_seen[id] = turn
    assert all(turn > 150 for turn in last_seen.values())


def test_a_request_past_its_deadline_is_reported_and_not_run() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("late", [Stage(GUIDED, 10)], 0.0, deadline=5.0)
    scheduler.submit("fine", [Stage(GUIDED, 10)], 0.0, deadline=50.0)
    plan = scheduler.plan(5.0)
    assert plan.expired == ("late",)
    assert plan.request_ids == ("fine",)


def test_plan_changes_nothing() -> None:
    scheduler = Scheduler(BATCHES)
    for id, key in (("a", GUIDED), ("b", UNGUIDED)):
        scheduler.submit(id, [Stage(key, 10)], 0.0)
    assert scheduler.plan(1.0) == scheduler.plan(1.0)
    assert scheduler.count(State.QUEUED) == 2


def test_every_move_outside_the_table_raises_and_changes_nothing() -> None:
    moves = {
        State.QUEUED: Scheduler.go_on,
        State.RUNNING: Scheduler.start,
        State.DONE: Scheduler.finish,
        State.FAILED: Scheduler.fail,
        State.CANCELLED: Scheduler.cancel,
    }
    for state in (State.QUEUED, State.RUNNING, State.DECODING):
        for to, move in moves.items():
            if to in TRANSITIONS[state]:
                continue
            scheduler = Scheduler(BATCHES)
            scheduler.submit("a", [Stage(GUIDED, 1), Stage(WIDE, 1)], 0.0)
            if state is not State.QUEUED:
                scheduler.start("a")
            if state is State.DECODING:
                scheduler.stepped(scheduler.plan(0.0))
            with pytest.raises(IllegalMove):
                move(scheduler, "a")
            assert scheduler.state("a") is state


def test_an_ended_request_is_forgotten_and_cannot_end_again() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("a", [Stage(GUIDED, 1)], 0.0)
    scheduler.cancel("a")
    assert scheduler.state("a") is None
    for move in (scheduler.cancel, scheduler.fail, scheduler.finish, scheduler.go_on, scheduler.start):
        with pytest.raises(IllegalMove):
            move("a")


def test_a_larger_second_stage_does_not_wait_for_all_first_stages() -> None:
    """What is left of it is counted by its time; by its passes it looked longer than it is."""
    large = BatchKey(512, 512, True)
    cost = cost_of({1: 1.0, 2: 2.0})
    cost.learn(large, {1: 4.0, 2: 8.0})
    scheduler = Scheduler(cost)
    waiting, between, now = {f"{i}" for i in range(12)}, 0, 0.0
    for id in sorted(waiting):
        scheduler.submit(id, [Stage(GUIDED, 30), Stage(large, 21)], 0.0)
    later: set[str] = set()
    first_done = None
    while waiting:
        plan = scheduler.plan(now)
        for id in plan.starting:
            scheduler.start(id)
        now += 4.0 if plan.request_ids[0] in later else 1.0
        for id in scheduler.stepped(plan):
            if id in later:
                first_done = first_done or now
                scheduler.finish(id)
                waiting.discard(id)
            else:
                scheduler.go_on(id)
                later.add(id)
        between = max(between, len(later & waiting))
    assert first_done is not None
    assert between <= 2
    assert first_done < 3 * (30 + 4 * 21)


def test_a_request_between_its_stages_has_them_before_it_to_whoever_comes() -> None:
    scheduler = Scheduler(SATURATED)
    scheduler.submit("a", [Stage(GUIDED, 1), Stage(GUIDED, 30)], 0.0)
    scheduler.start("a")
    scheduler.stepped(scheduler.plan(0.0))
    assert scheduler.state("a") is State.DECODING
    while_decoding = scheduler.outlook([Stage(GUIDED, 40)], 0.0).eta_s
    scheduler.go_on("a")
    assert while_decoding == pytest.approx(scheduler.outlook([Stage(GUIDED, 40)], 0.0).eta_s)


def test_an_id_cannot_be_submitted_twice() -> None:
    scheduler = Scheduler(BATCHES)
    scheduler.submit("a", [Stage(GUIDED, 1)], 0.0)
    with pytest.raises(IllegalMove):
        scheduler.submit("a", [Stage(GUIDED, 9)], 0.0)
    assert scheduler.evaluations_left("a") == 1


def test_waiting_tells_position_and_a_growing_eta() -> None:
    scheduler = Scheduler(SATURATED)
    for id in "abc":
        scheduler.submit(id, [Stage(GUIDED, 10)], 0.0)
    waiting = scheduler.waiting(0.0)
    assert [(each.id, each.position) for each in waiting] == [("a", 0), ("b", 1), ("c", 2)]
    assert [each.eta_s for each in waiting] == pytest.approx([1.2, 2.4, 3.6])


def test_mean_latency_on_a_saturated_shape_is_no_worse_than_first_come_first_served() -> None:
    rng = random.Random(7)
    at, arrivals = 0.0, []
    for i in range(300):
        at += rng.expovariate(0.7 / (20 * 0.12))
        arrivals.append(Arrival(at, f"{i:04}", GUIDED, rng.choice((4, 20, 50))))
    ours = sum(outcome.latency for outcome in simulate(arrivals, SATURATED))
    clock, first_come = 0.0, 0.0
    for arrival in arrivals:
        clock = max(clock, arrival.at) + arrival.evaluations * 0.12
        first_come += clock - arrival.at
    assert ours <= 1.05 * first_come


@given(seed=st.integers(0, 10_000), saturated=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_long_job_is_not_starved_by_a_flood_of_short_ones(seed: int, saturated: bool) -> None:
    cost = SATURATED if saturated else BATCHES
    rng = random.Random(seed)
    arrivals = [Arrival(0.0, "long", GUIDED, 50)]
    # More short work than the engine can do, for ever so long.
    arrivals += [Arrival(i * 0.05, f"{i:04}", rng.choice((GUIDED, UNGUIDED)), 4) for i in range(600)]
    alone = 50 * cost.seconds(GUIDED, 1)
    long = next(o for o in simulate(arrivals, cost) if o.arrival.id == "long")
    # Overdue after 8 times its own time; from then on it is first in its key's window, and its key is
    # served at least once in Rules.patience + 2 passes.
    widest = max(cost.seconds(key, cost.knee(key)) for key in (GUIDED, UNGUIDED))
    assert long.latency <= 8 * alone + 50 * (Rules.patience + 2) * widest


def test_the_estimate_for_an_idle_engine_is_the_passes_alone_and_in_company_the_shared_ones() -> None:
    scheduler = Scheduler(BATCHES)
    assert scheduler.outlook([Stage(GUIDED, 10)], 0.0).eta_s == pytest.approx(0.31)
    for i in range(3):
        scheduler.submit(f"{i}", [Stage(GUIDED, 10)], 0.0)
    assert scheduler.outlook([Stage(GUIDED, 10)], 0.0).eta_s == pytest.approx(0.65)
    # Longer ones are passed by; another tenant's flood counts no more than one's own work.
    for i in range(20):
        scheduler.submit(f"long {i}", [Stage(GUIDED, 50)], 0.0)
        scheduler.submit(f"flood {i}", [Stage(GUIDED, 5)], 0.0, tenant="flood")
    assert scheduler.outlook([Stage(GUIDED, 10)], 0.0).eta_s == pytest.approx(1.3)


def test_the_estimate_counts_what_is_overdue_and_what_has_a_higher_priority() -> None:
    scheduler = Scheduler(SATURATED)
    for i in range(20):
        scheduler.submit(f"{i}", [Stage(GUIDED, 20)], 0.0)
    alone, everything = 20 * 0.12, 21 * 20 * 0.12
    assert scheduler.outlook([Stage(GUIDED, 10)], 0.0).eta_s == pytest.approx(1.2)
    # From here on all twenty are overdue, and go before whoever comes.
    assert scheduler.outlook([Stage(GUIDED, 10)], 1000.0).eta_s == pytest.approx(everything - 1.2)
    assert scheduler.outlook([Stage(GUIDED, 20)], 0.0, priority="high").eta_s == pytest.approx(alone)
    assert scheduler.outlook([Stage(GUIDED, 2)], 0.0, priority="low").eta_s == pytest.approx(
        everything - 18 * 0.12
    )


def test_the_news_of_the_queue_says_what_the_first_word_said() -> None:
    scheduler = Scheduler(SATURATED)
    for i in range(100):
        scheduler.submit(f"f{i}", [Stage(GUIDED, 50)], 0.0, tenant="flood")
    first = scheduler.outlook([Stage(GUIDED, 20)], 0.0, tenant="quiet")
    scheduler.submit("q", [Stage(GUIDED, 20)], 0.0, tenant="quiet")
    later = next(each for each in scheduler.waiting(0.0) if each.id == "q")
    assert (first.position, first.eta_s) == (later.position, pytest.approx(later.eta_s))
    # Its own work, and as much of the flood's.
    assert later.eta_s == pytest.approx(2 * 20 * 0.12)


@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 7),
            st.integers(1, 60),
            st.sampled_from((GUIDED, UNGUIDED, WIDE)),
            st.sampled_from(PRIORITIES),
        ),
        min_size=1,
        max_size=40,
    ),
    decode_s=st.sampled_from((0.0, 0.3)),
)
@settings(deadline=None)
def test_where_all_stand_is_what_adding_up_each_other_tenants_share_says(
    asked: list[tuple[int, int, BatchKey, Priority]], decode_s: float
) -> None:
    cost = cost_of({1: 0.031, 2: 0.042, 4: 0.065, 8: 0.118})
    if decode_s:
        cost.observe_decode(GUIDED, decode_s)
    scheduler = Scheduler(cost)
    order: dict[int, list[int]] = {}
    for i, (tenant, evaluations, key, priority) in enumerate(asked):
        scheduler.submit(str(i), [Stage(key, evaluations)], 0.0, tenant=str(tenant), priority=priority)
        order.setdefault(tenant, []).append(i)
    for own in order.values():
        own.sort(key=lambda i: (-WEIGHTS[asked[i][3]], asked[i][1], i))

    def seconds(requests: list[int]) -> float:
        return sum(scheduler.seconds_of_work([Stage(asked[i][2], asked[i][1])]) for i in requests)

    def charge(requests: list[int]) -> float:
        return sum(seconds([i]) / WEIGHTS[asked[i][3]] for i in requests)

    company = Counter(key for _, _, key, _ in asked)
    told = {each.id: each for each in scheduler.waiting(0.0)}
    assert len(told) == len(asked)
    for tenant, own in order.items():
        others = [requests for other, requests in order.items() if other != tenant]
        for n, i in enumerate(own, 1):
            shares = [min(1.0, charge(own[:n]) / charge(requests)) for requests in others]
            ahead = sum(share * len(requests) for share, requests in zip(shares, others, strict=True))
            eta_s = sum(share * seconds(requests) for share, requests in zip(shares, others, strict=True))
            eta_s += seconds(own[:n])
            _, evaluations, key, _ = asked[i]
            batch = min(company[key], cost.knee(key))
            alone = evaluations * cost.seconds(key, batch) + cost.decode_seconds(key)
            assert told[str(i)].position == n - 1 + int(ahead + 1e-6)
            assert told[str(i)].eta_s == pytest.approx(max(alone, eta_s))


def test_telling_all_where_they_stand_takes_no_step_for_each_pair_of_tenants() -> None:
    def calls(tenants: int) -> int:
        scheduler, count = Scheduler(BATCHES), 0
        for i in range(tenants):
            scheduler.submit(f"{i}", [Stage(GUIDED, 20 + i)], 0.0, tenant=f"{i}")

        def counted(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(counted)
        try:
            scheduler.waiting(0.0)
        finally:
            sys.setprofile(None)
        return count

    # Four times as many.
    assert calls(400) < 6 * calls(100)


def test_a_plan_does_not_compare_each_request_with_each_tenant() -> None:
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    scheduler = Scheduler(BATCHES)
    for i in range(400):
        scheduler.submit(f"{i}", [Stage(GUIDED, 20)], 0.0, tenant=Name(i))
    compared = 0
    scheduler.plan(0.0)
    assert compared < 4 * 400


def test_decoding_counts_in_the_work_and_in_the_share() -> None:
    cost = cost_of({1: 0.1, 2: 0.2})
    cost.observe_decode(GUIDED, 1.0)
    scheduler = Scheduler(cost)
    assert scheduler.seconds_of_work([Stage(GUIDED, 1)]) == pytest.approx(1.1)
    for i in range(40):
        scheduler.submit(f"one{i}", [Stage(GUIDED, 1)], 0.0, tenant="one step")
    scheduler.submit("many", [Stage(GUIDED, 100)], 0.0, tenant="many steps")
    rows = served(scheduler, 44, {"many": "many steps", **{f"one{i}": "one step" for i in range(40)}})
    # A picture of one step costs eleven passes of the other's.
    assert rows["one step"] == pytest.approx(4, abs=1)


def served(scheduler: Scheduler, passes: int, tenants: dict[str, str]) -> Counter[str]:
    """Rows that each tenant had in so many passes; whatever ends is followed by one like it."""
    rows: Counter[str] = Counter()
    for _ in range(passes):
        rows.update(tenants[id] for id in run_pass(scheduler))
    return rows


def test_a_tenant_that_floods_gets_no_more_of_the_passes_than_another() -> None:
    scheduler, tenants = Scheduler(BATCHES), {}
    for i in range(100):
        tenants[f"f{i}"] = "flood"
        scheduler.submit(f"f{i}", [Stage(GUIDED, 50)], 0.0, tenant="flood")
    for i in range(2):
        tenants[f"q{i}"] = "quiet"
        scheduler.submit(f"q{i}", [Stage(GUIDED, 50)], 0.0, tenant="quiet")
    rows = served(scheduler, 40, tenants)
    assert rows["quiet"] == 80 == rows["flood"]


def test_one_request_beside_a_flood_starts_at_once_and_is_in_every_pass() -> None:
    scheduler = Scheduler(BATCHES)
    for i in range(100):
        scheduler.submit(f"f{i}", [Stage(GUIDED, 10)], 0.0, tenant="flood")
    for _ in range(60):
        run_pass(scheduler)
    scheduler.submit("quiet", [Stage(GUIDED, 30)], 1.0, tenant="quiet")
    assert all("quiet" in run_pass(scheduler, 1.0) for _ in range(30))


def test_tenants_of_different_shapes_share_the_seconds_evenly() -> None:
    scheduler, tenants = Scheduler(BATCHES), {"w": "one", **{f"g{i}": "many" for i in range(8)}}
    scheduler.submit("w", [Stage(WIDE, 200)], 0.0, tenant="one")
    for i in range(8):
        scheduler.submit(f"g{i}", [Stage(GUIDED, 200)], 0.0, tenant="many")
    seconds: Counter[str] = Counter()
    for _ in range(100):
        rows = run_pass(scheduler)
        key = WIDE if "w" in rows else GUIDED
        seconds[tenants[rows[0]]] += BATCHES.seconds(key, len(rows))
    assert 0.7 < seconds["one"] / seconds["many"] < 1.4


def test_priority_is_four_times_the_share_or_a_quarter() -> None:
    scheduler, tenants = Scheduler(SATURATED), {"l": "l", "n": "n", "h": "h"}
    for id, priority in zip("lnh", PRIORITIES, strict=True):
        scheduler.submit(id, [Stage(GUIDED, 1000)], 0.0, tenant=id, priority=priority)
    rows = served(scheduler, 210, tenants)
    assert rows["h"] == pytest.approx(160, abs=4)
    assert rows["n"] == pytest.approx(40, abs=4)
    assert rows["l"] == pytest.approx(10, abs=2)


def test_within_a_tenant_priority_goes_first_until_another_is_overdue() -> None:
    scheduler = Scheduler(SATURATED)
    scheduler.submit("low", [Stage(GUIDED, 2)], 0.0, priority="low")
    scheduler.submit("high", [Stage(GUIDED, 20)], 0.0, priority="high")
    assert scheduler.plan(0.0).request_ids == ("high",)
    assert scheduler.plan(1000.0).request_ids == ("low",)


def test_a_tenant_that_comes_back_has_no_credit_from_when_it_was_away() -> None:
    scheduler, tenants = Scheduler(SATURATED), {"a": "a", "b": "b"}
    scheduler.submit("a", [Stage(GUIDED, 1000)], 0.0, tenant="a")
    scheduler.submit("b", [Stage(GUIDED, 2)], 0.0, tenant="b")
    for _ in range(50):
        run_pass(scheduler)
    scheduler.submit("b", [Stage(GUIDED, 1000)], 0.0, tenant="b")
    assert served(scheduler, 20, tenants) == {"a": 10, "b": 10}


def test_a_tenant_that_leaves_and_comes_back_is_not_rid_of_what_it_was_charged() -> None:
    scheduler, tenants = Scheduler(SATURATED), {"a": "a", "b": "b", "again": "a"}
    scheduler.submit("a", [Stage(GUIDED, 1000)], 0.0, tenant="a")
    scheduler.submit("b", [Stage(GUIDED, 1000)], 0.0, tenant="b")
    run_pass(scheduler)
    scheduler.cancel("a")
    scheduler.submit("again", [Stage(GUIDED, 1000)], 0.0, tenant="a")
    rows = served(scheduler, 20, tenants)
    assert rows["a"] == pytest.approx(10, abs=1)


@given(held=st.integers(1, 4), trickle=st.integers(10, 120), steps=st.integers(1, 50), newcomer=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_tenant_that_used_less_than_its_share_cannot_shut_others_out_later(
    held: int, trickle: int, steps: int, newcomer: bool
) -> None:
    scheduler = Scheduler(BATCHES)
    tenants: dict[str, str] = {}

    def submit(tenant: str, evaluations: int) -> None:
        id = f"{tenant}{len(tenants)}"
        tenants[id] = tenant
        scheduler.submit(id, [Stage(GUIDED, evaluations)], 0.0, tenant=tenant)

    for _ in range(40):
        submit("flood", 50)
    for _ in range(trickle):
        running = [id for id in tenants if id.startswith("light") and scheduler.state(id)]
        for _ in range(held - len(running)):
            submit("light", steps)
        run_pass(scheduler)
    for _ in range(30):
        submit("new" if newcomer else "light", 20)
    gap = longest = 0
    for _ in range(60):
        gap = 0 if any(tenants[id] == "flood" for id in run_pass(scheduler)) else gap + 1
        longest = max(longest, gap)
    # Two tenants may be owed so much at most: the light one and, level with it, the new one.
    assert longest <= 2 * Rules.patience


class SchedulerMachine(RuleBasedStateMachine):
    """Random submits, passes, failures, cancels and decodes, against a model that only counts."""

    @initialize(max_running=st.integers(1, 8), saturated=st.booleans())
    def begin(self, max_running: int, saturated: bool) -> None:
        self.cost = SATURATED if saturated else BATCHES
        self.max_running = max_running
        self.scheduler = Scheduler(self.cost, max_running=max_running)
        self.now = 0.0
        self.keys: dict[str, BatchKey] = {}
        self.left: dict[str, int] = {}
        self.deadlines: dict[str, float | None] = {}
        self.tenants: dict[str, str] = {}
        self.decoding: set[str] = set()
        self.later: dict[str, list[Stage]] = {}
        self.submitted = 0

    def end(self, id: str) -> None:
        del self.left[id], self.later[id]
        self.decoding.discard(id)

    @rule(
        stages=st.lists(
            st.builds(Stage, st.sampled_from((GUIDED, UNGUIDED, WIDE)), st.integers(1, 6)),
            min_size=1,
            max_size=3,
        ),
        wait=st.none() | st.floats(0.01, 5.0),
        tenant=st.sampled_from("xyz"),
        priority=st.sampled_from(PRIORITIES),
    )
    def submit(self, stages: list[Stage], wait: float | None, tenant: str, priority: Priority) -> None:
        id = f"r{self.submitted}"
        self.submitted += 1
        self.deadlines[id] = None if wait is None else self.now + wait
        self.tenants[id] = tenant
        self.scheduler.submit(id, stages, self.now, self.deadlines[id], tenant=tenant, priority=priority)
        self.later[id] = stages
        self.enter(id)

    def enter(self, id: str) -> None:
        stage, *self.later[id] = self.later[id]
        self.keys[id], self.left[id] = stage.key, stage.evaluations

    @rule(fail=st.integers(0, 3))
    def step(self, fail: int) -> None:
        plan = self.scheduler.plan(self.now)
        for id in plan.expired:
            deadline = self.deadlines[id]
            assert deadline is not None
            assert deadline <= self.now
            self.scheduler.fail(id)
            self.end(id)
        assert len(set(plan.request_ids)) == len(plan.request_ids), "a row is doubled"
        assert not set(plan.request_ids) & self.decoding, "a row steps after its last step"
        if not plan.request_ids:
            # Nothing runs only when nothing may: all is decoding, the decoder holds every place or all that
            # the tenant may have, or one that has just expired held it until now.
            for id in self.left.keys() - self.decoding if not plan.expired else ():
                held = [self.tenants[other] for other in self.decoding]
                most = max(1, int(TENANT_SHARE * self.max_running))
                assert len(held) >= self.max_running or held.count(self.tenants[id]) >= most
            return
        keys = [self.keys[id] for id in plan.request_ids]
        assert len({key.shape for key in keys}) == 1
        assert len(keys) <= self.cost.max_batch
        # Of rows no more than the widest pass that pays for any request of this shape.
        shape = keys[0].shape
        both = (shape, replace(shape, guided=True))
        assert sum(key.unet_rows for key in keys) <= max(key.unet_rows * self.cost.knee(key) for key in both)
        for id in plan.starting:
            self.scheduler.start(id)
        failed = plan.request_ids[:fail] if fail < len(plan.request_ids) else ()
        finished = self.scheduler.stepped(plan, failed)
        for id in failed:
            self.scheduler.fail(id)
            self.end(id)
        for id in set(plan.request_ids) - set(failed):
            self.left[id] -= 1
        assert set(finished) == {id for id in plan.request_ids if id in self.left and self.left[id] == 0}
        self.decoding.update(finished)
        self.now += 0.05

    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        if self.left:
            id = sorted(self.left)[pick % len(self.left)]
            self.scheduler.cancel(id)
            self.end(id)

    @rule(pick=st.integers(0, 99), fails=st.booleans())
    def decode(self, pick: int, fails: bool) -> None:
        if self.decoding:
            id = sorted(self.decoding)[pick % len(self.decoding)]
            if fails:
                self.scheduler.fail(id)
                self.end(id)
            else:
                self.decoded(id)

    def decoded(self, id: str) -> None:
        if not self.later[id]:
            with pytest.raises(IllegalMove):
                self.scheduler.go_on(id)
            self.scheduler.finish(id)
            self.end(id)
            return
        self.scheduler.go_on(id)
        self.decoding.discard(id)
        self.enter(id)

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        live = [self.scheduler.count(s) for s in (State.QUEUED, State.RUNNING, State.DECODING)]
        assert sum(live) == len(self.left)
        assert live[2] == len(self.decoding)
        assert live[1] + live[2] <= self.max_running
        for id in self.left:
            later = sum(stage.evaluations for stage in self.later[id])
            assert self.scheduler.evaluations_left(id) == self.left[id] + later

    def teardown(self) -> None:
        """Whatever happened, every pass from now on takes something further, until nothing is left."""
        if not hasattr(self, "scheduler"):
            return
        budget = sum(self.scheduler.evaluations_left(id) for id in self.left) + 10
        while self.left:
            budget -= 1
            assert budget > 0, f"starved: {self.left}"
            for id in list(self.decoding):
                self.decoded(id)
            self.step(fail=99)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
