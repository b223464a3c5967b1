"""Jobs in the database: made by any gateway, drawn by whichever claims them, told to all."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.core import PRIORITIES
from mezzotint.errors import IdempotencyConflict, InvalidRequest, QueueFull, StoreUnavailable
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.expired_jobs import ExpiredJobs
from mezzotint.serve.stores.job import FINAL, UNFINISHED, UPLOADS, Job, JobState, NewJob
from mezzotint.serve.stores.job_events import JobEvents
from mezzotint.serve.stores.job_rows import (
    BROKEN,
    ENDED,
    MAX_LOST,
    as_job,
    get_job,
    has_overdue,
    has_work,
    held_by,
    lock_events,
    move,
    next_sequence,
    settle_overdue,
    tell,
)
from mezzotint.serve.stores.tables import job_images, jobs

__all__ = ["MAX_IDEMPOTENCY_KEY", "JobStore"]

T = TypeVar("T")

QUEUE_FULL_SECONDS = 30.0
# By then a job is there that was made although its answer was lost.
DOUBTFUL_SECONDS = 60.0
MAX_IDEMPOTENCY_KEY = 255


class JobStore:
    """Every method raises `StoreUnavailable` when the database does not answer.

    A runner names itself `owner`, anything unique to it. What it claims is its own until the lease ends; then
    another may claim it, and from there on nothing that the first says about the job is heard.
    Every change of state appends an event whose kind is the new state, in the same transaction; that of a
    failed job holds its error.

    ended: how many jobs this store brought to each final state.
    events: what is told of jobs. expired: those that ended long ago.
    """

    def __init__(self, database: Database, max_jobs: int) -> None:
        self._database = database
        self._max_jobs = max_jobs
        self.ended: Counter[JobState] = Counter()
        # Jobs of which no answer said whether they were made, since when, and the pictures they start from.
        self._doubtful: dict[str, tuple[float, Collection[str]]] = {}
        self.events = JobEvents(database)
        self.expired = ExpiredJobs(database)

    async def create(self, job: NewJob) -> Job:
        """Queue a job; with an idempotency key that was used before, the job of that time.

        Raises:
            IdempotencyConflict: the key was used with another fingerprint.
            InvalidRequest: the key is too long.
            QueueFull: `max_jobs` wait or run, or the caller has its share of them: as many as are left, the
                rule of `engine.admission`. One that floods gets half; a newcomer a place while there is one.
        """
        now, id = self._database.now(), f"job_{secrets.token_hex(16)}"
        row = {
            "id": id,
            "caller": job.caller,
            "state": "queued",
            "priority": PRIORITIES.index(job.priority),
            "request": dict(job.request),
            "n": job.n,
            "created": now,
            "not_before": now,
            "deadline": None if job.deadline_s is None else now + job.deadline_s,
            "idempotency_key": job.idempotency_key or None,
            "fingerprint": job.fingerprint,
        }
        of_caller = func.count().filter(jobs.c.caller == job.caller)
        unfinished = select(func.count(), of_caller).where(jobs.c.state.in_(UNFINISHED))

        async def work(connection: AsyncConnection) -> Job:
            same = await _same_job(connection, job)
            if same is not None:
                return same
            total, own = (await connection.execute(unfinished)).one()
            left = self._max_jobs - total
            # Where nobody has a key, there is nobody to leave room for.
            if left <= 0 or (job.caller and own and own >= left):
                whose = f"; {own:,} of them are this key's" if job.caller else ""
                raise QueueFull(
                    f"{total:,} of {self._max_jobs:,} jobs wait or run already{whose}",
                    retry_after_s=QUEUE_FULL_SECONDS,
                )
            created = await connection.execute(insert(jobs).values(row).returning(jobs))
            made = as_job(created.mappings().one())
            await tell(connection, made.id, "queued", {}, now)
            return made

        try:
            return await self._change(work)
        except StoreUnavailable:
            if uploads := job.request.get(UPLOADS):
                self._doubtful[id] = now, uploads
            raise

    async def forget_unmade(self, drop: Callable[[Collection[str]], Awaitable[None]]) -> None:
        """Of jobs that `create` got no answer about and that are not there, have the pictures dropped."""
        before = self._database.now() - DOUBTFUL_SECONDS
        doubtful = {id: names for id, (since, names) in self._doubtful.items() if since < before}
        if not doubtful:
            return

        async def work(connection: AsyncConnection) -> set[str]:
            return set(await connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(doubtful))))

        made = await self._database.read(work)
        for id, names in doubtful.items():
            if id not in made:
                await drop(names)
            del self._doubtful[id]

    async def replay(self, job: NewJob) -> Job | None:
        """The job that `create` would answer with instead of making one, before anything is charged for it.
        Without a key none, but the database has answered.

        Raises:
            IdempotencyConflict: the key was used with another fingerprint.
            InvalidRequest: the key is too long.
        """

        async def work(connection: AsyncConnection) -> Job | None:
            await connection.execute(select(1))
            return await _same_job(connection, job)

        return await self._database.read(work)

    async def get(self, id: str, caller: str | None = None) -> Job:
        """The job with its pictures; of `caller` alone, unless that is `None`.

        Raises:
            JobNotFound: there is none, or it is another's.
        """
        return await self._database.read(lambda connection: get_job(connection, id, caller))

    async def page(
        self, caller: str, *, before: int | None = None, limit: int = 20, state: JobState | None = None
    ) -> list[Job]:
        """The caller's jobs, newest first, without pictures. `before`: the last page's last `sequence`."""
        statement = select(jobs).where(jobs.c.caller == caller).order_by(jobs.c.sequence.desc()).limit(limit)
        if before is not None:
            statement = statement.where(jobs.c.sequence < before)
        if state is not None:
            statement = statement.where(jobs.c.state == state)

        async def work(connection: AsyncConnection) -> list[Job]:
            return [as_job(row) for row in (await connection.execute(statement)).mappings()]

        return await self._database.read(work)

    async def position(self, job: Job) -> int:
        """How many queued jobs come before this one by priority and age."""
        priority = PRIORITIES.index(job.priority)
        older = and_(jobs.c.priority == priority, jobs.c.sequence < job.sequence)
        before = or_(jobs.c.priority > priority, older)
        statement = select(func.count()).select_from(jobs).where(jobs.c.state == "queued", before)

        async def work(connection: AsyncConnection) -> int:
            return await connection.scalar(statement) or 0

        return await self._database.read(work)

    async def unfinished(self) -> dict[JobState, tuple[int, float]]:
        """How many jobs wait and how many run, and the seconds since the oldest of them was made."""
        statement = (
            select(jobs.c.state, func.count(), func.min(jobs.c.created))
            .where(jobs.c.state.in_(UNFINISHED))
            .group_by(jobs.c.state)
        )

        async def work(connection: AsyncConnection) -> dict[JobState, tuple[int, float]]:
            now, none = self._database.now(), (0, 0.0)
            rows = await connection.execute(statement)
            found = {state: (count, max(0.0, now - oldest)) for state, count, oldest in rows}
            return {state: found.get(state, none) for state in UNFINISHED}

        return await self._database.read(work)

    async def claim(self, owner: str, lease_s: float, *, not_of: Collection[str] = ()) -> Job | None:
        """The next job to draw, now running and `owner`'s for `lease_s`; `None` when there is none, but of
        these callers.

        The higher priority goes first, then the caller with the fewest running, then the oldest. A job whose
        lease has ended is queued again. The pictures are those that an owner before finished.
        """
        now = self._database.now()

        async def look(connection: AsyncConnection) -> bool:
            return await connection.scalar(has_work(now, not_of)) is not None

        async def work(connection: AsyncConnection) -> Job | None:
            await settle_overdue(connection, now)
            sequence = await connection.scalar(next_sequence(now, not_of))
            if sequence is None:
                return None
            values = {"owner": owner, "lease_ends": now + lease_s, "started": now}
            claimed = await move(connection, "running", jobs.c.sequence == sequence, now, **values)
            return await get_job(connection, claimed[0])

        # Runners ask all the time; only when there is something need they wait for each other.
        return await self._change(work) if await self._database.read(look) else None

    async def held(self, ids: Collection[str], owner: str) -> dict[str, bool]:
        """Of the jobs, those that `owner` still holds; whether each is to stop."""
        statement = select(jobs.c.id, jobs.c.cancel_requested).where(held_by(ids, owner))

        async def work(connection: AsyncConnection) -> dict[str, bool]:
            return {row.id: row.cancel_requested for row in await connection.execute(statement)}

        return await self._database.read(work) if ids else {}

    async def renew(self, ids: Collection[str], owner: str, lease_s: float) -> dict[str, bool]:
        """As `held`, and holds them for `lease_s` from now."""
        until = self._database.now() + lease_s
        statement = update(jobs).where(held_by(ids, owner)).values(lease_ends=until)

        async def work(connection: AsyncConnection) -> dict[str, bool]:
            rows = await connection.execute(statement.returning(jobs.c.id, jobs.c.cancel_requested))
            return {row.id: row.cancel_requested for row in rows}

        return await self._database.write(work) if ids else {}

    async def release(self, id: str, owner: str, retry_after_s: float, *, lost: bool = False) -> bool:
        """Give a job back to the queue, not to be claimed before `retry_after_s`. False: it was not held.

        lost: drawing it lost a replica, which counts as a lost owner; one too many fails it.
        """
        now = self._database.now()
        held = held_by([id], owner)

        async def work(connection: AsyncConnection) -> bool:
            ended = await move(connection, "cancelled", and_(held, jobs.c.cancel_requested), now)
            if lost:
                often = and_(held, jobs.c.lost >= MAX_LOST)
                ended += await move(connection, "failed", often, now, error=BROKEN.to_dict())
            values = {"not_before": now + retry_after_s, "lost": jobs.c.lost + int(lost)}
            return bool(ended + await move(connection, "queued", held, now, **values))

        return await self._change(work)

    async def set_image(self, id: str, owner: str, index: int, name: str, receipt: Mapping[str, Any]) -> bool:
        """Note a finished picture and tell of it, once, however often it is asked: an answer may be lost.
        False: the job is not held, and nothing was noted.
        """
        held = select(jobs.c.id).where(held_by([id], owner)).with_for_update()
        values = {"name": name, "receipt": dict(receipt)}
        new = self._database.insert(job_images).values(job_id=id, number=index, **values)
        same = select(job_images.c.number).where(
            job_images.c.job_id == id, job_images.c.number == index, job_images.c.name == name
        )
        noted = new.on_conflict_do_update(index_elements=["job_id", "number"], set_=values)

        async def work(connection: AsyncConnection) -> bool:
            if await connection.scalar(held) is None:
                return False
            if await connection.scalar(same) is not None:
                return True
            await connection.execute(noted)
            told = {"index": index, "seed": receipt["seed"], "name": name}
            await tell(connection, id, "image", told, self._database.now())
            return True

        return await self._change(work)

    async def finish(
        self, id: str, owner: str, state: JobState, error: Mapping[str, Any] | None = None
    ) -> bool:
        """End a running job as done, failed or cancelled. False: it is not held, and nothing changed."""
        if state not in FINAL:
            raise ValueError(f"{state} ends no job")
        values = {"error": None if error is None else dict(error)}

        async def work(connection: AsyncConnection) -> bool:
            held = held_by([id], owner)
            return bool(await move(connection, state, held, self._database.now(), **values))

        return await self._change(work)

    async def cancel(self, id: str, caller: str | None = None) -> Job:
        """Cancel a queued job at once; ask the owner of a running one to. One that has ended stays as it is.

        Raises:
            JobNotFound: there is none, or it is another's.
        """

        async def work(connection: AsyncConnection) -> Job:
            await get_job(connection, id, caller)
            queued = and_(jobs.c.id == id, jobs.c.state == "queued")
            await move(connection, "cancelled", queued, self._database.now())
            running = and_(jobs.c.id == id, jobs.c.state == "running")
            await connection.execute(update(jobs).where(running).values(cancel_requested=True))
            return await get_job(connection, id)

        return await self._change(work)

    async def settle(self) -> None:
        """Fail what is past its deadline, queue again what lost its owner: a batch of each, so that whoever
        asks again and again has time for other things between two.
        """
        now = self._database.now()

        async def look(connection: AsyncConnection) -> bool:
            return await connection.scalar(has_overdue(now)) is not None

        # Asked all the time, as `claim` is.
        if await self._database.read(look):
            await self._change(lambda connection: settle_overdue(connection, now))

    async def _change(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """A transaction that changes states or tells events."""

        ended: Counter[JobState] = Counter()

        async def locked(connection: AsyncConnection) -> T:
            await lock_events(connection)
            connection.info[ENDED] = ended
            return await work(connection)

        answer = await self._database.write(locked)
        self.ended.update(ended)
        return answer


async def _same_job(connection: AsyncConnection, job: NewJob) -> Job | None:
    key = job.idempotency_key
    if not key:
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key takes 1 to {MAX_IDEMPOTENCY_KEY} printable characters", param="Idempotency-Key"
        )
    statement = select(jobs.c.id, jobs.c.fingerprint).where(
        jobs.c.caller == job.caller, jobs.c.idempotency_key == key
    )
    found = (await connection.execute(statement)).first()
    if found is None:
        return None
    if found.fingerprint != job.fingerprint:
        raise IdempotencyConflict(
            "this Idempotency-Key was used with another body; send the same body, or another key",
            param="Idempotency-Key",
        )
    return await get_job(connection, found.id)
