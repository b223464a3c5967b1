"""What Kubernetes asks the page's server: whether its buttons still do anything."""

from __future__ import annotations

import asyncio
import tracemalloc

import httpx
import pytest
from starlette.routing import Mount

from mezzotint.ui.app import build_app, end_pages
from mezzotint.ui.settings import UiSettings

# Of deploy/kubernetes/base/page.
POD_BYTES = 2**30
SESSIONS = 20


async def test_a_page_whose_buttons_do_nothing_any_more_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Building a page sets it for the process; another's uploads are elsewhere.
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    app = build_app(UiSettings(api="http://127.0.0.1:9"))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://page") as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        [answering] = [task for task in asyncio.all_tasks() if "start_processing" in repr(task.get_coro())]
        await asyncio.sleep(0)  # It has begun.
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        ended = await client.get("/healthz")
        assert (ended.status_code, ended.text) == (503, "no answers\n")
        end_pages(app)


async def test_what_is_kept_of_pages_that_were_opened_fits_into_the_pods_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    app = build_app(UiSettings(api="http://127.0.0.1:9"))
    [mounted] = [route.app for route in app.routes if isinstance(route, Mount)]
    sessions = mounted.state_holder
    tracemalloc.start()
    try:
        for name in range(SESSIONS):
            sessions[str(name)]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # As it is opened; what it is told comes on top, and so does all else.
    assert kept / SESSIONS * sessions.capacity < POD_BYTES / 4
