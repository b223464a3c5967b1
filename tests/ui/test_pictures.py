"""What is done with pictures on the page: taken home, read, drawn again, changed, searched, dropped in."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Locator, Page, expect

from mezzotint.imaging.metadata import read_receipt
from mezzotint.ui.service import Unreachable
from tests.ui.acts import (
    begin,
    card,
    change_picture,
    draw,
    form_value,
    number,
    open_picture,
    open_settings,
    picture_bytes,
)

A1111_TEXT = (
    "a castle at night\nNegative prompt: fog\n"
    "Steps: 33, Sampler: Euler a, CFG scale: 7.5, Seed: 4242, Size: 128x160"
)


def test_a_picture_comes_as_png_jpeg_and_webp_each_with_its_receipt(page: Page) -> None:
    draw(page, "a heron")
    panel = open_picture(page, "a heron")
    for name, format in (("PNG", "PNG"), ("JPEG", "JPEG"), ("WebP", "WEBP")):
        data = picture_bytes(page, panel.get_by_role("link", name=f"Download as {name}"))
        assert Image.open(io.BytesIO(data)).format == format
        assert read_receipt(data).prompt == "a heron"


def test_a_download_is_named_for_its_seed(page: Page) -> None:
    open_settings(page)
    page.get_by_label("Seed", exact=True).fill("77")
    draw(page, "a stork")
    panel = open_picture(page, "a stork")
    with page.expect_download() as download:
        panel.get_by_role("link", name="Download as PNG").click()
    assert download.value.suggested_filename == "plate-77.png"


def test_the_receipt_is_readable_and_whole(page: Page) -> None:
    draw(page, "a wren")
    panel = open_picture(page, "a wren")
    expect(panel.get_by_text("Seed", exact=True)).to_be_visible()
    panel.get_by_role("button", name="The whole receipt").click()
    receipt = json.loads(page.locator("#receipt textarea").input_value())
    assert receipt["prompt"] == "a wren"
    assert {"seed", "steps", "scheduler", "width", "height", "model"} <= receipt.keys()


def test_vary_draws_another_from_the_picture(page: Page) -> None:
    draw(page, "a robin")
    first = card(page, "a robin").get_attribute("data-job") or ""
    open_picture(page, "a robin").get_by_role("button", name="Vary").click()
    expect(card(page, "a robin")).not_to_have_attribute("data-job", first)
    expect(card(page, "a robin")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "a robin")
    expect(panel.get_by_text("How far from it", exact=True)).to_be_visible()
    panel.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_contain_text("It was drawn from another picture")


def paint(page: Page) -> None:
    """A stroke from the middle of the canvas."""
    canvas = page.locator("#canvas canvas").first
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 25, middle[1] + 25, steps=8)
    page.mouse.up()
    expect(page.locator("#canvas").get_by_role("button", name="Undo")).to_be_enabled()


def test_a_picture_of_ours_that_is_dropped_fills_the_form(page: Page, tmp_path: Path) -> None:
    open_settings(page)
    page.get_by_label("Seed", exact=True).fill("9007199254740993")
    draw(page, "a dove in the snow")
    panel = open_picture(page, "a dove in the snow")
    file = tmp_path / "dove.png"
    file.write_bytes(picture_bytes(page, panel.get_by_role("link", name="Download as PNG")))
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.locator("#recipe input[type=file]").set_input_files(file)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a dove in the snow")
    assert form_value(page, "Seed") == "9007199254740993"


def test_a_picture_of_a1111_that_is_dropped_fills_the_form(page: Page, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", A1111_TEXT)
    Image.new("RGB", (8, 8)).save(tmp_path / "castle.png", pnginfo=chunks)
    open_settings(page)
    page.locator("#recipe input[type=file]").set_input_files(tmp_path / "castle.png")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a castle at night")
    assert form_value(page, "Leave out") == "fog"
    assert form_value(page, "Seed") == "4242"
    assert number(page, "Steps").input_value() == "33"
    expect(page.get_by_role("radio", name="128×160")).to_be_checked()


def test_a_file_that_does_not_say_how_it_was_drawn_is_told_so(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    page.locator("#recipe input[type=file]").set_input_files(tmp_path / "plain.png")
    expect(page.get_by_role("alert")).to_contain_text("That file does not say how it was drawn.")


def test_a_file_that_is_no_picture_is_told_so_where_all_else_is(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.locator("#recipe input[type=file]").set_input_files(tmp_path / "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("That file does not say how it was drawn.")
    expect(page.locator("#recipe")).to_contain_text("Drop File Here")
    expect(page.locator("#recipe")).not_to_contain_text("Error")


def test_a_picture_goes_to_the_editor_and_is_drawn_anew_from_there(page: Page) -> None:
    draw(page, "a plover")
    change_picture(page, "a plover")
    page.get_by_label("Prompt of the changed picture").fill("a plover at dusk")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a plover at dusk")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "a plover at dusk")
    expect(panel.get_by_text("How far from it", exact=True)).to_be_visible()


def test_a_picture_grows_beyond_its_edges(page: Page) -> None:
    draw(page, "a gull")
    change_picture(page, "a gull")
    page.get_by_role("radio", name="More beyond its edges").check()
    expect(number(page, "Left")).to_be_visible()
    page.get_by_label("Prompt of the changed picture").fill("a wide gull")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a wide gull")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "a wide gull")
    assert pixels(panel.get_by_role("img", name="a wide gull")) == [192, 128]


def test_the_editors_pictures_are_sent_once_for_each_time_that_they_are_drawn_from(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/upload" in request.url else None)
    draw(page, "a skua")
    change_picture(page, "a skua")
    paint(page)
    page.get_by_label("Prompt of the changed picture").fill("a painted skua")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a painted skua")).to_have_attribute("data-state", "done")
    # The picture, the stroke and both together.
    assert len(sent) == 3
    open_picture(page, "a skua").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_role("tab", name="Draw", exact=True)).to_have_attribute("aria-selected", "true")
    draw(page, "a skua at sea")
    sent.clear()
    draw(page, "a skua at dusk")
    assert sent == []


def test_what_is_painted_over_is_redrawn(page: Page) -> None:
    draw(page, "a tern")
    change_picture(page, "a tern")
    paint(page)
    expect(page.get_by_role("radio", name="What I paint over")).to_be_checked()
    expect(number(page, "How far from it")).to_have_value("1")
    page.get_by_label("Prompt of the changed picture").fill("a painted tern")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a painted tern")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "a painted tern")
    panel.get_by_role("button", name="The whole receipt").click()
    receipt = json.loads(page.locator("#receipt textarea").input_value())
    assert receipt["mask_sha256"]


def test_a_sketch_on_the_empty_canvas_is_drawn_from(page: Page) -> None:
    page.get_by_role("tab", name="Change a picture").click()
    page.locator("#canvas").get_by_role("button", name="Brush", exact=True).click()
    for _ in range(2):
        paint(page)
    expect(page.get_by_role("radio", name="All of it")).to_be_checked()
    page.get_by_label("Prompt of the changed picture").fill("a sketched tern")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a sketched tern")).to_have_attribute("data-state", "done")


def test_a_file_that_is_no_picture_is_refused_by_the_editor(page: Page, tmp_path: Path) -> None:
    (tmp_path / "tern.png").write_bytes(b"no picture")
    page.get_by_role("tab", name="Change a picture").click()
    page.locator("#canvas input[type=file]").set_input_files(tmp_path / "tern.png")
    expect(page.get_by_role("alert")).to_contain_text("That file cannot be read as a picture.")


def test_a_picture_of_too_many_pixels_is_not_drawn_from(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(page, "a tern")
    change_picture(page, "a tern")
    # One that really has too many takes a browser long.
    monkeypatch.setattr("mezzotint.ui.editing.MAX_PIXELS", 10_000)
    page.get_by_label("Prompt of the changed picture").fill("a large tern")
    page.get_by_role("button", name="Draw from it").click()
    expect(page.get_by_role("alert")).to_contain_text("That picture has more than 10,000 pixels.")


def test_nor_is_it_after_one_that_did_not_come(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> None:
        raise Unreachable

    draw(page, "a noddy")
    panel = open_picture(page, "a noddy")
    with monkeypatch.context() as patched:
        patched.setattr("mezzotint.ui.controller.Controller.receipt", silent)
        panel.get_by_role("button", name="Change it").click()
        expect(page.get_by_role("alert")).to_contain_text("The drawing service does not answer just now.")
    page.get_by_role("tab", name="Change a picture").click()
    Image.new("RGB", (128, 128)).save(tmp_path / "noddy.png")
    page.locator("#canvas input[type=file]").set_input_files(tmp_path / "noddy.png")
    expect(page.locator("#canvas").get_by_role("button", name="Undo")).to_be_enabled()
    monkeypatch.setattr("mezzotint.ui.editing.MAX_PIXELS", 10_000)
    page.get_by_label("Prompt of the changed picture").fill("a large noddy")
    page.get_by_role("button", name="Draw from it").click()
    expect(page.get_by_role("alert")).to_contain_text("That picture has more than 10,000 pixels.")


def test_as_many_pictures_are_changed_as_are_asked_for(page: Page) -> None:
    draw(page, "a dunlin")
    change_picture(page, "a dunlin")
    number(page, "Pictures").fill("2")
    page.get_by_label("Prompt of the changed picture").fill("two dunlins")
    page.get_by_label("Prompt of the changed picture").press("Enter")
    expect(card(page, "two dunlins").get_by_role("button", name="Open picture")).to_have_count(2)


def test_what_was_just_asked_for_is_seen_whatever_was_searched_for(page: Page) -> None:
    draw(page, "a black swan")
    page.get_by_label("Search your drawings").fill("swan")
    expect(card(page, "a black swan")).to_be_visible()
    draw(page, "a grebe")
    expect(page.get_by_label("Search your drawings")).to_have_value("")
    expect(card(page, "a grebe")).to_be_visible()


def test_a_picture_that_is_removed_is_closed(page: Page) -> None:
    draw(page, "a knot")
    panel = open_picture(page, "a knot")
    card(page, "a knot").get_by_role("button", name="Remove").click()
    expect(panel).to_be_hidden()


def test_history_is_there_on_the_next_visit_and_is_searched_and_forgotten(page: Page) -> None:
    draw(page, "a black swan")
    draw(page, "a white swan")
    page.reload()
    expect(card(page, "a black swan")).to_be_visible()
    page.get_by_label("Search your drawings").fill("swan white")
    expect(page.locator("li.mz-drawing")).to_have_count(1)
    expect(card(page, "a white swan")).to_be_visible()
    page.get_by_label("Search your drawings").fill("")
    expect(page.locator("li.mz-drawing")).to_have_count(2)
    card(page, "a white swan").get_by_role("button", name="Remove").click()
    expect(page.locator("li.mz-drawing")).to_have_count(1)
    page.reload()
    expect(card(page, "a black swan")).to_be_visible()
    expect(page.locator("li.mz-drawing")).to_have_count(1)


def test_the_last_seed_is_the_newest_drawings_whatever_is_searched_for(page: Page) -> None:
    open_settings(page)
    page.get_by_role("button", name="Reuse the last seed").click()
    expect(page.get_by_role("alert")).to_have_text("There is no drawing yet whose seed could be reused.")
    for prompt, seed in (("a black swan", "41"), ("a white swan", "42")):
        page.get_by_label("Seed", exact=True).fill(seed)
        draw(page, prompt)
    page.get_by_label("Search your drawings").fill("black")
    expect(page.locator("li.mz-drawing")).to_have_count(1)
    page.get_by_label("Seed", exact=True).fill("")
    page.get_by_role("button", name="Reuse the last seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("42")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_brackets_weigh_words_once_that_is_chosen_and_after_a_reload(page: Page) -> None:
    open_settings(page)
    draw(page, "a (heron)")
    expect(open_picture(page, "a (heron)")).not_to_contain_text("as in A1111")
    page.get_by_label("Brackets weigh words").check()
    page.reload()
    open_settings(page)
    weigh = page.get_by_label("Brackets weigh words")
    expect(weigh).to_be_checked()
    draw(page, "a (stork:1.3)")
    panel = open_picture(page, "a (stork:1.3)")
    expect(panel).to_contain_text("as in A1111")
    open_picture(page, "a (heron)").get_by_role("button", name="Use these settings").click()
    expect(weigh).not_to_be_checked()
    open_picture(page, "a (stork:1.3)").get_by_role("button", name="Use these settings").click()
    expect(weigh).to_be_checked()
    draw(page, "a crow")
    open_picture(page, "a crow").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a crow")
    expect(weigh).to_be_checked()
    weigh.uncheck()
    change_picture(page, "a (stork:1.3)")
    expect(weigh).to_be_checked()
    page.get_by_role("tab", name="Draw", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill("a (crane:99)")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_text("Prompt: 'crane' weighs 99; accepted is -10…10.")).to_be_visible()


def pixels(picture: Locator) -> list[int]:
    """Width and height of the file that it shows."""
    measured = picture.evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    return list(measured)


def test_a_second_stage_draws_larger_after_a_reload_too_and_again_from_the_pictures_settings(
    page: Page,
) -> None:
    open_settings(page)
    draw(page, "a bustard")
    page.get_by_role("radio", name="1.5×", exact=True).check()
    page.get_by_role("radio", name="Wide 160×96").check()
    page.reload()
    open_settings(page)
    expect(page.get_by_role("radio", name="1.5×", exact=True)).to_be_checked()
    drawing = draw(page, "a bittern")
    assert drawing.locator(".mz-thumbnail").evaluate("each => each.style.aspectRatio") == "240 / 144"
    panel = open_picture(page, "a bittern")
    assert pixels(panel.get_by_role("img", name="a bittern")) == [240, 144]
    expect(panel).to_contain_text(re.compile(r"1\.5×, strength 0\.\d+, 20 steps, from 160×96"))
    first = picture_bytes(page, panel.get_by_role("link", name="PNG"))
    open_picture(page, "a bustard").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_role("radio", name="Off", exact=True)).to_be_checked()
    open_picture(page, "a bittern").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_role("radio", name="1.5×, strength")).to_be_checked()
    job = drawing.get_attribute("data-job") or ""
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(card(page, "a bittern")).not_to_have_attribute("data-job", job)
    expect(card(page, "a bittern")).to_have_attribute("data-state", "done")
    again = picture_bytes(page, open_picture(page, "a bittern").get_by_role("link", name="PNG"))
    assert first == again


def test_a_picture_of_two_stages_is_changed_and_varied_at_its_own_size(page: Page) -> None:
    open_settings(page)
    page.get_by_role("radio", name="1.5×", exact=True).check()
    draw(page, "an egret")
    change_picture(page, "an egret")
    page.get_by_label("Prompt of the changed picture").fill("a changed egret")
    page.get_by_role("button", name="Draw from it").click()
    expect(card(page, "a changed egret")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "a changed egret")
    assert pixels(panel.get_by_role("img", name="a changed egret")) == [192, 192]
    expect(panel).not_to_contain_text("Second stage")
    job = card(page, "an egret").get_attribute("data-job") or ""
    open_picture(page, "an egret").get_by_role("button", name="Vary").click()
    expect(card(page, "an egret")).not_to_have_attribute("data-job", job)
    expect(card(page, "an egret")).to_have_attribute("data-state", "done")
    panel = open_picture(page, "an egret")
    assert pixels(panel.get_by_role("img", name="an egret")) == [192, 192]


def test_another_browser_sees_none_of_it(page: Page, visit: object) -> None:
    begin(page, "a secret owl")
    other = visit()  # type: ignore[operator]
    expect(other.get_by_text("Nothing yet.")).to_be_visible()
    expect(other.locator("li.mz-drawing")).to_have_count(0)


def test_a_lora_of_few_steps_brings_its_settings_and_takes_them_away(page: Page) -> None:
    open_settings(page)
    loras = page.get_by_label("LoRAs")
    steps = number(page, "Steps")
    expect(steps).to_have_value("20")
    loras.click()
    page.get_by_role("option", name="Four steps").click()
    expect(steps).to_have_value("4")
    draw(page, "a wren")
    panel = open_picture(page, "a wren")
    panel.get_by_role("button", name="The whole receipt").click()
    expect(page.locator("#receipt textarea")).to_have_value(re.compile('"name": "few-step"'))
    expect(panel).to_contain_text("LCM")
    loras.click()
    loras.press("Backspace")
    loras.press("Tab")
    expect(steps).to_have_value("20")
    panel.get_by_role("button", name="Use these settings").click()
    expect(steps).to_have_value("4")


def test_a_lora_of_few_steps_brings_what_was_not_touched(page: Page) -> None:
    # The first news fills the form.
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    open_settings(page)
    number(page, "Steps").fill("30")
    page.get_by_label("LoRAs").click()
    page.get_by_role("option", name="Four steps").click()
    expect(number(page, "Guidance")).to_have_value("1")
    expect(page.get_by_label("Scheduler")).to_have_value("LCM")
    assert number(page, "Steps").input_value() == "30"
