"""The list of drawings, the banner, the opened picture as HTML. What comes from outside is escaped here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from html import escape
from typing import Any

from mezzotint.ui.drawing import WORDLESS, Drawing
from mezzotint.ui.guides import guide_in_words
from mezzotint.ui.sentences import Notice, as_sentence, sentence_of
from mezzotint.ui.stages import larger, read_stage, stage_in_words

__all__ = [
    "banner",
    "drawings_list",
    "notice_box",
    "opened_picture",
    "progress_text",
    "receipt_text",
    "said_aloud",
    "word",
]

DOWNLOADS = (("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WebP"))
EMPTY = "Nothing yet. Say what to draw, and press Enter."
NOTHING_FOUND = "None of your drawings says that."
# The receipt's fields that people ask for first, as the form calls them.
FIRST_FIELDS = {
    "prompt": "Prompt",
    "negative_prompt": "Leave out",
    "seed": "Seed",
    "scheduler": "Scheduler",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "strength": "How far from it",
    "model": "Model",
}


def banner(notice: Notice | None) -> str:
    if notice is None:
        return ""
    return f'<div class="mz-banner" role="status">{escape(notice.text)}</div>'


def notice_box(notice: Notice | None) -> str:
    """A refusal, with the seconds to wait counting down."""
    if notice is None:
        return ""
    wait = ""
    if notice.wait_s is not None:
        seconds = max(1, round(notice.wait_s))
        wait = f' <span class="mz-wait" data-seconds="{seconds}">Try again in {seconds} s.</span>'
    return f'<div class="mz-notice" role="alert" {_news()}>{escape(notice.text)}{wait}</div>'


def word(text: str, about: str) -> str:
    """A sentence that is no refusal. about: the part of the page that it speaks of, as CSS selects it."""
    return f'<div class="mz-word" role="status" {_news(about)}>{escape(text)}</div>'


def drawings_list(drawings: Iterable[Drawing], *, searching: bool, more: int, zone: tzinfo = UTC) -> str:
    """Newest first. more: how many there are that are not among them. zone: the reader's."""
    cards = "".join(_card(drawing, zone) for drawing in drawings)
    if not cards:
        return f'<p class="mz-empty">{NOTHING_FOUND if searching else EMPTY}</p>'
    rest = _button("more", f"Show {more} more", "mz-more") if more else ""
    return f'<ol class="mz-drawings">{cards}</ol>{rest}'


def progress_text(drawing: Drawing) -> str:
    """How far it is, in words."""
    match drawing.state:
        case "asked":
            return "Asking …"
        case "queued" | "running" if drawing.cancelling:
            return "Stopping …"
        case "queued":
            return "Waiting" + _ahead(drawing.position) + _about(drawing.eta_s)
        case "running" if drawing.position is not None:
            return "Waiting" + _ahead(drawing.position) + _about(drawing.eta_s)
        case "running" if drawing.total_steps:
            return f"Step {drawing.steps} of {drawing.total_steps}" + _about(drawing.eta_s)
        case "running":
            return "Beginning …"
        case "cancelled":
            return "Cancelled."
        case "failed":
            return sentence_of(drawing.code, drawing.said)
        case "lost":
            return "The service does not keep this drawing any more."
        case _:
            return ""


def said_aloud(drawings: Iterable[Drawing]) -> str:
    """For screen readers: what has just ended or goes on, without the steps."""
    drawings = list(drawings)
    running = sum(not drawing.is_over for drawing in drawings)
    newest = max(drawings, key=lambda drawing: drawing.at, default=None)
    ended = ""
    if newest is not None and newest.is_over:
        ended = {"done": "Finished", "failed": "Failed", "cancelled": "Cancelled"}.get(newest.state, "Gone")
        ended = f"{ended}: {newest.prompt}. "
    going = f"{running} {'drawing' if running == 1 else 'drawings'} in progress." if running else ""
    # Always there, so that what changes in it is read out.
    return f'<p role="status">{escape((ended + going).strip())}</p>'


def opened_picture(drawing_id: str, n: int, receipt: Mapping[str, Any]) -> str:
    """The picture at its size, its files, and its receipt to read."""
    source = f"pictures/{escape(drawing_id)}/{n}"
    prompt, seed = str(receipt.get("prompt") or WORDLESS), escape(str(receipt.get("seed", n)))
    hires, first = read_stage(receipt), f"{int(receipt['width'])}x{int(receipt['height'])}"
    width, height = larger(first, hires).split("x")
    size = f'width="{width}" height="{height}"'
    links = "".join(
        f'<a class="mz-download" href="{source}.{suffix}" download="plate-{seed}.{suffix}">'
        f'<span class="mz-aloud">Download as </span>{name}</a>'
        for suffix, name in DOWNLOADS
    )
    told = {
        label: receipt[name] for name, label in FIRST_FIELDS.items() if receipt.get(name) not in (None, "")
    }
    told["Size"] = f"{width}×{height}"
    if hires is not None:
        told["Second stage"] = f"{stage_in_words(hires)}, from {first.replace('x', '×')}"
    told |= {f"LoRA {lora['name']}": lora["scale"] for lora in receipt.get("loras") or ()}
    told |= {f"ControlNet {each['name']}": guide_in_words(each) for each in receipt.get("controls") or ()}
    told |= {f"IP-Adapter {each['name']}": each["scale"] for each in receipt.get("image_prompts") or ()}
    if receipt.get("embeddings"):
        told["Embeddings"] = ", ".join(str(each["name"]) for each in receipt["embeddings"])
    if receipt.get("emphasis"):
        told["Prompt read"] = "as in A1111"
    if receipt.get("warnings"):
        told["Note"] = " ".join(as_sentence(str(text)) for text in receipt["warnings"])
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(str(value))}</dd>" for label, value in told.items())
    return (
        f'<figure class="mz-opened" tabindex="-1" {_news("#opened")}>'
        f'<img src="{source}.png" alt="{escape(prompt)}" {size}>'
        '<figcaption class="mz-downloads"><span aria-hidden="true">Download</span>'
        f"{links}</figcaption></figure>"
        f'<dl class="mz-receipt">{rows}</dl>'
    )


def receipt_text(receipt: Mapping[str, Any]) -> str:
    """The whole of it, to be copied."""
    return json.dumps(receipt, indent=2, ensure_ascii=False)


def _news(about: str = "") -> str:
    """Marks what was just answered: the page's script brings it into view, once for each mark."""
    mark = f'data-news="{time.monotonic_ns()}"'
    return f'{mark} data-show="{about}"' if about else mark


def _card(drawing: Drawing, zone: tzinfo) -> str:
    thumbnails = "".join(_thumbnail(drawing, index) for index in range(drawing.n))
    # Of what was lost or has failed nothing is to be seen but why.
    thumbnails = f'<div class="mz-thumbnails">{thumbnails}</div>' if thumbnails else ""
    asked = f' data-news="{escape(drawing.id)}"' if drawing.state == "asked" else ""
    warned = ""
    if drawing.state == "done" and drawing.said:
        warned = f'<p class="mz-warned">{escape(as_sentence(drawing.said))}</p>'
    return (
        f'<li class="mz-drawing" tabindex="-1" data-job="{escape(drawing.id)}" data-state="{drawing.state}"'
        f'{asked}>{thumbnails}<p class="mz-prompt">{escape(drawing.prompt)}</p>{_progress(drawing)}{warned}'
        '<div class="mz-foot">'
        f'<span class="mz-told">{escape(progress_text(drawing) or _when(drawing.at, zone))}</span>'
        f"{_action(drawing)}</div></li>"
    )


def _action(drawing: Drawing) -> str:
    if drawing.is_over:
        return _button("remove", "Remove", "mz-quiet", drawing)
    # What the service has not answered to has no name yet that could be cancelled.
    return "" if drawing.state == "asked" else _button("cancel", "Cancel", "mz-cancel", drawing)


def _progress(drawing: Drawing) -> str:
    if drawing.is_over:
        return ""
    percent = min(100, max(0, round(drawing.progress * 100)))
    return (
        f'<div class="mz-progress" role="progressbar" aria-label="Progress of {escape(drawing.prompt)}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
        f'aria-valuetext="{escape(progress_text(drawing))}"><div style="width:{percent}%"></div></div>'
    )


def _thumbnail(drawing: Drawing, index: int) -> str:
    label = escape(f"{index + 1} of {drawing.n}: {drawing.prompt}")
    ratio = f'style="aspect-ratio:{drawing.size[0]}/{drawing.size[1]}"'
    if index in drawing.finished:
        return (
            f'<button type="button" class="mz-thumbnail" {ratio} data-do="open" '
            f'data-id="{escape(drawing.id)}" data-n="{index}" aria-label="Open picture {label}">'
            f'<img src="pictures/{escape(drawing.id)}/{index}.png" alt="" loading="lazy"></button>'
        )
    if index in drawing.previews:
        image = f'<img src="previews/{escape(drawing.previews[index])}" alt="Preview {label}">'
        return f'<span class="mz-thumbnail mz-preview" {ratio}>{image}</span>'
    return "" if drawing.is_over else f'<span class="mz-thumbnail mz-blank" {ratio}></span>'


def _button(action: str, text: str, look: str, drawing: Drawing | None = None) -> str:
    of = ""
    if drawing is not None:
        of = f' data-id="{escape(drawing.id)}" aria-label="{text}: {escape(drawing.prompt)}"'
    return f'<button type="button" class="{look}" data-do="{action}"{of}>{text}</button>'


def _ahead(position: int | None) -> str:
    if position is None:
        return ""
    return ": next" if position == 0 else f": {position} ahead"


def _about(eta_s: float | None) -> str:
    if eta_s is None:
        return ""
    seconds = max(1, round(eta_s))
    return f", about {seconds} s" if seconds < 100 else f", about {round(seconds / 60)} min"


def _when(at: float, zone: tzinfo) -> str:
    """In words that stay true for a while: the page shows them until something changes."""
    day = datetime.fromtimestamp(at, zone).date()
    days = (datetime.now(zone).date() - day).days
    return "Today" if days <= 0 else "Yesterday" if days == 1 else f"{day:%d %B %Y}"
