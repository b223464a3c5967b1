"""What is past its time is forgotten, in every store, by any number of gateways at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.errors import ImageNotFound, JobNotFound, StoreUnavailable
from mezzotint.serve.stores import janitor
from mezzotint.serve.stores.database import Database, Work, open_database
from mezzotint.serve.stores.expired_jobs import ExpiredJobs
from mezzotint.serve.stores.images import open_images
from mezzotint.serve.stores.job import UPLOADS, NewJob
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.stores.keys import HOUR_SECONDS
from mezzotint.serve.stores.tables import leases, usage


async def test_every_store_is_swept_while_the_service_runs(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "PERIOD_SECONDS", 0.02)
    async with open_database(database_url) as database:
        now = database.now
        async with open_images(str(tmp_path / "images"), 60.0, lambda: database.now()) as images:
            jobs = JobStore(database, max_jobs=10)
            old = await jobs.create(NewJob("alice", {}))
            await jobs.cancel(old.id)
            picture = await images.put(b"picture", "png")
            rows = {"requests": 1, "images": 1, "compute_s": 1.0, "rejected": 0}
            lease = {"id": "x", "key_id": "k", "images": 1, "expected_end": 0.0, "expires": now() + 30}

            async def fill(connection: AsyncConnection) -> None:
                hours = [int(now() // HOUR_SECONDS) - age for age in (0, 24 * 89, 24 * 91)]
                await connection.execute(
                    insert(usage), [{"key_id": "k", "hour": hour, **rows} for hour in hours]
                )
                await connection.execute(insert(leases).values(lease))

            async def count(connection: AsyncConnection) -> tuple[int, int]:
                return (
                    await connection.scalar(select(func.count()).select_from(usage)) or 0,
                    await connection.scalar(select(func.count()).select_from(leases)) or 0,
                )

            await database.write(fill)
            ahead = 0.0
            database.now = lambda: now() + ahead
            async with (
                janitor.keep_clean(database, jobs, images, 1_000.0),
                janitor.keep_clean(database, jobs, images, 1_000.0),
                asyncio.timeout(60),
            ):
                while await database.read(count) != (2, 1):
                    await asyncio.sleep(0.01)
                await jobs.get(old.id)
                assert await images.get(picture)
                ahead = 1_001.0
                while await database.read(count) != (2, 0):
                    await asyncio.sleep(0.01)
                while list((tmp_path / "images").iterdir()):
                    await asyncio.sleep(0.01)
                while await jobs.page("alice"):
                    await asyncio.sleep(0.01)
            with pytest.raises(JobNotFound):
                await jobs.get(old.id)
            with pytest.raises(ImageNotFound):
                await images.get(picture)


async def test_what_fails_in_a_round_keeps_nothing_else_from_being_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with (
        open_database(f"sqlite+aiosqlite:///{tmp_path}/test.db") as database,
        open_images(str(tmp_path / "images"), -10.0, database.now) as images,
    ):
        jobs = JobStore(database, max_jobs=10)
        monkeypatch.setattr(JobStore, "settle", fail)
        monkeypatch.setattr(ExpiredJobs, "forget_progress", fail)
        old = await jobs.create(NewJob("alice", {}))
        await jobs.cancel(old.id)
        await images.put(b"picture", "png")
        await janitor.sweep(database, jobs, images, -10.0)
        assert await jobs.page("alice") == []
        assert list((tmp_path / "images").iterdir()) == []


async def test_the_pictures_of_a_job_that_was_not_made_go_and_those_of_one_whose_answer_was_lost_stay(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Database, work: Work[object]) -> object:
        raise StoreUnavailable("the database does not answer just now")

    async def lose_the_answer(self: Database, work: Work[object]) -> object:
        await write(self, work)
        raise StoreUnavailable("the database does not answer just now")

    write = Database.write
    async with (
        open_database(database_url) as database,
        open_images(str(tmp_path / "images"), 1_000.0, database.now) as images,
    ):
        jobs = JobStore(database, max_jobs=10)
        kept = []
        for wrong in (refuse, lose_the_answer):
            kept.append(await images.put(b"picture", "png"))
            monkeypatch.setattr(Database, "write", wrong)
            with pytest.raises(StoreUnavailable):
                await jobs.create(NewJob("alice", {UPLOADS: kept[-1:]}))
        monkeypatch.setattr(Database, "write", write)
        await janitor.sweep(database, jobs, images, 1_000.0)
        # It may yet turn out that they were made.
        assert [await images.get(name) for name in kept]
        now = database.now
        database.now = lambda: now() + 100.0
        await janitor.sweep(database, jobs, images, 1_000.0)
        with pytest.raises(ImageNotFound):
            await images.get(kept[0])
        assert await images.get(kept[1])
        assert [job.request[UPLOADS] for job in await jobs.page("alice")] == [kept[1:]]
