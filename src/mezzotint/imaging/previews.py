"""A running picture's preview as a file of the finished picture's size and format, without a receipt."""

from __future__ import annotations

import io

import numpy as np

from mezzotint.core import Pixels
from mezzotint.imaging.formats import format_name

__all__ = ["encode_preview"]

QUALITY = 80


def encode_preview(
    preview: Pixels, width: int, height: int, format: str = "png", compression: int | None = None
) -> bytes:
    """`preview`, of any size, smoothly at width × height, as a `png`, `jpeg` or `webp` file.

    compression: 0…100, as `formats.encode` reads it, but JPEG and WebP go without their best.

    Raises:
        InvalidRequest: on `format`, when it is none of these.
    """
    from PIL import Image as PilImage

    name = format_name(format)
    large = PilImage.fromarray(preview).resize((width, height), PilImage.Resampling.BICUBIC)
    if name == "png":
        from mezzotint.imaging.png import encode_png

        return encode_png(np.asarray(large), effort=compression)
    buffer = io.BytesIO()
    # WebP's quickest method: a preview is looked at for a second.
    large.save(buffer, name, quality=min(QUALITY, QUALITY if compression is None else compression), method=0)
    return buffer.getvalue()
