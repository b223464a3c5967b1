"""Jobs that ended long ago: first their progress is forgotten, then all of them and their pictures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from sqlalchemy import delete, not_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.job import STATES, UPLOADS
from mezzotint.serve.stores.job_rows import SWEEP_BATCH
from mezzotint.serve.stores.tables import job_events, job_images, jobs

__all__ = ["ExpiredJobs"]

# Of a job that has ended, whoever comes later is told only how.
EVENTS_SECONDS = 3_600.0
# By how much later than its time of ending a job's end may be seen, or by another gateway's clock.
LATE_SECONDS = 600.0


class ExpiredJobs:
    """Every method raises `StoreUnavailable` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # The progress of what ended before is forgotten already.
        self._forgotten_until = 0.0

    async def forget_progress(self) -> None:
        """Of jobs that ended an hour ago, forget all events but their states."""
        until = self._database.now() - EVENTS_SECONDS
        # Only what has become an hour old since the last time: looking at all jobs takes long.
        after: tuple[float, int] | None = (self._forgotten_until, 0)
        while after is not None:
            after = await self._database.write(partial(_forget_progress, after=after, until=until))
        self._forgotten_until = until - LATE_SECONDS

    async def forget(self, ttl_s: float, drop: Callable[[Collection[str]], Awaitable[None]]) -> int:
        """Forget the jobs that ended `ttl_s` ago; how many.

        drop: called before with the names of their pictures, of those that they start from too.
        """
        now = self._database.now()
        ended = select(jobs.c.id, jobs.c.request).where(jobs.c.finished < now - ttl_s).limit(SWEEP_BATCH)

        async def look(connection: AsyncConnection) -> tuple[list[str], list[str]]:
            old = (await connection.execute(ended)).all()
            ids = [row.id for row in old]
            drawn = await connection.scalars(select(job_images.c.name).where(job_images.c.job_id.in_(ids)))
            uploads = [name for row in old for name in _uploads(row.request)]
            return ids, [*uploads, *drawn]

        forgotten = 0
        while True:
            ids, names = await self._database.read(look)
            if not ids:
                return forgotten
            # Should this end in between, the next round finds the job again.
            await drop(names)
            forgotten += await self._delete(ids)

    async def _delete(self, ids: Collection[str]) -> int:
        async def work(connection: AsyncConnection) -> int:
            # Their events and pictures go with them.
            return (await connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))).rowcount

        return await self._database.write(work)


async def _forget_progress(
    connection: AsyncConnection, after: tuple[float, int], until: float
) -> tuple[float, int] | None:
    """Forget all events but states, of a batch of jobs that ended up to `until`.

    after: when the last batch's last job ended, and its sequence. Returned are this one's; `None`: no more.
    """
    order = (jobs.c.finished, jobs.c.sequence)
    ended = select(jobs.c.id, *order).where(tuple_(*order) > after, jobs.c.finished <= until)
    rows = (await connection.execute(ended.order_by(*order).limit(SWEEP_BATCH))).all()
    of_these = job_events.c.job_id.in_([row.id for row in rows])
    await connection.execute(delete(job_events).where(of_these, not_(job_events.c.kind.in_(STATES))))
    return (rows[-1].finished, rows[-1].sequence) if len(rows) == SWEEP_BATCH else None


def _uploads(request: Mapping[str, Any]) -> list[str]:
    if UPLOADS in request:
        return list(request[UPLOADS])
    # A version before this one did not list them.
    return [name for key in ("image", "mask") if (name := request.get(key))]
