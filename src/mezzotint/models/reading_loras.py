"""Small files that add to a model's own weights: LoRAs, and the vectors of textual inversions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open

from mezzotint.backends.loras import LoraWeights, LowRank
from mezzotint.backends.parts import PipelineParts
from mezzotint.errors import ModelInvalid
from mezzotint.models.embeddings import ENCODERS
from mezzotint.models.weights import check_header, quiet, reading

__all__ = ["read_embedding", "read_lora"]

# As LoRA files name them.
LORA_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def read_lora(file: Path, parts: PipelineParts) -> LoraWeights:
    """A LoRA of diffusers', PEFT's or kohya's layout; diffusers knows which names are which.

    Raises:
        ModelInvalid: it cannot be read, or is something else, such as a DoRA or a LoHa.
    """
    check_header(file)
    with safe_open(file, framework="pt") as opened:
        # diffusers leaves it out and goes on.
        dora = next((name for name in opened.keys() if "dora_scale" in name), None)  # noqa: SIM118
    if dora is not None:
        raise ModelInvalid(f"{file.name} is a DoRA, and LoRAs alone are served: it holds {dora}")
    with quiet(), reading(file.name):
        weights, alphas, config = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(file),
            unet_config=parts.unet.config,
            local_files_only=True,
            use_safetensors=True,
            return_lora_metadata=True,
        )
        odd = next((name for name in weights if name.partition(".")[0] not in LORA_COMPONENTS), None)
        if odd is not None or not weights:
            raise ModelInvalid(f"{file.name} is no LoRA of an SDXL: it holds {odd or 'nothing'}")
        unet, *text_encoders = (
            _low_ranks(file, weights, alphas or {}, config or {}, component) for component in LORA_COMPONENTS
        )
    # Newer versions of transformers have CLIP's modules one level higher than files name them.
    first, second = (
        changes if hasattr(encoder, "text_model") else _without("text_model.", changes)
        for encoder, changes in zip(parts.text_encoders, text_encoders, strict=True)
    )
    return LoraWeights(unet, (first, second))


def _low_ranks(
    file: Path,
    weights: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    config: Mapping[str, Any],
    component: str,
) -> dict[str, LowRank]:
    # Names are turned to PEFT's, which are those of the model's own modules, with each one's former name.
    names = {name.removeprefix(f"{component}."): name for name in weights if name.startswith(f"{component}.")}
    if component == "unet":
        names = convert_unet_state_dict_to_peft(names)
    else:
        names = convert_state_dict_to_peft(names, StateDictType.DIFFUSERS_OLD)
    found = {}
    for name, former in names.items():
        path, is_down, rest = name.partition(".lora_A.weight")
        up = names.get(f"{path}.lora_B.weight")
        if is_down and not rest and up is not None:
            down = weights[former]
            # kohya's, by either of the names that diffusers gives it; or PEFT's own configuration.
            alpha = alphas.get(f"{former}.alpha", alphas.get(f"{component}.{path}.alpha"))
            if alpha is None:
                alpha = _alpha_of(config, component, path)
            rank = down.shape[0]
            divisor = rank**0.5 if config.get(f"{component}.use_rslora") else rank
            found[path] = LowRank(down, weights[up], 1.0 if alpha is None else float(alpha) / divisor)
    pairs = {f"{path}.{part}.weight" for path in found for part in ("lora_A", "lora_B")}
    for odd in names.keys() - pairs:
        raise ModelInvalid(f"{file.name} is no LoRA of pairs of matrices: it holds {component}.{odd}")
    return found


def _alpha_of(config: Mapping[str, Any], component: str, path: str) -> float | None:
    """As PEFT wrote it beside the weights: one for all, and others for modules by the ends of their paths."""
    for end, alpha in (config.get(f"{component}.alpha_pattern") or {}).items():
        if f".{path}".endswith(f".{end}"):
            return float(alpha)
    alpha = config.get(f"{component}.lora_alpha")
    return None if alpha is None else float(alpha)


def _without(prefix: str, changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    return {path.removeprefix(prefix): change for path, change in changes.items()}


def read_embedding(file: Path, parts: PipelineParts) -> tuple[torch.Tensor, ...]:
    """A textual inversion's vectors, n × width for each of the text encoders.

    Raises:
        ModelInvalid: they are of another width than the encoders'.
    """
    vectors = []
    with reading(file.name), safe_open(file, framework="pt") as opened:
        for name, encoder in zip(ENCODERS, parts.text_encoders, strict=True):
            own = opened.get_tensor(name)
            table = encoder.get_input_embeddings().weight
            if own.shape[1] != table.shape[1]:
                raise ModelInvalid(
                    f"{file.name} is no embedding for this model: the vectors of {name} have {own.shape[1]} "
                    f"numbers, not {table.shape[1]}"
                )
            vectors.append(own.to(table.device, table.dtype))
    return tuple(vectors)
