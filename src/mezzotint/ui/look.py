"""How the page looks, light and dark, wide and narrow. System fonts: nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

__all__ = ["CSS", "HEAD", "theme"]

CSS = Path(__file__).with_name("page.css").read_text()
SCRIPT = Path(__file__).with_name("page.js").read_text()
HEAD = f'<meta name="color-scheme" content="light dark"><script>{SCRIPT}</script>'


def theme() -> gr.Theme:
    base = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="gray",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    # Gradio's own are paler than can be read easily.
    return base.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
