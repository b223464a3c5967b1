"""What somebody does before an answer has come: it takes none of it back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from mezzotint.ui.controller import Controller
from tests.ui.acts import (
    ASKING,
    FRAMES,
    answered_late,
    card,
    change_picture,
    draw,
    number,
    open_picture,
    open_settings,
)
from tests.ui.conftest import Visit
from tests.waiting import WAIT_SECONDS


def test_what_is_typed_before_a_loras_settings_come_stays(page: Page) -> None:
    open_settings(page)
    page.get_by_label("LoRAs").click()
    with answered_late(page, page.get_by_role("option", name="Four steps").click):
        number(page, "Steps").fill("30")
    expect(number(page, "Guidance")).to_have_value("1")
    expect(page.get_by_label("Scheduler")).to_have_value("LCM")
    expect(number(page, "Steps")).to_have_value("30")


def test_what_is_searched_for_while_a_drawing_is_asked_for_stays(page: Page) -> None:
    draw(page, "a fox")
    page.get_by_label("Search your drawings").fill("wolf")
    expect(page.locator("li.mz-drawing")).to_have_count(0)
    page.get_by_label("Prompt", exact=True).fill("an owl")
    with answered_late(page, lambda: page.get_by_label("Prompt", exact=True).press("Enter")):
        page.get_by_label("Search your drawings").fill("fox")
    expect(card(page, "a fox")).to_be_visible()
    expect(page.get_by_label("Search your drawings")).to_have_value("fox")


def test_what_the_browser_knows_itself_waits_for_no_answer(page: Page) -> None:
    open_settings(page)
    page.get_by_label("Seed", exact=True).fill("7")
    draw(page, "a ruff")
    change_picture(page, "a ruff")
    page.route(ASKING, lambda _: None)
    page.get_by_role("radio", name="More beyond its edges").check()
    expect(number(page, "Left")).to_be_visible()
    expect(number(page, "How far from it")).to_have_value("1")
    page.get_by_role("button", name="Random seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("")
    page.get_by_role("button", name="Reuse the last seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
    page.locator("#opened").get_by_role("button", name="Close").click()
    expect(page.locator("#opened")).to_be_hidden()


def test_of_two_pictures_the_one_pressed_last_is_open(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = draw(page, "a slow snipe").get_attribute("data-job") or ""
    quick = draw(page, "a quick snipe").get_attribute("data-job") or ""
    is_told, receipt = threading.Event(), Controller.receipt

    async def receipt_late(controller: Controller, browser: Any, id: str, n: int) -> dict[str, Any]:
        if id == slow:
            await asyncio.to_thread(is_told.wait, WAIT_SECONDS)
        return await receipt(controller, browser, id, n)

    monkeypatch.setattr(Controller, "receipt", receipt_late)
    with page.expect_request(ASKING) as asked:
        card(page, "a slow snipe").get_by_role("button", name="Open picture 1").click()
    open_picture(page, "a quick snipe")
    is_told.set()
    response = asked.value.response()
    assert response is not None
    response.finished()
    page.evaluate(FRAMES)
    expect(page.locator(f"#opened img[src*='{quick}']")).to_be_visible()


def test_a_picture_is_opened_though_the_list_moves_while_it_is_pressed(page: Page) -> None:
    job = draw(page, "a pressed rail").get_attribute("data-job")
    card(page, "a pressed rail").get_by_role("button", name="Open picture 1").hover()
    page.mouse.down()
    draw(page, "a new rail")
    page.mouse.up()
    expect(page.locator("#opened img")).to_be_visible()
    expect(page.locator(f"#opened img[src*='{job}']")).to_be_visible()


def test_a_finger_that_stops_the_page_presses_nothing_and_one_that_taps_presses_what_was_under_it(
    visit: Visit,
) -> None:
    page = visit(has_touch=True)
    draw(page, "a still smew")
    remove = card(page, "a still smew").get_by_role("button", name="Remove")
    # What a page is told where it was moving: that a finger was there, and of no click.
    remove.evaluate(
        "it => { for (const kind of ['pointerdown', 'pointerup'])"
        " it.dispatchEvent(new PointerEvent(kind, {pointerType: 'touch', bubbles: true})); }"
    )
    draw(page, "a hidden smew")
    expect(card(page, "a still smew")).to_be_visible()
    remove.scroll_into_view_if_needed()
    box = remove.bounding_box()
    assert box is not None
    finger = page.context.new_cdp_session(page)
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    draw(page, "a passing smew")
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(card(page, "a still smew")).to_have_count(0)
    expect(page.locator("li.mz-drawing")).to_have_count(2)


def test_a_button_is_pressed_by_an_unsteady_hand_and_by_a_program_after_it(page: Page) -> None:
    draw(page, "a ruddy rail")
    draw(page, "a water rail")
    remove = card(page, "a ruddy rail").get_by_role("button", name="Remove")
    box = remove.bounding_box()
    assert box is not None
    assert box["width"] > 30
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 3)
    page.mouse.up()
    expect(card(page, "a ruddy rail")).to_have_count(0)
    # A second after the pointer, from which it could not be told apart before.
    page.wait_for_function(
        "since => performance.now() > since + 1_100", arg=page.evaluate("performance.now()")
    )
    remove = card(page, "a water rail").get_by_role("button", name="Remove")
    remove.evaluate("it => it.dispatchEvent(new MouseEvent('click', {bubbles: true, detail: 1}))")
    expect(card(page, "a water rail")).to_have_count(0)
