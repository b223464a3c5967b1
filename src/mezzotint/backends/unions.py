"""ControlNet-Union: one ControlNet that has learnt to read pictures of several kinds. Knows no requests.

Its module is diffusers' `ControlNetUnionModel`. It is served as a ControlNet for each kind: all of them share
the module and whatever is recorded of it, and differ in the two inputs that tell it the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.controlnets.controlnet_union import ResidualAttentionBlock
from torch.nn import functional as F

from mezzotint.backends.transfers import to_device

__all__ = ["UnionKind", "keep_rows_apart"]


@dataclass(frozen=True, eq=False)
class UnionKind:
    """A `ControlNetUnionModel` for the pictures of one kind, the row `kind` of its `task_embedding`."""

    module: Any
    kind: int

    def called(self, compute: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """What to call in a `ControlNetModel`'s place, with its inputs. compute: the tuned module."""
        kind = self.kind
        one_hot = torch.eye(self.module.config.num_control_type)[kind : kind + 1]
        one_row = to_device(one_hot, device)

        def call(
            sample: torch.Tensor, timestep: torch.Tensor, *, controlnet_cond: torch.Tensor, **others: Any
        ) -> Any:
            return compute(
                sample,
                timestep,
                controlnet_cond=[controlnet_cond],
                control_type=one_row.repeat(len(sample), 1),
                control_type_idx=[kind],
                **others,
            )

        return call


def keep_rows_apart(module: Any) -> None:
    """Have each row of a pass read its own picture alone, in place.

    diffusers' module, as the one it was made from, hands its transformer batch × tokens, which torch's
    attention takes for tokens × batch: each row looks at all rows of the pass, and at nothing else. Alone in
    a pass a picture has one row, or two that are the same to the transformer, which sees no prompt: what it
    then finds is its own value.
    """
    for layer in module.transformer_layes:
        layer.__class__ = _RowsApart


class _RowsApart(ResidualAttentionBlock):  # type: ignore[misc]
    def attention(self, x: torch.Tensor) -> torch.Tensor:
        # Of the projections to query, key and value the last.
        own = slice(-x.shape[-1], None)
        value = F.linear(x, self.attn.in_proj_weight[own], self.attn.in_proj_bias[own])
        result: torch.Tensor = self.attn.out_proj(value)
        return result
