"""The one answer that tells a page whatever changes: the list, the banner, what the service offers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.browsers import Browser
from mezzotint.ui.controller import Controller
from mezzotint.ui.form import read_kept
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

    def __init__(self, controller: Controller, parts: Parts) -> None:
        self._controller, self._parts = controller, parts

    @property
    def outputs(self) -> list[Any]:
        parts = self._parts
        told = [parts.banner, parts.drawings, parts.aloud, parts.stored]
        return [*told, *parts.guiding.folds, *parts.kept.values()]

    async def watch(self, kept: object, request: gr.Request) -> AsyncGenerator[Updates]:
        browser, view = self._controller.visit(kept, request.session_hash)
        page = kept.get("page") if isinstance(kept, Mapping) else None
        page = page if isinstance(page, Mapping) else {}
        view.note(page)
        filled = self._form(view, page.get("form"))
        if filled:
            yield filled
        shown: Updates = {}
        until = time.monotonic() + WATCH_SECONDS
        # A form is filled anew with what it then holds: the page tells that when it asks again.
        while (
            time.monotonic() < until
            and not self._controller.is_closing
            and view.offer == self._controller.monitor.offer
        ):
            seen = browser.changes.count
            browser.watch()
            now = self._now(browser, view)
            news = {part: value for part, value in now.items() if shown.get(part) != value}
            shown.update(news)
            if news:
                yield news
                await asyncio.sleep(NEWS_SECONDS)
            await browser.changes.wait(seen, LOOK_SECONDS)

    async def look_for(self, request: gr.Request, words: str) -> None:
        view = self._controller.views.of(request.session_hash)
        view.search(words)
        self._controller.browsers.tell(view.browser_id)

    def _now(self, browser: Browser, view: View) -> Updates:
        parts, found = self._parts, view.found(browser)
        listed = cards.drawings_list(
            found[: view.shown],
            searching=bool(view.query.strip()),
            more=max(0, len(found) - view.shown),
            zone=view.zone,
        )
        return {
            parts.banner: cards.banner(self._controller.monitor.notice),
            parts.drawings: listed,
            # Whatever is searched for: what was found has not just ended.
            parts.aloud: cards.said_aloud(browser.shown),
            parts.stored: browser.kept(),
        }

    def _form(self, view: View, kept: object) -> Updates:
        """The form's choices, where they are not what this page was told before."""
        offer, before = self._controller.monitor.offer, view.offer
        if offer is None or offer == before:
            return {}
        view.offer = offer
        # What was never touched follows the service.
        usual = {} if before is None else before.usual
        touched = {name: value for name, value in read_kept(kept).items() if usual.get(name) != value}
        parts = self._parts
        return offered(parts.form, parts.settings, parts.guiding, offer, touched)
