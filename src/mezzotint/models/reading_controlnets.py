"""A ControlNet's files to the module that holds a UNet, and the certainty that it is made for that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.errors import ModelInvalid
from mezzotint.models.json_files import read_json
from mezzotint.models.weights import check_header, quiet, read_module, read_tensors, reading

__all__ = ["read_controlnet"]

# What makes a ControlNet's residuals those of the UNet's blocks, and its inputs the UNet's.
SHARED_WITH_UNET = (
    *("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)


def read_controlnet(path: Path, unet: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' `ControlNetModel` for `unet`, from a folder in diffusers' layout, or from a file of its
    weights alone, which is taken to be made as the UNet is.

    Raises:
        ModelInvalid: it cannot be read, is of another kind, or is for another model.
    """
    with quiet():
        if path.is_file():
            net = _read_controlnet_file(path, unet, dtype)
        else:
            kind = read_json(path / "config.json").get("_class_name", "ControlNetModel")
            if kind != "ControlNetModel":
                raise ModelInvalid(f"{path.name} is a {kind}, and only ControlNetModel is served")
            net = read_module(diffusers.ControlNetModel, path.parent, path.name, dtype)
    _check_is_for(net, unet, path.name)
    return net.eval().requires_grad_(False).to(device)


def _read_controlnet_file(file: Path, unet: Any, dtype: torch.dtype) -> Any:
    check_header(file)
    with torch.device("meta"):
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    with reading(file.name):
        weights = read_tensors(file, dtype)
    wanted, found = ({name: each.shape for name, each in of.items()} for of in (net.state_dict(), weights))
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise ModelInvalid(
            f"{file.name} holds no weights of a ControlNet for this model as diffusers names them: "
            f"{odd[0]} is missing, or too much, or of another shape"
        )
    net.load_state_dict(weights, strict=True, assign=True)
    return net


def _check_is_for(net: Any, unet: Any, name: str) -> None:
    for option in SHARED_WITH_UNET:
        own, wanted = (_plain(module.config.get(option)) for module in (net, unet))
        if own != wanted:
            raise ModelInvalid(f"{name} is no ControlNet for this model: its {option} is {own}, not {wanted}")
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if (factor, net.config.conditioning_channels, net.config.controlnet_conditioning_channel_order) != (
        PIXELS_PER_LATENT,
        3,
        "rgb",
    ):
        raise ModelInvalid(f"{name} reads no RGB pictures of the size that is drawn")
    if net.config.global_pool_conditions:
        raise ModelInvalid(f"{name} pools what it makes over the picture, which is not served")


def _plain(value: Any) -> Any:
    # JSON has lists where Python has tuples.
    return list(value) if isinstance(value, tuple) else value
