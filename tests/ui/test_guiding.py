"""Pictures that a drawing follows or reads: given, drawn with, brought back, taken away."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from mezzotint.backends.fake import FakeBackend
from tests.api.live import live
from tests.controlnets import lines, photo
from tests.ui.acts import (
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
from tests.ui.serving import page_server


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    file = tmp_path / "wide.png"
    Image.fromarray(photo(0, 320, 192)).save(file)
    return file


def open_guiding(page: Page) -> None:
    unfold(page, "Guiding picture", "#followed")


def open_image_prompt(page: Page) -> None:
    unfold(page, "Image prompt", "#read")


def unfold(page: Page, title: str, within: str) -> None:
    if not page.locator(within).is_visible():
        # It is there once the first news has come.
        page.get_by_role("button", name=re.compile(f"^{title}")).click()
    expect(page.locator(within)).to_be_visible()
    # As with the settings.
    page.evaluate(FRAMES)


def net(page: Page, name: str) -> Locator:
    return page.locator("#guide").get_by_role("radio", name=name)


def give(page: Page, file: Path) -> None:
    open_guiding(page)
    page.locator("#followed input[type=file]").set_input_files(file)
    expect(page.get_by_alt_text("The picture to follow")).to_be_visible()


def follow(page: Page, file: Path) -> None:
    """Give it, and wait for the ControlNet that the page then chooses, in place of one clicked meanwhile."""
    give(page, file)
    expect(net(page, "Off")).not_to_be_checked()


def remove(page: Page) -> None:
    page.locator("#followed").get_by_role("button", name="Remove Image").click()
    expect(net(page, "Off")).to_be_checked()


def receipt_of(page: Page, prompt: str) -> dict[str, Any]:
    """Of the drawing's first picture."""
    panel = open_picture(page, prompt)
    if not page.locator("#receipt").is_visible():
        panel.get_by_role("button", name="The whole receipt").click()
    receipt = page.locator("#receipt textarea")
    expect(receipt).to_have_value(re.compile(re.escape(json.dumps(prompt))))
    told: dict[str, Any] = json.loads(receipt.input_value())
    return told


def controls(page: Page, prompt: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = receipt_of(page, prompt)["controls"]
    return told


def test_a_picture_is_followed_in_its_shape_and_its_settings_ask_for_it_again(page: Page, wide: Path) -> None:
    follow(page, wide)
    expect(net(page, "canny")).to_be_checked()
    expect(page.get_by_role("radio", name="Wide 160×96")).to_be_checked()
    number(page, "Guide strength").fill("0.8")
    number(page, "Guide until").fill("0.6")
    draw(page, "a lapwing")
    [told] = controls(page, "a lapwing")
    of_lapwing = {"name": "canny", "preprocessor": "canny", "scale": 0.8, "start": 0.0, "end": 0.6}
    assert told.items() >= of_lapwing.items()
    panel = page.locator("#opened")
    expect(panel).to_contain_text("its edges, strength 0.8, from 0 until 0.6")
    remove(page)
    draw(page, "a free lapwing")
    assert controls(page, "a free lapwing") == []
    number(page, "Guide strength").fill("2")
    open_picture(page, "a lapwing").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_contain_text("give it again under Guiding picture")
    expect(net(page, "canny")).to_be_checked()
    expect(number(page, "Guide strength")).to_have_value("0.8")
    # Not without it, now or after a reload, which keeps no picture.
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Choose the picture to follow under Guiding picture")
    page.reload()
    open_guiding(page)
    expect(net(page, "canny")).to_be_checked()
    page.get_by_role("radio", name="Square 128×128").check()
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Choose the picture to follow under Guiding picture")
    follow(page, wide)
    # The settings said which shape.
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    draw(page, "a square lapwing")
    [told] = controls(page, "a square lapwing")
    assert told.items() >= of_lapwing.items()


def test_lines_are_drawn_from_without_a_word_and_in_two_stages(page: Page, tmp_path: Path) -> None:
    Image.fromarray(lines(0, 128, 128)).save(tmp_path / "lines.png")
    follow(page, tmp_path / "lines.png")
    page.get_by_role("radio", name="The picture as it is").check()
    open_settings(page)
    page.get_by_role("radio", name="1.5×", exact=True).check()
    page.get_by_label("Prompt", exact=True).press("Enter")
    drawing = card(page, "From a picture alone")
    expect(drawing).to_have_attribute("data-state", "done")
    drawing.get_by_role("button", name="Open picture 1").click()
    panel = page.locator("#opened")
    expect(panel).to_contain_text("192×192")
    expect(panel).to_contain_text("the picture as it is, strength 1")
    panel.get_by_role("button", name="Vary").click()
    expect(page.locator("li.mz-drawing")).to_have_count(2)
    expect(page.locator("#notice")).to_be_hidden()


def test_a_picture_is_changed_along_another(page: Page, wide: Path) -> None:
    draw(page, "a godwit")
    follow(page, wide)
    net(page, "depth").check()
    # What reads depths has no use for edges.
    expect(page.get_by_role("radio", name="The picture as it is")).to_be_checked()
    open_image_prompt(page)
    give_to_read(page, wide)
    expect(adapter(page, "plus")).to_be_checked()
    change_picture(page, "a godwit")
    page.get_by_label("Prompt of the changed picture").fill("a changed godwit")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a changed godwit")).to_have_attribute("data-state", "done")
    receipt = receipt_of(page, "a changed godwit")
    [told] = receipt["controls"]
    assert (told["name"], told["preprocessor"]) == ("depth", "none")
    assert [each["name"] for each in receipt["image_prompts"]] == ["plus"]
    expect(page.locator("#opened").get_by_text("How far from it", exact=True)).to_be_visible()


def test_a_controlnet_that_is_chosen_before_the_answer_to_the_picture_stays(page: Page, wide: Path) -> None:
    open_guiding(page)
    with answered_late(page, lambda: page.locator("#followed input[type=file]").set_input_files(wide)):
        net(page, "depth").check()
    draw(page, "a hasty godwit")
    [told] = controls(page, "a hasty godwit")
    assert (told["name"], told["preprocessor"]) == ("depth", "none")


def test_nor_is_one_turned_on_for_a_picture_that_was_taken_away_before_the_answer(
    page: Page, wide: Path
) -> None:
    open_guiding(page)
    with answered_late(page, lambda: page.locator("#followed input[type=file]").set_input_files(wide)):
        page.get_by_role("button", name="Remove Image").click()
    expect(net(page, "Off")).to_be_checked()


def test_of_two_controlnets_the_one_chosen_last_says_what_is_read(page: Page) -> None:
    open_guiding(page)
    with answered_late(page, lambda: net(page, "depth").check()):
        net(page, "canny").check()
    expect(page.get_by_role("radio", name="Its edges")).to_be_checked()


@pytest.mark.parametrize("name", ["broken.png", "notes.txt"])
def test_a_file_that_is_no_picture_is_refused_and_not_followed(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture")
    open_guiding(page)
    page.locator("#followed input[type=file]").set_input_files(tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text("That file cannot be read as a picture.")
    expect(net(page, "Off")).to_be_checked()


def test_a_picture_that_is_too_large_or_not_kept_any_more_is_not_drawn_with(
    page: Page, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("mezzotint.ui.editing.MAX_PIXELS", 10_000)
        give(page, wide)
        expect(page.get_by_role("alert")).to_contain_text("That picture has more than 10,000 pixels.")
        expect(net(page, "Off")).to_be_checked()
    remove(page)
    follow(page, wide)
    expect(net(page, "canny")).to_be_checked()
    source = page.get_by_alt_text("The picture to follow").get_attribute("src") or ""
    Path(source.partition("file=")[2]).unlink()
    page.get_by_label("Prompt", exact=True).fill("a dotterel")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The guiding picture is not kept any more.")


def adapter(page: Page, name: str) -> Locator:
    return page.locator("#adapter").get_by_role("radio", name=name, exact=True)


def give_to_read(page: Page, file: Path) -> None:
    page.locator("#read input[type=file]").set_input_files(file)
    expect(page.get_by_alt_text("The picture to read")).to_be_visible()


def test_a_picture_is_read_beside_another_that_is_followed_and_comes_back(page: Page, wide: Path) -> None:
    follow(page, wide)
    open_image_prompt(page)
    give_to_read(page, wide)
    expect(adapter(page, "plus")).to_be_checked()
    adapter(page, "plain").check()
    number(page, "Image prompt strength").fill("0.6")
    draw(page, "a knot")
    told = receipt_of(page, "a knot")
    assert [each["name"] for each in told["controls"]] == ["canny"]
    [read] = told["image_prompts"]
    assert (read["name"], read["scale"]) == ("plain", 0.6)
    remove(page)
    page.locator("#read").get_by_role("button", name="Remove Image").click()
    expect(adapter(page, "Off")).to_be_checked()
    draw(page, "a free knot")
    assert receipt_of(page, "a free knot")["image_prompts"] == []
    open_picture(page, "a knot").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_contain_text("give it again under Image prompt")
    expect(adapter(page, "plain")).to_be_checked()
    net(page, "Off").check()
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Choose the picture to read under Image prompt")
    # The tab keeps the choice and no picture.
    page.reload()
    open_image_prompt(page)
    expect(adapter(page, "plain")).to_be_checked()
    give_to_read(page, wide)
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(card(page, "From a picture alone")).to_have_attribute("data-state", "done")


def test_an_ip_adapter_that_is_chosen_before_the_answer_to_the_picture_stays(page: Page, wide: Path) -> None:
    open_image_prompt(page)
    with answered_late(page, lambda: give_to_read(page, wide)):
        adapter(page, "plain").check()
    expect(adapter(page, "plain")).to_be_checked()


@pytest.mark.parametrize("name", ["broken.png", "notes.txt"])
def test_a_file_that_is_no_picture_is_not_read(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture")
    open_image_prompt(page)
    page.locator("#read input[type=file]").set_input_files(tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text("That file cannot be read as a picture.")
    expect(adapter(page, "Off")).to_be_checked()


def test_where_the_service_has_no_controlnets_nothing_is_said_of_them(visit: Visit, tmp_path: Path) -> None:
    with live(tmp_path, FakeBackend()) as service, page_server(service.url) as address:
        page = visit(address)
        open_settings(page)
        expect(page.locator("#guiding")).to_be_hidden()
        expect(page.locator("#image-prompt")).to_be_hidden()
        draw(page, "a free knot")
