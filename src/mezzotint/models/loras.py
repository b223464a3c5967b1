"""The LoRAs that a model is served with: those that lie in its folder, and files that are named.

No torch here: what may be asked for must be known at once. `reading_loras` reads their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mezzotint.core import Lora, ModelLimits, ServedLora
from mezzotint.errors import InvalidRequest
from mezzotint.models.manifest import files_hash
from mezzotint.models.named import SUFFIX, Found, Kind, is_file, opened
from mezzotint.samplers import find_sampler

__all__ = ["find_loras", "read_choices"]

KIND = Kind("loras", f"{SUFFIX} files", is_file)
MAX_TITLE = 200


def find_loras(model: Path, given: Sequence[str] = ()) -> tuple[Found[ServedLora], ...]:
    """Those in the folder `loras` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    Raises:
        SettingInvalid: a path leads to no .safetensors file, or two have one name.
        ModelInvalid: a file is truncated, or no safetensors file.
    """
    found = KIND.find(model, given)
    return tuple(Found(path, _described(name, path)) for name, path in found.items())


def read_choices(given: Sequence[str]) -> tuple[tuple[Lora, ...], list[str]]:
    """What a command line asks to draw with, and the files among it.

    Each is NAME, PATH or NAME=PATH, with or without `:SCALE` behind it.

    Raises:
        InvalidRequest: a scale is no number.
    """
    choices = [KIND.read_choice(each, "--lora") for each in given]
    loras = tuple(Lora(choice.name, choice.scale) for choice in choices)
    return loras, [choice.place for choice in choices if choice.place is not None]


def _described(name: str, path: Path) -> ServedLora:
    with opened(path, f"the LoRA {path.name}") as file:
        told = file.metadata() or {}
        sha256 = files_hash(path)
    # A file says of itself what it likes: what makes no sense is as if it were not said.
    steps = _number(told, "mezzotint_steps", 1, ModelLimits.max_steps)
    return ServedLora(
        name=name,
        title=(told.get("title") or told.get("modelspec.title") or name)[:MAX_TITLE],
        sha256=sha256,
        steps=None if steps is None else int(steps),
        guidance_scale=_number(told, "mezzotint_guidance_scale", 0, ModelLimits.max_guidance_scale),
        scheduler=_sampler(told.get("mezzotint_scheduler")),
    )


def _number(told: Mapping[str, str], key: str, low: float, high: float) -> float | None:
    try:
        value = float(told[key])
    except (KeyError, ValueError):
        return None
    return value if low <= value <= high else None


def _sampler(name: str | None) -> str | None:
    try:
        return find_sampler(name).name if name else None
    except InvalidRequest:
        return None
