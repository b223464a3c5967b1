"""What the page says when something goes wrong, and that it goes on by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.serve.api.ops import FEATURES
from mezzotint.serve.stores.keys import NewKey
from tests.api.live import Live, live
from tests.ports import free_port
from tests.ui.acts import begin, card, draw, number, open_picture, open_settings, reload_once_back
from tests.ui.conftest import Visit
from tests.ui.serving import page_server

# Types the beginning of a prompt as soon as there is a field for it, before the page asks for anything.
TYPE_AT_ONCE = """new MutationObserver((_, observer) => {
  const prompt = document.querySelector('#prompt textarea');
  if (!prompt) return;
  observer.disconnect();
  prompt.value = 'an ow';
  prompt.dispatchEvent(new Event('input', {bubbles: true}));
}).observe(document, {subtree: true, childList: true})"""
# What this document writes of the form.
NOTE_WRITES = """window.written = [];
const write = Storage.prototype.setItem;
Storage.prototype.setItem = function (name, value) {
  if (name === 'mezzotint-form') window.written.push(JSON.parse(value));
  write.call(this, name, value);
};"""
HOSTILE = '<img src=x onerror="document.title=1"> {{this}} ${1+1}'


def test_without_a_prompt_it_asks_for_one(page: Page) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("Say what to draw first, then press Enter.")


def test_a_seed_that_is_none_is_named_with_what_is_accepted(page: Page) -> None:
    open_settings(page)
    page.get_by_label("Seed", exact=True).fill("owl")
    page.get_by_label("Prompt", exact=True).fill("an owl")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Seed takes a whole number from 0 to")


@pytest.mark.parametrize("label", ["Steps", "Pictures"])
def test_a_part_of_a_step_or_picture_is_refused_and_not_left_out(page: Page, label: str) -> None:
    open_settings(page)
    number(page, label).fill("2.5")
    page.get_by_label("Prompt", exact=True).fill("an owl")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(f"{label} takes a whole number.")


def test_a_lora_that_is_not_served_is_refused_by_the_forms_name_for_it(page: Page) -> None:
    open_settings(page)
    page.get_by_label("LoRAs").fill("charcoal")
    page.get_by_label("LoRAs").press("Enter")
    page.get_by_label("Prompt", exact=True).fill("an owl")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("LoRAs: there is no 'charcoal'")


def test_a_prompt_that_the_service_refuses_is_said_in_its_words(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("owl " * 3_000)
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("at most 10,000 are accepted")
    expect(page.get_by_role("alert")).to_contain_text("Change it and draw again.")


def test_a_second_stage_that_is_too_large_is_refused_by_the_forms_name_for_it(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.backends.fake.FAKE_LIMITS", replace(FAKE_LIMITS, max_size=200))
    with live(tmp_path, FakeBackend()) as service, page_server(service.url) as address:
        page = visit(address)
        open_settings(page)
        # Of no shape is it drawn.
        expect(page.get_by_role("radio", name="2×", exact=True)).to_have_count(0)
        page.get_by_role("radio", name="1.5×", exact=True).check()
        page.get_by_role("radio", name="Wide 160×96").check()
        page.get_by_label("Prompt", exact=True).fill("a wide owl")
        page.get_by_label("Prompt", exact=True).press("Enter")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Second stage of 1.5 makes 160x96 240x144: width must be")
        expect(alert).to_contain_text("Change it and draw again.")


def test_an_older_service_that_has_no_second_stage_is_not_asked_for_one(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with page_server(f"http://127.0.0.1:{port}") as address:
        page = visit(address)
        newer, older = tmp_path / "newer", tmp_path / "older"
        newer.mkdir()
        older.mkdir()
        with live(newer, FakeBackend(), port=port):
            open_settings(page)
            page.get_by_role("radio", name="1.5×", exact=True).check()
        monkeypatch.setitem(FEATURES, "hires", False)
        with live(older, FakeBackend(), port=port):
            expect(page.locator("#hires")).to_be_hidden()
            draw(page, "an old owl")
            panel = open_picture(page, "an old owl")
            expect(panel).to_contain_text("128×128")
            expect(panel).not_to_contain_text("Second stage")


def test_a_drawing_that_fails_says_why_and_what_to_do(page: Page) -> None:
    drawing = begin(page, "break, please")
    expect(drawing).to_have_attribute("data-state", "failed")
    expect(drawing).to_contain_text("The model made no usable picture of this. Draw again, with another seed")


def test_what_a_prompt_holds_is_text_and_nothing_else(page: Page) -> None:
    drawing = draw(page, HOSTILE)
    assert drawing.locator(".mz-prompt").inner_text() == HOSTILE
    assert page.title() == "Mezzotint"


@pytest.mark.parametrize("key", ["", "mz-wrong"])
def test_a_page_without_a_good_key_says_who_can_help(visit: Visit, tmp_path: Path, key: str) -> None:
    with live(tmp_path, FakeBackend(), auth="on") as service, page_server(service.url, key) as address:
        page = visit(address)
        expect(page.locator(".mz-banner")).to_contain_text("asks this page for a key it does not have")


def test_a_used_up_rate_shows_the_wait_counting_down(visit: Visit, tmp_path: Path) -> None:
    with live(tmp_path, FakeBackend(), auth="on") as service:
        key = service.create_key(NewKey("page", requests_per_minute=1))
        with page_server(service.url, key) as address:
            page = visit(address)
            draw(page, "the one owl of this minute")
            page.get_by_label("Prompt", exact=True).fill("one owl too many")
            page.get_by_label("Prompt", exact=True).press("Enter")
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("You have asked for as much as this page's key allows just now.")
            wait = alert.locator(".mz-wait")
            expect(wait).to_contain_text("Try again in")
            first = wait.inner_text()
            expect(wait).not_to_have_text(first)


def test_after_a_restart_of_the_pages_server_the_list_is_there(visit: Visit, service: Live) -> None:
    port = free_port()
    with page_server(service.url, port=port) as address:
        page = visit(address)
        open_settings(page)
        number(page, "Steps").fill("60")
        begin(page, "an owl that waits")
        page.evaluate("window.isOld = true")
    with page_server(service.url, port=port):
        reload_once_back(page)
        expect(card(page, "an owl that waits")).to_have_attribute("data-state", "done")


def test_what_stands_in_the_form_outlives_the_reload_after_a_lost_connection(
    visit: Visit, service: Live
) -> None:
    port = free_port()
    with page_server(service.url, port=port) as address:
        page = visit("about:blank")
        page.add_init_script(NOTE_WRITES)
        page.goto(address)
        open_settings(page)
        number(page, "Steps").fill("33")
        number(page, "Pictures").fill("2")
        page.get_by_label("Tall 96×160").check()
        page.get_by_label("Seed", exact=True).fill("9007199254740993")
        page.get_by_role("tab", name="Change a picture").click()
        page.get_by_label("Prompt of the changed picture").fill("an owl, changed")
        page.get_by_role("tab", name="Draw", exact=True).click()
        page.evaluate("window.isOld = true")
    # Nobody answers now.
    page.get_by_label("Prompt", exact=True).fill("an owl in the making")
    number(page, "Guidance").fill("7")
    number(page, "LoRA strength").fill("0.5")
    with page_server(service.url, port=port):
        reload_once_back(page)
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("an owl in the making")
        expect(page.get_by_label("Tall 96×160")).to_be_checked()
        open_settings(page)
        expect(number(page, "Steps")).to_have_value("33")
        expect(number(page, "Pictures")).to_have_value("2")
        expect(number(page, "Guidance")).to_have_value("7")
        expect(number(page, "LoRA strength")).to_have_value("0.5")
        expect(page.get_by_label("Seed", exact=True)).to_have_value("9007199254740993")
        page.get_by_role("tab", name="Change a picture").click()
        expect(page.get_by_label("Prompt of the changed picture")).to_have_value("an owl, changed")
        # Nor for a moment what it was made with: another reload may come in that moment.
        assert all(each["steps"] == 33 for each in page.evaluate("window.written"))
        page.reload()
        expect(page.get_by_label("Prompt of the changed picture")).to_be_visible()


def test_the_first_answer_takes_back_nothing_that_is_typed_while_it_comes(visit: Visit, address: str) -> None:
    page, held, is_typed = visit("about:blank"), list[Route](), False
    page.add_init_script(TYPE_AT_ONCE)
    page.route("**/queue/data*", lambda route: route.continue_() if is_typed else held.append(route))
    with page.expect_request("**/gradio_api/queue/join*") as asked:
        page.goto(address)
    assert "an ow" in (asked.value.post_data or "")
    page.get_by_label("Prompt", exact=True).fill("an owl at night")
    is_typed = True
    for each in held:
        each.continue_()
    open_settings(page)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("an owl at night")


def test_what_is_typed_before_the_first_answer_stays(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    prompt.fill("an owl of before")
    held: list[Route] = []
    page.route("**/queue/data*", lambda route: held.append(route), times=1)
    with page.expect_request("**/queue/data*"):
        page.reload()
    prompt.fill("an owl of now")
    [answer] = held
    answer.continue_()
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    expect(prompt).to_have_value("an owl of now")


def test_what_nobody_touched_is_the_services_own_though_somebody_typed_before_it_was_there(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(FAKE_LIMITS, default_steps=8, default_guidance_scale=2.0)
    monkeypatch.setattr("mezzotint.backends.fake.FAKE_LIMITS", limits)
    port = free_port()
    with page_server(f"http://127.0.0.1:{port}") as address:
        page = visit(address)
        expect(page.locator(".mz-banner")).to_be_visible()
        page.get_by_label("Prompt", exact=True).fill("an owl before dawn")
        with live(tmp_path, FakeBackend(), port=port):
            expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
            open_settings(page)
            expect(number(page, "Steps")).to_have_value("8")
            expect(number(page, "Guidance")).to_have_value("2")
            expect(page.get_by_label("Prompt", exact=True)).to_have_value("an owl before dawn")


def test_a_number_that_is_deleted_is_what_it_was(page: Page) -> None:
    expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
    open_settings(page)
    steps = number(page, "Steps")
    for typed in ("33", ""):
        steps.fill(typed)
        page.get_by_label("Seed", exact=True).focus()
    expect(steps).to_have_value("33")


def test_a_new_visit_begins_with_the_services_own_values(page: Page, address: str) -> None:
    page.get_by_label("Prompt", exact=True).fill("an owl in the making")
    other = page.context.new_page()
    other.goto(address)
    expect(other.get_by_role("radio", name="Square 128×128")).to_be_checked()
    expect(other.get_by_label("Prompt", exact=True)).to_have_value("")
    other.close()


def test_a_picture_that_did_not_come_is_asked_for_again(page: Page) -> None:
    failed: list[str] = []

    def break_two(route: Route) -> None:
        if len(failed) < 2:
            failed.append(route.request.url)
            route.fulfill(status=502)
        else:
            route.continue_()

    page.route("**/pictures/**", break_two)
    drawing = draw(page, "an owl in the fog")
    page.wait_for_function("image => image.naturalWidth > 0", arg=drawing.locator("img").element_handle())
    assert len(failed) == 2


def test_a_picture_that_the_service_keeps_no_more_is_told_as_lost(visit: Visit, tmp_path: Path) -> None:
    port = free_port()
    with page_server(f"http://127.0.0.1:{port}") as address:
        page = visit(address)
        # Routed, so that the browser's cache has none of it.
        page.route("**/pictures/**", lambda route: route.continue_())
        before, after = tmp_path / "before", tmp_path / "after"
        before.mkdir()
        after.mkdir()
        with live(before, FakeBackend(), port=port):
            expect(page.locator(".mz-banner")).to_have_count(0)
            draw(page, "a forgotten owl")
        with live(after, FakeBackend(), port=port):
            page.reload()
            drawing = card(page, "a forgotten owl")
            expect(drawing).to_have_attribute("data-state", "lost")
            expect(drawing).to_contain_text("The service does not keep this drawing any more.")
            expect(drawing.locator("img")).to_have_count(0)


def test_a_service_that_is_away_is_a_calm_banner_that_heals_itself(visit: Visit, tmp_path: Path) -> None:
    port = free_port()
    with page_server(f"http://127.0.0.1:{port}") as address:
        page = visit(address)
        expect(page.locator(".mz-banner")).to_contain_text("The drawing service does not answer just now.")
        with live(tmp_path, FakeBackend(pass_seconds=0.05), port=port):
            expect(page.locator(".mz-banner")).to_have_count(0)
            expect(page.get_by_role("radio", name="Square 128×128")).to_be_checked()
            open_settings(page)
            number(page, "Steps").fill("140")
            begin(page, "an owl in the storm")
        expect(page.locator(".mz-banner")).to_be_visible()
        # The job was kept; the service goes on with it where it is back.
        with live(tmp_path, FakeBackend(), port=port):
            expect(page.locator(".mz-banner")).to_have_count(0)
            expect(card(page, "an owl in the storm")).to_have_attribute("data-state", "done")
