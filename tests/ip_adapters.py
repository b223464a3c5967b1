"""IP-Adapters and an image encoder with random weights, in their authors' layouts."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

from mezzotint.backends.image_prompts import cross_attentions

# Of the image encoder: the side of what it reads, its layers' width, and the width of all it sees.
SIDE, HIDDEN, PROJECTION = 32, 24, 20
# Of an adapter called plus: its own width, that of its heads, its layers, its tokens. Heads and layers are as
# diffusers takes them for granted.
WIDTH, HEAD, LAYERS, TOKENS = 16, 64, 4, 16


def write_image_encoder(folder: Path, *, hidden: int = HIDDEN, projection: int = PROJECTION) -> Path:
    """In transformers' layout; what it sees of different pictures differs much."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=projection,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = CLIPVisionModelWithProjection(config)
        for name, weight in module.named_parameters():
            if name.endswith("weight") and weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    module.save_pretrained(folder)
    return folder


def adapter_weights(
    model: Path, *, plus: bool = False, seed: int = 0, encoder: tuple[int, int] = (HIDDEN, PROJECTION)
) -> dict[str, torch.Tensor]:
    """For the UNet of `model`, as its authors name them. encoder: the widths of what it reads."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    text = unet.config.cross_attention_dim
    hidden, projection = encoder
    shapes = _plus(hidden, text) if plus else _plain(projection, text)
    shapes = {f"image_proj.{name}": shape for name, shape in shapes.items()}
    for number, layer in enumerate(cross_attentions(unet)):
        for kind in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = (layer.inner_dim, text)
    generator = torch.Generator().manual_seed(seed)
    # Enough to be seen in a picture.
    return {
        name: torch.randn(shape, generator=generator) * (1.0 if len(shape) == 1 else shape[-1] ** -0.5 * 1.5)
        for name, shape in shapes.items()
    }


def write_ip_adapter(path: Path, model: Path, *, plus: bool = False, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter_weights(model, plus=plus, seed=seed), path)
    return path


def _plain(projection: int, text: int) -> dict[str, tuple[int, ...]]:
    return {
        "proj.weight": (4 * text, projection),
        "proj.bias": (4 * text,),
        "norm.weight": (text,),
        "norm.bias": (text,),
    }


def _plus(hidden: int, text: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, TOKENS, WIDTH),
        "proj_in.weight": (WIDTH, hidden),
        "proj_in.bias": (WIDTH,),
        "proj_out.weight": (text, WIDTH),
        "proj_out.bias": (text,),
        "norm_out.weight": (text,),
        "norm_out.bias": (text,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "0.norm1.weight": (WIDTH,),
                "0.norm1.bias": (WIDTH,),
                "0.norm2.weight": (WIDTH,),
                "0.norm2.bias": (WIDTH,),
                "0.to_q.weight": (HEAD, WIDTH),
                "0.to_kv.weight": (2 * HEAD, WIDTH),
                "0.to_out.weight": (WIDTH, HEAD),
                "1.0.weight": (WIDTH,),
                "1.0.bias": (WIDTH,),
                "1.1.weight": (4 * WIDTH, WIDTH),
                "1.3.weight": (WIDTH, 4 * WIDTH),
            }.items()
        }
    return shapes
