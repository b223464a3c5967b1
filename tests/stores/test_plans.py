"""No statement about jobs reads the finished ones to find those that are not: there may be millions."""

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
        await store.forget_progress()
        asked: list[tuple[str, Any]] = []
        event.listen(
            database._engine.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        await _use(store)
    plans = _plans(url, [each for each in asked if " jobs" in each[0]])
    assert len(plans) > 20
    assert [plan for plan in plans if "Seq Scan on jobs" in plan] == []


async def _fill(database: Database) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(text(FILL))
        await connection.execute(text("ANALYZE jobs"))

    await database.write(work)


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
    await store.append_event(job.id, "progress", {})
    await store.release(job.id, "runner", 0.0, lost=True)
    await store.claim("runner", 30.0)
    await store.finish(job.id, "runner", "done")
    await store.cancel(job.id)
    await store.settle()
    await store.forget_progress()
    await store.forget(86_000.0, _keep)


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
