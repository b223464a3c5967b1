"""The ControlNets that a model is served with: those that lie in its folder, and what is named.

No torch here: what may be asked for must be known at once. `reading_controlnets` reads their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mezzotint.core import ServedControlNet
from mezzotint.errors import ModelInvalid
from mezzotint.models.manifest import files_hash
from mezzotint.models.named import SUFFIX, Choice, Found, Kind, is_file

__all__ = ["find_controlnets", "read_choice"]


# Of a folder that was pulled whole, what counts.
READ = frozenset({".json", SUFFIX})


def is_controlnet(path: Path) -> bool:
    """Whether a path looks like one."""
    return (path / "config.json").is_file() or is_file(path)


KIND = Kind("controlnets", f"folders with a config.json, or {SUFFIX} files", is_controlnet)


def read_choice(given: str) -> Choice:
    """What a command line asks to draw with: NAME, PATH or NAME=PATH, with or without `:SCALE` behind it.

    Raises:
        InvalidRequest: the scale is no number.
    """
    return KIND.read_choice(given, "--controlnet")


def find_controlnets(model: Path, given: Sequence[str] = ()) -> tuple[Found[ServedControlNet], ...]:
    """Those in the folder `controlnets` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    Each path leads to a folder in diffusers' layout, or to a file of weights alone.

    Raises:
        SettingInvalid: a path leads to none, or two have one name.
        ModelInvalid: a file cannot be read.
    """
    found = KIND.find(model, given)
    return tuple(Found(path, _described(name, path)) for name, path in found.items())


def _described(name: str, path: Path) -> ServedControlNet:
    try:
        return ServedControlNet(name, files_hash(path, READ))
    except OSError:
        raise ModelInvalid(f"the ControlNet {path.name} is unreadable") from None
