"""As many pages as people open: each hears its news."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import AsyncExitStack
from typing import Any

import httpx

# More than the forty answers that Gradio gives at a time unless it is told otherwise.
PAGES = 60
LIMIT_SECONDS = 90.0


class OpenPage:
    """What a browser sends when it opens the page, and what it hears."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._session = client, secrets.token_hex(6)

    async def open(self, until: AsyncExitStack) -> None:
        """Ask for the news and hear the first of it."""
        [watch] = [each for each in await self._answers() if each["trigger_mode"] == "once"]
        body = {"data": [None], "fn_index": watch["id"], "session_hash": self._session, "trigger_id": None}
        (await self._client.post("/gradio_api/queue/join", json=body)).raise_for_status()
        news = self._client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self._session}, timeout=None
        )
        lines = (await until.enter_async_context(news)).aiter_lines()
        async with asyncio.timeout(LIMIT_SECONDS):
            while (await self._message(lines))["msg"] != "process_generating":
                pass

    async def _answers(self) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = (await self._client.get("/config")).json()["dependencies"]
        return answers

    async def _message(self, lines: Any) -> dict[str, Any]:
        async for line in lines:
            if line.startswith("data:"):
                message: dict[str, Any] = json.loads(line.removeprefix("data:"))
                return message
        raise AssertionError("the news ended")


async def test_every_page_hears_its_news_however_many_are_open(address: str) -> None:
    limits = httpx.Limits(max_connections=2 * PAGES)
    async with (
        httpx.AsyncClient(base_url=address, limits=limits, timeout=LIMIT_SECONDS) as client,
        AsyncExitStack() as until,
    ):
        for _ in range(PAGES):
            await OpenPage(client).open(until)
