"""Jobs in the database: the same claims of SQLite and PostgreSQL, through two gateways' stores."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mezzotint.errors import (
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    QueueFull,
    StoreUnavailable,
)
from mezzotint.serve.stores import expired_jobs, job_rows
from mezzotint.serve.stores.database import Database, open_database
from mezzotint.serve.stores.job import FINAL, STATES, TRANSITIONS, Job, NewJob
from mezzotint.serve.stores.job_rows import MAX_LOST
from mezzotint.serve.stores.jobs import JobStore

LEASE = 30.0
NEW = NewJob("alice", {"prompt": "an apple"})
# Of a server without keys.
ANYONES = NewJob("", {"prompt": "an apple"})
ERROR = {"message": "no", "type": "server_error", "param": None, "code": "generation_failed"}


class Clock:
    """A time that the test puts forward, in front of the database's own."""

    def __init__(self, database: Database) -> None:
        self.ahead = 0.0
        self._now = database.now

    def __call__(self) -> float:
        return self._now() + self.ahead


@dataclass
class Stores:
    one: JobStore
    other: JobStore
    clock: Clock


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[Stores]:
    async with open_database(database_url) as first, open_database(database_url) as second:
        clock = Clock(first)
        first.now = second.now = clock
        yield Stores(JobStore(first, max_jobs=50), JobStore(second, max_jobs=50), clock)


async def kinds(store: JobStore, id: str) -> list[str]:
    return [event.kind for event in await store.events.after(0, [id])]


async def begun(store: JobStore, count: int) -> list[Job]:
    """So many jobs of "runner"."""
    for _ in range(count):
        await store.create(NEW)
    claimed = [await store.claim("runner", LEASE) for _ in range(count)]
    return [job for job in claimed if job is not None]


def test_every_state_is_in_the_table_and_final_ones_have_no_way_out() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert {"done", "failed", "cancelled"} == FINAL


async def test_a_job_is_drawn_from_creation_to_its_pictures(stores: Stores) -> None:
    made = await stores.one.create(replace(NEW, n=2, priority="high", deadline_s=600.0))
    assert (made.state, made.n, made.priority, made.images) == ("queued", 2, "high", ())
    assert made.deadline == pytest.approx(made.created + 600.0)
    claimed = await stores.other.claim("runner", LEASE)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.owner) == (made.id, "running", "runner")
    assert claimed.request == {"prompt": "an apple"}
    # The first is asked for again, as by one who did not hear the answer.
    for index in (1, 1, 0):
        assert await stores.other.set_image(made.id, "runner", index, f"name{index}", {"seed": index})
    assert await stores.other.finish(made.id, "runner", "done")
    done = await stores.one.get(made.id, "alice")
    assert (done.state, done.owner, done.error) == ("done", "", None)
    assert [(image.index, image.name, image.receipt) for image in done.images] == [
        (0, "name0", {"seed": 0}),
        (1, "name1", {"seed": 1}),
    ]
    told = [event.data for event in await stores.one.events.after(0, [made.id]) if event.kind == "image"]
    assert told == [{"index": index, "seed": index, "name": f"name{index}"} for index in (1, 0)]
    assert done.finished is not None
    assert await kinds(stores.one, made.id) == ["queued", "running", "image", "image", "done"]


async def test_a_job_over_which_replicas_are_lost_again_and_again_fails(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    for lost in range(1, MAX_LOST + 1):
        assert await stores.one.claim("runner", LEASE)
        assert await stores.one.release(job.id, "runner", 0.0, lost=True)
        left = await stores.other.get(job.id)
        assert (left.state, left.lost) == ("queued", lost)
    assert await stores.one.claim("runner", LEASE)
    # To find no room is no loss.
    assert await stores.one.release(job.id, "runner", 0.0)
    assert await stores.one.claim("runner", LEASE)
    assert await stores.one.release(job.id, "runner", 0.0, lost=True)
    failed = await stores.other.get(job.id)
    assert failed.error is not None
    assert (failed.state, failed.error["code"]) == ("failed", "generation_failed")
    assert (await kinds(stores.one, job.id))[-1] == "failed"


async def test_a_failed_jobs_error_is_kept_and_told(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    await stores.one.claim("runner", LEASE)
    assert await stores.one.finish(job.id, "runner", "failed", ERROR)
    assert (await stores.other.get(job.id)).error == ERROR
    assert (await stores.other.events.after(0))[-1].data == {"error": ERROR}


async def test_another_keys_job_is_not_found(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    for caller in ("bob", ""):
        with pytest.raises(JobNotFound):
            await stores.one.get(job.id, caller)
        with pytest.raises(JobNotFound):
            await stores.one.cancel(job.id, caller)
    for id in ("job_unknown", "job\0"):
        with pytest.raises(JobNotFound):
            await stores.one.get(id)
    assert await stores.one.page("bob") == []


async def test_one_job_is_claimed_once_however_many_ask_at_once(stores: Stores) -> None:
    made = {(await stores.one.create(NEW)).id for _ in range(5)}
    claims = ((stores.one, stores.other)[number % 2].claim(f"runner{number}", LEASE) for number in range(12))
    claimed = [job.id for job in await asyncio.gather(*claims) if job is not None]
    assert sorted(claimed) == sorted(made)


async def test_the_order_is_priority_then_whoever_has_fewest_running_then_age(stores: Stores) -> None:
    asked = [("alice", "low"), ("alice", "normal"), ("alice", "normal"), ("bob", "normal"), ("bob", "high")]
    for caller, priority in asked:
        await stores.one.create(replace(NEW, caller=caller, priority=priority))
    claimed = [await stores.one.claim("runner", LEASE) for _ in asked]
    assert [(job.caller, job.priority) for job in claimed if job is not None] == [
        ("bob", "high"),
        ("alice", "normal"),
        # One each is running: the older goes first.
        ("alice", "normal"),
        ("bob", "normal"),
        ("alice", "low"),
    ]
    assert await stores.one.claim("runner", LEASE) is None


async def test_a_job_whose_owner_vanished_is_drawn_by_another_who_alone_is_heard(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    await stores.one.claim("lost", LEASE)
    await stores.one.set_image(job.id, "lost", 0, "first", {"seed": 7})
    assert await stores.other.claim("other", LEASE) is None
    stores.clock.ahead = LEASE + 1
    again = await stores.other.claim("other", LEASE)
    assert again is not None
    assert (again.id, again.owner, again.lost) == (job.id, "other", 1)
    assert [image.name for image in again.images] == ["first"]
    assert not await stores.one.set_image(job.id, "lost", 1, "late", {"seed": 8})
    assert await stores.one.events.append(job.id, "lost", "progress", {}) is None
    assert not await stores.one.finish(job.id, "lost", "failed", ERROR)
    assert not await stores.one.release(job.id, "lost", 1.0)
    assert await stores.one.renew([job.id], "lost", LEASE) == {}
    assert await stores.one.held([job.id], "lost") == {}
    assert await stores.other.finish(job.id, "other", "done")
    assert await kinds(stores.one, job.id) == ["queued", "running", "image", "queued", "running", "done"]


async def test_a_renewed_lease_keeps_a_job(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    await stores.one.claim("runner", LEASE)
    stores.clock.ahead = LEASE / 2
    assert await stores.one.renew([job.id, "job_unknown"], "runner", LEASE) == {job.id: False}
    assert await stores.one.held([job.id, "job_unknown"], "runner") == {job.id: False}
    # Past the first lease, and far from the end of the second.
    stores.clock.ahead = LEASE + 1
    assert await stores.other.claim("other", LEASE) is None


async def test_a_job_that_ends_every_owner_fails(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    for number in range(10):
        if await stores.one.claim(f"runner{number}", LEASE) is None:
            break
        stores.clock.ahead += LEASE + 1
    failed = await stores.one.get(job.id)
    assert (failed.state, failed.lost) == ("failed", 3)
    assert failed.error is not None
    assert failed.error["code"] == "generation_failed"


async def test_a_released_job_waits_and_is_claimed_again(stores: Stores) -> None:
    job = await stores.one.create(NEW)
    await stores.one.claim("runner", LEASE)
    assert await stores.one.release(job.id, "runner", 60.0)
    assert (await stores.one.get(job.id)).state == "queued"
    assert await stores.other.claim("other", LEASE) is None
    stores.clock.ahead = 61.0
    again = await stores.other.claim("other", LEASE)
    assert again is not None
    assert again.lost == 0


async def test_a_queued_job_is_cancelled_at_once_and_a_running_one_when_its_owner_sees_it(
    stores: Stores,
) -> None:
    queued, running = await stores.one.create(NEW), await stores.one.create(NEW)
    assert (await stores.one.cancel(queued.id, "alice")).state == "cancelled"
    claimed = await stores.one.claim("runner", LEASE)
    assert claimed is not None
    assert claimed.id == running.id
    asked = await stores.other.cancel(running.id, "alice")
    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert await stores.one.renew([running.id], "runner", LEASE) == {running.id: True}
    assert await stores.one.held([running.id], "runner") == {running.id: True}
    assert await stores.one.finish(running.id, "runner", "cancelled")
    assert await kinds(stores.one, running.id) == ["queued", "running", "cancelled"]
    # Cancelling what has ended changes nothing and tells of nothing.
    assert (await stores.one.cancel(running.id, "alice")).state == "cancelled"
    assert await kinds(stores.one, running.id) == ["queued", "running", "cancelled"]


@pytest.mark.parametrize("gone", [True, False])
async def test_a_job_to_be_cancelled_never_runs_again(stores: Stores, gone: bool) -> None:
    job = await stores.one.create(NEW)
    await stores.one.claim("runner", LEASE)
    await stores.one.cancel(job.id)
    if gone:
        stores.clock.ahead = LEASE + 1
        assert await stores.one.claim("other", LEASE) is None
    else:
        assert await stores.one.release(job.id, "runner", 0.0)
    assert (await stores.one.get(job.id)).state == "cancelled"


async def test_a_job_that_waited_past_its_deadline_fails(stores: Stores) -> None:
    claimed = await stores.one.create(replace(NEW, deadline_s=5.0))
    swept = await stores.one.create(replace(NEW, deadline_s=50.0))
    stores.clock.ahead = 6.0
    found = await stores.one.claim("runner", LEASE)
    assert found is not None
    assert found.id == swept.id
    assert await stores.one.release(swept.id, "runner", 0.0)
    stores.clock.ahead = 51.0
    await stores.one.settle()
    for id in (claimed.id, swept.id):
        failed = await stores.one.get(id)
        assert failed.error is not None
        assert (failed.state, failed.error["code"]) == ("failed", "deadline_exceeded")


async def test_a_state_that_ends_no_job_is_refused(stores: Stores) -> None:
    with pytest.raises(ValueError, match="ends no job"):
        await stores.one.finish("job", "runner", "queued")


async def test_the_same_key_and_body_give_the_same_job_and_another_body_a_conflict(stores: Stores) -> None:
    keyed = replace(NEW, idempotency_key="k", fingerprint="body")
    assert await stores.one.replay(keyed) is None
    gateways = (stores.one, stores.other)
    made = await asyncio.gather(*(gateways[number % 2].create(keyed) for number in range(8)))
    assert len({job.id for job in made}) == 1
    same = await stores.other.replay(keyed)
    assert same is not None
    assert same.id == made[0].id
    for ask in (stores.other.create, stores.other.replay):
        with pytest.raises(IdempotencyConflict):
            await ask(replace(keyed, fingerprint="another"))
    # Another caller's key of the same name is another key.
    assert (await stores.one.create(replace(keyed, caller="bob"))).id != made[0].id
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        await stores.one.create(replace(keyed, idempotency_key="k" * 256))


async def test_more_jobs_than_there_is_room_for_are_refused(database_url: str) -> None:
    async with open_database(database_url) as database:
        store = JobStore(database, max_jobs=3)
        made = await asyncio.gather(*(store.create(ANYONES) for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(each, QueueFull) for each in made) == 3
        await store.claim("runner", LEASE)
        with pytest.raises(QueueFull) as caught:
            await store.create(ANYONES)
        assert caught.value.retry_after_s
        await store.cancel(next(each.id for each in await store.page("", state="queued")))
        await store.create(ANYONES)


async def test_one_key_leaves_room_for_another(database_url: str) -> None:
    async with open_database(database_url) as database:
        store = JobStore(database, max_jobs=8)

        async def fill(caller: str) -> int:
            ask = (store.create(replace(NEW, caller=caller)) for _ in range(8))
            return sum(isinstance(each, Job) for each in await asyncio.gather(*ask, return_exceptions=True))

        # Each as many as are left: half, half of what is left, …
        assert [await fill(caller) for caller in ("alice", "bob", "carol")] == [4, 2, 1]
        with pytest.raises(QueueFull, match="7 of 8 jobs wait or run already; 4 of them are this key's"):
            await store.create(NEW)


async def test_many_that_are_late_are_settled_in_batches_and_none_of_them_is_drawn(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_rows, "SWEEP_BATCH", 3)
    late = [(await stores.one.create(replace(NEW, deadline_s=5.0))).id for _ in range(8)]
    in_time = await stores.one.create(NEW)
    stores.clock.ahead = 6.0
    found = await stores.other.claim("other", LEASE)
    assert found is not None
    assert found.id == in_time.id
    settled = []
    for _ in range(3):
        settled.append(stores.other.ended["failed"])
        await stores.other.settle()
    # One batch each time that it is asked, the first as it claimed.
    assert settled == [3, 6, 8]
    for id in late:
        assert await kinds(stores.one, id) == ["queued", "failed"]
    assert stores.other.ended == Counter(failed=len(late))


async def test_many_that_lost_their_owner_are_settled_in_batches_and_none_that_was_to_stop_goes_on(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_rows, "SWEEP_BATCH", 3)
    made = [await stores.one.create(NEW) for _ in range(8)]
    for _ in made:
        assert await stores.one.claim("lost", LEASE)
    to_stop = {job.id for job in made[::2]}
    for id in to_stop:
        await stores.one.cancel(id)
    stores.clock.ahead = LEASE + 1
    for _ in range(3):
        await stores.other.settle()
    states = {job.id: (await stores.one.get(job.id)).state for job in made}
    assert {id for id, state in states.items() if state == "cancelled"} == to_stop
    assert {id for id, state in states.items() if state == "queued"} == states.keys() - to_stop
    for id in to_stop:
        assert await kinds(stores.one, id) == ["queued", "running", "cancelled"]


async def test_pages_go_from_the_newest_to_the_oldest_without_gaps(stores: Stores) -> None:
    made = [(await stores.one.create(NEW)).id for _ in range(7)]
    await stores.one.create(replace(NEW, caller="bob"))
    seen, before = [], None
    while page := await stores.other.page("alice", before=before, limit=3):
        seen += [job.id for job in page]
        before = page[-1].sequence
        # What is made meanwhile belongs to no later page.
        await stores.one.create(NEW)
    assert seen == made[::-1]
    await stores.one.cancel(made[2])
    assert [job.id for job in await stores.one.page("alice", state="cancelled")] == [made[2]]


async def test_the_position_counts_who_comes_before(stores: Stores) -> None:
    first, second = await stores.one.create(NEW), await stores.one.create(NEW)
    assert [await stores.one.position(job) for job in (first, second)] == [0, 1]
    high = await stores.one.create(replace(NEW, priority="high"))
    assert [await stores.one.position(job) for job in (first, second, high)] == [1, 2, 0]


async def test_what_has_not_ended_is_counted_by_state_with_its_age(stores: Stores) -> None:
    assert await stores.one.unfinished() == {"queued": (0, 0.0), "running": (0, 0.0)}
    await stores.one.create(NEW)
    stores.clock.ahead = 6_000.0
    await stores.one.create(NEW)
    ended = await stores.one.create(NEW)
    await stores.one.cancel(ended.id)
    found = await stores.other.unfinished()
    assert {state: count for state, (count, _) in found.items()} == {"queued": 2, "running": 0}
    assert found["queued"][1] == pytest.approx(6_000.0, abs=60.0)
    await stores.one.claim("runner", LEASE)
    found = await stores.other.unfinished()
    assert {state: count for state, (count, _) in found.items()} == {"queued": 1, "running": 1}
    assert found["running"][1] == pytest.approx(6_000.0, abs=60.0)
    assert found["queued"][1] < 60.0


async def test_every_end_is_counted_once_by_the_store_that_brought_it(stores: Stores) -> None:
    late = await stores.one.create(replace(NEW, deadline_s=5.0))
    done, cancelled = await stores.one.create(NEW), await stores.one.create(NEW)
    await stores.other.cancel(cancelled.id)
    await stores.other.cancel(cancelled.id)
    stores.clock.ahead = 6.0
    claimed = await stores.one.claim("runner", LEASE)
    assert claimed is not None
    assert claimed.id == done.id
    for _ in range(2):
        await stores.one.finish(done.id, "runner", "done")
    assert (await stores.one.get(late.id)).state == "failed"
    assert stores.one.ended == Counter(failed=1, done=1)
    assert stores.other.ended == Counter(cancelled=1)


async def test_a_listener_misses_no_event_and_gets_none_twice(stores: Stores) -> None:
    jobs = await begun(stores.one, 4)
    last = await stores.one.events.last_id()
    told = 0

    async def tell(store: JobStore, id: str) -> None:
        nonlocal told
        for number in range(15):
            await store.events.append(id, "runner", "progress", {"number": number})
            told += 1

    heard: list[int] = []

    async def listen() -> None:
        nonlocal last
        while len(heard) < 60:
            for event in await stores.other.events.after(last, limit=7):
                heard.append(event.id)
                last = event.id
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        tellers = (tell((stores.one, stores.other)[i % 2], job.id) for i, job in enumerate(jobs))
        await asyncio.gather(listen(), *tellers)
    assert told == len(heard) == len(set(heard)) == 60
    assert heard == sorted(heard)


async def test_events_of_a_job_that_is_not_held_are_not_told_and_those_told_with_them_are(
    stores: Stores,
) -> None:
    jobs = await begun(stores.one, 4)
    await stores.one.finish(jobs[1].id, "runner", "done")
    await stores.one.release(jobs[2].id, "runner", 0.0)
    ids = [jobs[0].id, jobs[1].id, jobs[2].id, "job_unknown", jobs[3].id]
    told = await asyncio.gather(*(stores.one.events.append(id, "runner", "progress", {}) for id in ids))
    assert [answer is not None for answer in told] == [True, False, False, False, True]
    seen = {job.id: (await kinds(stores.one, job.id))[2:] for job in jobs}
    assert list(seen.values()) == [["progress"], ["done"], ["queued"], ["progress"]]
    assert await stores.one.events.append(jobs[1].id, "runner", "progress", {}) is None


async def test_events_told_at_once_are_written_together(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await begun(stores.one, 10)
    transactions: list[int] = []
    append = stores.one.events._append

    async def counted(events: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> list[Any]:
        transactions.append(len(events))
        return await append(events)

    monkeypatch.setattr(stores.one.events._news, "_work", counted)
    told = await asyncio.gather(*(stores.one.events.append(job.id, "runner", "progress", {}) for job in jobs))
    assert told == sorted(set(told))
    assert (sum(transactions), len(transactions)) == (10, 1)


async def test_a_teller_that_leaves_does_not_take_its_event_or_others_with_it(stores: Stores) -> None:
    jobs = await begun(stores.one, 2)
    tellers = [
        asyncio.create_task(stores.one.events.append(job.id, "runner", "progress", {})) for job in jobs
    ]
    await asyncio.sleep(0)
    tellers[0].cancel()
    await tellers[1]
    for job in jobs:
        assert await kinds(stores.one, job.id) == ["queued", "running", "progress"]


async def test_when_the_database_does_not_answer_every_teller_hears_of_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await begun(stores.one, 2)

    async def fail(*_: Any) -> None:
        raise StoreUnavailable("it does not")

    with monkeypatch.context() as patch:
        patch.setattr(stores.one.events._database, "write", fail)
        tellers = (stores.one.events.append(job.id, "runner", "progress", {}) for job in jobs)
        told = await asyncio.gather(*tellers, return_exceptions=True)
    assert [type(answer) for answer in told] == [StoreUnavailable] * 2
    assert await stores.one.events.append(jobs[0].id, "runner", "progress", {})


async def test_what_ended_long_ago_is_forgotten_with_all_that_belongs_to_it(stores: Stores) -> None:
    dropped: list[str] = []

    async def drop(names: Collection[str]) -> None:
        dropped.extend(names)

    old = await stores.one.create(replace(NEW, request={"prompt": "a", "image": "upload", "mask": None}))
    running = await stores.one.create(NEW)
    await stores.one.claim("runner", 100_000.0)
    await stores.one.events.append(old.id, "runner", "progress", {})
    await stores.one.set_image(old.id, "runner", 0, "name", {"seed": 7})
    await stores.one.finish(old.id, "runner", "done")
    await stores.one.claim("runner", 100_000.0)
    await stores.one.expired.forget_progress()
    assert "progress" in await kinds(stores.one, old.id)
    stores.clock.ahead = 5_000.0
    assert await stores.one.expired.forget(10_000.0, drop) == 0
    assert dropped == []
    await stores.one.expired.forget_progress()
    # How it went is told no more, but how it ended.
    assert await kinds(stores.one, old.id) == ["queued", "running", "done"]
    stores.clock.ahead = 10_001.0
    last = await stores.one.events.last_id()
    assert await stores.one.expired.forget(10_000.0, drop) == 1
    assert dropped == ["upload", "name"]
    with pytest.raises(JobNotFound):
        await stores.one.get(old.id)
    assert await kinds(stores.one, old.id) == []
    assert (await stores.one.get(running.id)).state == "running"
    # An event's number is never given out again.
    told = await stores.one.events.append(running.id, "runner", "progress", {})
    assert told is not None
    assert told > last


async def test_progress_is_forgotten_in_batches_and_all_of_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expired_jobs, "SWEEP_BATCH", 3)
    made = [await stores.one.create(replace(NEW, deadline_s=100.0)) for _ in range(7)]
    for job in made:
        await stores.one.claim("runner", LEASE)
        await stores.one.events.append(job.id, "runner", "progress", {})
        await stores.one.release(job.id, "runner", 10.0)
    # All of them end at the same moment.
    stores.clock.ahead = 200.0
    for _ in range(3):
        await stores.one.settle()
    stores.clock.ahead = 5_000.0
    await stores.one.expired.forget_progress()
    for job in made:
        assert await kinds(stores.one, job.id) == ["queued", "running", "queued", "failed"]


async def test_progress_that_is_forgotten_is_not_looked_for_again(stores: Stores) -> None:
    async def end_one() -> Job:
        job = await stores.one.create(NEW)
        await stores.one.claim("runner", LEASE)
        await stores.one.events.append(job.id, "runner", "progress", {})
        await stores.one.finish(job.id, "runner", "done")
        return job

    first = await end_one()
    stores.clock.ahead = 5_000.0
    await stores.one.expired.forget_progress()
    assert await kinds(stores.one, first.id) == ["queued", "running", "done"]
    # What only a look at all that ever ended would find.
    await stores.one._change(lambda each: job_rows.tell(each, first.id, "progress", {}, stores.clock()))
    second = await end_one()
    stores.clock.ahead = 10_000.0
    await stores.one.expired.forget_progress()
    assert (await kinds(stores.one, first.id))[-1] == "progress"
    assert (await kinds(stores.one, second.id))[-1] == "done"


async def test_text_of_any_kind_comes_back_as_it_was(stores: Stores) -> None:
    strange = {"prompt": "née 🍎 \u0000 \ud800 '; DROP TABLE jobs; --", "nested": [1, 2.5, None, True]}
    job = await stores.one.create(replace(NEW, request=strange))
    assert (await stores.other.get(job.id)).request == strange
