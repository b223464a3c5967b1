"""What each graph of a Stable Diffusion XL takes, from the configuration beside it.

optimum-neuron's layout: a `neuron` table in each component's `config.json`, sizes of UNet and decoder in
latents, of the encoder in pixels. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import ModelInvalid

__all__ = ["COMPONENTS", "Configuration", "Input", "inputs_of", "whole"]

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
TIME_IDS = 6
# Of a UNet's configuration: what adds an input to its graph.
UNSERVED_INPUTS = {"time_cond_proj_dim": "its guidance scale", "encoder_hid_dim_type": "an image prompt"}
# SDXL's is 77, its latents' sides 128; whatever is far beyond is a mistake.
MAX_NUMBER = 2**20

Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Input:
    """One positional input of a graph: exactly this shape and dtype (`float32`, `int64`), contiguous."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


def inputs_of(component: str, configuration: Configuration) -> tuple[Input, ...]:
    """What a graph of `component` takes, from its configuration with the `neuron` table.

    Raises:
        ModelInvalid: the table or the configuration lacks a number, or the graph is of an unknown kind.
    """
    neuron = configuration.get("neuron")
    if not isinstance(neuron, dict):
        raise ModelInvalid(f"{component}/config.json has no neuron table, so its shapes are not known")
    if neuron.get("tensor_parallel_size") not in (None, 1):
        raise ModelInvalid(f"{component}/config.json: a graph that is split over several cores is not served")
    for name, what in UNSERVED_INPUTS.items():
        if configuration.get(name) is not None:
            raise ModelInvalid(f"{component}/config.json: a graph that also reads {what} is not served")
    try:
        batch = whole(neuron["static_batch_size"])
        if component.startswith("text_encoder"):
            return (Input("input_ids", (batch, whole(neuron["static_sequence_length"])), "int64"),)
        channels, height, width = (whole(neuron[f"static_{n}"]) for n in ("num_channels", "height", "width"))
        picture = (batch, channels, height, width)
        if component != "unet":
            return (Input("sample" if component == "vae_encoder" else "latent_sample", picture),)
        pooled = configuration["projection_class_embeddings_input_dim"]
        pooled -= TIME_IDS * configuration["addition_time_embed_dim"]
        window = (batch, whole(neuron["static_sequence_length"]), whole(configuration["cross_attention_dim"]))
        return (
            Input("sample", picture),
            Input("timestep", (batch,)),
            Input("encoder_hidden_states", window),
            Input("text_embeds", (batch, whole(pooled))),
            Input("time_ids", (batch, TIME_IDS)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelInvalid(f"{component}/config.json does not tell the graph's shapes: {error}") from None


def whole(value: object) -> int:
    """`value`, when it is a whole number from 1; else a ValueError."""
    if type(value) is not int or not 1 <= value <= MAX_NUMBER:
        raise ValueError(f"{value!r} is no positive whole number")
    return value
