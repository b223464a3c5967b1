"""An `Image` as PNG, JPEG or WebP bytes, and as a file that is written whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path

from mezzotint.core import Image
from mezzotint.errors import InvalidRequest, OutputUnwritable, os_error_text
from mezzotint.imaging.metadata import JPEG_EXIF_BYTES, exif_block, png_chunks

__all__ = ["CONTENT_TYPES", "check_output", "encode", "format_name", "save"]

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""The formats by name, and what HTTP calls them."""

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", "": "png"}
QUALITY = {"jpeg": 95, "webp": 90}


def encode(image: Image, format: str = "png", compression: int | None = None) -> bytes:
    """The picture as a file's bytes, with its receipt.

    compression: 0…100; a JPEG's or WebP's quality, a PNG's effort. None is the format's default.

    Raises:
        InvalidRequest: on `format`, when it is none of png, jpeg (or jpg), webp; or on `compression`.
    """
    name = format_name(format)
    whole = isinstance(compression, int) and not isinstance(compression, bool)
    if compression is not None and not (whole and 0 <= compression <= 100):
        raise InvalidRequest(
            f"compression must be a whole number, 0…100, not {compression!r}", param="compression"
        )
    if name == "png":
        # Imported here: the rest of a file's life needs no compressor.
        from mezzotint.imaging.png import encode_png

        chunks = [(kind, content) for kind, content, _ in png_chunks(image.receipt).chunks]
        return encode_png(image.pixels, chunks, compression)
    exif = exif_block(image.receipt, JPEG_EXIF_BYTES if name == "jpeg" else None)
    quality = QUALITY[name] if compression is None else compression
    buffer = io.BytesIO()
    image.to_pil().save(buffer, name, quality=quality, exif=exif)
    return buffer.getvalue()


def format_name(format: str) -> str:
    """`png`, `jpeg` or `webp`, from one of them in any case or from `jpg`.

    Raises:
        InvalidRequest: on `format`, when it is none of them.
    """
    name = format.lower()
    name = "jpeg" if name == "jpg" else name
    if name not in CONTENT_TYPES:
        raise InvalidRequest(f"format must be png, jpeg or webp, not {format!r}", param="format")
    return name


def format_of(path: Path) -> str:
    """The format a path's suffix asks for; PNG without one.

    Raises:
        InvalidRequest: on `output`, when the suffix is of no format that is written.
    """
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise InvalidRequest(
            f"{path}: the suffix must be .png, .jpg, .jpeg or .webp, not {path.suffix!r}", param="output"
        ) from None


def check_output(path: Path) -> None:
    """Find out, before any work, whether `save` to `path` would succeed now. Leaves nothing behind.

    Raises:
        InvalidRequest: the suffix is of no format that is written.
        OutputUnwritable: the folder is missing or takes no file, or the path is not one for a file.
    """
    format_of(path)
    _create_beside(path).unlink()


def save(image: Image, path: Path) -> Path:
    """Write the picture in the format of the path's suffix, replacing a file that is there.

    Raises:
        InvalidRequest, OutputUnwritable: as `check_output`; or the disk is full. Nothing is left behind.
    """
    data = encode(image, format_of(path))
    part = _create_beside(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _create_beside(path: Path) -> Path:
    """An empty file next to `path`, with the permissions the umask gives a new file."""
    part = path.parent / f".mezzotint-{secrets.token_hex(6)}.part"
    try:
        # Renaming over anything but a file would replace a folder or a device.
        if path.exists() and not path.is_file():
            raise OutputUnwritable(f"cannot write {path}: it is not a file", param="output")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileNotFoundError as error:
        raise OutputUnwritable(f"cannot write {path}: no folder {path.parent}", param="output") from error
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    return part


def _unwritable(path: Path, error: Exception) -> OutputUnwritable:
    return OutputUnwritable(f"cannot write {path}: {os_error_text(error)}", param="output")
