"""`mezzotint keys`: who may use the server, and how much. Works on the database; no server is needed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from mezzotint.cli.options import Json
from mezzotint.core import PRIORITIES, Priority
from mezzotint.errors import InvalidRequest, SettingInvalid

if TYPE_CHECKING:
    from mezzotint.serve.stores.keys import Key, KeyStore

__all__ = ["app"]

T = TypeVar("T")

# What the store calls by its fields, as whoever types the command knows it.
FLAGS = {
    "name": "NAME",
    "expires_s": "--expires, in seconds,",
    "requests_per_minute": "--rpm",
    "concurrent_images": "--concurrent",
    "compute_s_per_day": "--compute-s-per-day",
    "max_priority": "--priority",
}
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

app = typer.Typer(help="API keys: create, list and revoke them.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom the key is for.")],
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it holds, such as 12h, 30d or 4w.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(metavar="N", help="Requests a minute.")] = None,
    concurrent: Annotated[int | None, typer.Option(metavar="N", help="Images at a time.")] = None,
    compute_s_per_day: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds of an engine in 24 hours.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model it may use; may be repeated.")
    ] = None,
    priority: Annotated[
        str, typer.Option(metavar="PRIORITY", help=f"The highest it may ask for: {', '.join(PRIORITIES)}.")
    ] = "normal",
    admin: Annotated[bool, typer.Option("--admin", help="It may see what concerns all keys.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once: nobody can find it out later. What is left out has no limit."""
    _check_installed()
    from mezzotint.serve.stores.keys import NewKey

    new = NewKey(
        name=name,
        expires_s=None if expires is None else read_duration(expires),
        requests_per_minute=rpm,
        concurrent_images=concurrent,
        compute_s_per_day=compute_s_per_day,
        models=tuple(model) if model else None,
        max_priority=cast(Priority, priority),
        is_admin=admin,
    )
    try:
        key, text = _with_keys(lambda store: store.create(new))
    except InvalidRequest as error:
        field = error.param or ""
        raise InvalidRequest(error.message.replace(field, FLAGS.get(field, field), 1), param=field) from None
    if as_json:
        print(json.dumps({**_as_json(key), "key": text}, indent=2))
        return
    print(text)
    print(f"key {key.caller.id} for {name}: keep it, it is not shown again", file=sys.stderr)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every key, with its limits and what it used in the last 24 hours."""
    _check_installed()
    keys = _with_keys(lambda store: store.list())
    if as_json:
        print(json.dumps([_as_json(key) for key in keys], indent=2))
        return
    from rich import print as rich_print
    from rich.markup import escape
    from rich.table import Table

    columns = ("id", "name", "state", "limits", "images", "compute s", "rejected")
    table = Table(*columns, box=None, header_style="bold")
    for key in keys:
        used = (str(key.used_images), f"{key.used_compute_s:.0f}", str(key.rejected))
        table.add_row(key.caller.id, escape(key.caller.name), _state(key), _limits(key), *used)
    rich_print(table)


@app.command("revoke")
def revoke(id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]) -> None:
    """Take a key back. Every gateway refuses it within a second."""
    _check_installed()
    if not _with_keys(lambda store: store.revoke(id)):
        raise InvalidRequest(f"no key {id!r}; mezzotint keys list shows their ids", param="ID")
    print(f"revoked {id}", file=sys.stderr)


def read_duration(text: str) -> float:
    """Seconds of "30d", "12h", "90".

    Raises:
        InvalidRequest: it is none.
    """
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", text.strip().lower())
    if found is None:
        raise InvalidRequest(
            f"--expires takes a number with s, m, h, d or w, such as 30d; not {text!r}", param="--expires"
        )
    return float(found[1]) * UNITS[found[2] or "s"]


def _check_installed() -> None:
    if find_spec("sqlalchemy") is None or find_spec("alembic") is None:
        raise SettingInvalid("keys need the [serve] extra: pip install 'mezzotint[serve]'")


def _with_keys(work: Callable[[KeyStore], Awaitable[T]]) -> T:
    from mezzotint.config import load_settings
    from mezzotint.serve.stores.database import open_database
    from mezzotint.serve.stores.keys import KeyStore

    async def run() -> T:
        async with open_database(load_settings().database_url) as database:
            return await work(KeyStore(database))

    return asyncio.run(run())


def _as_json(key: Key) -> dict[str, Any]:
    caller = key.caller
    return {
        "id": caller.id,
        "name": caller.name,
        "state": _state(key),
        "created": _time(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
        "requests_per_minute": caller.requests_per_minute,
        "concurrent_images": caller.concurrent_images,
        "compute_s_per_day": caller.compute_s_per_day,
        "models": caller.models,
        "max_priority": caller.max_priority,
        "is_admin": caller.is_admin,
        "used_24h": {
            "images": key.used_images,
            "compute_s": key.used_compute_s,
            "rejected": key.rejected,
        },
    }


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    return "valid" if key.is_valid(datetime.now(UTC).timestamp()) else "expired"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _limits(key: Key) -> str:
    caller = key.caller
    told = {
        "a minute": caller.requests_per_minute,
        "at a time": caller.concurrent_images,
        "s a day": caller.compute_s_per_day,
    }
    limits = [f"{value:g} {name}" for name, value in told.items() if value is not None]
    if caller.models is not None:
        limits.append(" ".join(caller.models))
    if caller.max_priority != "normal":
        limits.append(f"priority {caller.max_priority}")
    if caller.is_admin:
        limits.append("admin")
    return ", ".join(limits) or "none"
