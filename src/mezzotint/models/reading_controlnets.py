"""ControlNets' files to the modules that hold a UNet, and the certainty that they are made for that one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from mezzotint.backends.unions import UnionKind
from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.errors import ModelInvalid
from mezzotint.models.controlnets import TASKS, FoundControlNet
from mezzotint.models.json_files import read_json
from mezzotint.models.weights import check_header, quiet, read_module, read_tensors, reading

__all__ = ["read_controlnets"]

# What makes a ControlNet's residuals those of the UNet's blocks, and its inputs the UNet's.
SHARED_WITH_UNET = (
    *("block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)
# Of a ControlNet-Union, what is added to what its first convolution makes.
UNION_CHANNELS = ("num_trans_channel", "num_proj_channel")


def read_controlnets(
    found: Sequence[FoundControlNet], unet: Any, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """By name, what `PipelineParts` has of them, for `unet`; each file or folder is read once.

    They are diffusers' `ControlNetModel`s and `ControlNetUnionModel`s, from folders in diffusers' layout, or
    from files of their weights alone, which are taken to be made as the UNet is.

    Raises:
        ModelInvalid: one cannot be read, is of another kind, or is for another model.
    """
    modules: dict[Path, Any] = {}
    nets = {}
    for each in found:
        if each.path not in modules:
            module = _read_controlnet(each.path, unet, dtype, is_union=each.kind is not None)
            modules[each.path] = module.eval().requires_grad_(False).to(device)
        module = modules[each.path]
        nets[each.served.name] = module if each.kind is None else UnionKind(module, each.kind)
    return nets


def _read_controlnet(path: Path, unet: Any, dtype: torch.dtype, *, is_union: bool) -> Any:
    with quiet():
        if path.is_file():
            net = _read_controlnet_file(path, unet, dtype, is_union=is_union)
        else:
            kind = read_json(path / "config.json").get("_class_name", "ControlNetModel")
            # What a ControlNet-Union is called differs, and no other has its weights.
            if not is_union and kind != "ControlNetModel":
                raise ModelInvalid(
                    f"{path.name} is a {kind}; served are ControlNetModel, and ControlNetUnionModel with "
                    f"its {TASKS}"
                )
            made = diffusers.ControlNetUnionModel if is_union else diffusers.ControlNetModel
            net = read_module(made, path.parent, path.name, dtype)
    _check_is_for(net, unet, path.name)
    return net


def _read_controlnet_file(file: Path, unet: Any, dtype: torch.dtype, *, is_union: bool) -> Any:
    check_header(file)
    with reading(file.name):
        weights = read_tensors(file, dtype)
    with reading(file.name), torch.device("meta"):
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        made, changes = diffusers.ControlNetModel, {"in_channels": unet.config.out_channels}
        if is_union:
            kinds, channels = weights[TASKS].shape
            made = diffusers.ControlNetUnionModel
            changes |= {"num_control_type": kinds, **dict.fromkeys(UNION_CHANNELS, channels)}
        net = made.from_config(net.config, **changes)
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
    for option in UNION_CHANNELS:
        own, wanted = net.config.get(option), net.config.block_out_channels[0]
        if own not in (None, wanted):
            raise ModelInvalid(f"{name} is no ControlNet-Union: its {option} is {own}, not {wanted}")
    # Of what a UNet reads that was trained for inpainting, the latents alone.
    shared = {option: unet.config.get(option) for option in SHARED_WITH_UNET}
    for option, wanted in {**shared, "in_channels": unet.config.out_channels}.items():
        own, wanted = _plain(net.config.get(option)), _plain(wanted)
        if own != wanted:
            raise ModelInvalid(f"{name} is no ControlNet for this model: its {option} is {own}, not {wanted}")
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    order = net.config.controlnet_conditioning_channel_order
    if factor != PIXELS_PER_LATENT or net.config.conditioning_channels != 3 or order != "rgb":
        raise ModelInvalid(f"{name} reads no RGB pictures of the size that is drawn")
    if net.config.global_pool_conditions:
        raise ModelInvalid(f"{name} pools what it makes over the picture, which is not served")


def _plain(value: Any) -> Any:
    # JSON has lists where Python has tuples.
    return list(value) if isinstance(value, tuple) else value
