"""What a run found, as a line to read and JSON to keep."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "SLACK", "Figure", "Figures", "percentile"]

# Where `make chaos` wants the figures; they are printed in any case.
FIGURES = "CHAOS_FIGURES"
# How many times a promise's seconds a run may take: `make chaos` has the machine for itself, and holds them;
# the suite's short forms share it with other tests, and show that it comes to pass at all.
SLACK = 1.0 if os.environ.get(FIGURES) else 4.0


@dataclass(frozen=True)
class Figure:
    """promise: its number in docs/reliability.md, 0 for what has none. bar: what was promised."""

    promise: int
    name: str
    value: float | str
    bar: str
    details: dict[str, Any] = field(default_factory=dict)


class Figures:
    """Figures of one session. With a path, the file is written anew after each, so that none is lost."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: list[dict[str, Any]] = []

    def add(self, promise: int, name: str, value: float | str, bar: str, **details: Any) -> None:
        found = asdict(Figure(promise, name, value, bar, details))
        print(json.dumps(found, ensure_ascii=False))
        if self._path is None:
            return
        self._found.append(found)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        from mezzotint.bench.report import describe_machine

        told = {"run": describe_machine(), "figures": self._found}
        self._path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0…1) of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
