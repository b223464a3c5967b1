"""What is done many times a second does not read all jobs for it: neither the finished ones, of which there
may be millions, nor all that wait.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import psycopg
from sqlalchemy import event, text

from mezzotint.serve.stores.database import Database, open_database
from mezzotint.serve.stores.job import NewJob
from mezzotint.serve.stores.jobs import JobStore
from tests.stores.postgres import PostgresServer

FINISHED = 20_000
# A day of them: what was forgotten last, and what is to be forgotten, is a small part.
FILL = f"""
INSERT INTO jobs (id, caller, state, priority, request, n, created, not_before, finished)
SELECT 'job_' || i, 'key' || i % 50, (ARRAY['done', 'failed', 'cancelled'])[1 + i % 3], 1, '{{}}', 1,
       at, at, at
FROM (SELECT i, extract(epoch FROM now()) - 86400.0 * i / {FINISHED} AS at
      FROM generate_series(1, {FINISHED}) AS i) AS finished
"""


async def test_no_statement_about_jobs_scans_all_of_them(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with open_database(url) as database:
        await _fill(database)
        store = JobStore(database, max_jobs=50)
        await store.expired.forget_progress()
        asked = _listen(database)
        await _use(store)
    plans = _plans(url, [each for each in asked if " jobs" in each[0]])
    assert len(plans) > 20
    assert [plan for plan in plans if "Seq Scan on jobs" in plan] == []


async def test_what_waits_is_neither_read_to_claim_a_job_nor_to_find_a_deadline(
    postgres: PostgresServer,
) -> None:
    url = postgres.new_database()
    async with open_database(url) as database:
        await _fill(database, "UPDATE jobs SET state = 'queued', finished = NULL, deadline = created + 9e9")
        store = JobStore(database, max_jobs=2 * FINISHED)
        asked = _listen(database)
        await store.settle()
        assert await store.claim("runner", 30.0) is not None
    read = _rows_read(url, [each for each in asked if " jobs" in each[0]])
    assert len(read) > 5
    # Of each of the 50 callers one, and the step from it to the next.
    assert max(read) < 1_000


async def _fill(database: Database, *more: str) -> None:
    async def work(connection: Any) -> None:
        for statement in (FILL, *more, "ANALYZE jobs"):
            await connection.execute(text(statement))

    await database.write(work)


def _listen(database: Database) -> list[tuple[str, Any]]:
    """Each statement from now on, with its parameters."""
    asked: list[tuple[str, Any]] = []
    event.listen(
        database._engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
    )
    return asked


async def _use(store: JobStore) -> None:
    """Each method once."""
    new = NewJob("alice", {"prompt": "an apple"}, idempotency_key="k")
    job = await store.create(new)
    await store.replay(new)
    await store.create(replace(new, idempotency_key=""))
    await store.position(job)
    await store.unfinished()
    await store.page("key7", state="failed")
    claimed = await store.claim("runner", 30.0, not_of=("bob",))
    assert claimed is not None
    await store.held([job.id], "runner")
    await store.renew([job.id], "runner", 30.0)
    await store.set_image(job.id, "runner", 0, "name", {"seed": 0})
    await store.events.append(job.id, "runner", "progress", {})
    await store.release(job.id, "runner", 0.0, lost=True)
    await store.claim("runner", 30.0)
    await store.finish(job.id, "runner", "done")
    await store.cancel(job.id)
    await store.settle()
    await store.expired.forget_progress()
    await store.expired.forget(86_000.0, _keep)


async def _keep(_: Collection[str]) -> None:
    pass


def _plans(url: str, asked: list[tuple[str, Any]]) -> list[str]:
    """What PostgreSQL would do for each; INSERTs, which read nothing, left out."""
    plans = []
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        for statement, parameters in asked:
            if not statement.startswith("INSERT"):
                rows = connection.execute(f"EXPLAIN {statement}".encode(), parameters)
                plans.append("\n".join([statement, *(row[0] for row in rows)]))
    return plans


def _rows_read(url: str, asked: list[tuple[str, Any]]) -> list[int]:
    """How many rows of tables and indices PostgreSQL reads for each; INSERTs left out."""
    read = []
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        for statement, parameters in asked:
            if not statement.startswith("INSERT"):
                explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode()
                [[answer]] = connection.execute(explain, parameters)
                read.append(_rows_below(answer[0]["Plan"]))
                connection.rollback()
    return read


def _rows_below(plan: dict[str, Any]) -> int:
    own = 0
    if "Scan" in plan["Node Type"] and plan["Node Type"] not in (
        "CTE Scan",
        "Subquery Scan",
        "WorkTable Scan",
    ):
        rows = [plan[name] for name in ("Actual Rows", "Rows Removed by Filter") if name in plan]
        own = round(sum(rows) * plan["Actual Loops"])
    return own + sum(_rows_below(each) for each in plan.get("Plans", ()))
