"""ControlNets with random weights, and pictures for them to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from mezzotint.core import Pixels

# Of what each ControlNet adds: enough to be seen, and little enough to leave a picture.
DEVIATION = 1.0
# Of a ControlNet-Union's own weights: those of kind, picture and latents weigh about as much.
SPREADS = {
    "controlnet_cond_embedding.conv_out.weight": 0.1,
    "task_embedding": 1.0,
    "transformer_layes.0.attn": 0.5,
    "spatial_ch_projs": 0.05,
    "control_add_embedding": 0.5,
}


def make_controlnet(model: Path, *, seed: int = 0) -> diffusers.ControlNetModel:
    """One for the UNet of `model`, whose zero convolutions are not zero."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet", dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = diffusers.ControlNetModel.from_unet(unet).eval().requires_grad_(False)
    _fill(net, seed)
    return net


def _fill(net: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    zeros = (
        net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    )
    for module in zeros:
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * DEVIATION)


def write_controlnet(folder: Path, model: Path, *, seed: int = 0) -> Path:
    """The same in diffusers' layout."""
    make_controlnet(model, seed=seed).save_pretrained(folder)
    return folder


def make_union(model: Path, *, kinds: int = 6, seed: int = 0) -> diffusers.ControlNetUnionModel:
    """One for pictures of so many kinds: each has it draw something else, and so have the numbers that its
    transformer looks at, by which rows of one pass could change each other.
    """
    plain = make_controlnet(model, seed=seed)
    channels = plain.config.block_out_channels[0]
    config = {name: value for name, value in plain.config.items() if name != "mid_block_type"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = diffusers.ControlNetUnionModel.from_config(
            config, num_control_type=kinds, num_trans_channel=channels, num_proj_channel=channels
        )
    net.eval().requires_grad_(False)
    missing, more = net.load_state_dict(plain.state_dict(), strict=False)
    assert "task_embedding" in missing
    assert more == []
    # Untrained, hardly anything that its transformer looks at would be seen in what it makes.
    generator = torch.Generator().manual_seed(seed)
    for name, weight in net.named_parameters():
        if name.startswith("controlnet_cond_embedding"):
            weight.mul_(0 if name.endswith("bias") else 2.5)
        for part, spread in SPREADS.items():
            if name.startswith(part):
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return net


def write_union(folder: Path, model: Path, *, kinds: int = 6, seed: int = 0) -> Path:
    """The same in diffusers' layout."""
    make_union(model, kinds=kinds, seed=seed).save_pretrained(folder)
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
