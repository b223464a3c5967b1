"""The page: what is on it, and what answers when something is pressed.

One answer, `watch`, tells whatever changes: the list, the banner, what the service offers. The others change
something and are done; `watch` notices. Python functions alone: the page's own script passes clicks on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.browsers import Browser
from mezzotint.ui.desk import Desk
from mezzotint.ui.editing import prepare_edit
from mezzotint.ui.form import Wish, filled, read_seed
from mezzotint.ui.opened import Opened
from mezzotint.ui.receipts import read_recipe
from mezzotint.ui.sentences import Notice, notice_of
from mezzotint.ui.service import ServiceError
from mezzotint.ui.views import View
from mezzotint.ui.widgets import Editor, Form, Settings, filled_in, offered

__all__ = ["build_page"]

# A browser keeps its list under this name. What encrypts it is in the page itself, and so hides nothing; it
# is fixed so that a list outlives the process that wrote it.
STORAGE, STORAGE_SECRET = "mezzotint", "mezzotint"
# How long one answer tells the news; the page asks again when it ends, or breaks.
WATCH_SECONDS, ASK_AGAIN_SECONDS = 30.0, 1.0
# The least time between two pieces of news, and how often it looks without any: the banner is everybody's.
NEWS_SECONDS, LOOK_SECONDS = 0.05, 1.0
MAX_FILE_BYTES = 50_000_000
SCRIPT = Path(__file__).with_name("page.js").read_text()
# Nothing of the page is for other programs: they have the service itself. All may run at once.
QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}
NO_SEED = Notice("There is no drawing yet whose seed could be reused.")
NO_RECIPE = Notice(
    "That file does not say how it was drawn. Drop a PNG, JPEG or WebP that this page or A1111 has made."
)
Updates = dict[Any, Any]


def build_page(desk: Desk) -> gr.Blocks:
    with gr.Blocks(
        title="Mezzotint", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)
    ) as blocks:
        _Page(desk, blocks)
    blocks.queue(default_concurrency_limit=None, api_open=False)
    return blocks


class _Page:
    def __init__(self, desk: Desk, blocks: gr.Blocks) -> None:
        self._desk = desk
        self._build()
        self._wire(blocks)

    def _build(self) -> None:
        self.stored = gr.BrowserState({}, storage_key=STORAGE, secret=STORAGE_SECRET)
        gr.HTML('<header class="mz-head"><h1>Mezzotint</h1></header>')
        self.banner = gr.HTML(elem_id="banner")
        with gr.Row(elem_classes="mz-columns"):
            with gr.Column(scale=5, min_width=320):
                self._build_desk()
            with gr.Column(scale=7, min_width=320):
                self._build_wall()

    def _build_desk(self) -> None:
        with gr.Tabs(selected="draw") as self.tabs:
            with gr.Tab("Draw", id="draw"):
                self.form = Form.build()
            with gr.Tab("Change a picture", id="edit"):
                self.editor = Editor.build()
        self.notice = gr.HTML(elem_id="notice", js_on_load=SCRIPT)
        with gr.Accordion("Settings", open=False):
            self.settings = Settings.build()
        self.file = gr.File(
            label="Drop a picture here to draw with its settings", file_types=["image"], height=150,
            elem_id="recipe",
        )  # fmt: skip

    def _build_wall(self) -> None:
        self.opened = Opened.build()
        self.search = gr.Textbox(label="Search your drawings", container=False, max_lines=1, elem_id="search")
        self.drawings = gr.HTML(elem_id="drawings", js_on_load=SCRIPT)
        self.aloud = gr.HTML(elem_id="aloud", elem_classes="mz-aloud")

    def _wire(self, blocks: gr.Blocks) -> None:
        form, settings, editor, opened = self.form, self.settings, self.editor, self.opened
        drawn = {"outputs": [self.notice, self.stored], **QUIET}
        wished = [*settings.inputs, self.stored]
        gr.on(
            [form.draw.click, form.prompt.submit],
            self.draw,
            [form.prompt, form.size, form.n, *wished],
            **drawn,
        )
        edited = [editor.canvas, editor.mode, editor.left, editor.top, editor.right, editor.bottom]
        gr.on(
            [editor.draw.click, editor.prompt.submit],
            self.edit,
            [*edited, editor.strength, editor.prompt, *wished],
            **drawn,
        )
        settings.new_seed.click(lambda: "", None, [settings.seed], **QUIET)
        settings.same_seed.click(self.reuse_seed, [self.stored], [settings.seed, self.notice], **QUIET)
        filling = [self.notice, self.tabs, form.prompt, form.size, *settings.inputs]
        self.file.upload(self.read_file, [self.file], [self.file, *filling], **QUIET)
        self.drawings.act(self.act, [self.stored], [self.notice, self.stored, *opened.outputs], **QUIET)
        opened.use.click(self.use, [opened.which], filling, **QUIET)
        opened.vary.click(self.vary, [opened.which, self.stored], **drawn)
        # The editor is seen before it is given a picture: it lays the picture out in the room that it has.
        changing = [self.notice, editor.canvas, editor.prompt]
        seen = opened.change.click(lambda: gr.Tabs(selected="edit"), None, [self.tabs], **QUIET)
        seen.then(self.change, [opened.which], changing, **QUIET)
        opened.close.click(opened.closed, None, opened.outputs, **QUIET)
        self.search.input(self.look_for, [self.search], None, **{**QUIET, "trigger_mode": "always_last"})
        watched = [self.banner, self.drawings, self.aloud, self.stored, form.size, form.n, *settings.inputs]
        timer = gr.Timer(ASK_AGAIN_SECONDS)
        watching = {**QUIET, "trigger_mode": "once"}
        gr.on([blocks.load, timer.tick], self.watch, [self.stored], watched, **watching)

    async def watch(self, kept: object, request: gr.Request) -> AsyncGenerator[Updates]:
        browser, view = self._visit(kept, request)
        shown: Updates = {}
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            seen = browser.changes.count
            browser.watch()
            news = {
                part: value for part, value in self._now(browser, view).items() if shown.get(part) != value
            }
            shown.update(news)
            offer = self._desk.monitor.offer
            if offer is not None and offer != view.offer:
                view.offer = offer
                news.update(offered(self.form, self.settings, offer))
            if news:
                yield news
                await asyncio.sleep(NEWS_SECONDS)
            await browser.changes.wait(seen, LOOK_SECONDS)

    def _now(self, browser: Browser, view: View) -> Updates:
        found = view.found(browser)
        more = max(0, len(found) - view.shown)
        return {
            self.banner: cards.banner(self._desk.monitor.notice),
            self.drawings: cards.drawings_list(
                found[: view.shown], searching=bool(view.query.strip()), more=more
            ),
            self.aloud: cards.said_aloud(found),
            self.stored: browser.kept(),
        }

    async def draw(
        self, request: gr.Request, prompt: str, size: str, n: int, *rest: Any
    ) -> tuple[str, dict[str, Any]]:
        *settings, kept = rest
        return await self._begin(kept, request, settings, prompt=prompt or "", size=size or "", n=int(n))

    async def edit(
        self,
        request: gr.Request,
        picture: object,
        mode: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        strength: float,
        prompt: str,
        *rest: Any,
    ) -> tuple[str, dict[str, Any]]:
        *settings, kept = rest
        edit = prepare_edit(picture, mode, (left, top, right, bottom))
        if edit.missing:
            browser, _ = self._visit(kept, request)
            return cards.notice_box(Notice(edit.missing)), browser.kept()
        changes: dict[str, Any] = {"image": edit.image, "mask": edit.mask, "strength": strength}
        return await self._begin(kept, request, settings, prompt=prompt or "", **changes)

    async def _begin(
        self, kept: object, request: gr.Request, settings: list[Any], **asked: Any
    ) -> tuple[str, dict[str, Any]]:
        browser, _ = self._visit(kept, request)
        negative, style, steps, guidance, scheduler, seed, model, loras, lora_scale = settings
        try:
            wish = Wish(
                # A field that was never touched is None.
                negative_prompt=negative or "",
                style=style or "",
                steps=int(steps),
                guidance=guidance,
                scheduler=scheduler or "",
                seed=read_seed(seed or ""),
                model=model or "",
                loras=loras or (),
                lora_scale=lora_scale,
                **asked,
            )
        except ValueError as error:
            return cards.notice_box(Notice(str(error))), browser.kept()
        return cards.notice_box(await self._desk.draw(browser, wish)), browser.kept()

    def reuse_seed(self, kept: object, request: gr.Request) -> Updates:
        browser, view = self._visit(kept, request)
        seeds = [drawing.seed for drawing in view.found(browser) if drawing.seed is not None]
        if not seeds:
            return {self.notice: cards.notice_box(NO_SEED)}
        return {self.settings.seed: str(seeds[0]), self.notice: ""}

    async def act(self, kept: object, event: gr.EventData, request: gr.Request) -> Updates:
        """A button of a drawing was pressed; the page's script says which."""
        browser, view = self._visit(kept, request)
        pressed = event._data if isinstance(event._data, dict) else {}
        id = str(pressed.get("id", ""))
        match pressed.get("do"):
            case "open":
                return await self._open(id, int(pressed.get("n", 0)))
            case "cancel":
                return {self.notice: cards.notice_box(await self._desk.cancel(browser, id))}
            case "remove":
                browser.remove(id)
                return {self.stored: browser.kept()}
            case "more":
                view.show_more()
                browser.changes.tell()
        return {}

    async def _open(self, id: str, n: int) -> Updates:
        try:
            receipt = await self._desk.receipt(id, n)
        except ServiceError as error:
            return {self.notice: cards.notice_box(notice_of(error))}
        return {self.notice: "", **self.opened.showing(id, n, receipt)}

    async def vary(
        self, which: dict[str, Any] | None, kept: object, request: gr.Request
    ) -> tuple[str, dict[str, Any]]:
        browser, _ = self._visit(kept, request)
        if not which:
            return "", browser.kept()
        notice = await self._desk.vary(browser, which["id"], which["n"], which["receipt"])
        return cards.notice_box(notice), browser.kept()

    def use(self, which: dict[str, Any] | None) -> Updates:
        recipe = self.opened.recipe(which)
        if recipe is None:
            return {}
        values, said = filled(recipe, self._desk.monitor.offer)
        return self._fill(values, said)

    def _fill(self, values: Any, said: str) -> Updates:
        updates = filled_in(self.form, self.settings, values, self._desk.monitor.offer)
        return {self.notice: cards.word(said), self.tabs: gr.Tabs(selected="draw"), **updates}

    def read_file(self, path: str | None) -> Updates:
        """A picture was dropped: its own record fills the form."""
        recipe = None
        if path is not None and Path(path).stat().st_size <= MAX_FILE_BYTES:
            recipe = read_recipe(Path(path).read_bytes())
        if recipe is None:
            return {self.file: None, self.notice: cards.notice_box(NO_RECIPE)}
        return {self.file: None, **self._fill(*filled(recipe, self._desk.monitor.offer))}

    async def change(self, which: dict[str, Any] | None) -> Updates:
        if not which:
            return {}
        try:
            picture = await self._desk.picture(which["id"], which["n"])
        except ServiceError as error:
            return {self.notice: cards.notice_box(notice_of(error))}
        value = {"background": picture, "layers": [], "composite": None}
        return {
            self.editor.canvas: value,
            self.editor.prompt: str(which["receipt"].get("prompt", "")),
            self.notice: "",
        }

    def look_for(self, words: str, request: gr.Request) -> None:
        view = self._desk.views.of(request.session_hash)
        view.search(words)
        self._desk.browsers.tell(view.browser_id)

    def _visit(self, kept: object, request: gr.Request) -> tuple[Browser, View]:
        return self._desk.visit(kept, request.session_hash)
