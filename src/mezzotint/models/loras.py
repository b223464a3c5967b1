"""The LoRAs that a model is served with: those that lie in its folder, and files that are named.

No torch here: what may be asked for must be known at once. `reading` reads their weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mezzotint.core import Lora, ServedLora
from mezzotint.errors import InvalidRequest, ModelInvalid, SettingInvalid
from mezzotint.models.manifest import files_hash
from mezzotint.samplers import find_sampler

__all__ = ["FOLDER", "LoraFile", "find_loras", "read_choices"]

FOLDER = "loras"
SUFFIX = ".safetensors"
# As in A1111's `<lora:name:scale>`.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_STEPS, MAX_GUIDANCE = 150, 50.0
MAX_TITLE = 200


@dataclass(frozen=True)
class LoraFile:
    path: Path
    served: ServedLora


def find_loras(model: Path, given: Sequence[str] = ()) -> tuple[LoraFile, ...]:
    """Those in the folder `loras` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    Raises:
        SettingInvalid: a path leads to no .safetensors file, or two have one name.
        ModelInvalid: a file is truncated, or no safetensors file.
    """
    own = sorted((model / FOLDER).glob(f"[!.]*{SUFFIX}")) if model.is_dir() else []
    found = {_checked(path.stem): path for path in own}
    for each in given:
        name, path = _named(each)
        if name in found:
            raise SettingInvalid(
                f"loras: there are two of the name {name}; give one of them another: NAME=PATH", param="loras"
            )
        found[name] = path
    return tuple(LoraFile(path, _described(name, path)) for name, path in found.items())


def read_choices(given: Sequence[str]) -> tuple[tuple[Lora, ...], list[str]]:
    """What a command line asks to draw with, and the files among it.

    Each is NAME, PATH or NAME=PATH, with or without `:SCALE` behind it.

    Raises:
        InvalidRequest: a scale is no number.
    """
    loras, files = [], []
    for each in given:
        place, colon, scale = each.rpartition(":")
        place = place if colon else scale
        is_file = place.endswith(SUFFIX)
        try:
            number = float(scale) if colon else 1.0
        except ValueError:
            raise InvalidRequest(
                f"--lora takes NAME, PATH or NAME=PATH, and :SCALE behind, not {each!r}", param="lora"
            ) from None
        name, equals, _ = place.partition("=")
        loras.append(Lora(name if equals or not is_file else Path(place).stem, number))
        files += [place] if is_file else []
    return tuple(loras), files


def _named(given: str) -> tuple[str, Path]:
    name, equals, place = given.partition("=")
    if not equals:
        name, place = "", given
    path = Path(place).expanduser()
    if path.suffix != SUFFIX or not path.is_file():
        raise SettingInvalid(
            f"loras takes paths of {SUFFIX} files, or NAME=PATH, and {place!r} is none", param="loras"
        )
    return _checked(name or path.stem), path


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise SettingInvalid(
            f"loras: {name!r} is no name of letters, digits, dots, dashes and underscores; "
            "give it one: NAME=PATH",
            param="loras",
        )
    return name


def _described(name: str, path: Path) -> ServedLora:
    # Here, for the page's own installation has the command line without it.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
        sha256 = files_hash(path)
    except (SafetensorError, OSError):
        raise ModelInvalid(f"the LoRA {path.name} is truncated, unreadable or no safetensors file") from None
    # A file says of itself what it likes: what makes no sense is as if it were not said.
    steps = _number(told, "mezzotint_steps", 1, MAX_STEPS)
    return ServedLora(
        name=name,
        title=(told.get("title") or told.get("modelspec.title") or name)[:MAX_TITLE],
        sha256=sha256,
        steps=None if steps is None else int(steps),
        guidance_scale=_number(told, "mezzotint_guidance_scale", 0, MAX_GUIDANCE),
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
