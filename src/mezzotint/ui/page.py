"""The page: which answer belongs to what is pressed, what it is given and what it may change.

`parts.py` has the widgets, `answers.py` and `watching.py` the answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from mezzotint.ui import cards
from mezzotint.ui.answers import Answers
from mezzotint.ui.controller import Controller
from mezzotint.ui.parts import Parts
from mezzotint.ui.sentences import Notice
from mezzotint.ui.watching import ASK_AGAIN_SECONDS, Watching

__all__ = ["build_page"]

# Nothing of the page is for other programs: they have the service itself. All may run at once, and none but
# the news stands in a queue.
QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "queue": False,
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}
# Whether a shape or a choice is one is the service's to say, not what this page was told before.
AS_SENT: dict[str, Any] = {**QUIET, "preprocess": False}
NO_SEED = Notice("There is no drawing yet whose seed could be reused.")
MAX_OPEN_PAGES = 2_000
# Gradio keeps what it told each page, reloaded ones too, and throws none away before there are ten thousand:
# some 0.3 MB of each, and more of one with many drawings. Those that heard nothing for longest go first.
MAX_SESSIONS = 1_000
# How often uploads are looked through, and how old they get. Seconds.
DELETE_UPLOADS = (600, 3600)


def build_page(controller: Controller) -> gr.Blocks:
    with gr.Blocks(
        title="Mezzotint", analytics_enabled=False, fill_width=True, delete_cache=DELETE_UPLOADS
    ) as blocks:
        parts = Parts.build()
        answers = Answers(controller, parts)
        _wire_wishes(parts, answers)
        _wire_pictures(parts, answers)
        _wire_news(blocks, parts, Watching(controller, parts))
    # Each open page listens to an answer that goes on, and Gradio gives no more than so many at a time.
    blocks.max_threads = MAX_OPEN_PAGES
    blocks.state_session_capacity = MAX_SESSIONS
    blocks.queue(default_concurrency_limit=None, api_open=False)
    return blocks


def _wire_wishes(parts: Parts, answers: Answers) -> None:
    form, settings, guiding, editor = parts.form, parts.settings, parts.guiding, parts.editor
    rest = [*settings.inputs, *guiding.inputs, parts.stored]
    # What was just asked for is seen, whatever was searched for; what is searched for from then on stays.
    wished = [form.draw.click, form.prompt.submit, editor.draw.click, editor.prompt.submit]
    gr.on([*wished, parts.opened.vary.click], None, None, [parts.search], js="() => ''", **QUIET)
    asked = [form.prompt, form.size, settings.hires, form.n, *rest]
    gr.on([form.draw.click, form.prompt.submit], answers.draw, asked, [parts.notice], **AS_SENT)
    margins = [editor.left, editor.top, editor.right, editor.bottom]
    asked = [editor.canvas, editor.mode, *margins, editor.strength, editor.prompt, form.n, *rest]
    pressed = [editor.draw.click, editor.prompt.submit]
    taken = gr.on(pressed, None, asked, [editor.asked], js="(...asked) => [asked]", **QUIET)
    taken.success(answers.edit, [editor.asked], [parts.notice], **QUIET)
    # In the browser alone: an answer would come late, over a seed that was typed since.
    settings.new_seed.click(None, None, [settings.seed], js="() => ''", **QUIET)
    last = f"stored => mezzotint.lastSeed(stored, {json.dumps(cards.notice_box(NO_SEED))})"
    settings.same_seed.click(None, [parts.stored], [settings.seed, parts.notice], js=last, **QUIET)
    drawn = [settings.steps, settings.guidance, settings.scheduler]
    # Gradio tells of one that is taken off with Backspace (6.x) only when the field is left.
    chosen = [settings.loras.input, settings.loras.blur]
    _fill(chosen, answers.choose_loras, [settings.loras], drawn)
    following = [guiding.guide, guiding.guide_reads, form.size]
    given = [guiding.followed.upload, guiding.followed.clear]
    _fill(given, answers.follow, [guiding.followed, guiding.guide], following, [parts.notice])
    given = [guiding.read.upload, guiding.read.clear]
    _fill(given, answers.see, [guiding.read, guiding.adapter], [guiding.adapter], [parts.notice])
    _fill([guiding.guide.input], answers.choose_guide, [guiding.guide], [guiding.guide_reads])


def _fill(
    events: Sequence[Any],
    answer: Callable[..., dict[Any, Any]],
    about: Sequence[Any],
    filled: Sequence[Any],
    told: Sequence[Any] = (),
) -> None:
    """Ask with `about` and what `filled` holds, and fill that with the answer, which may come late.

    What is among both comes last of the one and first of the other.

    What is no longer as it was sent stays: somebody has chosen it meanwhile. So does all of it where `about`
    has changed, of which another answer is on its way.
    """
    asked = [*(each for each in about if each not in filled), *filled]
    late = gr.JSON(visible=False)

    def answered(number: object, *values: Any) -> dict[Any, Any]:
        new = answer(*values)
        fields = [[new.pop(each)] if each in new else None for each in filled]
        # The browser keeps what it has asked with, by number.
        return {late: [int(str(number)), fields], **new}

    ask = "(_, ...asked) => [mezzotint.asked(asked), ...asked]"
    taken = gr.on(events, answered, [late, *asked], [late, *told], js=ask, **AS_SENT)
    fill = f"(late, ...now) => mezzotint.filled(late, now, {len(about)})"
    taken.success(None, [late, *asked], list(filled), js=fill, **QUIET)


def _wire_pictures(parts: Parts, answers: Answers) -> None:
    opened, editor = parts.opened, parts.editor
    form, settings, guiding = parts.form, parts.settings, parts.guiding
    filling = [parts.notice, parts.turn, form.prompt, form.size, settings.hires, *settings.inputs]
    filling += [*guiding.folds, *guiding.settings]
    shown = [parts.notice, parts.stored, *opened.outputs]
    parts.drawings.act(answers.act, [opened.which, parts.stored], shown, **QUIET)
    lying = [guiding.followed, guiding.read]
    read = parts.file.upload(answers.read_file, [parts.file, *lying], [parts.file, *filling], **QUIET)
    used = opened.use.click(answers.use, [opened.which, *lying], filling, **QUIET)
    opened.vary.click(answers.vary, [opened.which, parts.stored], [parts.notice], **QUIET)
    changing = [parts.notice, parts.turn, editor.prompt, settings.emphasis]
    changed = opened.change.click(answers.change, [opened.which, parts.stored], changing, **QUIET)
    # In one piece: an editor that is still being set up takes no picture.
    turning = [parts.tabs, editor.canvas]
    for answered in (read, used, changed):
        answered.success(None, [parts.turn], turning, js="turn => mezzotint.turned(turn)", **QUIET)
    # In the browser alone: not late, when another is open.
    shut = "() => [{__type__: 'update', visible: false}, '', '']"
    opened.close.click(None, None, [opened.group, opened.picture, opened.receipt], js=shut, **QUIET)


def _wire_news(blocks: gr.Blocks, parts: Parts, watching: Watching) -> None:
    latest = {**QUIET, "trigger_mode": "always_last"}
    # Pasted words count too: the event `input` is of keys alone.
    parts.search.change(watching.look_for, [parts.search], None, **latest)
    timer = gr.Timer(ASK_AGAIN_SECONDS)
    # While one answer goes on, the timer asks for no other.
    once = {**QUIET, "queue": True, "trigger_mode": "once"}
    asking = [blocks.load, timer.tick]
    told = "stored => mezzotint.told(stored)"
    gr.on(asking, watching.watch, [parts.stored], watching.outputs, js=told, **once)
    # In the browser alone: what is typed while the line is broken is kept too, and nothing replaces it.
    names, widgets = list(parts.kept), list(parts.kept.values())
    restore = f"(...values) => mezzotint.restored({json.dumps(names)}, values)"
    blocks.load(None, widgets, [*widgets, parts.tabs], js=restore, **QUIET)
    for name, widget in parts.kept.items():
        widget.change(None, [widget], None, js=f"value => mezzotint.keep('{name}', value)", **QUIET)
