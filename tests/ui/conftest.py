"""A real Chromium, a service with the fake backend, and the page in front of it.

Nothing asynchronous here: while Playwright's synchronous form runs, this thread has an event loop.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mezzotint.backends.fake import FakeBackend
from tests.api.live import Live, live
from tests.ui.serving import page_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# On two busy cores the page takes seconds to open.
WAIT_MS = 20_000


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A drawing of 20 steps takes a second."""
    with live(tmp_path_factory.mktemp("service"), FakeBackend(pass_seconds=0.05)) as server:
        yield server


@pytest.fixture(scope="package")
def address(service: Live) -> Iterator[str]:
    with page_server(service.url) as address:
        yield address


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    """The page, just opened by somebody who was never here."""
    context = chromium.new_context()
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()
