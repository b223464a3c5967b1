"""`WxH`, the way people and clients write a size, and the size that a model draws in its place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from mezzotint.core import ModelLimits
from mezzotint.errors import InvalidRequest

__all__ = ["fitting_size", "parse_size"]

_SIZE = re.compile(r"([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `512x768`. Whether a model draws that size is not checked here.

    Raises:
        InvalidRequest: on `size`, when the text is not two whole numbers with an x between them.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(
            f"size must be WIDTHxHEIGHT in pixels, such as 512x512, not {text!r}", param="size"
        )
    return int(match[1]), int(match[2])


def fitting_size(width: int, height: int, limits: ModelLimits) -> tuple[int, int]:
    """The size in pixels that the model draws in the place of width × height: that one, rounded down to
    multiples of 8.

    What the model does not draw is scaled to what it does, in proportion as far as its limits let it; where
    sizes are compiled ahead, the nearest of them is taken. Takes integers of any sign and length.
    """
    width, height = max(1, width), max(1, height)
    # What a client sends may be beyond a float.
    excess = max(0, max(width, height).bit_length() - 64)
    width, height = max(1, width >> excess), max(1, height >> excess)
    if limits.served is not None:
        return _nearest_of(width, height, limits.served)
    scale = max(1.0, limits.min_size / min(width, height))
    scale = min(scale, limits.max_size / max(width, height), math.sqrt(limits.max_pixels / (width * height)))
    return _side(width * scale, limits), _side(height * scale, limits)


def _nearest_of(width: int, height: int, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Of `sizes`, the one nearest in proportion; of those alike, the one nearest in area."""

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        wider, higher = (math.log(ours / theirs) for ours, theirs in zip(size, (width, height), strict=True))
        proportion, area = wider - higher, wider + higher
        # Rounded, for equal proportions of other numbers differ in the last bit.
        return round(abs(proportion), 6), abs(area)

    return min(sizes, key=distance)


def _side(length: float, limits: ModelLimits) -> int:
    low, high = -(-limits.min_size // 8) * 8, limits.max_size // 8 * 8
    # Rounded down, for two sides rounded up would hold more pixels than the model takes. A product such as
    # 100 × (512 / 100) may lie a hair below the whole number it stands for.
    return min(max(int(length + 1e-6) // 8 * 8, low), high)
