"""What lies beside a model and requests name: LoRAs, ControlNets, embeddings, IP-Adapters. By which name, and
where.

No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mezzotint.errors import InvalidRequest, ModelInvalid, SettingInvalid

__all__ = ["READ", "SUFFIX", "Choice", "Found", "Kind", "is_file", "opened"]

SUFFIX = ".safetensors"
# Of a folder that was pulled whole, what counts.
READ = frozenset({".json", SUFFIX})
# As in A1111's `<lora:name:scale>`.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_Served = TypeVar("_Served")


@dataclass(frozen=True)
class Found(Generic[_Served]):
    """One that is served. path: of its file or folder; served: what requests may know of it."""

    path: Path
    served: _Served


@dataclass(frozen=True)
class Choice:
    """One that a command line names. place: PATH or NAME=PATH, where it is no name of the model's own."""

    name: str
    place: str | None
    scale: float


@dataclass(frozen=True)
class Kind:
    """LoRAs, ControlNets, embeddings or IP-Adapters.

    setting: the setting's name and the folder inside a model.
    one: what a path must be, for messages.
    is_one: the test of that.
    """

    setting: str
    one: str
    is_one: Callable[[Path], bool]

    def find(self, model: Path, given: Sequence[str]) -> dict[str, Path]:
        """By name: the own of the model at `model`, then the given.

        Raises:
            SettingInvalid: a path leads to none, a name is none, or two have the same.
        """
        own = sorted(path for path in (model / self.setting).glob("[!.]*") if self.is_one(path))
        found = {self._checked(name_of(path)): path for path in own}
        for each in given:
            name, path = self._named(each)
            if name in found:
                raise self._refusal(f"there are two of the name {name}; give one of them another: NAME=PATH")
            found[name] = path
        return found

    def read_choice(self, given: str, flag: str) -> Choice:
        """What a command line's `flag` says: NAME, PATH or NAME=PATH, with or without `:SCALE` behind it.

        Raises:
            InvalidRequest: the scale is no number.
        """
        place, colon, scale = given.rpartition(":")
        place = place if colon else scale
        name, equals, _ = place.partition("=")
        try:
            number = float(scale) if colon else 1.0
        except ValueError:
            raise InvalidRequest(
                f"{flag} takes NAME, PATH or NAME=PATH, and :SCALE behind, not {given!r}",
                param=flag.lstrip("-"),
            ) from None
        if equals:
            return Choice(name, place, number)
        is_path = place.endswith(SUFFIX) or "/" in place
        return Choice(name_of(Path(place)), place, number) if is_path else Choice(name, None, number)

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


def is_file(path: Path) -> bool:
    """Whether a path leads to a file of weights."""
    return path.suffix == SUFFIX and path.is_file()


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """Within, the names, shapes and metadata of a file of weights can be read. `what`: the file, in words.

    Raises:
        ModelInvalid: it cannot be read, or is no such file.
    """
    # Here, for the page's own installation has the command line without it.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError):
        raise ModelInvalid(f"{what} is truncated, unreadable or no safetensors file") from None


def name_of(path: Path) -> str:
    """What it is called that nobody gave a name."""
    return path.name.removesuffix(SUFFIX)
