"""A real Chromium, a service with the fake backend, and the page in front of it.

Nothing asynchronous here: while Playwright's synchronous form runs, this thread has an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ResolvedRequest, ServedControlNet, ServedIpAdapter, ServedLora
from mezzotint.errors import GenerationFailed, MezzotintError
from tests.api.live import Live, live
from tests.ui.chromium import ARGUMENTS, PROGRAM
from tests.ui.serving import page_server

# On two busy cores the page takes seconds to open, and the browser as long to start.
WAIT_MS = 90_000
PASS_SECONDS = 0.03
# Without a GPU the cores that all else waits for draw the editor's canvas: a quarter of its pixels takes them
# a third of the time.
PAGE = {"device_scale_factor": 0.5}
# Of drawings of as many steps: they are not over before somebody has pressed a button on a busy machine.
LONG_STEPS, LONG_PASS_SECONDS = 60, 0.1
LORAS = (
    ServedLora("few-step", "Four steps", "a" * 64, steps=4, guidance_scale=1.0, scheduler="LCM"),
    ServedLora("ink", "In ink", "b" * 64),
)
CONTROLNETS = (ServedControlNet("canny", "c" * 64), ServedControlNet("depth", "d" * 64))
ADAPTERS = (ServedIpAdapter("plus", "e" * 64, 224), ServedIpAdapter("plain", "f" * 64, 224))


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    return GenerationFailed("the device is lost") if "break" in request.prompt and where == "step" else None


class Unhurried(FakeBackend):
    """Takes its time over long drawings, and over what shares passes with them."""

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        if any(self._rows[id][0].steps >= LONG_STEPS for id in request_ids):
            time.sleep(LONG_PASS_SECONDS - PASS_SECONDS)
        return super().step(request_ids)


# What there is to know of a page where something on it was waited for in vain.
STATES = {
    "its scripts run": "true",
    "it draws frames": "(window.asked ??= requestAnimationFrame(() => window.drawn = true)) && window.drawn",
    "it is visible": "!document.hidden",
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and page:
        said = "\n".join(f"{state}: {_is_so(page, told)}" for state, told in STATES.items())
        report.sections.append(("the page after it", said))
    return report


def _is_so(page: Page, told: str) -> bool:
    try:
        page.wait_for_function(told, polling=100, timeout=5_000)
    except Error:
        return False
    return True


# Of a module, not of the folder: tests of other folders have event loops of their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium-headless-shell)")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS, timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A drawing of 20 steps takes 0.6 s, one of 60 steps 6 s, one of 150 steps 15 s."""
    served: dict[str, Any] = {"loras": LORAS, "controlnets": CONTROLNETS, "ip_adapters": ADAPTERS}
    backend = Unhurried(pass_seconds=PASS_SECONDS, fault=fault, **served)
    with live(tmp_path_factory.mktemp("service"), backend) as server:
        yield server


@pytest.fixture(scope="session")
def address(service: Live) -> Iterator[str]:
    with page_server(service.url) as address:
        yield address


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, address: str) -> Iterator[Visit]:
    """Open the page, or another at `address`, as somebody who was never here."""
    contexts = []

    def open_page(at: str = address, **options: Any) -> Page:
        context = chromium.new_context(**{**PAGE, **options})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.goto(at)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """One for all who need nothing special: what a browser has fetched once it does not fetch again."""
    context = chromium.new_context(**PAGE)
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, address: str) -> Iterator[Page]:
    """The page, just opened, with nothing in the browser's storage."""
    page = context.new_page()
    # Emptied where no script of the page runs: one that is open writes to it as long as anything is drawn.
    page.goto(f"{address}/healthz")
    page.evaluate("localStorage.clear()")
    page.goto(address)
    yield page
    page.close()
