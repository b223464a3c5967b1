"""The one answer that tells a page whatever changes: the list, the banner, what the service offers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.browsers import Browser
from mezzotint.ui.desk import Desk
from mezzotint.ui.parts import Parts
from mezzotint.ui.views import View
from mezzotint.ui.widgets import offered

__all__ = ["ASK_AGAIN_SECONDS", "Watching"]

# How long one answer tells the news; the page asks again when it ends, or breaks.
WATCH_SECONDS, ASK_AGAIN_SECONDS = 120.0, 0.25
# The least time between two pieces of news, and how often it looks without any: the banner is everybody's.
NEWS_SECONDS, LOOK_SECONDS = 0.05, 1.0
Updates = dict[Any, Any]


class Watching:
    """parts: the page's. It tells what has changed since it told it last, and nothing else."""

    def __init__(self, desk: Desk, parts: Parts) -> None:
        self._desk, self._parts = desk, parts

    @property
    def outputs(self) -> list[Any]:
        parts = self._parts
        told = [parts.banner, parts.drawings, parts.aloud, parts.stored]
        return [*told, parts.form.size, parts.form.n, *parts.settings.inputs]

    async def watch(self, kept: object, request: gr.Request) -> AsyncGenerator[Updates]:
        browser, view = self._desk.visit(kept, request.session_hash)
        shown: Updates = {}
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until and not self._desk.is_closing:
            seen = browser.changes.count
            browser.watch()
            now = self._now(browser, view)
            news = {part: value for part, value in now.items() if shown.get(part) != value}
            shown.update(news)
            news.update(self._offers(view))
            if news:
                yield news
                await asyncio.sleep(NEWS_SECONDS)
            await browser.changes.wait(seen, LOOK_SECONDS)

    async def look_for(self, request: gr.Request, words: str) -> None:
        view = self._desk.views.of(request.session_hash)
        view.search(words)
        self._desk.browsers.tell(view.browser_id)

    def _now(self, browser: Browser, view: View) -> Updates:
        parts, found = self._parts, view.found(browser)
        listed = cards.drawings_list(
            found[: view.shown],
            searching=bool(view.query.strip()),
            more=max(0, len(found) - view.shown),
        )
        return {
            parts.banner: cards.banner(self._desk.monitor.notice),
            parts.drawings: listed,
            parts.aloud: cards.said_aloud(found),
            parts.stored: browser.kept(),
        }

    def _offers(self, view: View) -> Updates:
        """The form's choices, where they are not what this page was told before."""
        offer = self._desk.monitor.offer
        if offer is None or offer == view.offer:
            return {}
        view.offer = offer
        return offered(self._parts.form, self._parts.settings, offer)
