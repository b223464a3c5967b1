"""The form's widgets, and how they are filled: with what the service offers, with a picture's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from mezzotint.core import MAX_CONTROL_SCALE, Hires
from mezzotint.ui.editing import BEYOND, PAINTED, WHOLE
from mezzotint.ui.form import STYLES
from mezzotint.ui.guides import AS_IT_IS, EDGES
from mezzotint.ui.offer import Offer
from mezzotint.ui.stages import OFF, choice_of, read_choice, stage_in_words

__all__ = ["Editor", "Form", "Guiding", "Settings", "filled_in", "offered"]

BRUSH = gr.Brush(colors=["#e11d48"], default_color="#e11d48", color_mode="fixed", default_size=24)
MODES = [
    ("All of it", WHOLE),
    ("What I paint over", PAINTED),
    ("More beyond its edges", BEYOND),
]
# Whether a choice is one is the service's to say, not what this page was told before a restart.
OPEN = {"allow_custom_value": True}
# How far from the picture each of them goes, unless told otherwise.
STRENGTHS = {WHOLE: 0.6, PAINTED: 1.0, BEYOND: 1.0}


def _typed(field: str) -> dict[str, str]:
    """Of a widget that the page's script reads where it stands: by its field, with dashes."""
    return {"elem_id": field, "elem_classes": "mz-kept"}


@dataclass(frozen=True)
class Form:
    """What is asked for first."""

    prompt: gr.Textbox
    draw: gr.Button
    size: gr.Radio
    n: gr.Slider

    @classmethod
    def build(cls) -> Form:
        prompt = gr.Textbox(
            label="Prompt", lines=1, max_lines=6, autofocus=True, **_typed("prompt"),
            placeholder="What to draw: a fox on a blue background",
        )  # fmt: skip
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        size = gr.Radio([], label="Shape", **_typed("size"))
        # Has its place where changed pictures are asked for too.
        n = gr.Slider(1, 10, value=1, step=1, label="Pictures", buttons=[], render=False, **_typed("n"))
        return cls(prompt, draw, size, n)


@dataclass(frozen=True)
class Settings:
    """What is folded away. Used for new drawings and, but for `hires`, for changed ones."""

    negative_prompt: gr.Textbox
    emphasis: gr.Checkbox
    style: gr.Dropdown
    steps: gr.Slider
    guidance: gr.Slider
    scheduler: gr.Dropdown
    hires: gr.Radio
    seed: gr.Textbox
    new_seed: gr.Button
    same_seed: gr.Button
    model: gr.Dropdown
    loras: gr.Dropdown
    lora_scale: gr.Slider

    @classmethod
    def build(cls) -> Settings:
        style = gr.Dropdown(
            [("None", ""), *((name.replace("-", " ").capitalize(), name) for name in STYLES)],
            value="", label="Style", filterable=False,
        )  # fmt: skip
        negative = gr.Textbox(
            label="Leave out", lines=1, max_lines=4, placeholder="What must not be in it",
            **_typed("negative-prompt"),
        )  # fmt: skip
        emphasis = gr.Checkbox(
            label="Brackets weigh words", info="(fox:1.3) is more of it, [fox] less", **_typed("emphasis")
        )
        steps = gr.Slider(1, 100, value=20, step=1, label="Steps", buttons=[], **_typed("steps"))
        guidance = gr.Slider(0, 20, value=5, step=0.1, label="Guidance", buttons=[], **_typed("guidance"))
        scheduler = gr.Dropdown([], label="Scheduler", **OPEN)
        hires = gr.Radio(
            [("Off", OFF)], value=OFF, label="Second stage", visible=False, **_typed("hires"),
            info="Draws a new picture, enlarges it and draws over it at that size: the composition stays",
        )  # fmt: skip
        seed = gr.Textbox(label="Seed", max_lines=1, placeholder="A new one each time", **_typed("seed"))
        with gr.Row():
            new_seed = gr.Button("Random seed", size="sm")
            same_seed = gr.Button("Reuse the last seed", size="sm")
        model = gr.Dropdown([], label="Model", **OPEN)
        loras = gr.Dropdown([], label="LoRAs", multiselect=True, visible=False, **OPEN)
        lora_scale = gr.Slider(
            -4, 4, value=1, step=0.05, label="LoRA strength", visible=False, buttons=[],
            **_typed("lora-scale"),
        )  # fmt: skip
        return cls(
            negative, emphasis, style, steps, guidance, scheduler, hires, seed, new_seed, same_seed, model,
            loras, lora_scale,
        )  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """The widgets whose values are part of every request, in the order that `Answers` reads them in."""
        others = ("hires", "new_seed", "same_seed")
        return [getattr(self, each.name) for each in fields(self) if each.name not in others]


@dataclass(frozen=True)
class Guiding:
    """Pictures that the drawing goes by, folded away. Used for new drawings and for changed ones.

    followed: its lines are kept to. read: it is part of the prompt.
    """

    follow_fold: gr.Accordion
    followed: gr.Image
    guide: gr.Radio
    guide_reads: gr.Radio
    guide_scale: gr.Slider
    guide_start: gr.Slider
    guide_end: gr.Slider
    read_fold: gr.Accordion
    read: gr.Image
    adapter: gr.Radio
    adapter_scale: gr.Slider

    @classmethod
    def build(cls) -> Guiding:
        with gr.Accordion("Guiding picture", open=False, visible=False, elem_id="guiding") as follow_fold:
            followed = _upload("Picture to follow", "followed")
            guide = gr.Radio(
                [("Off", OFF)], value=OFF, label="ControlNet", **_typed("guide"),
                info="Keeps to the lines of the picture above, and fills them with what the prompt says",
            )  # fmt: skip
            reads = gr.Radio(
                [("Its edges", EDGES), ("The picture as it is", AS_IT_IS)], value=EDGES,
                label="Read from it", **_typed("guide-reads"),
                info="Edges are found in a photo or a drawing; white lines on black are taken as they are",
            )  # fmt: skip
            scale = _strength("Guide strength", "guide-scale")
            with gr.Row(elem_id="guide-part"):
                start, end = (
                    gr.Slider(
                        0, 1, value=value, step=0.05, label=label, info=info, min_width=150, buttons=[],
                        **_typed(field),
                    )
                    for value, label, info, field in (
                        (0, "Guide from", "0 is the first step", "guide-start"),
                        (1, "Guide until", "1 is the last step", "guide-end"),
                    )
                )  # fmt: skip
        with gr.Accordion("Image prompt", open=False, visible=False, elem_id="image-prompt") as read_fold:
            read = _upload("Picture to read", "read")
            adapter = gr.Radio(
                [("Off", OFF)], value=OFF, label="IP-Adapter", **_typed("adapter"),
                info="Reads the picture above beside the prompt: what it shows, its colours, its manner",
            )  # fmt: skip
            adapter_scale = _strength("Image prompt strength", "adapter-scale")
        return cls(
            follow_fold, followed, guide, reads, scale, start, end, read_fold, read, adapter, adapter_scale
        )

    @property
    def inputs(self) -> list[Any]:
        """In the order that `Answers` reads them in."""
        return [getattr(self, each.name) for each in fields(self) if not each.name.endswith("_fold")]

    @property
    def folds(self) -> list[Any]:
        return [self.follow_fold, self.read_fold]

    @property
    def settings(self) -> list[Any]:
        """What is filled in. Never a picture: Gradio makes anew what may be filled, without `_place`."""
        return [each for each in self.inputs if each not in (self.followed, self.read)]


def _upload(label: str, id: str) -> gr.Image:
    picture = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard"], height=220, buttons=[],
        alt_text=f"The {label[0].lower()}{label[1:]}", elem_id=id,
    )  # fmt: skip
    # Gradio's own opens the file, and says "Error" of one that is no picture.
    picture.preprocess = _place
    return picture


def _strength(label: str, field: str) -> gr.Slider:
    return gr.Slider(
        0, MAX_CONTROL_SCALE, value=1, step=0.05, label=label, buttons=[],
        info="Less leaves more to the prompt", **_typed(field),
    )  # fmt: skip


def _place(payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


@dataclass(frozen=True)
class Editor:
    """What changes a picture.

    canvas: nothing that the server answers is given it or fills it, nor the tabs round it. Gradio reads what
        was once part of an answer again at each piece of news, and each time it reads a canvas it makes and
        sends all its pictures.
    asked: what the widgets held when "Draw from it" was pressed, the canvas first.
    """

    canvas: gr.ImageEditor
    asked: gr.JSON
    mode: gr.Radio
    left: gr.Slider
    top: gr.Slider
    right: gr.Slider
    bottom: gr.Slider
    strength: gr.Slider
    prompt: gr.Textbox
    draw: gr.Button

    @classmethod
    def build(cls) -> Editor:
        canvas = gr.ImageEditor(
            type="pil", label="Picture to start from", sources=("upload", "clipboard"), brush=BRUSH,
            layers=False, transforms=(), buttons=[], height=420, elem_id="canvas",
        )  # fmt: skip
        asked = gr.JSON(visible=False)
        mode = gr.Radio(MODES, value=WHOLE, label="Redraw", elem_id="mode")
        with gr.Row(visible=False, elem_id="margins") as margins:
            left, top, right, bottom = (
                gr.Slider(0, 1, value=value, step=0.05, label=side, min_width=130, buttons=[])
                for side, value in (("Left", 0.25), ("Top", 0), ("Right", 0.25), ("Bottom", 0))
            )
        strength = gr.Slider(0.05, 1, value=STRENGTHS[WHOLE], step=0.05, label="How far from it", buttons=[])
        prompt = gr.Textbox(
            label="Prompt of the changed picture", lines=1, max_lines=6, **_typed("edit-prompt")
        )
        draw = gr.Button("Draw from it", variant="primary")
        # In the browser alone: an answer would come late, over a strength that was chosen since.
        fitting = (
            f"mode => [{{__type__: 'update', visible: mode === '{BEYOND}'}}, {json.dumps(STRENGTHS)}[mode]]"
        )
        mode.change(None, [mode], [margins, strength], js=fitting, api_visibility="private")
        return cls(canvas, asked, mode, left, top, right, bottom, strength, prompt, draw)


def offered(
    form: Form, settings: Settings, guiding: Guiding, offer: Offer, values: Mapping[str, Any]
) -> dict[Any, Any]:
    """The widgets' choices and bounds, and the model's own values of those that hold none that it takes.

    values: what they hold, by field. It is not answered: something else may stand there by now.
    """
    held = {name: value for name, value in values.items() if offer.takes(name, value)}
    own = {name: {"value": value} for name, value in offer.usual.items() if name not in held}
    size = held.get("size", offer.usual["size"])
    lora = bool(offer.loras)
    return {
        form.size: gr.update(choices=_sizes(offer, size), **own.get("size", {})),
        form.n: gr.update(maximum=offer.max_images),
        settings.negative_prompt: gr.update(info=offer.words),
        settings.steps: gr.update(maximum=offer.max_steps, **own.get("steps", {})),
        settings.guidance: gr.update(maximum=offer.max_guidance, **own.get("guidance", {})),
        settings.scheduler: gr.update(choices=list(offer.schedulers), **own.get("scheduler", {})),
        settings.hires: gr.update(
            choices=_stages(offer, held.get("hires", OFF)),
            visible=bool(offer.hires_scales),
            **own.get("hires", {}),
        ),
        settings.model: gr.update(choices=list(offer.models), **own.get("model", {})),
        settings.loras: gr.update(
            choices=[(each.title, each.name) for each in offer.loras], visible=lora, **own.get("loras", {})
        ),
        settings.lora_scale: gr.update(visible=lora),
        guiding.follow_fold: gr.update(visible=bool(offer.controlnets)),
        guiding.guide: gr.update(choices=_or_off(offer.controlnets), **own.get("guide", {})),
        guiding.read_fold: gr.update(visible=bool(offer.adapters)),
        guiding.adapter: gr.update(choices=_or_off(offer.adapters), **own.get("adapter", {})),
    }


def filled_in(
    form: Form, settings: Settings, guiding: Guiding, values: Mapping[str, Any], offer: Offer | None
) -> dict[Any, Any]:
    """The widgets' values, by the field's name.

    A size or a second stage that is not among the choices joins them. What is on is unfolded.
    """
    parts = (form, settings, guiding)
    updates: dict[Any, Any] = {
        next(getattr(part, name) for part in parts if hasattr(part, name)): value
        for name, value in values.items()
    }
    if offer is not None and values.get("size") is not None:
        updates[form.size] = gr.update(choices=_sizes(offer, values["size"]), value=values["size"])
    if offer is not None and "hires" in values:
        updates[settings.hires] = gr.update(choices=_stages(offer, values["hires"]), value=values["hires"])
    for name, fold, names in (
        ("guide", guiding.follow_fold, offer.controlnets if offer else ()),
        ("adapter", guiding.read_fold, offer.adapters if offer else ()),
    ):
        if values.get(name):
            updates[getattr(guiding, name)] = gr.update(choices=_or_off(names), value=values[name])
            updates[fold] = gr.update(open=True)
    return updates


def _or_off(names: Sequence[str]) -> list[tuple[str, str]]:
    return [("Off", OFF), *((name, name) for name in names)]


def _sizes(offer: Offer, chosen: str | None) -> list[tuple[str, str]]:
    """The choices, with what is chosen among them."""
    if chosen is None or chosen in [size for _, size in offer.sizes]:
        return list(offer.sizes)
    return [*offer.sizes, (chosen.replace("x", "×"), chosen)]


def _stages(offer: Offer, chosen: str) -> list[tuple[str, str]]:
    """The choices, with what is chosen among them."""
    stages, own = [Hires(scale) for scale in offer.hires_scales], read_choice(chosen)
    if own is not None and own not in stages:
        stages.append(own)
    return [("Off", OFF), *((stage_in_words(stage), choice_of(stage)) for stage in stages)]
