"""LoRAs with random weights for the tiny SDXL, in the layouts that people have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Layout = Literal["peft", "diffusers", "kohya"]

RANK = 2
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # Of down, and of up, by component and module.
    f"unet.{ATTENTION}": ((RANK, 64), (64, RANK)),
    f"unet.{CONVOLUTION}": ((RANK, 32, 3, 3), (32, RANK, 1, 1)),
    f"text_encoder.{TEXT}": ((RANK, 32), (32, RANK)),
    f"text_encoder_2.{TEXT}": ((RANK, 64), (64, RANK)),
}
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def pairs(seed: int, *components: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of each module, of these components alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        module: tuple(torch.randn(shape, generator=generator) * 0.4 for shape in shapes)
        for module, shapes in SHAPES.items()
        if module.partition(".")[0] in components
    }  # type: ignore[return-value]


def write_lora(
    path: Path,
    *components: str,
    seed: int = 0,
    layout: Layout = "peft",
    alpha: float | None = None,
    metadata: dict[str, str] | None = None,
    **more: Tensor,
) -> Path:
    """A LoRA of these components, all unless any are named. alpha: in kohya's layout alone."""
    tensors: dict[str, Tensor] = dict(more)
    for module, (down, up) in pairs(seed, *(components or KOHYA)).items():
        component, _, place = module.partition(".")
        if layout == "peft":
            names = (f"{module}.lora_A.weight", f"{module}.lora_B.weight")
        elif layout == "kohya":
            prefix = f"{KOHYA[component]}_{place.replace('.', '_')}"
            names = (f"{prefix}.lora_down.weight", f"{prefix}.lora_up.weight")
            tensors[f"{prefix}.alpha"] = torch.tensor(RANK if alpha is None else alpha)
        else:
            kind = "lora" if component == "unet" else "lora_linear_layer"
            names = (f"{module}.{kind}.down.weight", f"{module}.{kind}.up.weight")
        tensors |= dict(zip(names, (down, up), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def merge(modules: dict[str, Any], seed: int, scale: float, *components: str) -> None:
    """Add a LoRA to the weights of the modules, by component: W + scale · B·A."""
    for module, (down, up) in pairs(seed, *(components or KOHYA)).items():
        component, _, place = module.partition(".")
        owner = modules[component]
        place = place if hasattr(owner, "text_model") else place.removeprefix("text_model.")
        weight = owner.get_submodule(place).weight
        with torch.no_grad():
            weight += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
