"""A picture's own record of how it was drawn, ours or A1111's, as values of the form. Pure but for Pillow."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mezzotint.core import MAX_LORA_SCALE, UPSCALERS, Hires, Lora, Receipt
from mezzotint.emphasis import has_marks
from mezzotint.errors import MezzotintError
from mezzotint.imaging.metadata import read_receipt
from mezzotint.imaging.uploads import is_endless
from mezzotint.samplers import find_sampler
from mezzotint.ui.guides import AS_IT_IS, Guide, Look, guides_of, looks_of

__all__ = ["Recipe", "read_recipe", "recipe_of_told"]

MAX_TEXT = 20_000
USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
LORA = re.compile(r" ?<lora:([^:<>]+)(?::([^<>]*))?>", re.IGNORECASE)
# From comma to comma: a search that may begin anywhere takes time that grows with the square of the text.
SETTING = re.compile(r'(?:^|,)\s*([A-Za-z][\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?=,|$)')

CONTROLNET = re.compile(r"controlnet \d")
# How the names of the modules begin that read a picture for an IP-Adapter.
IMAGE_PROMPT = "ip-adapter"
# A model's name ends with its file's.
HASH = re.compile(r" \[[0-9a-f]+\]$")


@dataclass(frozen=True)
class Recipe:
    """What a form is filled with. None: the picture does not say."""

    prompt: str
    negative_prompt: str = ""
    # It says only where there are brackets.
    emphasis: bool | None = None
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    # How far from another picture; where it says so, its settings alone draw something else.
    strength: float | None = None
    loras: tuple[Lora, ...] = ()
    # Without steps, where they are the first stage's.
    hires: Hires | None = None
    # Both without the pictures, which are not part of what a picture says.
    guides: tuple[Guide, ...] = ()
    looks: tuple[Look, ...] = ()
    # What A1111 says of its second stage and no form of ours can.
    unserved: tuple[str, ...] = ()


def recipe_of(receipt: Receipt) -> Recipe:
    return Recipe(
        prompt=receipt.prompt,
        negative_prompt=receipt.negative_prompt or "",
        emphasis=receipt.emphasis if has_marks(receipt.prompt, receipt.negative_prompt) else None,
        size=f"{receipt.width}x{receipt.height}",
        steps=receipt.steps,
        guidance=receipt.guidance_scale,
        scheduler=receipt.scheduler,
        seed=receipt.seed,
        strength=receipt.strength,
        loras=tuple(Lora(lora.name, lora.scale) for lora in receipt.loras),
        hires=_of_steps(receipt.hires, receipt.steps),
        guides=guides_of(receipt.controls),
        looks=looks_of(receipt.image_prompts),
    )


def recipe_of_told(told: Mapping[str, Any]) -> Recipe | None:
    """Of a receipt as the service tells it."""
    try:
        return recipe_of(Receipt.from_dict(told))
    except (KeyError, TypeError, ValueError):
        return None


def read_recipe(data: bytes) -> Recipe | None:
    """From a PNG, JPEG or WebP that this server or A1111 made. None where it says nothing."""
    if is_endless(data):
        return None
    try:
        return recipe_of(read_receipt(data))
    except MezzotintError:
        text = _a1111_text(data)
    return _parse(text) if text else None


def _a1111_text(data: bytes) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            text = picture.info.get("parameters")
            if isinstance(text, str):
                return text[:MAX_TEXT]
            comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    except Exception:
        # Pillow has no one error for a file that is not what it seems.
        return ""
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\x00"):
        return ""
    return comment[8:].decode("utf-16-be", "replace")[:MAX_TEXT]


def _parse(text: str) -> Recipe | None:
    """The prompt, then `Negative prompt:` and what follows it, then one line of settings."""
    lines = text.replace("\r\n", "\n").strip().split("\n")
    settings: dict[str, str] = {}
    if re.match(r"\s*Steps:\s*\d", lines[-1]):
        settings = _settings(lines.pop())
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    if not prompt.strip() and not settings:
        return None
    size, hires, unserved = settings.get("size", ""), _hires(settings), _unserved(settings)
    units = [_settings(told[1:-1]) for name, told in settings.items() if CONTROLNET.fullmatch(name)]
    steps, strength = _whole(settings.get("steps")), _number(settings.get("denoising strength"))
    return Recipe(
        prompt=LORA.sub("", prompt).strip(),
        loras=tuple(Lora(name, _scale(told)) for name, told in LORA.findall(prompt)),
        negative_prompt=negative.strip(),
        # To A1111 they weigh words unless it says otherwise.
        emphasis=settings.get("emphasis") != "None" if has_marks(prompt, negative) else None,
        size=size if re.fullmatch(r"\d{1,4}x\d{1,4}", size) else None,
        steps=steps,
        guidance=_number(settings.get("cfg scale")),
        scheduler=_scheduler(settings.get("sampler", ""), settings.get("schedule type", "")),
        seed=_whole(settings.get("seed")),
        # Of a picture of two stages it is the second's.
        strength=strength if hires is None and not unserved else None,
        hires=_of_steps(hires, steps),
        guides=tuple(_guide(unit) for unit in units if not _is_image_prompt(unit)),
        looks=tuple(Look(_model(unit), _weight(unit)) for unit in units if _is_image_prompt(unit)),
        unserved=unserved,
    )


def _settings(line: str) -> dict[str, str]:
    return {name.strip().casefold(): value.strip() for name, value in SETTING.findall(line)}


def _guide(unit: Mapping[str, str]) -> Guide:
    """Of what A1111's extension for ControlNets writes in quotes, with its own defaults."""
    start, end = _number(unit.get("guidance start")), _number(unit.get("guidance end"))
    return Guide(
        _model(unit),
        unit.get("module", AS_IT_IS).casefold(),
        _weight(unit),
        0.0 if start is None else start,
        1.0 if end is None else end,
    )


def _is_image_prompt(unit: Mapping[str, str]) -> bool:
    return unit.get("module", "").casefold().startswith(IMAGE_PROMPT)


def _model(unit: Mapping[str, str]) -> str:
    return HASH.sub("", unit.get("model", ""))


def _weight(unit: Mapping[str, str]) -> float:
    weight = _number(unit.get("weight"))
    return 1.0 if weight is None else weight


def _hires(settings: Mapping[str, str]) -> Hires | None:
    scale = _number(settings.get("hires upscale"))
    if scale is None:
        return None
    strength, steps = _number(settings.get("denoising strength")), _whole(settings.get("hires steps"))
    upscaler = settings.get("hires upscaler", "")
    return Hires(scale, strength, steps, upscaler if upscaler in UPSCALERS else Hires.upscaler)


def _unserved(settings: Mapping[str, str]) -> tuple[str, ...]:
    """To another size than so many times the first; by what does not enlarge here, as "None" does."""
    others = {name: settings.get(name, "") for name in ("hires resize", "hires upscaler")}
    return tuple(f"{name} {said}" for name, said in others.items() if said not in ("", "None", *UPSCALERS))


def _of_steps(hires: Hires | None, steps: int | None) -> Hires | None:
    """Where both stages are of as many steps, the second follows the first's in the form."""
    return replace(hires, steps=None) if hires is not None and hires.steps == steps else hires


def _scheduler(sampler: str, schedule: str) -> str | None:
    """A1111 tells the sampler and its schedule in one name or in two. One that is unknown keeps its own."""
    for name in (f"{sampler} {schedule}", sampler):
        try:
            return find_sampler(name).name
        except MezzotintError:
            continue
    return sampler or None


def _scale(text: str) -> float:
    try:
        scale = float(text or 1)
    except ValueError:
        return 1.0
    return scale if abs(scale) <= MAX_LORA_SCALE else 1.0


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,19}", text) else None


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d{1,4}(\.\d{1,6})?", text) else None
