"""One database for all gateways: SQLite on one machine, PostgreSQL in a cluster, by the same statements.

A statement that is not answered must not hold a request up: each piece of work runs in a task of its own,
which whoever waits for it can leave. After a failure one caller at a time finds out whether the database is
back, one who reads and one who writes; the others are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mezzotint.errors import MezzotintError, SettingInvalid, StoreUnavailable
from mezzotint.serve.stores import schema
from mezzotint.serve.stores.clock import Clock, steady
from mezzotint.serve.stores.database_url import SETTING, create_engine, describe_failure, read_url

__all__ = ["Database", "open_database"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

# How long a statement may take before the database counts as not answering.
ANSWER_SECONDS = 5.0
# Another gateway may be migrating.
OPEN_SECONDS = 30.0
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 2.0
READING = "mezzotint_reading"
# What the statement got wrong, not the database.
OUR_MISTAKES = (IntegrityError, ProgrammingError, DataError)


class Database:
    """Opened by `open_database`.

    now: seconds since 1970, the same on every gateway; set again by `set_clock`.
    failures: how often the database did not answer.
    """

    def __init__(self, engine: AsyncEngine, now: Callable[[], float]) -> None:
        self.now = now
        self.failures = 0
        self._engine = engine
        self.is_postgresql = engine.dialect.name == "postgresql"
        # SQLite has one writer at a time, and waits for its turn by polling.
        self._writer: AbstractAsyncContextManager[Any] = (
            nullcontext() if self.is_postgresql else asyncio.Lock()
        )
        # Apart: what a full or a locked database still reads is nobody's to miss.
        self._reads, self._writes = _Turns(), _Turns()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def read(self, work: Work[T]) -> T:
        """What `work` reads. Several statements may see the database at different moments.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        return await self._run(self._reading(work), self._reads)

    async def write(self, work: Work[T], settled: Callable[[bool], None] | None = None) -> T:
        """Do `work` in one transaction, which is undone when it raises, and done even if the caller leaves.

        settled: told whether the work was done, once that is known, which may be after this has raised. With
            it the work is never broken off, for then nobody would know.

        Raises:
            StoreUnavailable: the database did not answer; the work may have been done all the same.
        """
        return await self._run(self._writing(work), self._writes, settled)

    async def set_clock(self) -> None:
        """Follow PostgreSQL's clock, which all gateways go by, where it has been put right or has drifted. A
        clock of this machine alone is followed from its start on.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        if self.is_postgresql and isinstance(self.now, Clock):
            self.now.follow(await self.read(_read_clock))

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that knows ON CONFLICT, which both databases do, each with a class of its own."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)

    async def _reading(self, work: Work[T]) -> T:
        async with self._engine.connect() as connection:
            await connection.execution_options(**{READING: True})
            return await work(connection)

    async def _writing(self, work: Work[T]) -> T:
        async with self._writer, self._engine.begin() as connection:
            return await work(connection)

    async def _run(
        self, work: Coroutine[Any, Any, T], turns: _Turns, settled: Callable[[bool], None] | None = None
    ) -> T:
        try:
            turns.take()
        except StoreUnavailable:
            work.close()
            if settled is not None:
                settled(False)
            raise
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._forget, settled))
        if settled is None:
            # By the clock, for its caller may have left by then. Its driver may wait on for the server to
            # confirm; nobody else does.
            breaking_off = loop.call_later(ANSWER_SECONDS, task.cancel)
            task.add_done_callback(lambda _: breaking_off.cancel())
        done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
        if not done or task.cancelled():
            raise self._failed(turns, "no answer in time")
        try:
            answer = task.result()
        except (SQLAlchemyError, OSError) as error:
            if isinstance(error, OUR_MISTAKES):
                raise
            raise self._failed(turns, describe_failure(error)) from None
        except MezzotintError:
            # The work's own refusal: the database answered.
            turns.reason = ""
            raise
        turns.reason = ""
        return answer

    def _forget(self, settled: Callable[[bool], None] | None, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Looked at, so that what nobody waited for is not complained of.
        done = not task.cancelled() and task.exception() is None
        if settled is not None:
            settled(done)

    def _failed(self, turns: _Turns, reason: str) -> StoreUnavailable:
        self.failures += 1
        if not turns.reason and reason not in (self._reads.reason, self._writes.reason):
            logger.error("the database does not answer: %s", reason)
        turns.reason = reason
        turns.ask_again_at = time.monotonic() + RETRY_SECONDS
        return _unavailable()

    async def close(self) -> None:
        """Let running work end, for a moment."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=CLOSE_SECONDS)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._engine.dispose()
        except (TimeoutError, SQLAlchemyError, OSError) as error:
            logger.warning("the database did not close in order: %s", type(error).__name__)


@dataclass
class _Turns:
    """Of those who ask after a failure.

    reason: of the failure; empty while the database answers. ask_again_at: on `time.monotonic`'s clock.
    """

    reason: str = ""
    ask_again_at: float = 0.0

    def take(self) -> None:
        """
        Raises:
            StoreUnavailable: another finds out.
        """
        if not self.reason:
            return
        now = time.monotonic()
        if now < self.ask_again_at:
            raise _unavailable()
        self.ask_again_at = now + ANSWER_SECONDS


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("the database does not answer just now", retry_after_s=2 * RETRY_SECONDS)


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """The database at `url`, with this version's tables; empty for one below `MEZZOTINT_HOME`.

    Raises:
        SettingInvalid: the URL is not accepted, or the database cannot be reached, written or locked.
    """
    parsed = read_url(url)
    engine = create_engine(parsed, url)
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:
        _set_up_sqlite(engine)
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            if is_sqlite:
                await _write_ahead(engine)
            async with engine.begin() as connection:
                await connection.run_sync(schema.upgrade)
                clock = await _read_clock(connection)
    except MezzotintError:
        await engine.dispose()
        raise
    except (SQLAlchemyError, OSError) as error:
        await engine.dispose()
        reason = "no answer in time" if isinstance(error, TimeoutError) else describe_failure(error)
        raise SettingInvalid(f"{SETTING}: cannot use {shown}: {reason}", param=SETTING) from None
    database = Database(engine, clock)
    try:
        yield database
    finally:
        await database.close()


async def _read_clock(connection: AsyncConnection) -> Clock:
    asked_at = steady()
    if connection.dialect.name != "postgresql":
        return Clock(time.time(), asked_at)
    answer = await connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
    return Clock(float(answer or 0), (asked_at + steady()) / 2)


async def _write_ahead(engine: AsyncEngine) -> None:
    """Have the file keep a write-ahead log, which it remembers.

    Of several that switch at once SQLite refuses all but one, without the wait that it grants elsewhere.
    """
    refused_until = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            async with engine.connect() as connection:
                await connection.execution_options(**{READING: True})
                await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
        except OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > refused_until:
                raise
        await asyncio.sleep(0.02)


def _set_up_sqlite(engine: AsyncEngine) -> None:
    """Many readers beside one writer, who waits for the lock from the start of its transaction.

    A transaction that began as a reader's and then writes is refused at once, without waiting, if another
    wrote in between. So what may write begins IMMEDIATE.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        try:
            _prepare(connection)
        except BaseException:
            # Nobody else would, and its thread would go on.
            connection.close()
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(READING):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare(connection: Any) -> None:
    # The driver begins no transaction of its own.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(ANSWER_SECONDS * 900)}")
    # A power cut may lose the last transactions; it corrupts nothing.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
