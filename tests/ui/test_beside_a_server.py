"""The page that `mezzotint serve` starts beside itself: a real server with the demo model, a real browser."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from tests.servers import Server, is_running
from tests.ui.acts import draw, open_picture
from tests.ui.conftest import Visit

WAIT_SECONDS = 20.0


def processes_of_the_page(server: Server) -> list[psutil.Process]:
    return [child for child in server.process.children() if "--until-stdin-ends" in child.cmdline()]


def until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def test_a_newcomer_draws_with_the_demo_model_and_nothing_is_left_after(visit: Visit, tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "demo", page=True) as server:
        page = visit(server.wait_for_page())
        pages = processes_of_the_page(server)
        assert len(pages) == 1
        page.keyboard.type("a fox on a blue background")
        page.keyboard.press("Enter")
        picture = page.get_by_role("button", name="Open picture 1 of 1")
        expect(picture).to_be_visible()
        panel = open_picture(page, "a fox on a blue background")
        expect(panel.get_by_text("demo", exact=True)).to_be_visible()
        draw(page, "an owl on green")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_until_ended() == 0
        until_gone(pages)


def test_the_page_ends_even_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "fake", page=True) as server:
        server.wait_for_page()
        pages = processes_of_the_page(server)
        server.process.kill()
        until_gone(pages)


@pytest.mark.parametrize("arguments", [["--no-ui"]])
def test_without_the_page_the_server_is_alone(tmp_path: Path, arguments: list[str]) -> None:
    with Server(tmp_path, "--model", "fake", *arguments) as server:
        assert processes_of_the_page(server) == []
        assert not re.search(r"^page:", server.out.read_text(), re.MULTILINE)
