"""A picture that a drawing follows by a ControlNet, as the form has it: which file, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from mezzotint.core import MAX_CONTROLS, UsedControl
from mezzotint.ui.drawing import SIZE
from mezzotint.ui.editing import FORMATS, MAX_SIDE, NO_PICTURE, is_too_large, on_white, png_of, too_large

__all__ = [
    "AS_IT_IS",
    "EDGES",
    "GONE",
    "Guide",
    "guide_as_sent",
    "guide_in_words",
    "guides_of",
    "nearest_shape",
    "prepare_guide",
    "reading_for",
    "upright_size",
]

# The service's names for what is read from the picture.
EDGES, AS_IT_IS = "canny", "none"
MISSING = "Choose the picture to follow under Guiding picture, or turn its ControlNet off there."
# In EXIF; from LYING on the picture lies on its side.
ORIENTATION, LYING = 0x0112, 5
GONE = "The guiding picture is not kept any more. Choose it again under Guiding picture."


@dataclass(frozen=True)
class Guide:
    """How a picture is followed: by which ControlNet, from which part of the steps to which."""

    name: str
    preprocessor: str = EDGES
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def guides_of(controls: Sequence[UsedControl]) -> tuple[Guide, ...]:
    """Of as many as a request has: a stranger's file may list any number."""
    return tuple(
        Guide(each.name, each.preprocessor, each.scale, each.start, each.end)
        for each in controls[:MAX_CONTROLS]
    )


def guide_as_sent(name: object, preprocessor: object, *numbers: object) -> Guide:
    """What a browser sends.

    Raises:
        ValueError: a sentence, where a number is none.
    """
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
        raise ValueError("Guide strength, Guide from and Guide until must be numbers.")
    scale, start, end = (float(str(each)) for each in numbers)
    return Guide(str(name), str(preprocessor), scale, start, end)


def guide_in_words(control: Mapping[str, Any]) -> str:
    """One of a receipt's `controls`."""
    read = {EDGES: "its edges", AS_IT_IS: "the picture as it is"}.get(control["preprocessor"], "")
    words = [read or str(control["preprocessor"]), f"strength {control['scale']:g}"]
    if (control["start"], control["end"]) != (0, 1):
        words.append(f"from {control['start']:g} until {control['end']:g}")
    return ", ".join(words)


def reading_for(name: str, reading: str) -> str:
    """What one of that name reads where `reading` is chosen: edges are for one that was made for edges."""
    return reading if not name or EDGES in name.casefold() else AS_IT_IS


def nearest_shape(size: str, shapes: Iterable[str]) -> str:
    """Which of the shapes has the proportions of `size`, or nearly; the first of several."""
    return min(shapes, key=lambda shape: abs(math.log(_ratio(size) / _ratio(shape))))


def upright_size(file: str) -> str:
    """`WIDTHxHEIGHT` of the picture, by its header.

    Raises:
        ValueError: a sentence that says why it cannot be followed.
    """
    with _errors_as_sentences():
        is_large = is_too_large(file)
    if is_large:
        raise ValueError(too_large())
    with _errors_as_sentences(), Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        is_lying = picture.getexif().get(ORIENTATION, 1) >= LYING
    return f"{height}x{width}" if is_lying else f"{width}x{height}"


def prepare_guide(file: str | None, shape: str) -> bytes:
    """The picture as a PNG file, upright, cropped round its middle to the proportions of `shape`.

    The service stretches it to what it draws, which would be stretched too.

    shape: `WIDTHxHEIGHT`, or empty, which crops nothing.

    Raises:
        ValueError: a sentence that says what to do.
    """
    if file is None:
        raise ValueError(MISSING)
    upright_size(file)
    with _errors_as_sentences(), Image.open(file, formats=FORMATS) as picture:
        whole = on_white(ImageOps.exif_transpose(picture))
    if SIZE.fullmatch(shape):
        whole = whole.crop(_middle(whole.size, _ratio(shape)))
    whole.thumbnail((MAX_SIDE, MAX_SIDE))
    return png_of(whole)


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """What goes wrong with a file, as a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(GONE) from None
    except Exception as error:
        # Pillow has no one error for a file that is not what it seems.
        raise ValueError(NO_PICTURE) from error


def _ratio(size: str) -> float:
    width, height = map(int, size.split("x"))
    return width / height


def _middle(size: tuple[int, int], ratio: float) -> tuple[int, int, int, int]:
    """The box of these proportions in the middle of a picture, as large as it can be."""
    width, height = size
    cut_width, cut_height = min(width, round(height * ratio) or 1), min(height, round(width / ratio) or 1)
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return left, top, left + cut_width, top + cut_height
