"""That the page can be used by keyboard, by ear, on a phone, in the dark; and that it keeps to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect

from tests.ui.acts import begin, card, draw, number, open_picture, open_settings
from tests.ui.conftest import Visit

GRAVE = {"serious", "critical"}
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
def test_axe_finds_no_serious_fault_in_any_of_its_states(visit: Visit, options: dict[str, Any]) -> None:
    page = visit(**options)
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    assert faults(page) == []
    open_settings(page)
    draw(page, "a heron")
    number(page, "Steps").fill("140")
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


def test_on_a_phone_nothing_sticks_out_sideways(visit: Visit) -> None:
    page = visit(**PHONE)
    draw(page, "an owl with a very long name that would not fit on any line of any phone" + "o" * 60)
    open_settings(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


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
    with httpx.Client(base_url=address) as client:
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
        for path in ("/docs", "/openapi.json", "/redoc", "/monitoring", "/pictures/..%2f..%2fkeys/0.png"):
            assert client.get(path).status_code in (401, 403, 404, 422), path
        for path in (f"/gradio_api/file={secret}", "/gradio_api/proxy=http://127.0.0.1:1/"):
            answer = client.get(path)
            assert answer.status_code >= 400, path
            assert answer.text != "secret"
        assert not client.get("/gradio_api/info").json()["named_endpoints"]
        large = {"files": ("large.png", b"\x00" * 53_000_000, "image/png")}
        assert client.post("/gradio_api/upload", files=large).status_code == 413
        assert client.post("/gradio_api/queue/join", content=b" " * 57_000_000).status_code == 413


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
            assert key not in httpx.get(f"{address}/config").text
