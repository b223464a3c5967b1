"""Modules rewritten for channels_last compute what diffusers' own do. Run as Python, for the compiler adds
nothing to what they compute; `test_compiled_blocks_draw_the_same_picture` has it compile them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from mezzotint.backends.channels_last import keep_channels_last
from mezzotint.bench.fullsize import TINY, build
from mezzotint.bench.reference import unet_inputs

CPU = torch.device("cpu")
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        yield


def parts(dtype: torch.dtype = torch.float32) -> Any:
    """The same numbers each time, none of them a norm's ones and zeros."""
    made = build(TINY, device=CPU, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for model in (made.unet, made.vae):
        model.to(memory_format=LAST)
        for norm in (each for each in model.modules() if isinstance(each, nn.GroupNorm)):
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
    return made


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


def test_every_norm_resnet_and_transformer_is_rewritten_and_no_weight_renamed() -> None:
    made = parts()
    for model in (made.unet, made.vae):
        names = set(model.state_dict())
        keep_channels_last(model)
        assert set(model.state_dict()) == names
        left = {type(each) for each in model.modules()} & {nn.GroupNorm, ResnetBlock2D, Transformer2DModel}
        assert left == set()


def test_the_unet_and_both_halves_of_the_vae_compute_the_same() -> None:
    plain, rewritten = parts(), parts()
    keep_channels_last(rewritten.unet)
    keep_channels_last(rewritten.vae)
    args, kwargs = unet_inputs(plain.unet, plain.text_encoders[1], 3, 32, 48)
    assert close(rewritten.unet(*args, **kwargs)[0], plain.unet(*args, **kwargs)[0])
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    picture = plain.vae.decode(latents, return_dict=False)[0]
    assert close(rewritten.vae.decode(latents, return_dict=False)[0], picture)
    assert close(rewritten.vae.encode(picture).latent_dist.mean, plain.vae.encode(picture).latent_dist.mean)


@pytest.mark.parametrize("shape", [(2, 64, 6, 10), (1, 64, 60)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_as_exact_as_torchs_and_keeps_the_order(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    # Far from zero, where a variance by squares alone would be lost.
    hidden = (torch.randn(shape, generator=generator) + 30).to(dtype)
    if len(shape) == 4:
        hidden = hidden.to(memory_format=LAST)
    norm = nn.GroupNorm(32, 64, eps=1e-6).to(dtype)
    norm.weight.copy_(torch.randn(64, generator=generator))
    norm.bias.copy_(torch.randn(64, generator=generator))
    own = norm(hidden)
    exact = nn.functional.group_norm(hidden.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    keep_channels_last(nn.Sequential(norm))
    found = norm(hidden)
    assert (found.dtype, found.stride()) == (dtype, hidden.stride())
    assert (found - exact).abs().max() <= 2 * (own - exact).abs().max()


def test_a_pictures_order_is_kept_from_end_to_end() -> None:
    made = parts()
    keep_channels_last(made.unet)
    orders = []
    for module in made.unet.modules():
        if isinstance(module, ResnetBlock2D | Transformer2DModel):
            module.register_forward_hook(lambda _, __, out: orders.append(_picture(out)))
    args, kwargs = unet_inputs(made.unet, made.text_encoders[1], 2, 32, 48)
    made.unet(*args, **kwargs)
    assert len(orders) > 10
    assert all(each.is_contiguous(memory_format=LAST) for each in orders)


def _picture(out: Any) -> torch.Tensor:
    picture: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return picture
