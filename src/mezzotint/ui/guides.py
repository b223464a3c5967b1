"""A picture that a drawing follows by a ControlNet, as the form has it. Pure but for Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from mezzotint.core import UsedControl
from mezzotint.ui.drawing import SIZE
from mezzotint.ui.editing import FORMATS, MAX_SIDE, is_too_large, on_white, png_of, too_large

__all__ = [
    "AS_IT_IS",
    "EDGES",
    "NO_PICTURE",
    "Guide",
    "guide_in_words",
    "guides_of",
    "nearest_shape",
    "prepare_guide",
    "usual_reading",
]

# The service's names for what is read from the picture.
EDGES, AS_IT_IS = "canny", "none"
NO_PICTURE = "That file cannot be read as a picture. Choose a PNG, JPEG or WebP."
MISSING = "Choose the picture to follow under Guiding picture, or turn its ControlNet off there."
GONE = "The guiding picture is not kept any more. Choose it again under Guiding picture."


@dataclass(frozen=True)
class Guide:
    """How a picture is followed: by which ControlNet, from which part of the steps to which."""

    name: str
    preprocessor: str = EDGES
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def guides_of(controls: Iterable[UsedControl]) -> tuple[Guide, ...]:
    return tuple(Guide(each.name, each.preprocessor, each.scale, each.start, each.end) for each in controls)


def guide_in_words(control: Mapping[str, Any]) -> str:
    """One of a receipt's `controls`."""
    read = {EDGES: "its edges", AS_IT_IS: "the picture as it is"}.get(control["preprocessor"], "")
    words = [read or str(control["preprocessor"]), f"strength {control['scale']}"]
    if (control["start"], control["end"]) != (0, 1):
        words.append(f"from {control['start']} until {control['end']}")
    return ", ".join(words)


def usual_reading(name: str) -> str:
    """What a ControlNet of that name was most likely made to read."""
    return EDGES if EDGES in name.casefold() else AS_IT_IS


def nearest_shape(file: str, sizes: Iterable[str]) -> str | None:
    """Which of these sizes has the picture's proportions, or nearly. None of a file that is no picture."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            # Of a photograph that was taken upright.
            if picture.getexif().get(0x0112, 1) > 4:
                width, height = height, width
    except Exception:
        return None
    return min(sizes, key=lambda size: abs(math.log(width / height / _ratio(size))), default=None)


def prepare_guide(file: str | None, shape: str) -> bytes:
    """The picture as a PNG file, upright, cropped round its middle to the proportions of `shape`.

    shape: `WIDTHxHEIGHT`, or empty, which crops nothing. Stretched, as the service does it, what is drawn
    would be stretched too.

    Raises:
        ValueError: a sentence that says what to do.
    """
    if file is None:
        raise ValueError(MISSING)
    try:
        whole = None if is_too_large(file) else _read(file)
    except FileNotFoundError:
        raise ValueError(GONE) from None
    except Exception as error:
        # Pillow has no one error for a file that is not what it seems.
        raise ValueError(NO_PICTURE) from error
    if whole is None:
        raise ValueError(too_large())
    if SIZE.fullmatch(shape):
        whole = whole.crop(_middle(whole.size, _ratio(shape)))
    whole.thumbnail((MAX_SIDE, MAX_SIDE))
    return png_of(whole)


def _read(file: str) -> Image.Image:
    with Image.open(file, formats=FORMATS) as picture:
        return on_white(ImageOps.exif_transpose(picture))


def _ratio(size: str) -> float:
    width, height = map(int, size.split("x"))
    return width / height


def _middle(size: tuple[int, int], ratio: float) -> tuple[int, int, int, int]:
    """The box of these proportions in the middle of a picture, as large as it can be."""
    width, height = size
    cut_width, cut_height = min(width, round(height * ratio) or 1), min(height, round(width / ratio) or 1)
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return left, top, left + cut_width, top + cut_height
