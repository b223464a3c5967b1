"""A Dockerfile as its stages and instructions: enough of its grammar for this repository's own."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Dockerfile", "Instruction", "read_dockerfile"]


@dataclass(frozen=True)
class Instruction:
    """word: in capitals. flags: without their dashes. rest: what follows them, on one line."""

    word: str
    flags: dict[str, str]
    rest: str

    def words(self) -> list[str]:
        """The rest as a list: of JSON, or as a shell reads it."""
        found: list[str] = json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)
        return found

    def pairs(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.words())


@dataclass(frozen=True)
class Dockerfile:
    """head: what stands before the first FROM. stages: by name, the last being `""`, each with its FROM."""

    head: list[Instruction]
    stages: dict[str, list[Instruction]]

    @property
    def all(self) -> list[Instruction]:
        return [*self.head, *(each for stage in self.stages.values() for each in stage)]

    @property
    def image(self) -> list[Instruction]:
        """The stage that becomes the image."""
        return self.stages[""]

    def of(self, word: str) -> list[Instruction]:
        """The image's own instructions of a kind."""
        return [each for each in self.image if each.word == word]


def read_dockerfile(path: Path) -> Dockerfile:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    head: list[Instruction] = []
    stages: dict[str, list[Instruction]] = {}
    current = head
    for line in filter(str.strip, text.splitlines()):
        instruction = _read(line)
        if instruction.word == "FROM":
            _, _, name = instruction.rest.partition(" AS ")
            current = stages[name.strip()] = []
        current.append(instruction)
    return Dockerfile(head, stages)


def _read(line: str) -> Instruction:
    word, _, rest = line.partition(" ")
    flags = {}
    while found := re.match(r"\s*--([\w-]+)=(\S+)\s*", rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Instruction(word, flags, rest.strip())
