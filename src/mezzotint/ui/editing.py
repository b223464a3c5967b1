"""From what somebody did with a picture to what the service is asked: the picture and its mask.

Pure but for Pillow. The mask is as OpenAI's clients send it: what is transparent is redrawn.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mezzotint.imaging.uploads import is_endless

__all__ = [
    "BEYOND",
    "FORMATS",
    "MAX_SIDE",
    "NO_PICTURE",
    "PAINTED",
    "WHOLE",
    "Edit",
    "is_too_large",
    "on_white",
    "png_of",
    "prepare_edit",
    "read_canvas",
    "size_of_file",
    "too_large",
    "upload_of",
]

WHOLE, PAINTED, BEYOND = "whole", "painted", "beyond"
# As cameras make them. What is decoded on the way takes three times four bytes for each.
MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
# The service takes more; no model draws more.
MAX_SIDE = 2048
# Of the picture that is kept, so much beside the new edge is redrawn with it, lest a seam be seen.
SEAM_PIXELS = 8
Margins = tuple[float, float, float, float]
NO_PICTURE = "That file cannot be read as a picture. Choose a PNG, JPEG or WebP."
GONE = "The picture is not kept any more. Choose it again."


@dataclass(frozen=True)
class Edit:
    """image and mask as PNG files; mask None: redraw it all. missing: what is still to be done."""

    image: bytes = b""
    mask: bytes | None = None
    missing: str = ""


def upload_of(picture: Any, gone: str = GONE) -> str | None:
    """Where Gradio keeps it: it hands on a path, or a record of one where it is told not to read values.

    Raises:
        ValueError: `gone`, of what is no upload: Gradio takes a browser's word for where a picture lies.
    """
    place = picture.get("path") if isinstance(picture, dict) else picture
    if place is None:
        return None
    home = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    try:
        path = Path(place).resolve()
        if path.is_relative_to(home) and path.is_file():
            return str(path)
    except (TypeError, ValueError, OSError):
        pass
    raise ValueError(gone)


def read_canvas(sent: object) -> dict[str, Any]:
    """The editor's value as a browser sends it, with Pillow images in place of uploads.

    Raises:
        ValueError: a sentence, where one of them is no upload, no picture or too large.
    """
    held = sent if isinstance(sent, dict) else {}
    layers = held.get("layers")
    return {
        "background": _opened(held.get("background")),
        "layers": [_opened(layer) for layer in layers] if isinstance(layers, list) else [],
        "composite": _opened(held.get("composite")),
    }


def _opened(picture: object) -> Image.Image | None:
    file = upload_of(picture)
    if file is None:
        return None
    try:
        is_large = is_too_large(file)
        if not is_large:
            with Image.open(file, formats=FORMATS) as read:
                return read.convert("RGBA")
    except Exception as error:
        # Pillow has no one error for a file that is not what it seems.
        raise ValueError(NO_PICTURE) from error
    raise ValueError(too_large())


def is_too_large(file: str) -> bool:
    """Whether the picture in a file has more than `MAX_PIXELS`, by its header.

    Raises:
        UnidentifiedImageError: it is no PNG, JPEG or WebP, or of more pieces than one is made of.
    """
    if is_endless(Path(file).read_bytes()):
        raise UnidentifiedImageError
    try:
        with Image.open(file, formats=FORMATS) as picture:
            return picture.width * picture.height > MAX_PIXELS
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True


def too_large() -> str:
    """What is said of such a picture."""
    return f"That picture has more than {MAX_PIXELS:,} pixels. Make it smaller and choose it again."


def size_of_file(file: bytes) -> str:
    """`WIDTHxHEIGHT` of a picture that `prepare_edit` has made."""
    with Image.open(io.BytesIO(file)) as picture:
        return f"{picture.width}x{picture.height}"


def prepare_edit(value: object, mode: str, margins: Margins) -> Edit:
    """value: the editor's, with Pillow images. margins: left, top, right, bottom, as shares of its side."""
    picture, layers = _read(value)
    if picture is None:
        return Edit(missing="Choose a picture to start from first.")
    if mode == PAINTED and layers is not None:
        painted = _painted(layers, picture.size)
        if not painted.any():
            return Edit(missing="Paint over what should change first.")
        return Edit(png_of(picture), _mask(painted))
    if mode == BEYOND:
        if not all(isinstance(margin, int | float) and 0 <= margin <= 1 for margin in margins):
            return Edit(missing="Left, Top, Right and Bottom take 0 to 1.")
        if not any(margins):
            return Edit(missing="Say on which side the picture should grow first.")
        grown, new = _grown(picture, margins)
        return Edit(png_of(grown), _mask(new))
    return Edit(png_of(picture))


def _read(value: object) -> tuple[Image.Image | None, list[Image.Image] | None]:
    """The picture and what was painted over it; None for that where it is a sketch on nothing."""
    if not isinstance(value, dict):
        return None, []
    layers: list[Image.Image] | None
    layers = [layer for layer in value.get("layers") or () if isinstance(layer, Image.Image)]
    picture: Any = value.get("background")
    if not isinstance(picture, Image.Image) and _has_strokes(layers):
        picture, layers = value.get("composite"), None
    if not isinstance(picture, Image.Image):
        return None, []
    picture = on_white(picture)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture, layers


def _has_strokes(layers: Sequence[Image.Image]) -> bool:
    return any(layer.convert("RGBA").getchannel("A").getbbox() for layer in layers)


def on_white(picture: Image.Image) -> Image.Image:
    """Without anything to see through, in eight bits a channel."""
    if picture.mode.startswith("I"):
        # Pillow cuts greys of 16 bits off at 255, which leaves white.
        greys = np.asarray(picture).astype(np.uint32) // 257
        picture = Image.fromarray(greys.clip(0, 255).astype(np.uint8))
    whole = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> NDArray[np.bool_]:
    """What is covered by any stroke, however thin its colour."""
    covered = np.zeros((size[1], size[0]), np.bool_)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size)
        covered |= np.asarray(alpha) > 0
    return covered


def _grown(picture: Image.Image, margins: Margins) -> tuple[Image.Image, NDArray[np.bool_]]:
    """The picture with its edge repeated outwards, and what of it is new."""
    width, height = picture.size
    left, right = (round(margins[side] * width) for side in (0, 2))
    top, bottom = (round(margins[side] * height) for side in (1, 3))
    pixels = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge")
    new = np.ones(pixels.shape[:2], np.bool_)
    seams = [SEAM_PIXELS if side else 0 for side in (left, top, right, bottom)]
    new[top + seams[1] : top + height - seams[3], left + seams[0] : left + width - seams[2]] = False
    grown = Image.fromarray(pixels)
    grown.thumbnail((MAX_SIDE, MAX_SIDE))
    return grown, np.asarray(Image.fromarray(new).resize(grown.size))


def _mask(redrawn: NDArray[np.bool_]) -> bytes:
    kept = np.where(redrawn, 0, 255).astype(np.uint8)
    opaque = np.zeros((*kept.shape, 4), np.uint8)
    opaque[..., 3] = kept
    return png_of(Image.fromarray(opaque))


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
