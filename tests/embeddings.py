"""Textual inversions with random vectors for the tiny SDXL."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

# Of the tiny model's two text encoders.
WIDTHS = (32, 64)


def vectors_of(count: int, seed: int = 0, widths: tuple[int, int] = WIDTHS) -> dict[str, torch.Tensor]:
    """As a file names them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, width, generator=generator) * 0.5
        for name, width in zip(("clip_l", "clip_g"), widths, strict=True)
    }


def write_embedding(path: Path, count: int = 1, *, seed: int = 0, widths: tuple[int, int] = WIDTHS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vectors_of(count, seed, widths), path)
    return path
