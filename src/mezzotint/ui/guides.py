"""Pictures that a drawing goes by, as the form has them: one followed by a ControlNet, one read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from mezzotint.core import MAX_CONTROLS, UsedControl, UsedImagePrompt
from mezzotint.ui.drawing import SIZE
from mezzotint.ui.editing import FORMATS, MAX_SIDE, NO_PICTURE, is_too_large, on_white, png_of, too_large

__all__ = [
    "AS_IT_IS",
    "EDGES",
    "FOLLOWED",
    "READ",
    "Guide",
    "Look",
    "Place",
    "guide_as_sent",
    "guide_in_words",
    "guides_of",
    "look_as_sent",
    "looks_of",
    "nearest_shape",
    "prepare_picture",
    "reading_for",
    "upright_size",
]

# The service's names for what is read from the picture.
EDGES, AS_IT_IS = "canny", "none"
# In EXIF; from LYING on the picture lies on its side.
ORIENTATION, LYING = 0x0112, 5


@dataclass(frozen=True)
class Place:
    """Where the form has such a picture, by what is said of it.

    missing, gone: there is none, or none any more. again, still: of a picture's settings, of which it is no
        part, where none lies there and where one does.
    """

    missing: str
    gone: str
    again: str
    still: str


FOLLOWED = Place(
    "Choose the picture to follow under Guiding picture, or turn its ControlNet off there.",
    "The guiding picture is not kept any more. Choose it again under Guiding picture.",
    "It followed a guiding picture, which is not part of its settings: give it again under Guiding picture.",
    "It followed a guiding picture: see that the one under Guiding picture is the same.",
)
READ = Place(
    "Choose the picture to read under Image prompt, or turn its IP-Adapter off there.",
    "The picture to read is not kept any more. Choose it again under Image prompt.",
    "It read a picture, which is not part of its settings: give it again under Image prompt.",
    "It read a picture: see that the one under Image prompt is the same.",
)


@dataclass(frozen=True)
class Guide:
    """How a picture is followed: by which ControlNet, from which part of the steps to which."""

    name: str
    preprocessor: str = EDGES
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Look:
    """How a picture is read as part of the prompt: by which IP-Adapter, and how much of it."""

    name: str
    scale: float = 1.0


def guides_of(controls: Sequence[UsedControl]) -> tuple[Guide, ...]:
    """Of as many as a request has: a stranger's file may list any number."""
    return tuple(
        Guide(each.name, each.preprocessor, each.scale, each.start, each.end)
        for each in controls[:MAX_CONTROLS]
    )


def looks_of(prompts: Sequence[UsedImagePrompt]) -> tuple[Look, ...]:
    """Of as many as a request has."""
    return tuple(Look(each.name, each.scale) for each in prompts[:MAX_CONTROLS])


def look_as_sent(name: object, scale: object) -> Look:
    """As `guide_as_sent`."""
    [number] = _numbers("Image prompt strength must be a number.", scale)
    return Look(str(name), number)


def guide_as_sent(name: object, preprocessor: object, *numbers: object) -> Guide:
    """What a browser sends.

    Raises:
        ValueError: a sentence, where a number is none.
    """
    scale, start, end = _numbers("Guide strength, Guide from and Guide until must be numbers.", *numbers)
    return Guide(str(name), str(preprocessor), scale, start, end)


def _numbers(said: str, *values: object) -> list[float]:
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in values):
        raise ValueError(said)
    return [float(str(each)) for each in values]


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


def upright_size(file: str, place: Place) -> str:
    """`WIDTHxHEIGHT` of the picture, by its header.

    Raises:
        ValueError: a sentence that says why it cannot be drawn by.
    """
    with _errors_as_sentences(place):
        is_large = is_too_large(file)
    if is_large:
        raise ValueError(too_large())
    with _errors_as_sentences(place), Image.open(file, formats=FORMATS) as picture:
        width, height = picture.size
        is_lying = picture.getexif().get(ORIENTATION, 1) >= LYING
    return f"{height}x{width}" if is_lying else f"{width}x{height}"


def prepare_picture(file: str | None, place: Place, shape: str = "") -> bytes:
    """The picture as a PNG file, upright, cropped round its middle to the proportions of `shape`.

    The service stretches what is followed to what it draws, which would be stretched too.

    shape: `WIDTHxHEIGHT`, or empty, which crops nothing.

    Raises:
        ValueError: a sentence that says what to do.
    """
    if file is None:
        raise ValueError(place.missing)
    upright_size(file, place)
    with _errors_as_sentences(place), Image.open(file, formats=FORMATS) as picture:
        whole = on_white(ImageOps.exif_transpose(picture))
    if SIZE.fullmatch(shape):
        whole = whole.crop(_middle(whole.size, _ratio(shape)))
    whole.thumbnail((MAX_SIDE, MAX_SIDE))
    return png_of(whole)


@contextmanager
def _errors_as_sentences(place: Place) -> Iterator[None]:
    """What goes wrong with a file, as a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(place.gone) from None
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
