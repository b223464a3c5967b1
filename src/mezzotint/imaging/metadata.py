"""The receipt inside the file: PNG text chunks, and the EXIF block of JPEG and WebP.

Two forms travel together. The JSON form is complete, and `read_receipt` reads it back. The other is the text
A1111 writes, which image browsers and prompt tools have learnt to read.

============  =====================  ==================================
form          PNG                    JPEG, WebP
============  =====================  ==================================
JSON          chunk `mezzotint`      EXIF ImageDescription, UTF-8
A1111's text  chunk `parameters`     EXIF UserComment, UTF-16
============  =====================  ==================================
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mezzotint.core import Hires, Receipt, UsedControl, UsedImagePrompt, known_fields
from mezzotint.emphasis import has_marks
from mezzotint.errors import InvalidRequest, UnsupportedImage
from mezzotint.imaging.uploads import is_endless

if TYPE_CHECKING:
    from PIL.Image import Exif
    from PIL.Image import Image as PilImage
    from PIL.PngImagePlugin import PngInfo

__all__ = [
    "JPEG_EXIF_BYTES",
    "exif_block",
    "hires_settings",
    "parameters_text",
    "png_chunks",
    "read_parameters",
    "read_receipt",
]

RECEIPT_KEY = "mezzotint"
PARAMETERS_KEY = "parameters"
IMAGE_DESCRIPTION = 0x010E
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
# The first eight bytes of a UserComment name its character set.
UNICODE_MARK = b"UNICODE\x00"
# A JPEG segment's length is 16 bits, of which the length itself and "Exif\0\0" take some.
JPEG_EXIF_BYTES = 65_533 - 6
# What is kept of each prompt when even the JSON alone is longer than a JPEG segment.
CUT_PROMPT_CHARACTERS = 2_000


def receipt_json(receipt: Receipt) -> str:
    return json.dumps(receipt.to_dict(), ensure_ascii=False)


def parameters_text(receipt: Receipt) -> str:
    """The receipt as A1111 writes it: the prompt, the negative prompt, then one line of settings."""
    tags = "".join(f" <lora:{lora.name}:{lora.scale:g}>" for lora in receipt.loras)
    lines = [receipt.prompt + tags]
    if receipt.negative_prompt:
        lines.append(f"Negative prompt: {receipt.negative_prompt}")
    settings = {
        "Steps": receipt.steps,
        "Sampler": receipt.scheduler,
        "CFG scale": f"{receipt.guidance_scale:g}",
        "Seed": receipt.seed,
        "Size": f"{receipt.width}x{receipt.height}",
        "Model": receipt.model,
    }
    if has_marks(receipt.prompt, receipt.negative_prompt):
        # A1111 takes brackets for its own default, "Original", unless it is told.
        settings["Emphasis"] = "No norm" if receipt.emphasis else "None"
    # A1111 has one name for both.
    strength = receipt.strength if receipt.hires is None else receipt.hires.strength
    if strength is not None:
        settings["Denoising strength"] = _exact(strength)
    settings |= hires_settings(receipt.hires)
    if receipt.loras:
        hashes = ", ".join(f"{lora.name}: {lora.sha256[:12]}" for lora in receipt.loras)
        settings["Lora hashes"] = f'"{hashes}"'
    if receipt.embeddings:
        hashes = ", ".join(f"{each.name}: {each.sha256[:12]}" for each in receipt.embeddings)
        settings["TI hashes"] = f'"{hashes}"'
    units = [*map(control_settings, receipt.controls), *map(prompt_settings, receipt.image_prompts)]
    settings |= {f"ControlNet {number}": f'"{unit}"' for number, unit in enumerate(units)}
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    # A NUL would end the text early for whoever reads it.
    return "\n".join(lines).replace("\x00", "\N{REPLACEMENT CHARACTER}")


def control_settings(control: UsedControl) -> str:
    """One in the names of A1111's extension."""
    settings = {
        "Module": control.preprocessor,
        "Model": f"{control.name} [{control.sha256[:8]}]",
        "Weight": f"{control.scale:g}",
        "Resize Mode": "Just Resize",
        "Control Mode": "Balanced",
        "Guidance Start": f"{control.start:g}",
        "Guidance End": f"{control.end:g}",
    }
    return ", ".join(f"{name}: {value}" for name, value in settings.items())


def prompt_settings(prompt: UsedImagePrompt) -> str:
    """An image prompt as a unit of the same extension."""
    model = f"{prompt.name} [{prompt.sha256[:8]}]"
    return f"Module: ip-adapter-auto, Model: {model}, Weight: {prompt.scale:g}"


def hires_settings(hires: Hires | None) -> dict[str, object]:
    """The second stage in A1111's names, but for its strength."""
    if hires is None:
        return {}
    return {
        "Hires upscale": _exact(hires.scale),
        "Hires steps": hires.steps,
        "Hires upscaler": hires.upscaler,
    }


def _exact(number: float) -> str:
    """To the last digit: a size and a number of steps hang on it."""
    return repr(float(number)).removesuffix(".0")


def png_chunks(receipt: Receipt) -> PngInfo:
    """Text chunks; Pillow makes them iTXt where the text is not Latin-1."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text(RECEIPT_KEY, receipt_json(receipt))
    chunks.add_text(PARAMETERS_KEY, parameters_text(receipt))
    return chunks


def exif_block(receipt: Receipt, max_bytes: int | None) -> bytes:
    """An EXIF block of at most `max_bytes`; None: of any size.

    What does not fit is given up in this order: A1111's text, then the ends of the prompts, which the
    receipt's warnings then say.
    """
    block = _exif(receipt_json(receipt), parameters_text(receipt))
    if max_bytes is None or len(block) <= max_bytes:
        return block
    block = _exif(receipt_json(receipt))
    if len(block) <= max_bytes:
        return block
    return _exif(receipt_json(_cut(receipt)))


def _cut(receipt: Receipt) -> Receipt:
    negative = receipt.negative_prompt
    return replace(
        receipt,
        prompt=receipt.prompt[:CUT_PROMPT_CHARACTERS],
        negative_prompt=None if negative is None else negative[:CUT_PROMPT_CHARACTERS],
        warnings=(*receipt.warnings, "this file's metadata holds only the beginning of the prompts"),
    )


def _exif(description: str, comment: str | None = None) -> bytes:
    from PIL.Image import Exif

    exif = Exif()
    exif[IMAGE_DESCRIPTION] = description.encode()
    if comment is not None:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE_MARK + comment.encode("utf-16-be")
    return exif.tobytes()


def read_receipt(source: str | Path | bytes) -> Receipt:
    """The receipt of a PNG, JPEG or WebP file, by path or by content. Pixels are not decoded.

    Raises:
        InvalidRequest: not such an image, or it carries no receipt.
        FileNotFoundError: no file at this path.
    """
    from PIL import Image as PilImage

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with PilImage.open(file, formats=("PNG", "JPEG", "WEBP")) as picture:
            text = _receipt_text(picture)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Pillow has no one error for a file that is not what it seems.
        raise InvalidRequest("not a PNG, JPEG or WebP image", param="image") from error
    if text is None:
        raise InvalidRequest("the image carries no receipt", param="image")
    return _parse(text)


def read_parameters(data: bytes, *, param: str) -> str:
    """A1111's text in a PNG file; empty where it has none. Pixels are not decoded.

    Raises:
        UnsupportedImage: on `param`: no such file.
    """
    from PIL import Image as PilImage

    unsupported = UnsupportedImage(f"{param} is no PNG picture that can be read", param=param)
    if is_endless(data):
        raise unsupported
    try:
        with PilImage.open(io.BytesIO(data), formats=("PNG",)) as picture:
            text = picture.info.get(PARAMETERS_KEY)
    except Exception as error:
        raise unsupported from error
    return text if isinstance(text, str) else ""


def _receipt_text(picture: PilImage) -> str | None:
    if picture.format == "PNG":
        text = picture.info.get(RECEIPT_KEY)
        return text if isinstance(text, str) else None
    description = _description(picture.getexif())
    # Other programs write a picture's title here.
    return description if description is not None and description.lstrip().startswith("{") else None


def _description(exif: Exif) -> str | None:
    text = exif.get(IMAGE_DESCRIPTION)
    if not isinstance(text, str):
        return None
    # Pillow reads the tag as Latin-1, byte by byte; the bytes are UTF-8.
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _parse(text: str) -> Receipt:
    from pydantic import TypeAdapter, ValidationError

    try:
        # A later version's receipt may say more; what this version knows is still true.
        return TypeAdapter(Receipt).validate_python(known_fields(Receipt, json.loads(text)))
    except (ValueError, TypeError, RecursionError, ValidationError) as error:
        raise InvalidRequest("the image's receipt cannot be read", param="image") from error
