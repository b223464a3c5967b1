"""How many pictures one request may ask for, and which seeds they have, on whichever surface."""

from __future__ import annotations

from mezzotint.core import MAX_SEED
from mezzotint.errors import InvalidRequest

__all__ = ["MAX_IMAGES", "seeds_of"]

MAX_IMAGES = 10
"""Pictures of one request, as OpenAI's `n`."""


def seeds_of(first: int, count: int) -> range:
    """Picture i has seed + i. Whether the first is one is not checked here.

    Raises:
        InvalidRequest: the last would be too large.
    """
    if first <= MAX_SEED < first + count - 1:
        raise InvalidRequest(
            f"seed must be at most {MAX_SEED - count + 1:,} with {count} pictures, whose seeds follow it, "
            f"not {first}",
            param="seed",
        )
    return range(first, first + count)
