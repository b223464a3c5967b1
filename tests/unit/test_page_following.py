"""How the page's server hears of drawings: resumed where it left off, and once for all who look."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from mezzotint.core import Hires
from mezzotint.ui import browsers as browsers_module
from mezzotint.ui import cards
from mezzotint.ui.browsers import Browser, Browsers, Changes
from mezzotint.ui.controller import Controller
from mezzotint.ui.drawing import Drawing
from mezzotint.ui.form import JobRequest
from mezzotint.ui.monitor import Monitor
from mezzotint.ui.service import Refused, Service, Unreachable
from mezzotint.ui.views import View
from tests.waiting import until

WAIT_SECONDS = 30.0
JOB: dict[str, Any] = {
    "id": "job_1",
    "state": "queued",
    "n": 1,
    "seeds": [7],
    "size": "64x64",
    "created_at": 1.0,
}
DONE = {**JOB, "state": "done", "images": [{"index": 0, "seed": 7}]}
Answer = Callable[[httpx.Request], httpx.Response]


def stream(*events: tuple[str, str, dict[str, Any]]) -> httpx.Response:
    text = "".join(f"id: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for id, kind, data in events)
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=": ping\n\n" + text)


def service_of(answer: Answer) -> Service:
    return Service("http://service", "key", httpx.MockTransport(answer))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsers_module, "MIN_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(browsers_module, "PLACE_SECONDS", 0.01)


@pytest.fixture
async def watched() -> AsyncIterator[Callable[[Answer], Browser]]:
    """A browser in front of a service that answers so, with one drawing."""
    opened: list[Browser] = []

    def open_browser(answer: Answer) -> Browser:
        browser = Browser("0" * 32, service_of(answer))
        opened.append(browser)
        browser.add(Drawing.of_job(JOB, "an owl"))
        return browser

    yield open_browser
    for browser in opened:
        await browser.close()


async def test_a_broken_stream_is_asked_for_again_from_the_last_event(
    watched: Callable[[Answer], Browser],
) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=JOB)
        asked.append(request.headers.get("last-event-id"))
        if len(asked) == 1:
            return stream(("1", "queued", {}), ("2", "running", {}))
        if len(asked) == 2:
            raise httpx.ConnectError("gone")
        return stream(("3", "done", DONE))

    drawing = watched(answer).drawings["job_1"]
    await until(lambda: drawing.is_over)
    assert asked == [None, "2", "2"]
    assert (drawing.state, drawing.finished) == ("done", {0})


async def test_a_job_that_the_service_has_forgotten_is_lost(watched: Callable[[Answer], Browser]) -> None:
    error = {"error": {"message": "no such job", "code": "job_not_found", "param": None}}
    drawing = watched(lambda _: httpx.Response(404, json=error)).drawings["job_1"]
    await until(lambda: drawing.is_over)
    assert drawing.state == "lost"


async def test_a_drawing_whose_news_cannot_be_read_is_lost_and_not_asked_for_again(
    watched: Callable[[Answer], Browser], caplog: pytest.LogCaptureFixture
) -> None:
    browser = watched(lambda _: stream(("1", "image", {"no": "index"})))
    drawing = browser.drawings["job_1"]
    await until(lambda: drawing.is_over)
    browser.watch()
    assert drawing.state == "lost"
    assert not browser._tasks
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


async def test_a_waiting_job_tells_its_place(watched: Callable[[Answer], Browser]) -> None:
    waiting = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        yield b"id: 1\nevent: queued\ndata: {}\n\n"
        await waiting.wait()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, content=events())
        return httpx.Response(200, json={**JOB, "position": 3, "eta_s": 12.0})

    drawing = watched(answer).drawings["job_1"]
    await until(lambda: drawing.position == 3)
    assert drawing.eta_s == 12.0
    waiting.set()


async def test_a_job_whose_answer_was_lost_is_not_made_twice() -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("lost")
        return httpx.Response(202, json=JOB)

    service = service_of(answer)
    assert (await service.create_job({"prompt": "an owl"}))["id"] == "job_1"
    assert len(keys) == 2
    assert len(set(keys)) == 1
    await service.close()


async def test_a_refusal_carries_the_services_words_and_its_wait() -> None:
    error = {"error": {"message": "slow down", "code": "rate_limit_exceeded", "param": None}}
    service = service_of(lambda _: httpx.Response(429, json=error, headers={"retry-after-ms": "1500"}))
    with pytest.raises(Refused) as refused:
        await service.job("job_1")
    assert (refused.value.code, refused.value.retry_after_s) == ("rate_limit_exceeded", 1.5)
    await service.close()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>Bad gateway</html>"),
        httpx.Response(200, text="hello"),
        httpx.Response(200, json=[]),
        httpx.Response(404, json={"detail": "Not Found"}),
    ],
)
async def test_an_answer_that_is_not_the_services_is_silence(answer: httpx.Response) -> None:
    service = service_of(lambda _: answer)
    with pytest.raises(Unreachable):
        await service.job("job_1")
    await service.close()


async def test_what_two_tabs_of_a_browser_ask_for_is_in_both_lists() -> None:
    service = service_of(lambda _: httpx.Response(200, json=JOB))
    known = Browsers(service)
    first = known.of({})
    kept = {"id": first.id, "drawings": []}
    known.of(kept).merge([{**JOB, "prompt": "one", "at": 1.0, "state": "done"}])
    known.of(kept).merge([{**JOB, "id": "job_2", "prompt": "two", "at": 2.0, "state": "done"}])
    assert [each["prompt"] for each in known.of(kept).kept()["drawings"]] == ["one", "two"]
    await known.close()
    await service.close()


async def test_what_was_drawn_before_the_storage_was_read_is_not_lost() -> None:
    service = service_of(lambda _: httpx.Response(200, json=JOB))
    known = Browsers(service)
    before = known.of({})
    before.merge([{**JOB, "prompt": "early", "at": 1.0, "state": "done"}])
    browser = known.of({"id": "f" * 32, "drawings": []}, before.id)
    assert (browser.id, [each.prompt for each in browser.drawings.values()]) == ("f" * 32, ["early"])
    await known.close()
    await service.close()


REFUSED = {"error": {"message": "no", "code": "invalid_request", "param": "prompt"}}


@pytest.mark.parametrize(
    ("answered", "left"),
    [(httpx.Response(202, json=DONE), ["job_1"]), (httpx.Response(400, json=REFUSED), [])],
)
async def test_what_was_asked_for_is_in_the_list_before_the_service_answers(
    answered: httpx.Response, left: list[str]
) -> None:
    waiting = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        await waiting.wait()
        return answered

    controller = Controller(Service("http://service", "key", httpx.MockTransport(answer)))
    browser, view = controller.browsers.of({}), View()
    asking = asyncio.create_task(
        controller.draw(browser, JobRequest("an owl", size="96x64", n=2, hires=Hires(1.25)))
    )
    await until(lambda: bool(view.found(browser)))
    [shown] = view.found(browser)
    # As large as the picture that comes, not as its first stage.
    assert (shown.prompt, shown.n, shown.size) == ("an owl", 2, (120, 80))
    html = cards.drawings_list([shown], searching=False, more=0)
    assert "Asking …" in html
    assert "<button" not in html
    assert browser.kept()["drawings"] == []
    waiting.set()
    assert (await asking is None) == bool(left)
    assert [drawing.id for drawing in view.found(browser)] == left
    await controller.browsers.close()
    await controller.service.close()


async def test_a_picture_that_turns_out_to_be_gone_is_told_as_lost_by_the_list() -> None:
    error = {"error": {"message": "no such job", "code": "job_not_found", "param": None}}
    transport = httpx.MockTransport(lambda _: httpx.Response(404, json=error))
    controller = Controller(Service("http://service", "key", transport))
    kept = {**JOB, "prompt": "one", "at": 1.0, "state": "done", "finished": [0]}
    browser = controller.browsers.of({"drawings": [kept]})
    with pytest.raises(Refused):
        await controller.receipt(browser, "job_1", 0)
    assert (browser.drawings["job_1"].state, browser.drawings["job_1"].finished) == ("lost", set())
    await controller.service.close()


async def test_a_service_is_looked_at_again_after_an_error_that_nobody_foresaw() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise RuntimeError("a bug")

    service = service_of(answer)
    monitor = Monitor(service)
    looking = asyncio.create_task(monitor.run())
    await until(lambda: monitor.notice is not None)
    assert not looking.done()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await service.close()


async def test_a_removed_drawing_does_not_come_back_from_another_tab() -> None:
    service = service_of(lambda _: httpx.Response(200, json=JOB))
    browser = Browsers(service).of({"drawings": [{**JOB, "prompt": "one", "at": 1.0, "state": "done"}]})
    kept = browser.kept()["drawings"]
    browser.remove("job_1")
    browser.merge(kept)
    assert browser.drawings == {}
    await service.close()


async def test_whoever_waits_for_changes_hears_of_one_that_came_before_they_waited() -> None:
    changes = Changes()
    seen = changes.count
    changes.tell()
    began = time.monotonic()
    await changes.wait(seen, WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2
