"""The VAE's wide heads on a CUDA device or its stand-in, in the halves that a CPU has no such product of."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mezzotint.backends.wide_heads import attend, slice_wide_heads
from tests.gpu.conftest import loading
from tests.gpu.needs import GPU
from tests.gpu.stand_in import StandIn
from tests.parity.test_wide_heads import HEAD, autoencoder

pytestmark = GPU


def test_scores_are_not_rounded(gpu: StandIn | None) -> None:
    query, key, value = torch.randn(3, 300, HEAD, generator=torch.Generator().manual_seed(2))
    query, key = 4 * query, 4 * key
    exact = F.scaled_dot_product_attention(*(each[None].double() for each in (query, key, value)))[0]
    with loading(gpu):
        halves = [each.bfloat16().to("cuda") for each in (query, key, value)]
        ours = attend(*halves)
        assert ours.dtype == torch.bfloat16
        scores = (halves[0] @ halves[1].T) * HEAD**-0.5
        rounded = torch.softmax(scores, -1) @ halves[2]
        error, error_of_rounded = ((each.cpu().double() - exact).abs().mean() for each in (ours, rounded))
    assert error < 0.8 * error_of_rounded


def test_a_picture_is_decoded_as_on_a_cpu(gpu: StandIn | None) -> None:
    vae = autoencoder()
    latents = torch.randn(1, 4, 64, 72, generator=torch.Generator().manual_seed(1))
    expected = vae.decode(latents).sample
    slice_wide_heads(vae)
    with loading(gpu):
        picture = vae.to("cuda").decode(latents.to("cuda")).sample.cpu()
    torch.testing.assert_close(picture, expected, atol=1e-3, rtol=1e-3)
