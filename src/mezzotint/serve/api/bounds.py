"""What one request may bring or ask for at most, on whichever surface."""

from __future__ import annotations

from mezzotint.core import MAX_SEED
from mezzotint.errors import InvalidRequest

__all__ = ["MAX_IMAGES", "MAX_UPLOAD_BYTES", "MAX_UPLOAD_PIXELS", "seeds_of"]

MAX_IMAGES = 10
"""Pictures of one request, as OpenAI's `n`."""
MAX_UPLOAD_BYTES = 50_000_000
"""Bytes of one uploaded picture."""
MAX_UPLOAD_PIXELS = 4096 * 4096
"""Pixels of one uploaded picture; decoded, 48 MiB."""


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
