"""The modules of one SDXL model, as whatever reads a model hands them to whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mezzotint.backends.image_prompts import ImageEncoder, IpAdapter
from mezzotint.backends.loras import LoraWeights
from mezzotint.backends.windows import MAX_WINDOWS

__all__ = ["PipelineParts"]


@dataclass(frozen=True, eq=False)
class PipelineParts:
    """The modules of one SDXL model, in evaluation mode on one device, and what configures them.

    A module is diffusers' or transformers' own, or one that is called alike (`mezzotint.backends.neuron`).
    """

    unet: Any
    vae: Any
    tokenizers: tuple[Any, Any]
    text_encoders: tuple[Any, Any]
    scheduler_config: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    # The only sizes, width and height in pixels, that VAE and UNet take; `None` where they take any.
    sizes: tuple[tuple[int, int], ...] | None = None
    # What a prompt has beyond so many windows of the text encoders is cut.
    max_windows: int = MAX_WINDOWS
    # It says of itself what it knows, which is what its tokenizers have tokens for.
    knows_tokens_alone: bool = False
    # A small decoder for previews, diffusers' `AutoencoderTiny`.
    preview_vae: Any = None
    # By the names that requests know them by.
    loras: Mapping[str, LoraWeights] = field(default_factory=dict)
    # By theirs, diffusers' `ControlNetModel`s, and `unions.UnionKind`s, of which several may share a module.
    controlnets: Mapping[str, Any] = field(default_factory=dict)
    ip_adapters: Mapping[str, IpAdapter] = field(default_factory=dict)
    # That all of them read.
    image_encoder: ImageEncoder | None = None
    # The vectors of textual inversions for each text encoder, by the words that prompts name them by.
    embeddings: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
