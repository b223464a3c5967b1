"""The ControlNets that a model is served with: those that lie in its folder, and what is named.

No torch here: what may be asked for must be known at once. `reading_controlnets` reads their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mezzotint.core import ServedControlNet
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.manifest import files_hash
from mezzotint.models.named import READ, SUFFIX, Found, Kind, is_file, opened

__all__ = ["KIND", "TASKS", "FoundControlNet", "find_controlnets"]

# What a ControlNet-Union has learnt to read, in the order of its rows in `TASKS`, as its author numbers them
# (github.com/xinsir6/ControlNetPlus, controlnet_union_test_*.py) and diffusers' `control_mode` does. The last
# two are its promax version's.
UNION_KINDS = ("openpose", "depth", "softedge", "canny", "normal", "segment", "tile", "repaint")
KNOWN_COUNTS = (6, 8)
# The weights that no other ControlNet has: kinds × channels.
TASKS = "task_embedding"


def is_controlnet(path: Path) -> bool:
    """Whether a path looks like one."""
    return (path / "config.json").is_file() or is_file(path)


KIND = Kind("controlnets", f"folders with a config.json, or {SUFFIX} files", is_controlnet)


@dataclass(frozen=True)
class FoundControlNet(Found[ServedControlNet]):
    """kind: of a ControlNet-Union, which of its kinds of pictures it reads under this name."""

    kind: int | None = None


def find_controlnets(model: Path, given: Sequence[str] = ()) -> tuple[FoundControlNet, ...]:
    """Those in the folder `controlnets` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    Each path leads to a folder in diffusers' layout, or to a file of weights alone. A ControlNet-Union is
    found once for each kind of picture that it reads, as NAME-KIND; where NAME ends so itself, for that one.

    Raises:
        SettingInvalid: a path leads to none, or two have one name.
        ModelInvalid: a file cannot be read, or reads kinds of pictures that are not known.
    """
    found = [each for name, path in KIND.find(model, given).items() for each in _described(name, path)]
    names = [each.served.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingInvalid(
                f"controlnets: there are two of the name {name}; give one of them another: NAME=PATH",
                param="controlnets",
            )
    return tuple(found)


def _described(name: str, path: Path) -> list[FoundControlNet]:
    try:
        sha256 = files_hash(path, READ)
        count = _count_kinds(path)
    except OSError:
        raise ModelInvalid(f"the ControlNet {path.name} is unreadable") from None
    if count is None:
        return [FoundControlNet(path, ServedControlNet(name, sha256))]
    if count not in KNOWN_COUNTS:
        raise ModelInvalid(
            f"{path.name} is a ControlNet-Union of {count} kinds of pictures; known are those of "
            f"{' and '.join(map(str, KNOWN_COUNTS))}"
        )
    kinds = UNION_KINDS[:count]
    own = [number for number, kind in enumerate(kinds) if name.endswith(f"-{kind}")]
    return [
        FoundControlNet(path, ServedControlNet(name if own else f"{name}-{kinds[number]}", sha256), number)
        for number in own or range(count)
    ]


def _count_kinds(path: Path) -> int | None:
    """Of how many kinds of pictures a ControlNet-Union's weights are; None: of another ControlNet's."""
    # Of a folder, what diffusers reads: xinsir's has the weights of two models.
    files = [path] if path.is_file() else sorted(path.glob("diffusion_pytorch_model[.-]*"))
    for file in files:
        if file.suffix == SUFFIX:
            shape = _shape_of_tasks(file)
            if shape and len(shape) == 2:
                return shape[0]
    return None


def _shape_of_tasks(file: Path) -> list[int] | None:
    with opened(file, f"{file.parent.name}/{file.name}") as tensors:
        return list(tensors.get_slice(TASKS).get_shape()) if TASKS in tensors.keys() else None  # noqa: SIM118
