"""`WxH`, the way people and clients write a size."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from mezzotint.core import ModelLimits
from mezzotint.errors import InvalidRequest

__all__ = ["nearest_of", "nearest_size", "parse_size"]

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


def nearest_size(width: int, height: int, limits: ModelLimits) -> tuple[int, int]:
    """A size the model draws, about as wide and as high, in pixels."""
    if limits.served is not None:
        return nearest_of(width, height, limits.served)
    shrink = min(1.0, math.sqrt(limits.max_pixels / max(1, width * height)))
    return _served(width * shrink, limits), _served(height * shrink, limits)


def nearest_of(width: int, height: int, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Of `sizes`, the one nearest in proportion; of those alike, the one nearest in area."""

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        # Logarithms of each side: a quotient of what a client sends may be beyond a float.
        wider, higher = (
            math.log(ours) - math.log(max(1, theirs))
            for ours, theirs in zip(size, (width, height), strict=True)
        )
        proportion, area = wider - higher, wider + higher
        # Rounded, for equal proportions of other numbers differ in the last bit.
        return round(abs(proportion), 6), abs(area)

    return min(sizes, key=distance)


def _served(length: float, limits: ModelLimits) -> int:
    low, high = -(-limits.min_size // 8) * 8, limits.max_size // 8 * 8
    # Rounded down, for two sides rounded up would hold more pixels than the model takes.
    return min(max(int(length) // 8 * 8, low), high)
