"""Drawing on the page, in a real Chromium."""

from __future__ import annotations

from playwright.sync_api import Page, expect


def test_a_newcomer_types_and_presses_one_key_and_has_a_picture(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a fox on a blue background")
    page.keyboard.press("Enter")
    picture = page.get_by_role("button", name="Open picture 1 of 1: a fox on a blue background")
    expect(picture).to_be_visible()
    drawn = picture.locator("img")
    assert drawn.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
