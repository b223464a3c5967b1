"""Attention whose one head is wider than torch's quick kernels take, by slices. Knows no requests.

SDXL's VAE has such a one in each half: a head of 512 numbers over all cells of a picture. Torch leaves it to
its only kernel without a limit, which fetches keys and values anew for every few queries, and at 1024² would
take a fifth of a decode. As two products and a softmax it costs what writing and reading the scores costs.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

__all__ = ["attend", "slice_wide_heads"]

# Numbers in a head that flash attention and cuDNN's take at most.
WIDEST = 256
# At once: with the 16,384 keys of a picture of 1024² their scores are 134 MB.
QUERIES = 2048


def slice_wide_heads(model: nn.Module) -> None:
    """Have the attentions of `model` with one wide head computed by slices, in place.

    What they compute stays the same but for rounding.
    """
    for module in model.modules():
        if isinstance(module, Attention) and _is_wide(module):
            module.set_processor(_InSlices())


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √d) v of N × d each, the scores in fp32."""
    keys = (key * key.shape[-1] ** -0.5).T
    slices = torch.split(query, QUERIES)
    return torch.cat([torch.softmax(_product(each, keys), -1).to(value.dtype) @ value for each in slices])


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """In fp32."""
    return one @ other if one.dtype == torch.float32 else torch.mm(one, other, out_dtype=torch.float32)


def _is_wide(attention: Any) -> bool:
    return (
        attention.heads == 1
        and attention.inner_dim > WIDEST
        and attention.group_norm is not None
        and attention.spatial_norm is None
        and attention.residual_connection
        and attention.rescale_output_factor == 1
    )


class _InSlices:
    """As diffusers' `AttnProcessor2_0` computes such an attention."""

    def __call__(self, attention: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        pixels = attention.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        projected = (project(pixels) for project in (attention.to_q, attention.to_k, attention.to_v))
        attended = torch.stack([attend(*each) for each in zip(*projected, strict=True)])
        added = attention.to_out[0](attended).transpose(1, 2).reshape(hidden_states.shape)
        result: torch.Tensor = added + hidden_states
        return result
