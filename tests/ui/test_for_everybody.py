"""That the page can be used by keyboard, by ear, on a phone, in the dark; and that it keeps to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Request, expect

from tests.ui.acts import begin, card, draw, number, open_picture, open_settings
from tests.ui.conftest import Visit

GRAVE = {"serious", "critical"}
# Whether what has the focus, or the label round it, has an outline, and what it is.
FOCUSED = """() => {
  const it = document.activeElement;
  const marked = [it, it.closest('label')].some(e => e && parseFloat(getComputedStyle(e).outlineWidth) >= 2
    && getComputedStyle(e).outlineStyle !== 'none');
  return [marked || it === document.body, it.outerHTML.slice(0, 120)];
}"""
BEGINS_AT_THE_RIGHT = """text => {
  const first = document.createRange();
  first.setStart(text.firstChild, 0);
  first.setEnd(text.firstChild, 1);
  return Math.abs(first.getBoundingClientRect().right - text.getBoundingClientRect().right) < 3;
}"""
LIMIT_SECONDS = 60.0
PHONE = {"viewport": {"width": 360, "height": 740}}


def faults(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]}"
        for each in found
        if each["impact"] in GRAVE
        for node in each["nodes"]
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark"}, PHONE],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_no_serious_fault_in_any_of_its_states(
    visit: Visit, options: dict[str, Any], tmp_path: Path
) -> None:
    page = visit(**options)
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    assert faults(page) == []
    open_settings(page)
    page.get_by_role("button", name="Guiding picture").first.click()
    page.get_by_role("button", name="Image prompt").first.click()
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    page.locator("#followed input[type=file]").set_input_files(tmp_path / "black.png")
    expect(page.get_by_alt_text("The picture to follow")).to_be_visible()
    draw(page, "a heron")
    number(page, "Steps").fill("60")
    begin(page, "an owl that takes its time")
    open_picture(page, "a heron")
    page.get_by_role("button", name="The whole receipt").click()
    assert faults(page) == []
    page.get_by_role("tab", name="Change a picture").click()
    expect(page.get_by_role("button", name="Draw from it")).to_be_visible()
    page.get_by_role("button", name="Draw from it").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert faults(page) == []


def test_everything_can_be_done_without_a_mouse(page: Page) -> None:
    open_settings(page)
    number(page, "Steps").fill("140")
    drawing = begin(page, "an owl by keyboard")
    cancel = drawing.get_by_role("button", name="Cancel: an owl by keyboard")
    cancel.focus()
    # News of its progress must not take the focus away.
    expect(drawing.get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", "0")
    expect(cancel).to_be_focused()
    page.keyboard.press("Enter")
    expect(drawing).to_have_attribute("data-state", "cancelled")


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_what_was_just_answered_is_in_view_and_the_focus_finds_its_way_back(
    visit: Visit, options: dict[str, Any]
) -> None:
    page = visit(**options)
    # The first news fills the form, which moves all that stands below it.
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    number(page, "Pictures").fill("9")
    prompt = page.get_by_label("Prompt", exact=True)
    for number_of_owls in ("one", "two", "three", "four", "five"):
        drawing = begin(page, f"owl {number_of_owls}")
        expect(drawing).to_be_in_viewport()
        expect(prompt).to_be_focused()
        expect(drawing).to_have_attribute("data-state", "done")
    thumbnail = card(page, "owl one").get_by_role("button", name="Open picture 1 ")
    panel = open_picture(page, "owl one")
    expect(panel.get_by_role("img")).to_be_in_viewport(ratio=0.9)
    expect(panel.locator("figure")).to_be_focused()
    panel.get_by_role("button", name="Close").click()
    expect(thumbnail).to_be_focused()
    expect(thumbnail).to_be_in_viewport()
    thumbnail.click()
    panel.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#notice")).to_contain_text("in the form")
    expect(page.locator("#notice")).to_be_in_viewport(ratio=0.9)
    thumbnail.click()
    panel.get_by_role("button", name="Change it").click()
    expect(page.locator("#notice")).to_contain_text("in the editor")
    expect(page.locator("#canvas")).to_be_in_viewport(ratio=0.9)


def test_one_key_removes_one_drawing(page: Page) -> None:
    for prompt in ("owl one", "owl two", "owl three"):
        draw(page, prompt)
    card(page, "owl three").get_by_role("button", name="Remove").focus()
    for _ in range(3):
        page.keyboard.press("Enter")
    expect(page.locator("li.mz-drawing")).to_have_count(2)
    expect(card(page, "owl two")).to_be_focused()
    page.keyboard.press("Tab")
    expect(card(page, "owl two").get_by_role("button", name="Open picture 1")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_is_seen_wherever_it_is(visit: Visit, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    settings = page.get_by_role("button", name="Settings").first
    expect(settings).to_have_attribute("aria-expanded", "false")
    open_settings(page)
    expect(settings).to_have_attribute("aria-expanded", "true")
    page.get_by_label("Prompt", exact=True).focus()
    unmarked = []
    for _ in range(25):
        marked, what = page.evaluate(FOCUSED)
        if not marked:
            unmarked.append(what)
        page.keyboard.press("Tab")
    assert unmarked == []


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_the_margins_lie_within_their_frame(visit: Visit, width: int) -> None:
    page = visit(viewport={"width": width, "height": 900})
    page.get_by_role("tab", name="Change a picture").click()
    page.get_by_role("radio", name="More beyond its edges").check()
    expect(page.locator("#margins")).to_be_visible()
    frame = page.locator("#margins").bounding_box()
    assert frame is not None
    for side in ("Left", "Top", "Right", "Bottom"):
        label = page.locator("#margins").get_by_text(side, exact=True).bounding_box()
        field, slider = number(page, side).bounding_box(), page.get_by_label(f"range slider for {side}")
        track = slider.bounding_box()
        assert label is not None
        assert field is not None
        assert track is not None
        assert label["x"] + label["width"] < field["x"]
        assert abs(label["y"] - field["y"]) < field["height"]
        assert track["x"] + track["width"] < frame["x"] + frame["width"]
        assert track["width"] > 60


def test_on_a_phone_nothing_sticks_out_sideways(visit: Visit) -> None:
    page = visit(**PHONE)
    draw(page, "an owl with a very long name that would not fit on any line of any phone" + "o" * 60)
    open_settings(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [390, 600])
def test_below_each_other_the_form_and_the_list_are_as_wide(visit: Visit, width: int) -> None:
    page = visit(viewport={"width": width, "height": 900})
    draw(page, "an owl")
    form, drawings = page.locator("#recipe").bounding_box(), page.locator("#drawings").bounding_box()
    assert form is not None
    assert drawings is not None
    assert form["y"] < drawings["y"]
    assert abs(form["width"] - drawings["width"]) <= 2


def test_a_prompt_that_is_read_from_the_right_begins_there(page: Page) -> None:
    prompt = "بومة في الليل!"
    drawing = draw(page, prompt)
    assert drawing.locator(".mz-prompt").evaluate(BEGINS_AT_THE_RIGHT)
    panel = open_picture(page, prompt)
    assert panel.locator("dd").first.evaluate(BEGINS_AT_THE_RIGHT)
    assert page.get_by_label("Prompt", exact=True).evaluate("it => getComputedStyle(it).unicodeBidi") == (
        "plaintext"
    )


def test_a_search_says_of_no_old_drawing_that_it_has_just_ended(page: Page) -> None:
    draw(page, "a black swan")
    draw(page, "a white swan")
    expect(page.locator("#aloud")).to_have_text("Finished: a white swan.")
    page.get_by_label("Search your drawings").fill("black")
    expect(page.locator("li.mz-drawing")).to_have_count(1)
    assert page.locator("#aloud").inner_text() == "Finished: a white swan."


def test_the_page_asks_nothing_of_any_other_host(visit: Visit, address: str) -> None:
    asked: list[str] = []
    page = visit("about:blank")

    def note(request: Request) -> None:
        asked.append(request.url)

    page.context.on("request", note)
    page.goto(address)
    draw(page, "a discreet owl")
    open_picture(page, "a discreet owl").get_by_role("button", name="Change it").click()
    open_settings(page)
    expect(page.get_by_role("button", name="Draw from it")).to_be_visible()
    away = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked
    assert away == []


def test_the_pages_server_is_shut_to_all_but_the_page(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with httpx.Client(base_url=address, timeout=LIMIT_SECONDS) as client:
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
        for path in ("/docs", "/openapi.json", "/redoc", "/monitoring", "/pictures/..%2f..%2fkeys/0.png"):
            assert client.get(path).status_code in (401, 403, 404, 422), path
        for path in (f"/gradio_api/file={secret}", "/gradio_api/proxy=http://127.0.0.1:1/"):
            answer = client.get(path)
            assert answer.status_code >= 400, path
            assert answer.text != "secret"
        _forge_uploads(client, secret)
        assert not client.get("/gradio_api/info").json()["named_endpoints"]
        large = {"files": ("large.png", b"\x00" * 53_000_000, "image/png")}
        assert client.post("/gradio_api/upload", files=large).status_code == 413
        assert client.post("/gradio_api/queue/join", content=b" " * 57_000_000).status_code == 413


def _forge_uploads(client: httpx.Client, file: Path) -> None:
    """Ask each button that takes a file to take one of this machine for it."""
    config = client.get("/config").json()
    kinds = {each["id"]: each["type"] for each in config["components"]}
    asked = 0
    for meta in ({"_type": "gradio.FileData"}, {"_type": "x"}, {}, None):
        forged = {"path": str(file), **({} if meta is None else {"meta": meta})}
        values = {"file": forged, "image": forged}
        canvas = {"background": forged, "layers": [], "composite": forged}
        # What "Draw from it" is given.
        values["json"] = [canvas, "whole", 0, 0, 0, 0, 0.6, "an owl", 1, *[None] * 16, {}]
        for button in config["dependencies"]:
            data = [values.get(kinds[id]) for id in button["inputs"]]
            if any(data):
                body = {"fn_index": button["id"], "session_hash": "forger", "data": data, "trigger_id": 1}
                answer = client.post("/gradio_api/run/predict", json=body)
                # Gradio checks what says that it is an upload; the others, the page itself.
                assert answer.status_code == 500 or "secret" not in answer.text
                told = answer.json()
                is_refused = told == {"error": None} or "not kept any more" in answer.text
                assert is_refused or "cannot be read" not in answer.text
                asked += 1
    assert asked >= 16


def test_the_key_stays_on_the_server(visit: Visit, tmp_path: Path) -> None:
    from mezzotint.backends.fake import FakeBackend
    from mezzotint.serve.stores.keys import NewKey
    from tests.api.live import live
    from tests.ui.serving import page_server

    with live(tmp_path, FakeBackend(), auth="on") as service:
        key = service.create_key(NewKey("page"))
        with page_server(service.url, key) as address:
            told: list[str] = []
            page = visit("about:blank")
            page.on(
                "request", lambda request: told.append(f"{request.url} {request.headers} {request.post_data}")
            )
            page.goto(address)
            draw(page, "a trusted owl")
            expect(card(page, "a trusted owl")).to_be_visible()
            assert not any(key in each for each in told)
            assert key not in page.content()
            assert key not in httpx.get(f"{address}/config", timeout=LIMIT_SECONDS).text
