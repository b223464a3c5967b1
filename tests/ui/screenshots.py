"""`python -m tests.ui.screenshots` makes the pictures for docs/ui.md: a real server, demo, Chromium."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.servers import Server
from tests.ui.acts import begin, draw, number, open_picture, open_settings
from tests.ui.chromium import ARGUMENTS, PROGRAM
from tests.ui.people import WAIT_MS

FOLDER = Path(__file__).parents[2] / "docs" / "images"
COLOURS = 160
PROMPTS = (
    "a fox on a blue background",
    "a crab by the sea",
    "an alarm clock on teal",
    "a koala and a rocket on green",
)


def main() -> None:
    expect.set_options(timeout=WAIT_MS)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["MEZZOTINT_HOME"] = folder
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        with Server(Path(folder), "--model", "demo", page=True) as server:
            address = server.wait_for_page()
            wide = opened(browser, address, 1280, 800)
            number(wide, "Pictures").fill("4")
            draw(wide, "a fox on a blue background")
            number(wide, "Pictures").fill("1")
            for prompt in PROMPTS[1:]:
                draw(wide, prompt)
            under_way(wide, "page.png")
            narrow = opened(browser, address, 390, 844)
            for prompt in PROMPTS[:2]:
                draw(narrow, prompt)
            under_way(narrow, "page-narrow.png", full_page=True)
            # As high as the opened picture: it is brought into view whole.
            dark = opened(browser, address, 1280, 860, dark=True)
            for prompt in PROMPTS[:3]:
                draw(dark, prompt)
            open_picture(dark, PROMPTS[0])
            settle(dark)
            shoot(dark, "page-dark.png")
        browser.close()


def opened(browser: Browser, address: str, width: int, height: int, *, dark: bool = False) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page.goto(address)
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    return page


def under_way(page: Page, name: str, *, full_page: bool = False) -> None:
    """A picture of the page while it draws a slow one."""
    open_settings(page)
    number(page, "Steps").fill("60")
    page.get_by_role("button", name="Settings").first.click()
    drawing = begin(page, "a rocket on a yellow background")
    expect(drawing.locator(".mz-preview img")).to_be_visible()
    settle(page)
    shoot(page, name, full_page=full_page)
    expect(drawing).to_have_attribute("data-state", "done")


def shoot(page: Page, name: str, *, full_page: bool = False) -> None:
    """With so many colours that a page of documents stays light."""
    taken = page.screenshot(full_page=full_page)
    with Image.open(io.BytesIO(taken)) as picture:
        picture.convert("RGB").quantize(COLOURS).save(FOLDER / name, optimize=True)


def settle(page: Page) -> None:
    """Until every picture on it is decoded."""
    page.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")


if __name__ == "__main__":
    main()
