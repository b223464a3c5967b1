"""Graphs that were traced for a CPU, made to say that they were compiled for a chip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mezzotint.models.manifest import write_manifest

__all__ = ["for_a_chip"]


def for_a_chip(graphs: Path, folder: Path, *, sizes: int) -> Path:
    """The first `sizes` sizes of `graphs`, as if for inf2."""
    description = json.loads((graphs / "mezzotint.json").read_text())
    buckets = description["buckets"][:sizes]
    for bucket in buckets:
        shutil.copytree(graphs / bucket, folder / bucket)
    told = {
        "target": "inf2",
        "toolchain": {"torch-neuronx": "2.8.0.2.10", "neuronx-cc": "2.21"},
        "buckets": buckets,
    }
    (folder / "mezzotint.json").write_text(json.dumps(description | told))
    write_manifest(folder)
    return folder
