"""What `MEZZOTINT_DATABASE_URL` may say, and the engine that it means."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mezzotint.errors import SettingInvalid
from mezzotint.models.locations import data_home

__all__ = ["SETTING", "create_engine", "describe_failure", "read_url"]

SETTING = "MEZZOTINT_DATABASE_URL"
ACCEPTED = "sqlite+aiosqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
CONNECT_SECONDS = 5
# Connections of one gateway: kept, and at most.
POOL_SIZE, POOL_OVERFLOW = 5, 10
STATEMENT_MILLISECONDS = 5_000


def read_url(url: str) -> URL:
    """The URL with its driver; for an empty one, the file below `MEZZOTINT_HOME`.

    Raises:
        SettingInvalid: it is no URL of a database that is served, or its folder is not there.
    """
    if not url:
        parsed = URL.create("sqlite", database=str(_make_folder(data_home()) / "mezzotint.db"))
        _check_file(parsed.database)
        return parsed.set(drivername=DRIVERS["sqlite"])
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not repeated: a password may be in it.
        raise SettingInvalid(f"{SETTING} takes {ACCEPTED}", param=SETTING) from None
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        raise SettingInvalid(f"{SETTING} takes {ACCEPTED}; not {parsed.drivername}://", param=SETTING)
    if driver.startswith("sqlite"):
        _check_file(parsed.database)
    elif find_spec("psycopg") is None:
        raise SettingInvalid(
            f"{SETTING}: PostgreSQL needs the [postgres] extra: pip install 'mezzotint[postgres]'",
            param=SETTING,
        )
    return parsed.set(drivername=driver)


def _make_folder(folder: Path) -> Path:
    try:
        # Prompts and pictures: for this user alone.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingInvalid(
            f"MEZZOTINT_HOME takes a folder that can be written; {folder}: {_reason(error)}",
            param="MEZZOTINT_HOME",
        ) from None
    return folder


def _check_file(database: str | None) -> None:
    if not database or ":memory:" in database or database.startswith("file:"):
        raise SettingInvalid(f"{SETTING} takes a file: {ACCEPTED}", param=SETTING)
    try:
        # An empty file is an empty database. Found out here, it is the system that says what is wrong.
        with Path(database).open("ab"):
            pass
    except OSError as error:
        raise SettingInvalid(f"{SETTING}: cannot write {database}: {_reason(error)}", param=SETTING) from None


def create_engine(url: URL) -> AsyncEngine:
    """The engine; connects to nothing yet."""
    options: dict[str, Any] = {"pool_timeout": CONNECT_SECONDS}
    if url.get_backend_name() == "postgresql":
        options |= {
            "pool_size": POOL_SIZE,
            "max_overflow": POOL_OVERFLOW,
            # A server that was restarted has closed what the pool still holds.
            "pool_pre_ping": True,
            "connect_args": {
                "connect_timeout": CONNECT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_MILLISECONDS} -c lock_timeout="
                f"{STATEMENT_MILLISECONDS} -c idle_in_transaction_session_timeout={STATEMENT_MILLISECONDS}",
                "tcp_user_timeout": STATEMENT_MILLISECONDS,
                "application_name": "mezzotint",
                **({"options": url.query["options"]} if "options" in url.query else {}),
            },
        }
    return create_async_engine(url, **options)


def describe_failure(error: Exception) -> str:
    """The driver's first line; no statement, no value, no password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
