"""The page: what is on it, and what answers when something is pressed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.desk import Desk
from mezzotint.ui.form import Wish

__all__ = ["build_page"]

# A browser keeps its list under this name. What encrypts it is in the page itself, and so hides nothing; it is
# fixed so that a list outlives the process that wrote it.
STORAGE, STORAGE_SECRET = "mezzotint", "mezzotint"
# How long one answer tells the news; the page asks again when it ends, or breaks.
WATCH_SECONDS, ASK_AGAIN_SECONDS = 30.0, 1.0
# The least time between two pieces of news.
NEWS_SECONDS = 0.2
CLICKS = """
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-do]');
  if (pressed) trigger('act', {...pressed.dataset});
});
"""
# Nothing of the page is for other programs: they have the service itself.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def build_page(desk: Desk) -> gr.Blocks:
    with gr.Blocks(title="Mezzotint", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        stored = gr.BrowserState({}, storage_key=STORAGE, secret=STORAGE_SECRET)
        banner = gr.HTML(elem_id="banner")
        prompt = gr.Textbox(label="Prompt", lines=1, max_lines=6, autofocus=True, elem_id="prompt")
        draw = gr.Button("Draw", variant="primary")
        notice = gr.HTML(elem_id="notice")
        drawings = gr.HTML(elem_id="drawings", js_on_load=CLICKS)

        async def watch(kept: object, request: gr.Request) -> AsyncGenerator[dict[Any, Any]]:
            browser, view = desk.visit(kept, request.session_hash)
            shown: dict[Any, Any] = {}
            until = time.monotonic() + WATCH_SECONDS
            while time.monotonic() < until:
                seen = browser.changes.count
                browser.watch()
                found = view.found(browser)
                now = {
                    banner: cards.banner(desk.monitor.notice),
                    drawings: cards.drawings_list(
                        found[: view.shown], searching=bool(view.query), more=max(0, len(found) - view.shown)
                    ),
                    stored: browser.kept(),
                }
                news = {part: value for part, value in now.items() if shown.get(part) != value}
                if news:
                    yield news
                shown.update(news)
                await browser.changes.wait(seen, 1.0)

        async def begin(text: str, kept: object, request: gr.Request) -> tuple[str, dict[str, Any]]:
            browser, _ = desk.visit(kept, request.session_hash)
            return cards.notice_box(await desk.draw(browser, Wish(text))), browser.kept()

        async def act(kept: object, event: gr.EventData, request: gr.Request) -> str:
            browser, _ = desk.visit(kept, request.session_hash)
            if event.do == "cancel":
                return cards.notice_box(await desk.cancel(browser, event.id))
            return ""

        gr.on([draw.click, prompt.submit], begin, [prompt, stored], [notice, stored], trigger_mode="multiple", **PRIVATE)
        drawings.act(act, [stored], [notice], trigger_mode="multiple", **PRIVATE)
        timer = gr.Timer(ASK_AGAIN_SECONDS)
        gr.on([page.load, timer.tick], watch, [stored], [banner, drawings, stored], trigger_mode="once", **PRIVATE)
    page.queue(default_concurrency_limit=None, api_open=False)
    return page
