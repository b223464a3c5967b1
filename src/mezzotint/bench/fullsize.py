"""Stable Diffusion XL with random weights, made on the device: full-size for its speed, tiny for tests.

The numbers are those of the model's public configuration. Nothing is downloaded, and nothing is proved about
pictures.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mezzotint.backends.parts import PipelineParts
from mezzotint.bench.reference import unet_inputs
from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.models.weights import quiet

__all__ = ["FULL_SIZE", "TINY", "Architecture", "Modules", "build", "tflop_of_decode", "tflop_of_row"]

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Architecture:
    """The configurations of one SDXL's modules, by diffusers' and transformers' names."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], Mapping[str, Any]]


FULL_SIZE = Architecture(
    "sdxl, random weights",
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 768 + 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 1024,
    },
    texts=(
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
            "hidden_act": "gelu",
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
    ),
)
TINY = Architecture(
    "sdxl in small, random weights",
    unet={
        **FULL_SIZE.unet,
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 32 + 64,
        "norm_num_groups": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64 + 6 * 8,
    },
    vae={
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    texts=(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 32,
            "vocab_size": 512,
            "max_position_embeddings": 16,
        },
        {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 64,
            "vocab_size": 512,
            "max_position_embeddings": 16,
        },
    ),
)


@dataclass(frozen=True)
class Modules:
    """The modules that work, without what reads prompts."""

    unet: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any


def build(architecture: Architecture, *, device: torch.device, dtype: torch.dtype) -> PipelineParts:
    """The modules, with the same random weights each time."""
    tokenizer = _tokenizer(architecture)
    modules = _modules(architecture, tokenizer, device, dtype)
    return PipelineParts(
        unet=modules.unet,
        vae=modules.vae,
        tokenizers=(tokenizer, tokenizer),
        text_encoders=(modules.text_encoder, modules.text_encoder_2),
        scheduler_config=SCHEDULER,
        force_zeros_for_empty_prompt=True,
    )


def _modules(architecture: Architecture, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Modules:
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    texts = [CLIPTextConfig(**{**config, **ends}) for config in architecture.texts]
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                made = (
                    UNet2DConditionModel(**architecture.unet),
                    AutoencoderKL(
                        down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4,
                        latent_channels=4,
                        scaling_factor=0.13025,
                        **architecture.vae,
                    ),
                    CLIPTextModel(texts[0]),
                    CLIPTextModelWithProjection(texts[1]),
                )
        finally:
            torch.set_default_dtype(before)
        # Buffers come in a dtype of their own; what is loaded from files has one.
        return Modules(*(module.eval().requires_grad_(False).to(dtype) for module in made))


def _tokenizer(architecture: Architecture) -> Any:
    """Knows letters alone: what a prompt says is no matter here, only that it fills the window."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
        window = architecture.texts[0]["max_position_embeddings"]
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": window, **special}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def tflop_of_row(architecture: Architecture, width: int, height: int) -> float:
    """TFLOP of one row of a pass at width × height pixels, counted by torch on modules without numbers."""
    modules = _without_numbers(architecture)
    args, kwargs = unet_inputs(modules.unet, modules.text_encoder_2, 1, width, height)
    return _count(lambda: modules.unet(*args, **kwargs))


def tflop_of_decode(architecture: Architecture, width: int, height: int) -> float:
    """TFLOP of decoding one picture, counted likewise."""
    modules = _without_numbers(architecture)
    latents = torch.empty(1, 4, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, device="meta")
    return _count(lambda: modules.vae.decode(latents, return_dict=False))


def _without_numbers(architecture: Architecture) -> Modules:
    return _modules(architecture, _tokenizer(architecture), torch.device("meta"), torch.float32)


def _count(run: Any) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e12
