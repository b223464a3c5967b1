"""How the page looks, light and dark, wide and narrow. System fonts: nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

__all__ = ["CSS", "HEAD", "theme"]

CSS = Path(__file__).with_name("page.css").read_text()
HEAD = '<meta name="color-scheme" content="light dark">'


def theme() -> gr.Theme:
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="gray",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
