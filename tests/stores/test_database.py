"""The database: its start, its tables, and what happens when it does not answer."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.errors import QueueFull, SettingInvalid, StoreUnavailable
from mezzotint.serve.stores import clock, schema
from mezzotint.serve.stores import database as module
from mezzotint.serve.stores.clock import Clock, steady
from mezzotint.serve.stores.database import Database, open_database
from mezzotint.serve.stores.tables import metadata, rates
from tests.stores.postgres import PostgresServer

LIMIT_SECONDS = 60.0


async def put_row(database: Database, key_id: str) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(insert(rates).values(key_id=key_id, paid_until=1.0))

    await database.write(work)


async def rows(database: Database) -> list[str]:
    async def work(connection: AsyncConnection) -> list[str]:
        return list(await connection.scalars(select(rates.c.key_id).order_by(rates.c.key_id)))

    return await database.read(work)


def differences(connection: Connection) -> list[object]:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)


async def test_the_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    async with open_database(database_url) as database:
        assert await database.read(lambda connection: connection.run_sync(differences)) == []


async def test_a_database_of_an_earlier_version_gets_what_it_lacks(database_url: str) -> None:
    def go_back(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")

    async with open_database(database_url) as database:
        await put_row(database, "key0")
        await database.write(lambda connection: connection.run_sync(go_back))
        assert await database.read(lambda connection: connection.run_sync(differences)) != []
    async with open_database(database_url) as database:
        assert await database.read(lambda connection: connection.run_sync(differences)) == []
        assert await rows(database) == ["key0"]


async def test_gateways_that_start_together_migrate_once_and_all_work(database_url: str) -> None:
    async def start(number: int) -> None:
        async with open_database(database_url) as database:
            await put_row(database, f"key{number}")

    await asyncio.gather(*(start(number) for number in range(4)))
    async with open_database(database_url) as database:
        assert await rows(database) == ["key0", "key1", "key2", "key3"]


async def test_a_new_file_that_another_reads_is_waited_for(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    holder.execute("CREATE TABLE before (x)")
    holder.execute("BEGIN")
    holder.execute("SELECT * FROM before").fetchall()
    opening = asyncio.create_task(put_in_a_row(f"sqlite:///{tmp_path}/test.db"))
    done, _ = await asyncio.wait({opening}, timeout=0.3)
    assert not done
    holder.execute("COMMIT")
    await asyncio.wait_for(opening, LIMIT_SECONDS)
    holder.close()


async def put_in_a_row(url: str) -> None:
    async with open_database(url) as database:
        await put_row(database, "key")


async def test_work_that_raises_is_undone(database_url: str) -> None:
    async with open_database(database_url) as database:

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(rates).values(key_id="undone", paid_until=1.0))
            raise QueueFull("no room")

        with pytest.raises(QueueFull):
            await database.write(work)
        assert await rows(database) == []


async def test_work_whose_caller_leaves_is_done_whole(database_url: str) -> None:
    async with open_database(database_url) as database:
        half_done = asyncio.Event()
        go_on = asyncio.Event()

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(rates).values(key_id="first", paid_until=1.0))
            half_done.set()
            await go_on.wait()
            await connection.execute(insert(rates).values(key_id="second", paid_until=1.0))

        caller = asyncio.create_task(database.write(work))
        await half_done.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        go_on.set()
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(await rows(database)) < 2:
                await asyncio.sleep(0.01)


async def test_work_that_hangs_lets_its_connection_go_though_its_caller_has_left(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(database_url) as database:
        await rows(database)
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
        hanging = asyncio.Event()

        async def work(connection: AsyncConnection) -> None:
            hanging.set()
            await asyncio.Event().wait()

        caller = asyncio.create_task(database.read(work))
        await hanging.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        async with asyncio.timeout(LIMIT_SECONDS):
            while database._engine.pool.checkedout():  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)


async def test_many_writers_at_once_all_get_their_turn(database_url: str) -> None:
    async with open_database(database_url) as one, open_database(database_url) as other:
        await asyncio.gather(*(put_row((one, other)[i % 2], f"key{i:02}") for i in range(60)))
        assert len(await rows(one)) == 60


async def test_a_database_of_a_later_version_is_refused(database_url: str) -> None:
    await _call_it(database_url, "9999")
    with pytest.raises(SettingInvalid, match=r"later Mezzotint \(schema 9999\)"):
        async with open_database(database_url):
            pass


async def test_what_a_later_version_only_added_to_is_used_and_left_so(database_url: str) -> None:
    await _call_it(database_url, "0001.9999")
    async with open_database(database_url) as database:
        await put_row(database, "key0")

        async def work(connection: AsyncConnection) -> str | None:
            return await connection.scalar(text("SELECT version_num FROM alembic_version"))

        assert await database.read(work) == "0001.9999"


async def _call_it(url: str, revision: str) -> None:
    async with open_database(url) as database:
        statement = text("UPDATE alembic_version SET version_num = :revision")
        await database.write(lambda connection: connection.execute(statement, {"revision": revision}))


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://user:hidden@host/name",
        "sqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite:////tmp/a\0b.db",
        "sqlite:////no/such/folder/x.db",
        "sqlite:////proc/x.db",
        "postgresql://user:hidden@127.0.0.1:1/name",
        "postgresql+asyncpg://user:hidden@127.0.0.1/name",
        "postgresql://user@127.0.0.1:1/name?password=hidden",
    ],
)
async def test_a_wrong_url_names_its_setting_in_one_line_without_the_password(url: str) -> None:
    with pytest.raises(SettingInvalid, match="MEZZOTINT_DATABASE_URL") as caught:
        async with open_database(url):
            pass
    assert "\n" not in caught.value.message
    assert "hidden" not in caught.value.message


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at " * 50)
    with pytest.raises(SettingInvalid, match="not a database"):
        async with open_database(f"sqlite:///{tmp_path}/text"):
            pass


async def test_a_locked_file_is_named_at_the_start_and_unavailable_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    url = f"sqlite:///{tmp_path}/test.db"
    async with open_database(url) as database:
        holder = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await put_row(database, "locked")
        with pytest.raises(SettingInvalid, match="locked"):
            async with open_database(url):
                pass
        holder.execute("ROLLBACK")
        holder.close()
        monkeypatch.undo()
        await until_it_answers(database)
        assert "locked" not in await rows(database)


async def test_a_full_disk_is_told_once_to_those_who_write_and_those_who_read_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_database(f"sqlite:///{tmp_path}/test.db") as database:
        await put_row(database, "before")
        async with database._engine.connect() as connection:
            # Of this connection, which the pool keeps: not a page more than there are.
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await put_row(database, "x" * 10_000)
            assert await rows(database) == ["before"]
        told = [each.getMessage() for each in caplog.records if each.name.endswith("stores.database")]
    assert told == ["the database does not answer: database or disk is full"]


async def until_it_answers(database: Database) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            try:
                await rows(database)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_server_that_restarts_is_unavailable_and_then_used_again(
    postgres: PostgresServer,
) -> None:
    async with open_database(postgres.new_database()) as database:
        await put_row(database, "before")
        await asyncio.to_thread(postgres.stop)
        with pytest.raises(StoreUnavailable) as caught:
            await rows(database)
        assert caught.value.retry_after_s
        await asyncio.to_thread(postgres.start)
        await until_it_answers(database)
        assert await rows(database) == ["before"]


async def test_a_server_that_hangs_holds_nobody_up_for_long(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(postgres.new_database()) as database:
        await put_row(database, "before")
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
        assert postgres.process is not None
        main = psutil.Process(postgres.process.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            began = time.monotonic()
            answers = await asyncio.gather(*(rows(database) for _ in range(40)), return_exceptions=True)
            assert all(isinstance(answer, StoreUnavailable) for answer in answers)
            # Whoever comes once it is known does not wait at all.
            with pytest.raises(StoreUnavailable):
                await rows(database)
            # One after the other they would have waited for twenty seconds.
            assert time.monotonic() - began < 18.0
        finally:
            for process in processes:
                process.resume()
        monkeypatch.undo()
        await until_it_answers(database)
        assert await rows(database) == ["before"]


async def test_new_connections_have_the_password_that_the_file_holds_then(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """As it is rotated: changed in the database first, and in the mounted file a while after."""
    user, place = postgres.new_user(), postgres.new_database().partition("@")[2]
    file = tmp_path / "database_url"
    file.write_text(f"postgresql+psycopg://{user}:first@{place}\n")
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(connection: AsyncConnection) -> int | None:
        reached.set()
        await go_on.wait()
        return await connection.scalar(text("SELECT 1"))

    async with open_database(f"file://{file}") as database:
        # The only connection is in use, so whatever else is asked opens another.
        holding = asyncio.create_task(database.read(hold))
        await reached.wait()
        postgres.execute(f"ALTER ROLE {user} PASSWORD 'second'")
        with pytest.raises(StoreUnavailable):
            await rows(database)
        file.write_text("no URL")
        with pytest.raises(StoreUnavailable):
            await rows(database)
        file.write_text(f"postgresql+psycopg://{user}:second@{place}\n")
        await until_it_answers(database)
        go_on.set()
        assert await holding == 1
    async with open_database(f"file://{file}") as restarted:
        assert await rows(restarted) == []


@pytest.mark.parametrize("content", [None, "", "hidden", "mysql://user:hidden@host/name", "file:///hidden"])
async def test_a_file_without_a_url_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "database_url"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingInvalid, match="MEZZOTINT_DATABASE_URL") as caught:
        async with open_database(f"file://{file}"):
            pass
    assert "hidden" not in caught.value.message


async def test_gateways_follow_postgresqls_clock_and_no_other(database_url: str) -> None:
    async with open_database(database_url) as database:
        assert isinstance(database.now, Clock)
        right = database.now()
        database.now.follow(Clock(right + 3_600.0, steady()))
        assert database.now() - right > 3_000.0
        await database.set_clock()
        off = database.now() - right
        assert 0 <= off < 60 if database.is_postgresql else off > 3_000.0


async def test_the_time_goes_on_evenly_whatever_the_machines_clock_says(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(database_url) as database:
        before = database.now()
        real = time.time()
        # The store's alone: other threads of this process ask for the time too.
        of_tomorrow = SimpleNamespace(**{**vars(time), "time": lambda: real + 86_400})
        for each in (clock, module):
            monkeypatch.setattr(each, "time", of_tomorrow)
        assert 0 <= database.now() - before < 60
        assert abs(before - real) < 60
