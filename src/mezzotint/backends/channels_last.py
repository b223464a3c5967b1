"""diffusers' modules for pictures in channels_last, which on a GPU cost less so. Knows no requests.

torch's own group norm knows no such order on a GPU: it copies what it is given into another, and the next
convolution copies that back. So here all that has a group norm has it compiled, with the sum before and the
SiLU behind it, and nothing between makes a picture contiguous. A handful of small functions is compiled for
all norms of a model: channels, sizes and rows are symbols in them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn import functional as F

__all__ = ["keep_channels_last"]


def keep_channels_last(model: nn.Module) -> None:
    """Have the group norms of `model`, and what is around them, keep the order of pictures, in place.

    What they compute stays the same but for rounding, and so do the names of all weights.
    """
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
        elif type(module) is ResnetBlock2D and _is_sdxls_resnet(module):
            module.__class__ = _ResnetBlock
        elif type(module) is Transformer2DModel and _is_sdxls_transformer(module):
            module.__class__ = _Transformer


def _is_sdxls_transformer(module: Any) -> bool:
    return bool(module.is_input_continuous and module.use_linear_projection)


def _is_sdxls_resnet(block: Any) -> bool:
    return (
        # The VAE's know of no time, and call their norm by another name.
        (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and block.time_embedding_norm in ("default", "group")
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.upsample is None
        and block.downsample is None
        and not block.skip_time_act
        and block.output_scale_factor == 1
    )


class _GroupNorm(nn.GroupNorm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return _normalised(self, hidden)


class _ResnetBlock(ResnetBlock2D):  # type: ignore[misc]
    def forward(
        self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        hidden = self.conv1(_normalised(self.norm1, input_tensor, silu=True))
        added = None if temb is None else self.time_emb_proj(F.silu(temb))
        hidden = self.conv2(_normalised(self.norm2, hidden, added, silu=True))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        result: torch.Tensor = input_tensor + hidden
        return result


class _Transformer(Transformer2DModel):  # type: ignore[misc]
    def _get_output_for_continuous_inputs(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, **_: int
    ) -> torch.Tensor:
        batch, channels, height, width = residual.shape
        pixels = self.proj_out(hidden_states).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        result: torch.Tensor = pixels + residual
        return result


def _normalised(
    norm: nn.GroupNorm, hidden: torch.Tensor, added: torch.Tensor | None = None, *, silu: bool = False
) -> torch.Tensor:
    # Detached, for dynamo takes the shapes of parameters for constants: a kind for each number of channels.
    weight, bias = norm.weight.detach(), norm.bias.detach()
    result: torch.Tensor = _group_norm(hidden, added, weight, bias, norm.num_groups, norm.eps, silu)
    return result


@torch.compile(fullgraph=True, dynamic=True)
def _group_norm(
    hidden: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """`hidden`, N × C × …, to whose channels `added`, N × C, is added, normalised by groups of channels.

    In channels_last the channels of one pixel lie side by side. A sum over a group, which is some of them and
    all pixels, has the compiler's kernels go from pixel to pixel, and fetch memory of which they use a
    sixteenth. So it is taken over the pixels of each channel, by whole rows of channels, then over channels.
    """
    pixels = tuple(range(2, hidden.dim()))
    a_channel = hidden.shape[:2] + (1,) * len(pixels)
    exact = hidden.float()
    if added is not None:
        exact = exact + added.float().view(a_channel)
    variance, mean = torch.var_mean(exact, pixels, correction=0)
    groups = (len(hidden), num_groups, -1)
    variance, mean = variance.view(groups), mean.view(groups)
    # A group's variance is the mean of its channels' and the variance of their means.
    group_mean = mean.mean(-1, keepdim=True)
    group_variance = (variance + (mean - group_mean).square()).mean(-1, keepdim=True)
    scale = weight.float().view(num_groups, -1) * torch.rsqrt(group_variance + eps)
    shift = bias.float().view(num_groups, -1) - group_mean * scale
    normalised = exact * scale.view(a_channel) + shift.view(a_channel)
    return (F.silu(normalised) if silu else normalised).to(hidden.dtype)
