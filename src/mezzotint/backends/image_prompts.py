"""Image prompts: pictures that the UNet reads beside the text, by IP-Adapters. Knows no files.

An IP-Adapter (Ye et al., 2023, arXiv:2308.06721) makes some tokens of what CLIP sees in a picture, and has
keys and values for them of its own in each cross attention, whose result is added to the text's. The
arithmetic is `StableDiffusionXLPipeline`'s. Tokens stay the same through a request, so keys and values are
computed once, as it starts: a pass is given them, and knows no adapters. Rows with different ones share it,
and those without have zeros, which add nothing, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from mezzotint.backends.transfers import to_device
from mezzotint.core import ImagePrompt, Pixels

__all__ = [
    "ImageEncoder",
    "ImagePrompts",
    "IpAdapter",
    "cross_attentions",
    "join_images",
    "reading_images",
]


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """transformers' `CLIPVisionModelWithProjection`, and what the colours of its pixels, 0…1, are brought to,
    each 3 × 1 × 1."""

    module: Any
    mean: Tensor
    std: Tensor

    def read(self, image: Pixels, *, states: bool) -> Tensor:
        """What it sees in a picture of its size; with `states`, patch by patch in the last layer but one."""
        pixels = (torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 - self.mean) / self.std
        return self._encode(to_device(pixels[None].to(self.module.dtype), self.module.device), states)

    def nothing(self, *, states: bool) -> Tensor:
        """What stands for no picture, which guidance leads away from."""
        config, own = self.module.config, {"dtype": self.module.dtype, "device": self.module.device}
        if not states:
            return torch.zeros((1, config.projection_dim), **own)
        return self._encode(torch.zeros((1, 3, config.image_size, config.image_size), **own), states)

    def _encode(self, pixels: Tensor, states: bool) -> Tensor:
        output = self.module(pixels, output_hidden_states=states)
        seen: Tensor = output.hidden_states[-2] if states else output.image_embeds
        return seen


@dataclass(frozen=True, eq=False)
class IpAdapter:
    """One of a UNet's.

    project: from what the encoder sees to tokens, n × tokens × the text's width.
    reads_states: of the encoder's last layer but one, as the adapters called plus do.
    to_k, to_v: those of all cross attentions, in the order of `cross_attentions`, above each other.
    nothing: the tokens of no picture.
    """

    project: Callable[[Tensor], Tensor]
    reads_states: bool
    to_k: Tensor
    to_v: Tensor
    nothing: Tensor

    def keys_and_values(self, tokens: Tensor, scale: float) -> Tensor:
        """1 × 2 × 1 × tokens × the width of all cross attentions; the values times the scale."""
        both = (F.linear(tokens, self.to_k), F.linear(tokens, self.to_v) * scale)
        return torch.stack(both, 1).unsqueeze(2)


class ImagePrompts:
    """The IP-Adapters of one model, by the names that requests know them by."""

    def __init__(self, adapters: Mapping[str, IpAdapter], encoder: ImageEncoder | None) -> None:
        self._adapters, self._encoder = adapters, encoder

    def encode(self, asked: Sequence[ImagePrompt]) -> tuple[Tensor | None, Tensor | None]:
        """What a row of the UNet is given that leads away from them, and one that leads towards them.

        Each is 1 × 2 × prompts × tokens × the width of all cross attentions.
        """
        if not asked:
            return None, None
        away, towards = zip(*map(self._encode, asked), strict=True)
        return _of_one_row(away), _of_one_row(towards)

    def _encode(self, asked: ImagePrompt) -> tuple[Tensor, Tensor]:
        assert self._encoder is not None
        adapter = self._adapters[asked.name]
        tokens = adapter.project(self._encoder.read(asked.image, states=adapter.reads_states))
        away, towards = (adapter.keys_and_values(each, asked.scale) for each in (adapter.nothing, tokens))
        return away, towards


def _of_one_row(prompts: Sequence[Tensor]) -> Tensor:
    tokens = math.lcm(*(each.shape[3] for each in prompts))
    return torch.cat([_repeated(each, tokens) for each in prompts], 2)


def _repeated(images: Tensor, tokens: int) -> Tensor:
    """With so many tokens: the same to attention, as texts are (`Conditioning.join`)."""
    return images.repeat(1, 1, 1, tokens // images.shape[3], 1)


def join_images(rows: Sequence[Tensor | None]) -> Tensor | None:
    """Those of the rows of a pass side by side; None where no row has any."""
    there = [each for each in rows if each is not None]
    if not there:
        return None
    tokens, most = math.lcm(*(each.shape[3] for each in there)), max(each.shape[2] for each in there)
    joined = there[0].new_zeros((len(rows), 2, most, tokens, there[0].shape[4]))
    for number, each in enumerate(rows):
        if each is not None:
            joined[number : number + 1, :, : each.shape[2]] = _repeated(each, tokens)
    return joined


def cross_attentions(unet: Any) -> list[Any]:
    """Those that read the text, in the order in which files number them."""
    return [each for each in unet.modules() if isinstance(each, Attention) and each.is_cross_attention]


def reading_images(compute: Callable[..., Any], unet: Any) -> Callable[..., Any]:
    """`compute`, a call of the UNet, that takes `images` too, as `join_images` gives them.

    Without, it is the call that it was: the attentions have what reads images for as long as there are some.
    """
    layers = [(attention, _BesideText()) for attention in cross_attentions(unet)]

    def call(*args: Any, images: Tensor | None = None, **kwargs: Any) -> Any:
        if images is None:
            return compute(*args, **kwargs)
        with _given(layers, images):
            return compute(*args, **kwargs)

    return call


@contextmanager
def _given(layers: Sequence[tuple[Any, _BesideText]], images: Tensor) -> Iterator[None]:
    parts = torch.split(images, [attention.inner_dim for attention, _ in layers], -1)
    usual = [attention.processor for attention, _ in layers]
    try:
        for (attention, processor), part in zip(layers, parts, strict=True):
            processor.images, attention.processor = part, processor
        yield
    finally:
        for (attention, processor), before in zip(layers, usual, strict=True):
            attention.processor, processor.images = before, None


class _BesideText:
    """As diffusers' `AttnProcessor2_0`, or `FusedAttnProcessor2_0`, and `IPAdapterAttnProcessor2_0` compute
    a cross attention of SDXL's UNet.

    images: n × 2 × prompts × tokens × the attention's width.
    """

    images: Tensor | None = None

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        def heads(each: Tensor) -> Tensor:
            return each.view(*each.shape[:2], attention.heads, -1).transpose(1, 2)

        assert self.images is not None
        query = heads(attention.to_q(hidden_states))
        if attention.fused_projections:
            key, value = attention.to_kv(encoder_hidden_states).chunk(2, -1)
        else:
            key, value = attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states)
        attended = F.scaled_dot_product_attention(query, heads(key), heads(value))
        for prompt in self.images.unbind(2):
            key, value = prompt.unbind(1)
            attended = attended + F.scaled_dot_product_attention(query, heads(key), heads(value))
        result: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
        return result
