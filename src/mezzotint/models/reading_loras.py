"""Small files that add to a model's own weights: LoRAs and the like, and vectors of textual inversions."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mezzotint.backends.loras import Change, Decomposed, Full, Hadamard, Kronecker, LoraWeights, LowRank
from mezzotint.backends.parts import PipelineParts
from mezzotint.errors import ModelInvalid
from mezzotint.models.embeddings import ENCODERS
from mezzotint.models.lora_names import COMPONENTS, modules_by_name, split_name
from mezzotint.models.weights import check_header, reading

__all__ = ["read_embedding", "read_lora"]

Scaling = Callable[[int], float]


def read_lora(file: Path, parts: PipelineParts) -> LoraWeights:
    """A LoRA, LoCon, LoHa, LoKr, DoRA or full difference, in any layout whose names `lora_names` has.

    Raises:
        ModelInvalid: it cannot be read, or there is a weight in it that is no part of one of these.
    """
    check_header(file)
    modules = modules_by_name(parts)
    changes: dict[str, dict[str, Change]] = {component: {} for component in COMPONENTS}
    with reading(file.name), safe_open(file, framework="pt") as opened:
        # PEFT's, which diffusers writes beside the weights.
        config = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        for (module, parameter), names in _by_parameter(file, opened.keys()).items():
            first = next(iter(names.values()))
            if module not in modules:
                raise ModelInvalid(f"{file.name} does not fit this model, which has nothing for {first}")
            component, path = modules[module]
            if f"{path}.{parameter}" in changes[component]:
                raise _twice(file, first)
            held = {part: _finite(name, opened.get_tensor(name)) for part, name in names.items()}
            scaling = _scaling_of(held.pop("alpha", None), config, component, module)
            try:
                changes[component][f"{path}.{parameter}"] = _change_of(held, scaling)
            except KeyError:
                raise _of_no_kind(file, first) from None
            for part in held:
                raise _of_no_kind(file, names[part])
    if not any(changes.values()):
        raise ModelInvalid(f"{file.name} is no LoRA: it holds nothing")
    unet, *text_encoders = changes.values()
    return LoraWeights(unet, (text_encoders[0], text_encoders[1]))


def _finite(name: str, tensor: Tensor) -> Tensor:
    """
    Raises:
        ValueError: not all are finite numbers. No picture could be made of them, and of an alpha that is none
            MKL's product of matrices makes 1.
    """
    if not torch.isfinite(tensor.float()).all():
        raise ValueError(f"{name} holds what is no finite number")
    return tensor


def _by_parameter(file: Path, names: Iterable[str]) -> dict[tuple[str, str], dict[str, str]]:
    """The names in a file by what they are for, the module by the name that it has there; then by part."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        split = split_name(name)
        if split is None:
            raise _of_no_kind(file, name)
        module, parameter, part = split
        if part in found[module, parameter]:
            raise _twice(file, name)
        found[module, parameter][part] = name
    return found


def _of_no_kind(file: Path, name: str) -> ModelInvalid:
    return ModelInvalid(f"{file.name} is no LoRA, LoHa, LoKr, DoRA or full difference: it holds {name}")


def _twice(file: Path, name: str) -> ModelInvalid:
    return ModelInvalid(f"{file.name} changes one weight twice, by two names: it holds {name}")


def _change_of(held: dict[str, Tensor], scaling: Scaling) -> Change:
    """The change that these are the parts of. Takes out of them what it is made of.

    Raises:
        KeyError: a part is lacking.
    """
    magnitude = held.pop("magnitude", None)
    dora_scale = held.pop("dora_scale", None)
    change = _undecomposed(held, scaling)
    if magnitude is not None:
        return Decomposed(change, magnitude.reshape(-1, 1, 1))
    if dora_scale is not None:
        # Older LyCORIS has one for each of the inputs.
        of_inputs = dora_scale.ndim > 1 and len(dora_scale) == 1
        return Decomposed(change, dora_scale.reshape((1, -1, 1) if of_inputs else (-1, 1, 1)))
    return change


def _undecomposed(held: dict[str, Tensor], scaling: Scaling) -> Change:
    if "diff" in held:
        return Full(held.pop("diff"))
    if "down" in held:
        down = held.pop("down")
        return LowRank(down, held.pop("up"), scaling(len(down)), held.pop("core", None))
    if "hada_w1_a" in held:
        (first, rank), (second, _) = _factor(held, "hada_w1", "hada_t1"), _factor(held, "hada_w2", "hada_t2")
        return Hadamard(first, second, scaling(rank))
    (first, one), (second, other) = _factor(held, "lokr_w1"), _factor(held, "lokr_w2", "lokr_t2")
    # Of two that are whole there is no rank, and LyCORIS heeds no alpha.
    return Kronecker(first, second, scaling(other or one) if other or one else 1.0)


def _factor(held: dict[str, Tensor], name: str, core: str = "") -> tuple[Change, int]:
    """One of the two matrices that a LoHa or LoKr is made of, and its rank; 0 of one that is whole."""
    if name in held:
        return Full(held.pop(name)), 0
    up, down, between = held.pop(f"{name}_a"), held.pop(f"{name}_b"), held.pop(core, None)
    # With a core, LyCORIS has both with the rank first.
    return LowRank(down, up if between is None else up.T, core=between), len(down)


def _scaling_of(alpha: Tensor | None, config: Mapping[str, Any], component: str, module: str) -> Scaling:
    """alpha / rank, of the alpha in the file or else in PEFT's configuration.

    Raises:
        ValueError: the latter is no finite number.
    """
    own = _alpha_of(config, component, module) if alpha is None else float(alpha)
    if own is not None and not math.isfinite(own):
        raise ValueError(f"{module}.alpha is {own}")
    power = 0.5 if config.get(f"{component}.use_rslora") else 1.0
    return lambda rank: 1.0 if own is None else own / rank**power


def _alpha_of(config: Mapping[str, Any], component: str, module: str) -> float | None:
    """As PEFT wrote it beside the weights: one for all, and others for modules by the ends of their paths."""
    for end, alpha in (config.get(f"{component}.alpha_pattern") or {}).items():
        if module.endswith(f".{end}"):
            return float(alpha)
    alpha = config.get(f"{component}.lora_alpha")
    return None if alpha is None else float(alpha)


def read_embedding(file: Path, parts: PipelineParts) -> tuple[torch.Tensor, ...]:
    """A textual inversion's vectors, n × width for each of the text encoders.

    Raises:
        ModelInvalid: they are of another width than the encoders', or not all finite.
    """
    vectors = []
    with reading(file.name), safe_open(file, framework="pt") as opened:
        for name, encoder in zip(ENCODERS, parts.text_encoders, strict=True):
            own = _finite(name, opened.get_tensor(name))
            table = encoder.get_input_embeddings().weight
            if own.shape[1] != table.shape[1]:
                raise ModelInvalid(
                    f"{file.name} is no embedding for this model: the vectors of {name} have {own.shape[1]} "
                    f"numbers, not {table.shape[1]}"
                )
            vectors.append(own.to(table.device, table.dtype))
    return tuple(vectors)
