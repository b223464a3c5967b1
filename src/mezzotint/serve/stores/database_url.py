"""What `MEZZOTINT_DATABASE_URL` may say, and the engine that it means.

A URL in a file, `file:///PATH`, is for passwords that are changed: the file is read for each new connection,
and its content goes nowhere else, as what is in a setting does (Ray keeps the arguments of what it starts).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mezzotint.errors import SettingInvalid, os_error_text
from mezzotint.models.locations import data_home

__all__ = ["SETTING", "create_engine", "describe_failure", "read_url"]

SETTING = "MEZZOTINT_DATABASE_URL"
ACCEPTED = (
    "sqlite+aiosqlite:///FILE, postgresql+psycopg://USER:PASSWORD@HOST/NAME, or file:///PATH of a file that "
    "holds such a URL"
)
FILE = "file://"
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
    """The URL with its driver, of a file:// the one that the file holds now; for an empty one, the database
    below `MEZZOTINT_HOME`.

    Raises:
        SettingInvalid: it is no URL of a database that is served, or its folder is not there.
    """
    if not url:
        parsed = URL.create("sqlite", database=str(_make_folder(data_home()) / "mezzotint.db"))
        _check_file(parsed.database)
        return parsed.set(drivername=DRIVERS["sqlite"])
    try:
        parsed = _read_file(url) if url.startswith(FILE) else make_url(url)
    except OSError as error:
        raise SettingInvalid(f"{SETTING}: cannot use {url}: {os_error_text(error)}", param=SETTING) from None
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


def _read_file(url: str) -> URL:
    """Raises OSError: it cannot be read, or holds something else; what, is not told."""
    try:
        return make_url(Path(url.removeprefix(FILE)).read_text(encoding="utf-8").strip())
    except (ArgumentError, ValueError):
        raise OSError("it holds no URL") from None


def _make_folder(folder: Path) -> Path:
    try:
        # Prompts and pictures: for this user alone.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingInvalid(
            f"MEZZOTINT_HOME takes a folder that can be written; {folder}: {os_error_text(error)}",
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
    except (OSError, ValueError) as error:
        # A name with a NUL never comes to the system.
        raise SettingInvalid(
            f"{SETTING}: cannot write {database}: {os_error_text(error)}", param=SETTING
        ) from None


def create_engine(url: URL, setting: str) -> AsyncEngine:
    """The engine; connects to nothing yet.

    setting: what `read_url` had the URL from. From a file, each new connection has the name and the password
    that it holds then.
    """
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
    engine = create_async_engine(url, **options)
    if setting.startswith(FILE) and url.get_backend_name() == "postgresql":

        @event.listens_for(engine.sync_engine, "do_connect")
        def on_connect(_dialect: Any, _record: Any, _arguments: Any, named: dict[str, Any]) -> None:
            # What is raised here counts as a database that does not answer.
            present = _read_file(setting)
            named.update(user=present.username, password=present.password)

    return engine


def describe_failure(error: Exception) -> str:
    """The driver's first line; no statement, no value, no password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
