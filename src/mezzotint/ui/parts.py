"""Where the page's widgets are, and in which order they are read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from mezzotint.ui.form import KEPT, TABS
from mezzotint.ui.opened import Opened
from mezzotint.ui.widgets import Editor, Form, Guiding, Settings

__all__ = ["Parts"]

# A browser keeps its list under this name. What encrypts it is in the page itself, and so hides nothing; it
# is fixed so that a list outlives the process that wrote it.
STORAGE, STORAGE_SECRET = "mezzotint", "mezzotint"

# Gradio finds the name of the event in it.
LISTEN = "mezzotint.listen(what => trigger('act', what))"


@dataclass(frozen=True)
class Parts:
    """stored: what the browser keeps. notice: what became of the last request. aloud: for screen readers.

    turn: what an answer has the browser do itself: which tab it turns to, what it lays into the editor.
    """

    stored: gr.BrowserState
    banner: gr.HTML
    tabs: gr.Tabs
    turn: gr.JSON
    form: Form
    editor: Editor
    notice: gr.HTML
    guiding: Guiding
    settings: Settings
    file: gr.File
    opened: Opened
    search: gr.Textbox
    drawings: gr.HTML
    aloud: gr.HTML

    @classmethod
    def build(cls) -> Parts:
        """Within `gr.Blocks`."""
        stored = gr.BrowserState({}, storage_key=STORAGE, secret=STORAGE_SECRET)
        gr.HTML('<header class="mz-head"><h1>Mezzotint</h1></header>')
        banner = gr.HTML(elem_id="banner")
        with gr.Row(elem_classes="mz-columns"):
            with gr.Column(scale=5, min_width=320):
                turn = gr.JSON(visible=False)
                with gr.Tabs(selected=TABS[0]) as tabs:
                    with gr.Tab("Draw", id=TABS[0]) as draw:
                        form = Form.build()
                    with gr.Tab("Change a picture", id=TABS[1]) as edit:
                        editor = Editor.build()
                for tab in (draw, edit):
                    tab.select(
                        js=f"() => mezzotint.keep('tab', '{tab.id}')",
                        trigger_mode="multiple",
                        api_visibility="private",
                    )
                # Of both.
                form.n.render()
                notice = gr.HTML(elem_id="notice")
                guiding = Guiding.build()
                with gr.Accordion("Settings", open=False):
                    settings = Settings.build()
                # Of any type: one that Gradio refuses leaves its own "Error" where the next is to be dropped.
                file = gr.File(
                    label="Drop a picture here to draw with its settings",
                    height=150,
                    elem_id="recipe",
                )
            with gr.Column(scale=7, min_width=320):
                opened = Opened.build()
                search = gr.Textbox(label="Search your drawings", max_lines=1, elem_id="search")
                drawings = gr.HTML(elem_id="drawings", js_on_load=LISTEN)
                aloud = gr.HTML(elem_id="aloud", elem_classes="mz-aloud")
        return cls(
            stored,
            banner,
            tabs,
            turn,
            form,
            editor,
            notice,
            guiding,
            settings,
            file,
            opened,
            search,
            drawings,
            aloud,
        )

    @property
    def kept(self) -> dict[str, Any]:
        """The widgets whose values a browser keeps for a reload, by field."""
        held = {
            each.name: getattr(part, each.name)
            for part in (self.form, self.settings, self.guiding)
            for each in fields(part)
        }
        return {name: held[name] for name in KEPT if name in held} | {"edit_prompt": self.editor.prompt}
