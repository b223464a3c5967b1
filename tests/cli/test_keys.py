"""`mezzotint keys`, and a start with a store that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mezzotint.cli.main import run
from mezzotint.errors import Unauthenticated
from mezzotint.serve.access.access import open_access
from mezzotint.serve.stores.database import open_database


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_printed_once_and_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "alice"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mk-")
    assert out.count("\n") == 1
    assert "not shown again" in err
    assert run(["keys", "list", "--json"]) == 0
    listed = capsys.readouterr().out
    assert out.strip() not in listed
    assert [key["name"] for key in json.loads(listed)] == ["alice"]


def test_a_key_that_could_not_be_printed_is_told_of() -> None:
    with Path("/dev/full").open("w") as full:
        ran = run_alone("create", "alice", stdout=full)
    assert ran.returncode == 1
    assert ran.stderr.endswith("error: no space left on device\n")


def test_a_name_that_the_terminal_has_no_letters_for_is_listed_all_the_same() -> None:
    assert run(["keys", "create", "Zoë"]) == 0
    ran = run_alone("list", stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert "Zo\\xeb" in ran.stdout


def run_alone(*arguments: str, stdout: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """`mezzotint keys` in a process of its own."""
    command = [sys.executable, "-m", "mezzotint", "keys", *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, env={**os.environ, **variables}
    )


def test_every_limit_is_kept_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--rpm", "60", "--concurrent", "4", "--compute-s-per-day", "900.5", "--expires", "30d"]
    rights = ["--model", "demo", "--model", "sdxl-base", "--priority", "high", "--admin", "--json"]
    assert run(["keys", "create", "[bold]", *limits, *rights]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["requests_per_minute"] == 60
    assert made["concurrent_images"] == 4
    assert made["compute_s_per_day"] == 900.5
    assert made["models"] == ["demo", "sdxl-base"]
    assert (made["max_priority"], made["is_admin"], made["state"]) == ("high", True, "valid")
    assert run(["keys", "list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert {**listed, "key": made["key"]} == made
    assert run(["keys", "list"]) == 0
    assert "[bold]" in capsys.readouterr().out


def test_a_revoked_key_is_shown_as_such_and_let_in_no_more(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    assert run(["keys", "create", "alice", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert run(["keys", "revoke", made["id"]]) == 0
    capsys.readouterr()
    assert run(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "revoked"

    async def use() -> None:
        async with open_database("") as database, open_access(database, requires_keys=True) as access:
            await access.authenticate(f"Bearer {made['key']}")

    with pytest.raises(Unauthenticated):
        asyncio.run(use())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["revoke", "nobody"], "no key 'nobody'"),
        (["create", " "], "NAME takes"),
        (["create", "x", "--expires", "soon"], "--expires takes"),
        (["create", "x", "--expires", "0d"], "--expires, in seconds, takes"),
        (["create", "x", "--rpm", "0"], "--rpm takes"),
        (["create", "x", "--concurrent", "0"], "--concurrent takes"),
        (["create", "x", "--compute-s-per-day", "nan"], "--compute-s-per-day takes"),
        (["create", "x", "--priority", "top"], "--priority takes low, normal, high"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MEZZOTINT_DATABASE_URL", "sqlite:////no/such/folder/x.db"),
        ("MEZZOTINT_DATABASE_URL", "postgresql://user:hidden@127.0.0.1:1/name"),
        ("MEZZOTINT_IMAGE_STORE", "/proc/nowhere"),
        ("MEZZOTINT_IMAGE_STORE", "ftp://somewhere"),
        ("MEZZOTINT_IMAGE_STORE", "~nosuchuser/pictures"),
        ("MEZZOTINT_HOME", "/proc/nowhere"),
    ],
)
def test_a_start_with_a_store_that_cannot_be_used_names_its_setting(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert run(["serve", "--model", "fake:"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {variable}")
    assert err.count("\n") == 1
    assert "hidden" not in err
