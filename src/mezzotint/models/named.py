"""What lies beside a model and requests name: LoRAs, ControlNets. By which name, and where. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mezzotint.errors import SettingInvalid

__all__ = ["SUFFIX", "Kind"]

SUFFIX = ".safetensors"
# As in A1111's `<lora:name:scale>`.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Kind:
    """setting: names them, with PATH or NAME=PATH; is_one: whether a path leads to one, which is `one`."""

    setting: str
    one: str
    is_one: Callable[[Path], bool]

    def find(self, own: Iterable[Path], given: Sequence[str]) -> dict[str, Path]:
        """By name: the model's own, then the given.

        Raises:
            SettingInvalid: a path leads to none, a name is none, or two have the same.
        """
        found = {self._checked(name_of(path)): path for path in own}
        for each in given:
            name, path = self._named(each)
            if name in found:
                raise self._refusal(f"there are two of the name {name}; give one of them another: NAME=PATH")
            found[name] = path
        return found

    def _named(self, given: str) -> tuple[str, Path]:
        name, equals, place = given.partition("=")
        if not equals:
            name, place = "", given
        path = Path(place).expanduser()
        if not self.is_one(path):
            raise self._refusal(f"takes PATH or NAME=PATH of {self.one}, and {place!r} is none")
        return self._checked(name or name_of(path)), path

    def _checked(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise self._refusal(
                f"{name!r} is no name of letters, digits, dots, dashes and underscores; "
                "give it one: NAME=PATH"
            )
        return name

    def _refusal(self, told: str) -> SettingInvalid:
        return SettingInvalid(f"{self.setting}: {told}", param=self.setting)


def name_of(path: Path) -> str:
    """What it is called that nobody gave a name."""
    return path.name.removesuffix(SUFFIX)
