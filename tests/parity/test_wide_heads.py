"""The VAE's attention by slices is diffusers' own."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from mezzotint.backends.tuned import tune_vae
from mezzotint.backends.wide_heads import QUERIES, slice_wide_heads
from mezzotint.tuning import Tuning

HEAD = 320


def autoencoder(head: int = HEAD) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, head),
        layers_per_block=1,
        sample_size=64,
    )
    for half in (vae.encoder, vae.decoder):
        # As after training, which draws attention to what is alike; at random it would be a plain mean.
        half.mid_block.attentions[0].to_q.weight.data *= 8
    return vae.eval().requires_grad_(False)


def processors(vae: nn.Module) -> set[str]:
    return {type(half.mid_block.attentions[0].processor).__name__ for half in (vae.encoder, vae.decoder)}


@pytest.mark.parametrize(("height", "width"), [(64, 72), (8, 8)], ids=["three slices", "less than one"])
def test_pictures_are_encoded_and_decoded_as_diffusers_does(height: int, width: int) -> None:
    vae = autoencoder()
    sliced = deepcopy(vae)
    slice_wide_heads(sliced)
    assert processors(vae) == {"AttnProcessor2_0"}
    assert processors(sliced) == {"_InSlices"}
    assert (height * width > 2 * QUERIES) == (height > 8)
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))
    picture = vae.decode(latents).sample
    # The attention is seen in the picture.
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions[0].to_out[0].weight.data *= 0
    assert not torch.allclose(vae.decode(latents).sample, picture, atol=1e-2)
    vae = autoencoder()
    torch.testing.assert_close(sliced.decode(latents).sample, picture, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        sliced.encode(picture).latent_dist.mean, vae.encode(picture).latent_dist.mean, atol=1e-5, rtol=1e-5
    )


def test_on_a_gpu_it_is_so_unless_a_kernel_is_asked_for() -> None:
    cuda = torch.device("cuda", 0)
    for tuning, device, head, found in [
        (Tuning(), cuda, HEAD, "_InSlices"),
        (Tuning(attention="efficient"), cuda, HEAD, "AttnProcessor2_0"),
        (Tuning(), torch.device("cpu"), HEAD, "AttnProcessor2_0"),
        # Quick kernels take it.
        (Tuning(), cuda, 256, "AttnProcessor2_0"),
    ]:
        vae = autoencoder(head)
        tune_vae(vae, tuning, device)
        assert processors(vae) == {found}, tuning
