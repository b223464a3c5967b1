"""Pictures as input: checked, and brought to the size that is drawn, as diffusers' `VaeImageProcessor` does.

Arrays in, arrays out; files are `uploads`' business.
"""

from __future__ import annotations

import hashlib
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from mezzotint.core import Mask, Pixels
from mezzotint.errors import InvalidRequest

__all__ = [
    "check_image",
    "check_mask",
    "clip_square",
    "cropped_to",
    "padded_to",
    "pixels_sha256",
    "resize_image",
    "resize_mask",
]

# Of a picture whose middle square is read, the longer side by the shorter.
LONGEST = 8
# Above this a mask's value means "redraw": diffusers' 0.5 of 255.
MASK_THRESHOLD = 127


def check_image(image: object, param: str = "image") -> Pixels:
    """`image` itself, when it is height × width × 3 bytes.

    Raises:
        InvalidRequest: on `param`, when it is not.
    """
    if not _is_bytes(image) or image.ndim != 3 or image.shape[2] != 3:
        raise InvalidRequest(
            f"{param} must be an array of bytes (uint8), height × width × 3, not {_described(image)}",
            param=param,
        )
    return image


def check_mask(mask: object, image: Pixels) -> Mask:
    """`mask` itself, when it is height × width bytes, of the image's size.

    Raises:
        InvalidRequest: on `mask`, when it is not.
    """
    height, width = image.shape[:2]
    if not _is_bytes(mask) or mask.shape != (height, width):
        raise InvalidRequest(
            f"mask must be an array of bytes (uint8) of the image's size, {height} × {width}, "
            f"not {_described(mask)}",
            param="mask",
        )
    return mask


def resize_image(image: Pixels, width: int, height: int) -> Pixels:
    """The image at width × height, by Lanczos' filter. Read-only: what can be painted in is copied."""
    if image.shape[:2] != (height, width):
        return _lanczos(image, width, height)
    if image.flags.writeable:
        image = image.copy()
        image.flags.writeable = False
    return image


def cropped_to(image: Pixels, width: int, height: int) -> Pixels:
    """The middle of the image in the proportions of width × height, as large as it goes."""
    own_height, own_width = image.shape[:2]
    kept_width = max(1, min(own_width, round(own_height * width / height)))
    kept_height = max(1, min(own_height, round(own_width * height / width)))
    left, top = (own_width - kept_width) // 2, (own_height - kept_height) // 2
    if (kept_width, kept_height) == (own_width, own_height):
        return image
    # A view would keep all of it.
    return image[top : top + kept_height, left : left + kept_width].copy()


def padded_to(image: Pixels, width: int, height: int) -> Pixels:
    """The whole image in the middle of width × height, as large as it goes; around it its rim's median."""
    own_height, own_width = image.shape[:2]
    scale = min(width / own_width, height / own_height)
    inner = resize_image(image, max(1, round(own_width * scale)), max(1, round(own_height * scale)))
    inner_height, inner_width = inner.shape[:2]
    rim = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.median(rim, axis=0).astype(np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def clip_square(image: Pixels, side: int) -> Pixels:
    """The middle of the image at side × side, by the bicubic filter, as CLIP's image processor cuts it out:
    once its shorter side is `side`."""
    from PIL import Image as PilImage

    height, width = image.shape[:2]
    # What lies farther out is not seen; a strip would be enlarged to much.
    image = cropped_to(image, min(width, LONGEST * height), min(height, LONGEST * width))
    height, width = image.shape[:2]
    if (height, width) != (side, side):
        short = min(height, width)
        size = (int(side * width / short), int(side * height / short))
        image = np.asarray(PilImage.fromarray(image).resize(size, PilImage.Resampling.BICUBIC))
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    # A view would keep all of it, and what may be written to is somebody else's.
    image = image[top : top + side, left : left + side].copy()
    image.flags.writeable = False
    return image


def resize_mask(mask: Mask, width: int, height: int) -> Mask:
    """The mask at width × height, by Lanczos' filter, then 255 where it is to be redrawn and 0 elsewhere."""
    sized = mask if mask.shape == (height, width) else _lanczos(mask, width, height)
    return np.where(sized > MASK_THRESHOLD, np.uint8(255), np.uint8(0))


def _lanczos(array: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    from PIL import Image as PilImage

    picture = PilImage.fromarray(array).resize((width, height), PilImage.Resampling.LANCZOS)
    return np.asarray(picture)


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of the bytes, row by row from the top, each pixel's red, green and blue together."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _is_bytes(value: object) -> TypeGuard[NDArray[np.uint8]]:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size > 0


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{' × '.join(map(str, value.shape))} of {value.dtype}"
    return type(value).__name__
