"""IP-Adapters' files and the image encoder's to what reads pictures for a UNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from mezzotint.backends.image_prompts import ImageEncoder, IpAdapter, cross_attentions
from mezzotint.errors import ModelInvalid
from mezzotint.models.ip_adapters import IMAGE, FoundIpAdapter
from mezzotint.models.json_files import read_json
from mezzotint.models.weights import quiet, read_module, read_tensors, reading

__all__ = ["read_image_encoder", "read_ip_adapter"]

PREPROCESSOR = "preprocessor_config.json"
# What CLIP was trained with.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def read_image_encoder(folder: Path, *, dtype: torch.dtype, device: torch.device) -> ImageEncoder:
    """transformers' `CLIPVisionModelWithProjection`, from its own folder.

    Raises:
        ModelInvalid: it cannot be read, or is something else.
    """
    kind = read_json(folder / "config.json").get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ModelInvalid(f"{folder.name} is no image encoder of CLIP: its model_type is {kind}")
    told = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    with reading(f"{folder.name}/{PREPROCESSOR}"):
        mean, std = (
            torch.tensor(told.get(name) or usual, dtype=torch.float32).view(-1, 1, 1).expand(3, 1, 1)
            for name, usual in (("image_mean", MEAN), ("image_std", STD))
        )
    with quiet():
        module = read_module(transformers.CLIPVisionModelWithProjection, folder.parent, folder.name, dtype)
    module.eval().requires_grad_(False).to(device)
    return ImageEncoder(module, mean, std)


def read_ip_adapter(found: FoundIpAdapter, unet: Any, encoder: ImageEncoder) -> IpAdapter:
    """One in its authors' layout, for `unet`, in its dtype and on its device.

    Raises:
        ModelInvalid: it is for another UNet, or cannot be read.
    """
    file = found.path
    with reading(file.name), torch.no_grad():
        weights = read_tensors(file, unet.dtype)
        to_k, to_v = _attentions_of(file, weights, unet)
        image = {name.removeprefix(IMAGE): each for name, each in weights.items() if name.startswith(IMAGE)}
        # diffusers knows which weights are which.
        project = unet._convert_ip_adapter_image_proj_to_diffusers(image, low_cpu_mem_usage=False)
        project.eval().requires_grad_(False).to(device=unet.device, dtype=unet.dtype)
        nothing = project(encoder.nothing(states=found.is_plus))
        adapter = IpAdapter(project, found.is_plus, to_k.to(unet.device), to_v.to(unet.device), nothing)
        adapter.keys_and_values(nothing, 1.0)
    return adapter


def _attentions_of(
    file: Path, weights: Mapping[str, torch.Tensor], unet: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What its keys and its values are made by."""
    layers = cross_attentions(unet)
    # Numbered among those that read the picture itself, which come before each.
    wanted = {
        f"ip_adapter.{2 * number + 1}.{kind}.weight": (layer.inner_dim, layer.cross_attention_dim)
        for kind in ("to_k_ip", "to_v_ip")
        for number, layer in enumerate(layers)
    }
    found = {name: tuple(each.shape) for name, each in weights.items() if not name.startswith(IMAGE)}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise ModelInvalid(
            f"{file.name} is no IP-Adapter for this model: {odd[0]} is missing, or too much, or of another "
            "shape"
        )
    both = [weights[name] for name in wanted]
    return torch.cat(both[: len(layers)]), torch.cat(both[len(layers) :])
