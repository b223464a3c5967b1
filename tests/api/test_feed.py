"""News of jobs: for each listener every event once and in order, whenever it comes, for one look a tick."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from typing import Any

import pytest

from mezzotint.serve.jobs import feed as feeds
from mezzotint.serve.jobs.feed import Feed
from mezzotint.serve.stores.database import Database, open_database
from mezzotint.serve.stores.job import Job, JobEvent, NewJob
from mezzotint.serve.stores.job_events import JobEvents
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.telemetry.record import Record, current, open_record

OWNER = "runner"
LEASE_SECONDS = 60.0


class CountingEvents(JobEvents):
    """Counts what is asked of it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked: Counter[str] = Counter()

    async def last_id(self) -> int:
        self.asked["last_id"] += 1
        return await super().last_id()

    async def after(
        self, last_id: int, ids: Collection[str] | None = None, limit: int = 1000
    ) -> list[JobEvent]:
        self.asked["after"] += 1
        return await super().after(last_id, ids, limit)


class CountingStore(JobStore):
    def __init__(self, database: Database, max_jobs: int) -> None:
        super().__init__(database, max_jobs)
        self.events = CountingEvents(database)
        self.asked = self.events.asked


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[CountingStore]:
    async with open_database(database_url) as database:
        yield CountingStore(database, 10_000)


async def started(store: JobStore, count: int) -> list[Job]:
    for _ in range(count):
        await store.create(NewJob("", {}))
    claimed = [await store.claim(OWNER, LEASE_SECONDS) for _ in range(count)]
    return [job for job in claimed if job is not None]


async def heard(feed: Feed, job: Job, after: int = 0) -> list[JobEvent]:
    async with aclosing(feed.follow(job.id, after)) as events:
        return [event async for event in events]


async def test_nothing_is_lost_and_nothing_told_twice_however_writers_and_listeners_mix(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many looks that some fall between any two writes, and pages that end anywhere.
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "PAGE", 7)
    chance = random.Random(4)
    jobs = await started(store, 6)
    written: dict[str, list[int]] = {job.id: [] for job in jobs}

    async def write(job: Job) -> None:
        for number in range(25):
            told = await store.events.append(job.id, OWNER, "progress", {"number": number})
            assert told is not None
            written[job.id].append(told)
            await asyncio.sleep(chance.uniform(0, 0.01))
        await store.finish(job.id, OWNER, "done")

    async def listen(feed: Feed, job: Job) -> tuple[Job, int, list[JobEvent]]:
        await asyncio.sleep(chance.uniform(0, 0.4))
        after = chance.choice([0, *written[job.id]])
        return job, after, await heard(feed, job, after)

    async with Feed(store) as feed:
        listening = [asyncio.create_task(listen(feed, chance.choice(jobs))) for _ in range(60)]
        await asyncio.gather(*(write(job) for job in jobs))
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*listening)
    for job, after, events in outcomes:
        assert [event.id for event in events if event.kind == "progress"] == [
            number for number in written[job.id] if number > after
        ]
        assert events[-1].kind == "done"
        assert [event.kind for event in events].count("done") == 1


async def test_an_id_that_no_event_has_come_to_is_as_if_none_were_named(store: CountingStore) -> None:
    [job] = await started(store, 1)
    await store.events.append(job.id, OWNER, "progress", {})
    async with Feed(store) as feed, asyncio.timeout(30):
        async with aclosing(feed.follow(job.id, await store.events.last_id() + 1000)) as events:
            told = [await anext(events) for _ in range(3)]
            await store.finish(job.id, OWNER, "done")
            told += [event async for event in events]
        assert [event.kind for event in told] == ["queued", "running", "progress", "done"]


async def test_a_look_that_breaks_is_not_the_last(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.01)
    [job] = await started(store, 1)
    async with Feed(store) as feed, asyncio.timeout(30):
        listening = asyncio.create_task(heard(feed, job))
        # It has looked back twice by itself, and one look a tick follows.
        while store.asked["last_id"] < 2:
            await asyncio.sleep(0.01)
        broken = asyncio.Event()

        async def fail(*_: Any) -> int:
            broken.set()
            raise RuntimeError

        with monkeypatch.context() as patch:
            patch.setattr(store.events, "last_id", fail)
            await broken.wait()
        await store.finish(job.id, OWNER, "done")
        assert (await listening)[-1].kind == "done"


async def test_looks_for_all_are_not_noted_of_the_request_that_came_first(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.01)
    [job] = await started(store, 1)
    look, named = store.events.last_id, list[str]()

    async def noting() -> int:
        named.append(current().request_id)
        return await look()

    monkeypatch.setattr(store.events, "last_id", noting)
    async with Feed(store) as feed, asyncio.timeout(30):
        with open_record(Record("req_first")):
            listening = asyncio.create_task(heard(feed, job))
        while len(named) < 3:
            await asyncio.sleep(0.01)
        await store.finish(job.id, OWNER, "done")
        await listening
    # The first is the listener's own, to know where it begins.
    assert named[0] == "req_first"
    assert set(named[1:]) == {""}


async def test_many_listeners_cost_what_one_costs(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "POLL_SECONDS", 0.05)
    jobs = await started(store, 10)

    async def looks(feed: Feed, listeners: int) -> tuple[Counter[str], float]:
        """What was asked while ten events were written, and in how many ticks' time."""
        listening: list[asyncio.Task[Any]] = []
        async with asyncio.timeout(120):
            while len(listening) < listeners:
                # A few at a time: so many at once would have to wait for the database's connections, and on
                # a busy machine some would be told that it does not answer.
                some = jobs[: listeners - len(listening)]
                listening += [asyncio.create_task(heard(feed, job)) for job in some]
                # Each looks back for itself until it finds nothing more; while nothing is written nobody
                # looks again.
                while store.asked["after"] < 2 * len(listening):
                    await asyncio.sleep(0.01)
        store.asked.clear()
        began = time.monotonic()
        for _ in range(10):
            await store.events.append(jobs[0].id, OWNER, "progress", {})
            await asyncio.sleep(feeds.POLL_SECONDS)
        async with asyncio.timeout(120):
            while not (store.asked["last_id"] and store.asked["after"]):
                await asyncio.sleep(feeds.POLL_SECONDS)
        asked, ticks = store.asked.copy(), (time.monotonic() - began) / feeds.POLL_SECONDS
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        return asked, ticks

    async with Feed(store) as feed:
        for listeners in (300, 1):
            asked, ticks = await looks(feed, listeners)
            assert 0 < asked["last_id"] <= ticks + 1
            # One for each event that was written at most.
            assert 0 < asked["after"] <= 10
            store.asked.clear()
