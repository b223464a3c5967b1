"""What one request may bring or ask for at most, on whichever surface."""

from __future__ import annotations

__all__ = ["MAX_IMAGES", "MAX_UPLOAD_BYTES", "MAX_UPLOAD_PIXELS"]

MAX_IMAGES = 10
"""Pictures of one request, as OpenAI's `n`."""
MAX_UPLOAD_BYTES = 50_000_000
"""Bytes of one uploaded picture."""
MAX_UPLOAD_PIXELS = 4096 * 4096
"""Pixels of one uploaded picture; decoded, 48 MiB."""
