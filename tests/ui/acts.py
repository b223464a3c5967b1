"""What people do on the page, by what they see of it: labels, buttons, roles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from playwright.sync_api import Error, Locator, Page, Route, expect

__all__ = [
    "ASKING",
    "FRAMES",
    "answered_late",
    "begin",
    "card",
    "change_picture",
    "draw",
    "form_value",
    "number",
    "open_picture",
    "open_settings",
    "percent",
    "picture_bytes",
    "reload_once_back",
]

FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
# What the page asks its server when something is pressed, typed or given.
ASKING = re.compile("/gradio_api/(run|queue/join)")
PERCENT = "card => card.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow') ?? '100'"


def begin(page: Page, prompt: str) -> Locator:
    """Type and press Enter; the drawing's card, once the service has taken it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Prompt", exact=True).press("Enter")
    found = card(page, prompt)
    expect(found).to_be_visible()
    expect(found).not_to_have_attribute("data-state", "asked")
    return found


def draw(page: Page, prompt: str) -> Locator:
    """As `begin`, to its end."""
    found = begin(page, prompt)
    expect(found).to_have_attribute("data-state", "done")
    return found


def card(page: Page, prompt: str) -> Locator:
    """The newest drawing of this prompt."""
    return page.locator("li.mz-drawing").filter(has_text=prompt).first


def percent(drawing: Locator) -> int:
    """How far its bar is; 100 without one."""
    return int(drawing.evaluate(PERCENT))


def open_picture(page: Page, prompt: str) -> Locator:
    """Open its first picture; the panel that shows it."""
    drawing, panel = card(page, prompt), page.locator("#opened")
    drawing.get_by_role("button", name="Open picture 1").click()
    job = drawing.get_attribute("data-job")
    expect(panel.locator(f"img[src*='{job}']")).to_be_visible()
    return panel


def change_picture(page: Page, prompt: str) -> None:
    """Send its first picture to the editor, and wait until it lies there."""
    open_picture(page, prompt).get_by_role("button", name="Change it").click()
    expect(page.locator("#canvas").get_by_role("button", name="Undo")).to_be_enabled()
    expect(page.get_by_label("Prompt of the changed picture")).to_have_value(prompt)


def picture_bytes(page: Page, link: Locator) -> bytes:
    """What a link of the page leads to."""
    where = link.evaluate("link => link.href || link.src")
    return bytes(page.request.get(where).body())


def open_settings(page: Page) -> None:
    """Once the first news has come, which fills the settings with the service's own."""
    expect(page.locator("#size input").first).to_be_attached()
    if not page.get_by_label("Seed", exact=True).is_visible():
        page.get_by_role("button", name=re.compile("^Settings")).click()
    expect(page.get_by_label("Seed", exact=True)).to_be_visible()
    # A frame after Gradio has unfolded it, it sets the widgets to what they were last told while folded away.
    page.evaluate(FRAMES)


@contextmanager
def answered_late(page: Page, act: Callable[[], None]) -> Iterator[None]:
    """After `act`, which asks the page's server: what is asked is answered at the end of the block."""
    held, is_over = list[Route](), False
    page.route(ASKING, lambda route: route.continue_() if is_over else held.append(route))
    with page.expect_request(ASKING):
        act()
    yield
    is_over = True
    for route in held:
        route.continue_()
    for route in held:
        response = route.request.response()
        assert response is not None
        response.finished()
    page.evaluate(FRAMES)


def reload_once_back(page: Page) -> None:
    """A new document, now that the page's server answers again.

    Gradio makes one by itself where a stream was open when the connection broke. That may come at any moment,
    between a question to the old document and its answer too.
    """
    with suppress(Error):
        page.evaluate("window.isOld && location.reload()")
    page.wait_for_function("!window.isOld")


def number(page: Page, label: str) -> Locator:
    """The field beside a slider."""
    return page.get_by_role("spinbutton", name=f"number input for {label}")


def form_value(page: Page, label: str) -> Any:
    return page.get_by_label(label, exact=True).first.input_value()
