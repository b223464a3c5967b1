"""Where a request's latents begin, and what of its image stays: the arithmetic of diffusers'
`StableDiffusionXLImg2ImgPipeline` and `StableDiffusionXLInpaintPipeline`, with a UNet of 4 channels or of 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mezzotint.backends.pictures import PictureCodec
from mezzotint.backends.sampling import Sampling
from mezzotint.backends.transfers import to_device
from mezzotint.core import Mask, ResolvedRequest

__all__ = ["Beginning", "Inpainting", "begin"]

REDRAWS_NOTHING = (
    "mask: nothing is redrawn; it is read at every eighth pixel, and is 127 or less at all of them"
)


@dataclass(frozen=True, eq=False)
class Inpainting:
    """Which part of an image is redrawn, and the rest. All tensors but `redraw` are 1 × 4 × h × w."""

    clean: torch.Tensor
    noise: torch.Tensor
    redraw: torch.Tensor

    def blend(self, latents: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """`latents` where the mask says, elsewhere the image under the noise that `sampling` expects next."""
        original = sampling.add_noise(self.clean, self.noise)
        return (1 - self.redraw) * original + self.redraw * latents


@dataclass(frozen=True, eq=False)
class Beginning:
    """latents: before the first evaluation, 1 × 4 × h × w.

    inpainting: with a mask, for a UNet that reads none.
    channels: for one that does, what it reads beside the latents: the mask, and the latents of the image with
        what is redrawn made grey; 1 × 5 × h × w.
    warnings: what the receipt should say.
    """

    latents: torch.Tensor
    inpainting: Inpainting | None = None
    channels: torch.Tensor | None = None
    warnings: tuple[str, ...] = ()


def begin(
    request: ResolvedRequest,
    sampling: Sampling,
    codec: PictureCodec,
    like: torch.Tensor,
    generator: torch.Generator,
    *,
    reads_mask: bool,
) -> Beginning:
    """The beginning of a request.

    like: an empty tensor of the latents' shape, device and dtype.
    reads_mask: whether the UNet was trained for inpainting and has channels for it.

    Numbers are taken from the generator in diffusers' order: the image's latents, the noise, and when
    inpainting the masked image's latents, which a UNet of 4 channels never sees. One of 9 does not see those
    of an image of which nothing shows through the noise.
    """
    from_noise = request.image is None or (request.mask is not None and request.strength == 1.0)
    clean = None
    if request.latents is not None:
        from_noise = False
        clean = to_device(torch.from_numpy(request.latents)[None].to(like.dtype), like.device)
    elif request.image is not None and not (reads_mask and from_noise):
        clean = codec.encode(request.image, generator).to(like.dtype)
    noise = _noise(like, generator)
    if clean is None or from_noise:
        latents = noise * sampling.initial_sigma
    else:
        latents = sampling.add_noise(clean, noise)
    mask = None if request.mask is None else _at_latents(request.mask, like)
    warnings = () if mask is None or mask.any() else (REDRAWS_NOTHING,)
    if reads_mask:
        return Beginning(latents, None, _channels(request, codec, like, generator), warnings)
    if clean is None or mask is None:
        return Beginning(latents)
    _noise(like, generator)
    redraw = to_device(mask.to(like.dtype), like.device)
    return Beginning(latents, Inpainting(clean, noise, redraw), None, warnings)


def _channels(
    request: ResolvedRequest, codec: PictureCodec, like: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """As of a `Beginning`. Without a mask, those of a mask over everything, under which no image is seen."""
    size = (request.height, request.width)
    mask = np.full(size, 255, np.uint8) if request.mask is None else request.mask
    image = np.zeros((*size, 3), np.uint8) if request.image is None else request.image
    redraw = to_device(_at_latents(mask, like).to(like.dtype), like.device)
    return torch.cat([redraw, codec.encode(image, generator, blank=mask).to(like.dtype)], dim=1)


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    # On the CPU and in the latents' own dtype, as diffusers' `randn_tensor` takes from a CPU's generator.
    return to_device(torch.randn(like.shape, generator=generator, dtype=like.dtype), like.device)


def _at_latents(mask: Mask, like: torch.Tensor) -> torch.Tensor:
    """1 × 1 × h × w on the CPU, 1 where to redraw, from the first pixel of each cell: `interpolate`'s
    nearest."""
    height, width = mask.shape[0] // like.shape[-2], mask.shape[1] // like.shape[-1]
    return torch.from_numpy((mask[::height, ::width] > 0).astype("float32"))[None, None]
