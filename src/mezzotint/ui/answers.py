"""What answers when something is pressed: reads the widgets, asks the controller, says what they show then.

What changes the list only changes it; `watching.py` tells the page.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from mezzotint.core import Lora
from mezzotint.emphasis import has_marks
from mezzotint.ui import cards
from mezzotint.ui.browsers import Browser
from mezzotint.ui.controller import Controller
from mezzotint.ui.drawing import SIZE
from mezzotint.ui.editing import NO_PICTURE, prepare_edit, read_canvas, size_of_file, upload_of
from mezzotint.ui.form import TABS, JobRequest, filled, read_seed, read_whole
from mezzotint.ui.guides import (
    EDGES,
    FOLLOWED,
    READ,
    guide_as_sent,
    look_as_sent,
    nearest_shape,
    prepare_picture,
    reading_for,
    upright_size,
)
from mezzotint.ui.parts import Parts
from mezzotint.ui.receipts import Recipe, read_recipe
from mezzotint.ui.sentences import Notice, notice_of
from mezzotint.ui.service import ServiceError
from mezzotint.ui.stages import OFF, larger, read_choice
from mezzotint.ui.views import View
from mezzotint.ui.widgets import filled_in

__all__ = ["Answers"]

MAX_FILE_BYTES = 50_000_000
NO_RECIPE = Notice(
    "That file does not say how it was drawn. Drop a PNG, JPEG or WebP that this page or A1111 has made."
)
IN_EDITOR = "The picture is in the editor. Say what it should become, and press Enter."
Updates = dict[Any, Any]


class Answers:
    """Each method is bound to widgets in `page.py`, which says what it is given. `request` is Gradio's."""

    def __init__(self, controller: Controller, parts: Parts) -> None:
        self._controller, self._parts = controller, parts

    async def draw(
        self, request: gr.Request, prompt: str, size: str, hires: str, n: float, *rest: Any
    ) -> Updates:
        *settings, kept = rest
        size, stage = size or "", read_choice(hires)
        drawn = {"prompt": prompt, "size": size, "hires": stage, "n": n}
        return await self._begin(kept, request, settings, larger(size, stage), **drawn)

    async def edit(self, request: gr.Request, asked: list[Any]) -> Updates:
        canvas, mode, left, top, right, bottom, strength, prompt, n, *settings, kept = asked
        try:
            picture = await asyncio.to_thread(read_canvas, canvas)
            edit = await asyncio.to_thread(prepare_edit, picture, mode, (left, top, right, bottom))
        except ValueError as error:
            return self._notice(Notice(str(error)))
        if edit.missing:
            return self._notice(Notice(edit.missing))
        changes = {"image": edit.image, "mask": edit.mask, "strength": strength, "n": n}
        return await self._begin(kept, request, settings, size_of_file(edit.image), prompt=prompt, **changes)

    def choose_loras(
        self, chosen: list[str] | None, steps: float | None, guidance: float | None, scheduler: str | None
    ) -> Updates:
        """A LoRA of few steps brings its settings with it, and takes them away again."""
        offer, settings = self._controller.monitor.offer, self._parts.settings
        if offer is None:
            return {}
        usual = [offer.defaults_with(names) for names in ((), *((lora.name,) for lora in offer.loras))]
        theirs, now = offer.defaults_with(chosen or ()), (steps, guidance, scheduler)
        widgets = (settings.steps, settings.guidance, settings.scheduler)
        # What somebody has set themselves stays.
        return {
            widget: new
            for widget, own, new, known in zip(widgets, now, theirs, zip(*usual, strict=True), strict=True)
            if own in known
        }

    def follow(self, picture: object, guide: str | None, reading: str | None, size: str | None) -> Updates:
        """A guiding picture was given or taken away. Reads a file: in a thread."""
        offer, guiding, form = self._controller.monitor.offer, self._parts.guiding, self._parts.form
        try:
            file = upload_of(picture, FOLLOWED.gone)
            if file is None:
                return {guiding.guide: OFF}
            own = upright_size(file, FOLLOWED)
        except ValueError as error:
            return self._notice(Notice(str(error)))
        # What is on already came with a picture's settings, which say the shape too.
        if guide or offer is None or not offer.controlnets:
            return self._notice(None)
        shapes = [
            *([size] if isinstance(size, str) and SIZE.fullmatch(size) else []),
            *(shape for _, shape in offer.sizes),
        ]
        name, shape = offer.controlnets[0], nearest_shape(own, shapes)
        nearest = {} if shape == size else {form.size: shape}
        return {**self._notice(None), **self.choose_guide(name, reading), **nearest, guiding.guide: name}

    def see(self, picture: object, adapter: str | None) -> Updates:
        """A picture to read was given or taken away. Reads a file: in a thread."""
        offer, guiding = self._controller.monitor.offer, self._parts.guiding
        try:
            file = upload_of(picture, READ.gone)
            if file is None:
                return {guiding.adapter: OFF}
            upright_size(file, READ)
        except ValueError as error:
            return self._notice(Notice(str(error)))
        if adapter or offer is None or not offer.adapters:
            return self._notice(None)
        return {**self._notice(None), guiding.adapter: offer.adapters[0]}

    def choose_guide(self, name: str | None, reading: str | None) -> Updates:
        """Edges are for a ControlNet that was made for them."""
        return {self._parts.guiding.guide_reads: reading_for(name or "", reading or EDGES)}

    async def act(
        self, request: gr.Request, event: gr.EventData, which: dict[str, Any] | None, kept: object
    ) -> Updates:
        """A button in the list was pressed, or the page's script has noticed something; it says which."""
        browser, view = self._controller.visit(kept, request.session_hash)
        id = str(getattr(event, "id", ""))
        match getattr(event, "do", ""):
            case "open":
                return await self._open(browser, view, id, int(getattr(event, "n", 0)))
            case "gone":
                with suppress(ServiceError):
                    await self._controller.receipt(browser, id, int(getattr(event, "n", 0)))
            case "unreadable":
                return self._notice(Notice(NO_PICTURE))
            case "cancel":
                return self._notice(await self._controller.cancel(browser, id))
            case "remove":
                browser.remove(id)
                if which and which["id"] == id:
                    return {self._parts.stored: browser.kept(), **self._parts.opened.closed()}
            case "more":
                view.show_more()
                browser.changes.tell()
        return {self._parts.stored: browser.kept()}

    async def use(self, which: dict[str, Any] | None, *pictures: str | None) -> Updates:
        recipe = self._parts.opened.recipe(which)
        return self._stay(None) if recipe is None else self._fill(recipe, pictures)

    async def vary(self, request: gr.Request, which: dict[str, Any] | None, kept: object) -> Updates:
        browser, _ = self._controller.visit(kept, request.session_hash)
        if not which:
            return self._notice(None)
        receipt = which["receipt"]
        return self._notice(await self._controller.vary(browser, which["id"], which["n"], receipt))

    async def change(self, request: gr.Request, which: dict[str, Any] | None, kept: object) -> Updates:
        """The opened picture goes to the editor."""
        browser, _ = self._controller.visit(kept, request.session_hash)
        if not which:
            return self._stay(None)
        id, n, receipt = which["id"], which["n"], which["receipt"]
        try:
            await self._controller.receipt(browser, id, n)
        except ServiceError as error:
            return self._stay(notice_of(error))
        prompt, emphasis = str(receipt.get("prompt", "")), self._parts.settings.emphasis
        # Brackets in it mean what they meant.
        meant = {emphasis: bool(receipt.get("emphasis"))} if has_marks(prompt) else {}
        source = f"pictures/{id}/{n}.png"
        laid: dict[str, Any] = {
            "background": {"path": source, "url": source},
            "layers": [],
            "composite": None,
        }
        return {
            self._parts.turn: {"tab": TABS[1], "canvas": laid},
            self._parts.editor.prompt: prompt,
            self._parts.notice: cards.word(IN_EDITOR, "#canvas"),
            **meant,
        }

    def read_file(self, path: str | None, *pictures: str | None) -> Updates:
        """A picture was dropped: its own record fills the form. Reads a file: in a thread."""
        recipe = None
        if path is not None and Path(path).stat().st_size <= MAX_FILE_BYTES:
            recipe = read_recipe(Path(path).read_bytes())
        answer = self._stay(NO_RECIPE) if recipe is None else self._fill(recipe, pictures)
        return {self._parts.file: None, **answer}

    async def _begin(
        self, kept: object, request: gr.Request, settings: list[Any], shape: str, **asked: Any
    ) -> Updates:
        """shape: of the picture that comes, empty where nobody knows it yet."""
        browser, _ = self._controller.visit(kept, request.session_hash)
        # A field that was never touched is None.
        negative, emphasis, style, steps, guidance, scheduler, seed, model, loras, lora_scale, *rest = (
            settings
        )
        followed, name, *how, read, adapter, adapter_scale = rest
        try:
            seed, steps = read_seed(seed or ""), read_whole("Steps", steps)
            asked["n"] = read_whole("Pictures", asked["n"])
            if name:
                asked["guide"] = guide_as_sent(name, *how)
                file = upload_of(followed, FOLLOWED.gone)
                asked["guiding"] = await asyncio.to_thread(prepare_picture, file, FOLLOWED, shape)
            if adapter:
                asked["look"] = look_as_sent(adapter, adapter_scale)
                asked["seen"] = await asyncio.to_thread(prepare_picture, upload_of(read, READ.gone), READ)
        except ValueError as error:
            return self._notice(Notice(str(error)))
        job_request = JobRequest(
            **{**asked, "prompt": asked["prompt"] or ""},
            negative_prompt=negative or "",
            emphasis=bool(emphasis),
            style=style or "",
            steps=steps,
            guidance=guidance,
            scheduler=scheduler or "",
            seed=seed,
            model=model or "",
            loras=[Lora(name, lora_scale) for name in loras or ()],
        )
        return self._notice(await self._controller.draw(browser, job_request))

    async def _open(self, browser: Browser, view: View, id: str, n: int) -> Updates:
        view.opening = pressed = (id, n)
        try:
            receipt = await self._controller.receipt(browser, id, n)
        except ServiceError as error:
            return self._notice(notice_of(error))
        # The one pressed last is seen, whichever the service tells of first.
        if view.opening != pressed:
            return {self._parts.stored: browser.kept()}
        return {**self._notice(None), **self._parts.opened.showing(id, n, receipt)}

    def _fill(self, recipe: Recipe, pictures: tuple[str | None, ...]) -> Updates:
        """pictures: those to follow and to read that lie in the form."""
        offer, parts = self._controller.monitor.offer, self._parts
        is_guided, has_seen = (each is not None for each in pictures)
        values, said = filled(recipe, offer, is_guided=is_guided, has_seen=has_seen)
        updates = filled_in(parts.form, parts.settings, parts.guiding, values, offer)
        return {parts.notice: cards.word(said, "#prompt"), parts.turn: {"tab": TABS[0]}, **updates}

    def _stay(self, notice: Notice | None) -> Updates:
        return {**self._notice(notice), self._parts.turn: None}

    def _notice(self, notice: Notice | None) -> Updates:
        return {self._parts.notice: cards.notice_box(notice)}
