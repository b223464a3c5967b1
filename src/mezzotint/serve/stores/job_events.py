"""What is told of jobs, in the database: written by whoever draws them, read by whoever waits for one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.group import Group
from mezzotint.serve.stores.job import JobEvent
from mezzotint.serve.stores.job_rows import lock_events, tell_all
from mezzotint.serve.stores.tables import job_events, jobs

__all__ = ["JobEvents"]

News = tuple[str, str, str, Mapping[str, Any]]
"""The job's id, its owner, the event's kind, and what it tells."""


class JobEvents:
    """Every method raises `StoreUnavailable` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._news = Group(self._append)

    async def append(self, id: str, owner: str, kind: str, data: Mapping[str, Any]) -> int | None:
        """Tell of something; the event's id. Events become visible in the order of their ids. `None`: `owner`
        does not hold the job, and nothing was told.

        Those that are told at about the same time are written together: many jobs in progress would
        otherwise keep the one writer of SQLite busy, and whoever asks for a job waits for it.
        """
        return await self._news.do((id, owner, kind, data))

    async def _append(self, events: Sequence[News]) -> list[int | None]:
        named = {id for id, *_ in events}
        running = select(jobs.c.id, jobs.c.owner).where(jobs.c.state == "running", jobs.c.id.in_(named))

        async def work(connection: AsyncConnection) -> list[int | None]:
            # Nobody else changes a state until the commit.
            await lock_events(connection)
            if self._database.is_postgresql:
                # Everyone who tells waits for this commit. A crash of the database may forget progress.
                await connection.execute(text("SET LOCAL synchronous_commit TO off"))
            owners = {row.id: row.owner for row in await connection.execute(running)}
            is_heard = [owners.get(id) == owner for id, owner, *_ in events]
            heard = [(id, kind, data) for id, _, kind, data in compress(events, is_heard)]
            numbers = iter(await tell_all(connection, heard, self._database.now()) if heard else ())
            return [next(numbers) if each else None for each in is_heard]

        return await self._database.write(work)

    async def last_id(self) -> int:
        """The newest event's id; 0 when there is none."""

        async def work(connection: AsyncConnection) -> int:
            return await connection.scalar(select(func.max(job_events.c.id))) or 0

        return await self._database.read(work)

    async def after(
        self, last_id: int, ids: Collection[str] | None = None, limit: int = 1000
    ) -> list[JobEvent]:
        """Events with a higher id, in order; of these jobs, or of all."""
        statement = select(job_events).where(job_events.c.id > last_id)
        if ids is not None:
            statement = statement.where(job_events.c.job_id.in_(ids))
        statement = statement.order_by(job_events.c.id).limit(limit)

        async def work(connection: AsyncConnection) -> list[JobEvent]:
            rows = await connection.execute(statement)
            return [JobEvent(row.id, row.job_id, row.kind, row.data, row.created) for row in rows]

        return await self._database.read(work)

    async def latest(self, id: str, kind: str) -> JobEvent | None:
        """The job's newest event of this kind."""
        of_kind = select(job_events).where(job_events.c.job_id == id, job_events.c.kind == kind)

        async def work(connection: AsyncConnection) -> JobEvent | None:
            row = (await connection.execute(of_kind.order_by(job_events.c.id.desc()).limit(1))).first()
            return None if row is None else JobEvent(row.id, row.job_id, row.kind, row.data, row.created)

        return await self._database.read(work)
