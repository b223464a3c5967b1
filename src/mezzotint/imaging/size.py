"""`WxH`, the way people and clients write a size."""

from __future__ import annotations

import re

from mezzotint.errors import InvalidRequest

__all__ = ["parse_size"]

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
