"""Where a request's latents begin, and what of its image stays: the arithmetic of diffusers'
`StableDiffusionXLImg2ImgPipeline` and `StableDiffusionXLInpaintPipeline` with a UNet of 4 channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mezzotint.backends.pictures import PictureCodec
from mezzotint.backends.sampling import Sampling
from mezzotint.backends.transfers import to_device
from mezzotint.core import Mask, ResolvedRequest

__all__ = ["Inpainting", "initial_latents"]


@dataclass(frozen=True, eq=False)
class Inpainting:
    """Which part of an image is redrawn, and the rest. All tensors but `redraw` are 1 × 4 × h × w.

    is_whole: whether nothing is redrawn.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    redraw: torch.Tensor
    is_whole: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the receipt should say."""
        if not self.is_whole:
            return ()
        return (
            "mask: nothing is redrawn; it is read at every eighth pixel, and is 127 or less at all of them",
        )

    def blend(self, latents: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """`latents` where the mask says, elsewhere the image under the noise that `sampling` expects next."""
        original = sampling.add_noise(self.clean, self.noise)
        return (1 - self.redraw) * original + self.redraw * latents


def initial_latents(
    request: ResolvedRequest,
    sampling: Sampling,
    codec: PictureCodec,
    noise_like: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, Inpainting | None]:
    """The latents before the first evaluation, and with a mask what inpainting needs.

    noise_like: an empty tensor of the latents' shape, device and dtype.

    Numbers are taken from the generator in diffusers' order: the image's latents, the noise, and when
    inpainting the masked image's latents, which a UNet of 4 channels never sees.
    """
    clean = None
    if request.image is not None:
        clean = codec.encode(request.image, generator).to(noise_like.dtype)
    noise = _noise(noise_like, generator)
    if clean is None:
        return noise * sampling.initial_sigma, None
    if request.mask is None:
        return sampling.add_noise(clean, noise), None
    _noise(noise_like, generator)
    redraw = _at_latents(request.mask, noise_like)
    inpainting = Inpainting(
        clean, noise, to_device(redraw.to(noise_like.dtype), noise_like.device), not bool(redraw.any())
    )
    if request.strength == 1.0:
        return noise * sampling.initial_sigma, inpainting
    return sampling.add_noise(clean, noise), inpainting


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    # On the CPU and in the latents' own dtype, as diffusers' `randn_tensor` takes from a CPU's generator.
    return to_device(torch.randn(like.shape, generator=generator, dtype=like.dtype), like.device)


def _at_latents(mask: Mask, like: torch.Tensor) -> torch.Tensor:
    """1 × 1 × h × w on the CPU, 1 where to redraw, from the first pixel of each cell: `interpolate`'s
    nearest."""
    height, width = mask.shape[0] // like.shape[-2], mask.shape[1] // like.shape[-1]
    return torch.from_numpy((mask[::height, ::width] > 0).astype("float32"))[None, None]
