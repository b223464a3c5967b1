"""The page as a process beside a server: it ends with it however that ends, and never ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from mezzotint.cli import page_beside as beside
from mezzotint.cli.main import run
from mezzotint.config import Settings
from tests.servers import is_running

WAIT_SECONDS = 120.0
PARENT = """
import time
from mezzotint.cli.page_beside import page_beside
from mezzotint.config import Settings
with page_beside(Settings(ui_port=0), "http://127.0.0.1:1"):
    time.sleep(600)
"""
# Whoever imports what the command line needs is interrupted, as by Ctrl-C, to which what runs in the
# background is born deaf, and its children too.
INTERRUPTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


def page_of(parent: psutil.Process, out: Path) -> psutil.Process:
    """Its process, once it has said where it is."""
    address_in(out)
    (page,) = parent.children()
    return page


def address_in(out: Path) -> str:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := re.search(r"^page:  (http://127\.0\.0\.1:\d+)$", out.read_text(), re.MULTILINE)):
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.05)
    return found[1]


def test_it_ends_even_with_a_server_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    with out.open("wb") as file:
        parent = psutil.Popen([sys.executable, "-c", PARENT], stdout=file, start_new_session=True)
    page = page_of(parent, out)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + WAIT_SECONDS
    while is_running(page) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(page)


def test_a_signal_ends_it_at_once_and_quietly_though_pages_are_open(tmp_path: Path) -> None:
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    command = [sys.executable, "-m", "mezzotint", "ui", "--port", "0"]
    with out.open("wb") as told, err.open("wb") as complained:
        page = psutil.Popen(
            [*command, "--api", "http://127.0.0.1:1"],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=complained,
            start_new_session=True,
        )
    address = address_in(out)
    with httpx.Client(base_url=address, timeout=WAIT_SECONDS) as client:
        function = next(
            each["id"] for each in client.get("/config").json()["dependencies"] if each["api_name"] == "watch"
        )
        asked = {"data": [{}], "fn_index": function, "session_hash": "open", "trigger_id": None}
        client.post("/gradio_api/queue/join", json=asked).raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "open"}) as news:
            lines = news.iter_lines()
            while "does not answer" not in next(lines):
                pass
            page.terminate()
            assert page.wait(WAIT_SECONDS) == 0
    assert err.read_text() == ""


def test_an_interruption_while_it_starts_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    found = subprocess.run(
        beside.COMMAND,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (found.returncode, found.stderr) == (-signal.SIGINT, b"")


def test_without_it_there_is_no_process() -> None:
    # Some of those before may end meanwhile: they are other tests'.
    before = set(psutil.Process().children())
    with beside.page_beside(Settings(ui=False), "http://127.0.0.1:1"):
        assert set(psutil.Process().children()) <= before


def test_without_the_extra_one_line_says_so_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside, "is_installed", lambda: False)
    with beside.page_beside(Settings(), "http://127.0.0.1:1"):
        pass
    assert capsys.readouterr().err == "no page: the page needs the [ui] extra: pip install 'mezzotint[ui]'\n"


def test_a_port_that_is_taken_is_one_line_that_says_what_to_set() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "mezzotint", "ui", "--port", port]
        found = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert found.returncode == 2
    assert re.fullmatch(
        rf"error: cannot listen on 127.0.0.1 port {port}: [^\n]* MEZZOTINT_UI_PORT[^\n]*\n", found.stderr
    )


def test_an_address_that_can_be_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ui", "--host", "127.0.0..1"]) == 2
    assert re.fullmatch(
        r"error: cannot listen on 127\.0\.0\.\.1 port 7860: [^\n]+\n", capsys.readouterr().err
    )
