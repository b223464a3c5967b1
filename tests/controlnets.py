"""ControlNets with random weights, and pictures for them to read."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import torch

from mezzotint.core import Pixels

# Of what each ControlNet adds: enough to be seen, and little enough to leave a picture.
DEVIATION = 1.0


def make_controlnet(model: Path, *, seed: int = 0) -> diffusers.ControlNetModel:
    """One for the UNet of `model`, whose zero convolutions are not zero."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet", dtype=torch.float32)
    net = diffusers.ControlNetModel.from_unet(unet).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    zeros = (
        net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    )
    for module in zeros:
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * DEVIATION)
    return net


def write_controlnet(folder: Path, model: Path, *, seed: int = 0) -> Path:
    """The same in diffusers' layout."""
    make_controlnet(model, seed=seed).save_pretrained(folder)
    return folder


def lines(seed: int = 0, width: int = 64, height: int = 64) -> Pixels:
    """White on black."""
    drawn = np.zeros((height, width, 3), np.uint8)
    random = np.random.default_rng(seed)
    drawn[random.integers(0, height, 3)] = 255
    drawn[:, random.integers(0, width, 3)] = 255
    return drawn


def photo(seed: int = 0, width: int = 64, height: int = 64) -> Pixels:
    """Patches of colour, with edges between."""
    patches = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return patches.repeat(16, axis=0).repeat(16, axis=1)
