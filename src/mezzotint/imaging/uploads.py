"""Strangers' picture files as arrays: PNG, JPEG and WebP, told by their content alone.

How many pixels a file claims to have is read from its header before any is decoded, and decoding takes a
small multiple of that in memory. Whatever else a file holds, it is decoded as what its first bytes say, or
refused.
Colour profiles are not applied: values are taken as sRGB.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mezzotint.core import Mask, Pixels
from mezzotint.errors import InvalidRequest, PayloadTooLarge, UnsupportedImage

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "MAX_UPLOAD_BYTES",
    "MAX_UPLOAD_PIXELS",
    "check_mask_size",
    "decode_base64",
    "is_endless",
    "read_mask",
    "read_mask_text",
    "read_upload",
    "read_upload_text",
]

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 50_000_000
"""Bytes of one uploaded picture."""
MAX_UPLOAD_PIXELS = 4096 * 4096
"""Pixels of one uploaded picture; decoded, 48 MiB."""

_Array = NDArray[np.uint8]
Redraw = Literal["white", "transparent"]
BLANKS = b" \t\r\n\f\v"
FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112
# Each scan of a progressive JPEG passes over the whole picture and may be a few bytes long; encoders make
# ten.
MAX_JPEG_SCANS = 64
# Of at most 64 KiB each; a picture of 50 MB in nothing but these has 800.
MAX_JPEG_SEGMENTS = 4096
# ITU-T T.81, table B.1. In coded data a 0xFF is followed by a zero or a restart; any number of 0xFF may stand
# before a marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
FIRST_SEGMENT, START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xC0, 0xD8, 0xD9, 0xDA
WEBP_HEADER_BYTES = 30
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Its header comes first.
PNG_HEADER, PNG_BIT_DEPTH = slice(12, 16), 24
# Encoders write 8 KiB and more into each, or a row; Pillow reads four million of nothing in half a minute.
MAX_PNG_CHUNKS = 65_536
# Beside what a chunk holds: its length, its type and its checksum.
PNG_CHUNK_BYTES = 12
STRIP_ROWS = 128
# A1111's: a stroke whose alpha is above this is one.
PAINTED = 128
# JPEG's own limit. To bring a side to size takes memory in proportion to it, however low the picture is.
MAX_SIDE = 65_535


def read_upload(data: bytes, *, param: str, max_pixels: int = MAX_UPLOAD_PIXELS) -> Pixels:
    """The picture of a PNG, JPEG or WebP file, height × width × 3, upright, its transparency over white.

    Of an animation the first frame. `param` names the field in the errors.

    Raises:
        PayloadTooLarge: more than `max_pixels` pixels; nothing was decoded.
        UnsupportedImage: no such file, or one that is damaged.
    """
    return _guarded(data, param, max_pixels, _over_white)


def read_mask(
    data: bytes, *, param: str, max_pixels: int = MAX_UPLOAD_PIXELS, redraw: Redraw = "white"
) -> Mask:
    """A mask file, height × width, above 127 where to redraw.

    redraw: `white`: where the mask is white, or where anything is painted on a transparent one, as A1111
        reads masks. `transparent`: where it is transparent, as OpenAI does.

    Raises:
        InvalidRequest: `transparent` is wanted, and the file has no transparency.
        PayloadTooLarge, UnsupportedImage: as `read_upload`.
    """
    if redraw == "white":
        return _guarded(data, param, max_pixels, _painted)
    mask = _guarded(data, param, max_pixels, _transparent)
    if not mask.size:
        raise InvalidRequest(
            f"{param} has no transparency; make transparent what is to be redrawn", param=param
        )
    return mask


def read_upload_text(text: str, param: str) -> Pixels:
    """`read_upload` of a file that was sent as base64 text, or as a `data:` URL of it.

    Raises:
        InvalidRequest: it is neither.
        PayloadTooLarge, UnsupportedImage: as `read_upload`.
    """
    return read_upload(decode_base64(text, param), param=param)


def read_mask_text(text: str, param: str, redraw: Redraw) -> Mask:
    """`read_mask` of a file that was sent as base64 text, or as a `data:` URL of it.

    Raises:
        InvalidRequest: it is neither, or as `read_mask`.
        PayloadTooLarge, UnsupportedImage: as `read_upload`.
    """
    return read_mask(decode_base64(text, param), param=param, redraw=redraw)


def check_mask_size(mask: Mask, image: Pixels) -> None:
    """Refuse a mask that is not as wide and as high as its picture, in pixels of the files.

    Raises:
        InvalidRequest: it is not.
    """
    if mask.shape != image.shape[:2]:
        (height, width), (own_height, own_width) = image.shape[:2], mask.shape
        raise InvalidRequest(
            f"mask must have the picture's size, {width}x{height} pixels, not {own_width}x{own_height}",
            param="mask",
        )


def decode_base64(text: str, param: str, max_bytes: int = MAX_UPLOAD_BYTES) -> bytes:
    """The bytes of base64 text, or of a `data:` URL of it.

    Raises:
        InvalidRequest: anything else; addresses of pictures elsewhere are not fetched.
        PayloadTooLarge: more than `max_bytes` bytes.
    """
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest(f"{param}: a data: URL must hold base64", param=param)
    elif "://" in text[:16]:
        raise InvalidRequest(f"{param}: URLs are not fetched; send the picture itself in base64", param=param)
    else:
        body = text
    # Spaces and line ends come on top of four characters for three bytes, hardly a tenth of the text.
    if len(body) > max_bytes * 1.5 + 1024:
        raise _too_many_bytes(param, max_bytes)
    try:
        # As one piece: to split it at its blanks, megabytes of them, would take gigabytes.
        data = base64.b64decode(body.encode("ascii").translate(None, BLANKS), validate=True)
    except ValueError:
        raise InvalidRequest(f"{param} is not base64", param=param) from None
    if len(data) > max_bytes:
        raise _too_many_bytes(param, max_bytes)
    return data


def _too_many_bytes(param: str, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"{param} has more than {max_bytes:,} bytes", param=param)


def _guarded(data: bytes, param: str, max_pixels: int, read: Callable[[PilImage], _Array]) -> _Array:
    """The file, opened, turned upright, and read; whatever a malformed one provokes is one error."""
    from PIL import Image as PilImage

    too_large = PayloadTooLarge(f"{param} has more than {max_pixels:,} pixels", param=param)
    if _webp_pixels(data) > max_pixels:
        raise too_large
    if is_endless(data):
        raise _unsupported(param)
    try:
        with PilImage.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise too_large
            if max(picture.size) > MAX_SIDE:
                raise PayloadTooLarge(f"{param} is wider or higher than {MAX_SIDE:,} pixels", param=param)
            picture.load()
            _scale_clear(picture, data)
            return np.ascontiguousarray(_turn(picture)(read(picture)))
    except PayloadTooLarge:
        raise
    except (PilImage.DecompressionBombError, PilImage.DecompressionBombWarning):
        raise too_large from None
    # Pillow's parsers let through whatever the bytes provoke: struct.error, KeyError, ZeroDivisionError, …
    except Exception as error:
        logger.debug("an upload cannot be read", exc_info=True)
        raise _unsupported(param) from error


def _unsupported(param: str) -> UnsupportedImage:
    return UnsupportedImage(f"{param} is no PNG, JPEG or WebP picture that can be read", param=param)


def is_endless(data: bytes) -> bool:
    """Whether a JPEG or PNG file has more pieces than an encoder makes. To open one takes time, and often
    memory, for each of them, however short it is. Of other files it says nothing."""
    if data.startswith(b"\xff\xd8"):
        return _is_endless_jpeg(data)
    return data.startswith(PNG_SIGNATURE) and _is_endless_png(data)


def _is_endless_png(data: bytes) -> bool:
    """What comes after the file's own end is not read, and does not count."""
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        if data[at + 4 : at + 8] in (b"", b"IEND"):
            return False
        at += PNG_CHUNK_BYTES + int.from_bytes(data[at : at + 4])
    return True


def _is_endless_jpeg(data: bytes) -> bool:
    """Whether the main image of a JPEG file has more scans, or more segments, than an encoder makes.

    Phones append films and further pictures to theirs; what comes after the main image does not count. The
    segments are found as libjpeg finds them: whatever stands before a marker is passed over, and so are
    restarts and markers below `FIRST_SEGMENT`, which have no length.
    """
    scans, at = 0, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = JPEG_MARKER.search(data, at)
        marker = END_OF_IMAGE if found is None else data[found.end() - 1]
        if found is None or marker == END_OF_IMAGE:
            return False
        at = found.end()
        if marker >= FIRST_SEGMENT and marker != START_OF_IMAGE:
            at += max(2, int.from_bytes(data[at : at + 2]))
        scans += marker == START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            return True
    return True


def _webp_pixels(data: bytes) -> int:
    """Pixels of a WebP file's canvas, which Pillow allocates as soon as it opens one; 0 for other files.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    if len(data) < WEBP_HEADER_BYTES or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width * height


def _turn(picture: PilImage) -> Callable[[_Array], _Array]:
    """What sets the picture's rows and columns upright, by its EXIF block."""
    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:
        # Cameras and editors write broken EXIF blocks into sound pictures.
        logger.debug("an upload's EXIF block cannot be read", exc_info=True)
        orientation = None
    return TURNS.get(orientation, lambda array: array)


TURNS: dict[object, Callable[[_Array], _Array]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}


def _in_strips(picture: PilImage, read: Callable[[PilImage], _Array]) -> _Array:
    """`read` of the whole picture, a few rows at a time: Pillow's copies on the way are as large as that."""
    strips = []
    for top in range(0, picture.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, picture.height)
        strips.append(read(picture.crop((0, top, picture.width, bottom))))
    return np.concatenate(strips)


def _over_white(picture: PilImage) -> Pixels:
    return _in_strips(picture, _strip_over_white)


def _strip_over_white(strip: PilImage) -> Pixels:
    from PIL import Image as PilImage

    strip = _eight_bits(strip)
    if strip.has_transparency_data:
        coloured = strip.convert("RGBA")
        white = PilImage.new("RGBA", coloured.size, "white")
        return np.array(PilImage.alpha_composite(white, coloured).convert("RGB"))
    return np.array(strip.convert("RGB"))


def _painted(picture: PilImage) -> Mask:
    if picture.has_transparency_data:
        alpha = _in_strips(picture, _alpha)
        if alpha.min() < 255:
            # Before it is blurred, as A1111 does: a stroke of half its strength is as wide as it looks.
            return np.where(alpha > PAINTED, np.uint8(255), np.uint8(0))
    return _in_strips(picture, _grey)


def _transparent(picture: PilImage) -> Mask:
    """Empty when the picture has no transparency at all."""
    if not picture.has_transparency_data:
        return np.empty((0, 0), np.uint8)
    return 255 - _in_strips(picture, _alpha)


def _alpha(strip: PilImage) -> Mask:
    return np.array(_eight_bits(strip).convert("RGBA").getchannel("A"))


def _grey(strip: PilImage) -> Mask:
    return np.array(_eight_bits(strip).convert("L"))


def _scale_clear(picture: PilImage, data: bytes) -> None:
    """Pillow brings a PNG's values to eight bits; the one that the file declares to be transparent it leaves
    as it is there, so it would mean another. Of colours of 16 bits those count that are alike in the upper
    eight: nothing else of them is known any more."""
    clear = picture.info.get("transparency")
    if clear is None or data[PNG_HEADER] != b"IHDR":
        return
    depth = data[PNG_BIT_DEPTH]
    if picture.mode == "RGB" and depth == 16:
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    elif picture.mode == "L" and depth < 8:
        most = (1 << depth) - 1
        picture.info["transparency"] = (clear & most) * 255 // most


def _eight_bits(picture: PilImage) -> PilImage:
    """Pillow cuts greys of 16 bits off at 255; here they are scaled. The one that the file declares to be
    transparent is found before, for it is a number of 16 bits too."""
    from PIL import Image as PilImage

    if not picture.mode.startswith("I"):
        return picture
    greys = np.asarray(picture).astype(np.uint32)
    scaled = (greys // 257).clip(0, 255).astype(np.uint8)
    clear = picture.info.get("transparency")
    if clear is None:
        return PilImage.fromarray(scaled)
    alpha = np.where(greys == clear, np.uint8(0), np.uint8(255))
    return PilImage.merge("LA", (PilImage.fromarray(scaled), PilImage.fromarray(alpha)))
