"""What Kubernetes asks the page's server: whether its buttons still do anything."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from mezzotint.ui.app import build_app, end_pages
from mezzotint.ui.settings import UiSettings


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
