"""The page that `mezzotint serve` starts beside itself: a real server with the demo model, a real browser."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
from playwright.sync_api import expect

from tests.servers import Server, is_running
from tests.ui.acts import open_picture
from tests.ui.conftest import Visit

WAIT_SECONDS = 60.0


def test_a_newcomer_draws_with_the_demo_model_and_nothing_is_left_after(visit: Visit, tmp_path: Path) -> None:
    with Server(tmp_path, "--model", "demo", page=True) as server:
        page = visit(server.wait_for_page())
        pages = [child for child in server.process.children() if "--until-stdin-ends" in child.cmdline()]
        assert len(pages) == 1
        expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
        page.keyboard.type("a fox on a blue background")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Open picture 1 of 1")).to_be_visible()
        panel = open_picture(page, "a fox on a blue background")
        expect(panel.get_by_text("demo", exact=True)).to_be_visible()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_until_ended() == 0
        assert gone(pages[0])


def gone(process: psutil.Process) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(process)
