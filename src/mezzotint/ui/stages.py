"""The second, larger stage of a drawing as the form has it: a choice that is text, and words for it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mezzotint.core import UPSCALERS, Hires, known_fields, size_of
from mezzotint.ui.drawing import SIZE

__all__ = ["OFF", "SCALES", "choice_of", "larger", "read_choice", "read_stage", "stage_in_words"]

# How many times wider and higher is offered; a picture may bring any other.
SCALES = (1.25, 1.5, 2.0)
OFF = ""
# SCALE/STRENGTH/STEPS/UPSCALER, without what is left open at the end.
CHOICE = re.compile(r"(\d\.?\d{0,20})(?:/(\d\.?\d{0,20})?(?:/(\d{1,4})?(?:/([\w ()-]+))?)?)?")


def choice_of(hires: Hires) -> str:
    """It takes along what a picture says of its second stage, so that it can be drawn again."""
    steps = "" if hires.steps is None else str(hires.steps)
    parts = (_exact(hires.scale), _exact(hires.strength), steps, hires.upscaler if hires.of_latents else "")
    return "/".join(parts).rstrip("/")


def read_choice(text: object) -> Hires | None:
    """None where there is no second stage, or the text is not what `choice_of` writes."""
    found = CHOICE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    scale, strength, steps, upscaler = found.groups()
    if upscaler and upscaler not in UPSCALERS:
        return None
    return Hires(
        float(scale),
        float(strength) if strength else None,
        int(steps) if steps else None,
        upscaler or Hires.upscaler,
    )


def read_stage(receipt: Mapping[str, Any]) -> Hires | None:
    """Of a receipt as the service tells it."""
    told = receipt.get("hires")
    return None if told is None else Hires(**{**known_fields(Hires, told), "scale": float(told["scale"])})


def stage_in_words(hires: Hires) -> str:
    words = [f"{hires.scale:g}×"]
    if hires.strength is not None:
        words.append(f"strength {hires.strength:g}")
    if hires.steps is not None:
        words.append(f"{hires.steps} steps")
    if hires.of_latents:
        words.append(hires.upscaler)
    return ", ".join(words)


def larger(size: str, hires: Hires | None) -> str:
    """The size of the picture that comes of a first stage of `size`; a text that is no size stays."""
    found = SIZE.fullmatch(size)
    if hires is None or found is None:
        return size
    return "x".join(map(str, size_of(int(found[1]), int(found[2]), hires)))


def _exact(number: float | None) -> str:
    return "" if number is None else repr(float(number)).removesuffix(".0")
