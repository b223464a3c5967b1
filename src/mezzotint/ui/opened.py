"""The picture that is looked at: its files, its receipt, and what can be made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.receipts import Recipe, recipe_of_told

__all__ = ["Opened"]


@dataclass(frozen=True)
class Opened:
    """which: {id, n, receipt} of the picture, None while none is open."""

    which: gr.State
    group: gr.Column
    picture: gr.HTML
    receipt: gr.Textbox
    use: gr.Button
    vary: gr.Button
    change: gr.Button
    close: gr.Button

    @classmethod
    def build(cls) -> Opened:
        which = gr.State(None)
        with gr.Column(visible=False, elem_id="opened") as group:
            picture = gr.HTML()
            with gr.Row(elem_classes="mz-buttons"):
                use = gr.Button("Use these settings", size="sm", min_width=130)
                vary = gr.Button("Vary", size="sm", min_width=80)
                change = gr.Button("Change it", size="sm", min_width=80)
                close = gr.Button("Close", size="sm", min_width=80)
            with gr.Accordion("The whole receipt", open=False):
                receipt = gr.Textbox(
                    label="Receipt", lines=8, max_lines=20, interactive=False, buttons=["copy"],
                    elem_id="receipt",
                )  # fmt: skip
        return cls(which, group, picture, receipt, use, vary, change, close)

    @property
    def outputs(self) -> list[Any]:
        return [self.which, self.group, self.picture, self.receipt]

    def showing(self, id: str, n: int, receipt: Mapping[str, Any]) -> dict[Any, Any]:
        return {
            self.which: {"id": id, "n": n, "receipt": dict(receipt)},
            self.group: gr.update(visible=True),
            self.picture: cards.opened_picture(id, n, receipt),
            self.receipt: cards.receipt_text(receipt),
        }

    def closed(self) -> dict[Any, Any]:
        return {self.which: None, self.group: gr.update(visible=False), self.picture: "", self.receipt: ""}

    def recipe(self, which: Mapping[str, Any] | None) -> Recipe | None:
        return recipe_of_told(which["receipt"]) if which else None
