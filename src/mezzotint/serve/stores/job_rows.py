"""Jobs as rows: the statements behind `JobStore`, on a connection whose transaction is the caller's.

Whatever changes a state or tells an event takes the lock of events first, before any row's. PostgreSQL gives
out ids before it commits, so without it a listener could see event 8 and never 7, which came later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    RowMapping,
    Select,
    and_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.core import PRIORITIES
from mezzotint.errors import DeadlineExceeded, GenerationFailed, JobNotFound
from mezzotint.serve.stores.job import FINAL, TRANSITIONS, Job, JobImage, JobState
from mezzotint.serve.stores.tables import job_events, job_images, jobs

__all__ = [
    "BROKEN",
    "ENDED",
    "MAX_LOST",
    "SWEEP_BATCH",
    "as_job",
    "get_job",
    "has_overdue",
    "has_work",
    "held_by",
    "lock_events",
    "move",
    "next_sequence",
    "settle_overdue",
    "tell",
    "tell_all",
]

# Any number, the same in every version.
EVENTS_LOCK = 4_173_202
# A job whose owners or replicas vanish again and again is what makes them.
MAX_LOST = 3
# Jobs that are swept in one transaction.
SWEEP_BATCH = 500
# Of a connection's `info`: a Counter of final states.
ENDED = "mezzotint_ended"
BROKEN = GenerationFailed("the servers that drew this job ended again and again")


async def lock_events(connection: AsyncConnection) -> None:
    # SQLite's writer is alone from the start.
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": EVENTS_LOCK})


async def tell(
    connection: AsyncConnection, job_id: str, kind: str, data: Mapping[str, Any], now: float
) -> int:
    [id] = await tell_all(connection, [(job_id, kind, data)], now)
    return id


async def tell_all(
    connection: AsyncConnection, events: Sequence[tuple[str, str, Mapping[str, Any]]], now: float
) -> list[int]:
    """Each with its job's id and its kind; their own ids, which rise."""
    rows = [{"job_id": id, "kind": kind, "data": dict(data), "created": now} for id, kind, data in events]
    statement = insert(job_events).returning(job_events.c.id, sort_by_parameter_order=True)
    return [int(id) for id in await connection.scalars(statement, rows)]


async def move(
    connection: AsyncConnection, state: JobState, which: ColumnElement[bool], now: float, **values: Any
) -> list[str]:
    """Bring those of the jobs that may come to `state` there, and tell of each; their ids. How many ended is
    added to the connection's `ENDED`.
    """
    sources = [source for source, following in TRANSITIONS.items() if state in following]
    if state != "running":
        values |= {"owner": "", "lease_ends": None}
    if state in FINAL:
        values["finished"] = now
    statement = update(jobs).where(jobs.c.state.in_(sources), which).values(state=state, **values)
    moved = (await connection.execute(statement.returning(jobs.c.id, jobs.c.error))).all()
    if state in FINAL:
        connection.info[ENDED][state] += len(moved)
    if moved:
        told = [(row.id, state, {"error": row.error} if row.error else {}) for row in moved]
        await tell_all(connection, told, now)
    return [row.id for row in moved]


async def settle_overdue(connection: AsyncConnection, now: float) -> None:
    """End what waits past its deadline; queue again what lost its owner, unless that was once too often. A
    batch of each: after an hour without a server thousands may be late, and a transaction has its limit.
    """
    too_late = DeadlineExceeded("the deadline passed before the job was begun")
    late = await _batch(connection, _late(now))
    if late is not None:
        await move(connection, "failed", and_(_late(now), late), now, error=too_late.to_dict())
    batch = await _batch(connection, _lost(now))
    if batch is None:
        return
    # Asked again, for its owner may just have renewed one.
    lost = and_(_lost(now), batch)
    await move(connection, "cancelled", and_(lost, jobs.c.cancel_requested), now)
    often = and_(lost, jobs.c.lost >= MAX_LOST)
    await move(connection, "failed", often, now, error=BROKEN.to_dict())
    await move(connection, "queued", lost, now, lost=jobs.c.lost + 1, not_before=now)


def _ready(now: float, not_of: Collection[str]) -> ColumnElement[bool]:
    return and_(jobs.c.state == "queued", jobs.c.not_before <= now, jobs.c.caller.not_in(not_of))


def _late(now: float) -> ColumnElement[bool]:
    return and_(jobs.c.state == "queued", jobs.c.deadline <= now)


async def _batch(connection: AsyncConnection, which: ColumnElement[bool]) -> ColumnElement[bool] | None:
    """Some of them; `None`: there are none. Read by itself, which an index answers: within another statement
    SQLite would go through all that wait.
    """
    found = await connection.scalars(select(jobs.c.sequence).where(which).limit(SWEEP_BATCH))
    numbers = found.all()
    return jobs.c.sequence.in_(numbers) if numbers else None


def _lost(now: float) -> ColumnElement[bool]:
    return and_(jobs.c.state == "running", jobs.c.lease_ends < now)


def has_overdue(now: float) -> Select[Any]:
    """A row, when there is something to settle: a look that needs no lock."""
    return select(jobs.c.sequence).where(or_(_late(now), _lost(now))).limit(1)


def has_work(now: float, not_of: Collection[str]) -> Select[Any]:
    """A row, when there may be something to claim: a look that needs no lock."""
    return select(jobs.c.sequence).where(or_(_ready(now, not_of), _lost(now))).limit(1)


def next_sequence(now: float, not_of: Collection[str]) -> Select[tuple[int]]:
    """The job to draw next: the higher priority, then the caller with the fewest running, then the oldest."""
    lines = _lines()
    same_line = and_(jobs.c.priority == lines.c.priority, jobs.c.caller == lines.c.caller)
    in_time = or_(jobs.c.deadline.is_(None), jobs.c.deadline > now)
    ready = select(jobs.c.sequence).where(_ready(now, not_of), in_time, same_line)
    oldest = select(
        lines, ready.order_by(jobs.c.sequence).limit(1).scalar_subquery().label("sequence")
    ).subquery()
    running = (
        select(jobs.c.caller, func.count().label("count"))
        .where(jobs.c.state == "running")
        .group_by(jobs.c.caller)
        .subquery()
    )
    busy = case((running.c.count.is_(None), 0), else_=running.c.count)
    return (
        select(oldest.c.sequence)
        .outerjoin(running, running.c.caller == oldest.c.caller)
        .where(oldest.c.sequence.is_not(None))
        .order_by(oldest.c.priority.desc(), busy, oldest.c.sequence)
        .limit(1)
    )


def _lines() -> CTE:
    """Each priority and caller that something is queued for; of each priority, a last row without a caller.

    Found by jumping through the index from one caller to the next: jobs are claimed many times a second, by
    one runner at a time, and to read all that wait would take long.
    """
    queued = select(jobs.c.caller).where(jobs.c.state == "queued").order_by(jobs.c.caller).limit(1)
    firsts = (
        select(
            literal(priority).label("priority"),
            queued.where(jobs.c.priority == priority).scalar_subquery().label("caller"),
        )
        for priority in range(len(PRIORITIES))
    )
    lines = select(union_all(*firsts).subquery()).cte("lines", recursive=True)
    following = queued.where(jobs.c.priority == lines.c.priority, jobs.c.caller > lines.c.caller)
    step = select(lines.c.priority, following.scalar_subquery()).where(lines.c.caller.is_not(None))
    return lines.union_all(step)


def held_by(ids: Collection[str], owner: str) -> ColumnElement[bool]:
    return and_(jobs.c.id.in_(ids), jobs.c.state == "running", jobs.c.owner == owner)


async def get_job(connection: AsyncConnection, id: str, caller: str | None = None) -> Job:
    """
    Raises:
        JobNotFound: there is none, or it is another's.
    """
    # PostgreSQL takes no NUL even to compare.
    if "\0" in id:
        raise JobNotFound("no such job")
    statement = select(jobs).where(jobs.c.id == id)
    if caller is not None:
        statement = statement.where(jobs.c.caller == caller)
    row = (await connection.execute(statement)).mappings().first()
    if row is None:
        raise JobNotFound("no such job")
    pictures = select(job_images).where(job_images.c.job_id == id).order_by(job_images.c.number)
    found = (await connection.execute(pictures)).all()
    return as_job(row, tuple(JobImage(each.number, each.name, each.receipt) for each in found))


def as_job(row: RowMapping, images: tuple[JobImage, ...] = ()) -> Job:
    return Job(
        id=row["id"],
        sequence=row["sequence"],
        caller=row["caller"],
        state=row["state"],
        request=row["request"],
        n=row["n"],
        priority=PRIORITIES[row["priority"]],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        deadline=row["deadline"],
        error=row["error"],
        cancel_requested=row["cancel_requested"],
        owner=row["owner"],
        lost=row["lost"],
        images=images,
    )
