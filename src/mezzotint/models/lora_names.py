"""What LoRA files call the parameters of an SDXL, by whichever program wrote them.

Made from the model's own modules, as kohya's programs make their names, and never by taking names apart:
a name with _ for its dots does not say which of them were dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mezzotint.backends.parts import PipelineParts

__all__ = ["COMPONENTS", "modules_by_name", "split_name"]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
# What stands before a module's path: diffusers and PEFT, kohya, LyCORIS, ComfyUI. Where it ends in _, the
# path has _ for its dots.
PREFIXES = {
    "unet": ("unet.", "lora_unet_", "lycoris_"),
    "text_encoder": ("text_encoder.", "lora_te1_", "lora_te_", "text_encoders.clip_l.transformer."),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", "text_encoders.clip_g.transformer."),
}
# Before a path in the UNet as Stability's own code (sgm) has it: kohya, ComfyUI.
SGM_PREFIXES = ("lora_unet_", "diffusion_model.")
# What sgm calls the modules outside of the blocks, and those of a residual block.
SGM_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
# How older versions of diffusers end the paths in attention.
OLD_ATTENTION = {
    **{f"to_{each}": f"to_{each}_lora" for each in ("q", "k", "v")},
    "to_out.0": "to_out_lora",
    **{f"{each}_proj": f"to_{each}_lora" for each in ("q", "k", "v", "out")},
}
# How names end, and what that is: of a parameter, a part of its change.
ENDINGS = {
    **{f"{each}.weight": ("weight", "down") for each in ("lora_down", "lora_A", "lora.down", "down")},
    **{f"{each}.weight": ("weight", "up") for each in ("lora_up", "lora_B", "lora.up", "up")},
    "lora_linear_layer.down.weight": ("weight", "down"),
    "lora_linear_layer.up.weight": ("weight", "up"),
    "lora_mid.weight": ("weight", "core"),
    **{
        each: ("weight", each)
        for each in (
            *("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("alpha", "dora_scale"),
        )
    },
    "lora_magnitude_vector": ("weight", "magnitude"),
    "lora_magnitude_vector.weight": ("weight", "magnitude"),
    # Of norms, LyCORIS has names of its own.
    **dict.fromkeys(("diff", "w_norm"), ("weight", "diff")),
    **dict.fromkeys(("diff_b", "b_norm"), ("bias", "diff")),
}
LONGEST_FIRST = sorted(ENDINGS, key=len, reverse=True)


def split_name(name: str) -> tuple[str, str, str] | None:
    """What a file calls a module, which parameter of it, and which part of the change this is."""
    name = name.replace(".processor.", ".")
    for ending in LONGEST_FIRST:
        if name.endswith(f".{ending}"):
            return (name.removesuffix(f".{ending}"), *ENDINGS[ending])
    return None


def modules_by_name(parts: PipelineParts) -> dict[str, tuple[str, str]]:
    """Component and path of every module with a weight, by each name that files have for it."""
    found = {}
    for component, module in zip(COMPONENTS, (parts.unet, *parts.text_encoders), strict=True):
        for path, each in module.named_modules():
            if getattr(each, "weight", None) is not None:
                for name in _names(component, module, path):
                    found[name] = component, path
    return found


def _names(component: str, module: Any, path: str) -> Iterator[str]:
    spellings = {path}
    if component != "unet":
        # transformers 5.6 took CLIP's modules one level up, and files have the names of either.
        bare = path.removeprefix("text_model.")
        spellings = {bare, f"text_model.{bare}"}
    for end, old in OLD_ATTENTION.items():
        spellings |= {each.removesuffix(end) + old for each in spellings if each.endswith(f".{end}")}
    for prefix in PREFIXES[component]:
        for spelling in spellings:
            yield _joined(prefix, spelling)
    if component == "unet" and (sgm := _sgm_path(module, path)) is not None:
        for prefix in SGM_PREFIXES:
            yield _joined(prefix, sgm)


def _joined(prefix: str, path: str) -> str:
    return prefix + (path.replace(".", "_") if prefix.endswith("_") else path)


def _sgm_path(unet: Any, path: str) -> str | None:
    """sgm numbers what is in its blocks through: input_blocks from 1, for 0 is what comes before them."""
    found = BLOCK.fullmatch(path)
    if found is None:
        return SGM_OUTSIDE.get(path)
    side, kind, rest = found[1], found[3], found[5]
    block, layer, layers = int(found[2] or 0), int(found[4]), unet.config.layers_per_block
    if kind == "resnets":
        rest = SGM_RESNET.get(rest, rest)
    if side == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    number = block * (layers + 1) + (layer if kind in ("resnets", "attentions") else layers)
    if kind == "downsamplers":
        return f"input_blocks.{1 + number}.0.op"
    inner = {"resnets": 0, "attentions": 1}.get(kind)
    if inner is None:
        inner = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
    return (
        f"input_blocks.{1 + number}.{inner}.{rest}"
        if side == "down"
        else f"output_blocks.{number}.{inner}.{rest}"
    )
