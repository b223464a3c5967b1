"""Where `draw` writes: one path for each picture, known before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mezzotint.errors import InvalidRequest

__all__ = ["output_paths"]

NUMBER = "{i}"


def output_paths(output: str | None, seeds: Sequence[int]) -> list[Path]:
    """A path for each seed.

    Nothing, or a folder: `plate-<seed>.png` there. Several pictures: `{i}` in the path is the number from 0,
    else `-<number>` goes before the suffix.

    Raises:
        InvalidRequest: on `output`, when it is empty.
    """
    if output is not None and not output.strip():
        raise InvalidRequest("the output path is empty", param="output")
    if output is None or output.endswith(os.sep) or _is_folder(output):
        folder = Path(output or ".")
        return [folder / f"plate-{seed}.png" for seed in seeds]
    if NUMBER in output:
        return [Path(output.replace(NUMBER, str(i))) for i in range(len(seeds))]
    path = Path(output)
    if len(seeds) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(seeds))]


def _is_folder(output: str) -> bool:
    try:
        return Path(output).is_dir()
    except OSError:
        # Too long a name, or no right to look: the check of the path as a file says which.
        return False
