"""Drawing on the page, in a real Chromium."""

from __future__ import annotations

import time

from playwright.sync_api import Page, expect

from tests.api.live import Live
from tests.ui.acts import begin, card, draw, number, open_picture, open_settings, percent, picture_bytes
from tests.ui.conftest import Visit

WAIT_SECONDS = 90.0


def long_drawing(page: Page) -> None:
    """Have the next drawings take 15 s: a browser that was held up for some of them is still in time."""
    open_settings(page)
    number(page, "Steps").fill("150")


def test_a_newcomer_types_and_presses_one_key_and_has_a_picture(visit: Visit) -> None:
    page = visit()
    # The prompt has the focus already.
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a fox on a blue background")
    page.keyboard.press("Enter")
    picture = page.get_by_role("button", name="Open picture 1 of 1: a fox on a blue background")
    expect(picture).to_be_visible()
    width = picture.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width == 128


def test_progress_moves_forward_and_previews_come_before_the_picture(page: Page) -> None:
    long_drawing(page)
    drawing = begin(page, "a slow owl")
    seen, previewed = [percent(drawing)], False
    deadline = time.monotonic() + WAIT_SECONDS
    while drawing.get_attribute("data-state") != "done" and time.monotonic() < deadline:
        seen.append(percent(drawing))
        previewed = previewed or drawing.locator(".mz-preview img").count() > 0
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 100}) >= 5
    assert previewed


def test_a_cancelled_drawing_stops_and_frees_its_place(page: Page, service: Live) -> None:
    long_drawing(page)
    drawing = begin(page, "an endless owl")
    expect(drawing.get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", "0")
    drawing.get_by_role("button", name="Cancel").click()
    expect(drawing).to_have_attribute("data-state", "cancelled")
    expect(drawing).to_contain_text("Cancelled.")
    deadline = time.monotonic() + WAIT_SECONDS
    while service.backend.held and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.backend.held == 0


def test_a_reload_midway_finds_the_drawing_and_it_goes_on(page: Page) -> None:
    long_drawing(page)
    drawing = begin(page, "a patient owl")
    expect(drawing.get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", "0")
    before, job = percent(drawing), drawing.get_attribute("data-job")
    page.reload()
    found = card(page, "a patient owl")
    expect(found).to_be_visible()
    assert found.get_attribute("data-job") == job
    expect(found).to_have_attribute("data-state", "done")
    assert before < 100


def test_a_drawing_is_found_though_the_page_was_reloaded_at_once(page: Page) -> None:
    begin(page, "a hasty owl")
    page.reload()
    expect(card(page, "a hasty owl")).to_have_attribute("data-state", "done")


def test_several_drawings_go_on_at_once(page: Page) -> None:
    long_drawing(page)
    drawings = [begin(page, f"owl number {number}") for number in ("one", "two", "three")]
    deadline = time.monotonic() + WAIT_SECONDS
    together = 0
    while together < 3 and time.monotonic() < deadline:
        together = max(together, page.locator("li.mz-drawing [role=progressbar]").count())
    assert together == 3
    for drawing in drawings:
        expect(drawing).to_have_attribute("data-state", "done")


def test_a_seed_that_is_reused_draws_the_same_bytes(page: Page) -> None:
    draw(page, "a red kite")
    panel = open_picture(page, "a red kite")
    first = picture_bytes(page, panel.get_by_role("link", name="PNG"))
    job = card(page, "a red kite").get_attribute("data-job")
    panel.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_text("The settings of the picture are in the form.")).to_be_visible()
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(card(page, "a red kite")).not_to_have_attribute("data-job", job or "")
    expect(card(page, "a red kite")).to_have_attribute("data-state", "done")
    again = picture_bytes(page, open_picture(page, "a red kite").get_by_role("link", name="PNG"))
    assert first == again


def test_without_a_seed_the_next_picture_is_another(page: Page) -> None:
    draw(page, "a kite")
    first = card(page, "a kite").get_attribute("data-job") or ""
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(card(page, "a kite")).not_to_have_attribute("data-job", first)
    expect(card(page, "a kite")).to_have_attribute("data-state", "done")
    links = page.locator("li.mz-drawing img")
    expect(links).to_have_count(2)
    assert picture_bytes(page, links.nth(0)) != picture_bytes(page, links.nth(1))


def test_four_pictures_come_of_one_request(page: Page) -> None:
    number(page, "Pictures").fill("4")
    drawing = draw(page, "four foxes")
    expect(drawing.get_by_role("button", name="Open picture")).to_have_count(4)
