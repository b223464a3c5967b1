"""Pixels to latents and back: the VAE for pictures, a linear map for previews.

Follows the end of `StableDiffusionXLPipeline.__call__`, `StableDiffusionXLImg2ImgPipeline.prepare_latents`
and `VaeImageProcessor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from mezzotint.backends.base import MakeWay, PendingPreview, go_straight_on
from mezzotint.backends.streams import Streams
from mezzotint.backends.transfers import WithoutWaiting, to_device
from mezzotint.core import PIXELS_PER_LATENT, Latents, Mask, Pixels, Upscaler
from mezzotint.errors import GenerationFailed

__all__ = ["PictureCodec"]

TEST_CARD_SIZE = 192
# A1111's names for ways of `torch.nn.functional.interpolate`: mode, and whether antialiased.
FILTERS: Mapping[Upscaler, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
# What has work enough to be a piece of a decode: of SDXL's eighteen the largest is an eighth of the whole.
PIECES = (ResnetBlock2D, Attention, Upsample2D)


class PictureCodec:
    """A VAE in evaluation mode. `decode` may run in one thread while another encodes or previews."""

    def __init__(
        self,
        vae: Any,
        sizes: Sequence[tuple[int, int]] | None,
        *,
        preview_vae: Any,
        streams: Streams,
    ) -> None:
        """`sizes`: the only ones (width, height) that the VAE takes; None where it takes any.

        preview_vae: a small decoder in place of the linear map, or None.
        streams: where its work is queued.
        """
        self._preview_vae = preview_vae
        self._streams = streams
        # fp16 overflows in SDXL's own VAE. diffusers casts it up for each picture; once is enough.
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)
        self._vae = vae
        # On a CPU the system shares its cores between a decode and steps, and a graph has no pieces.
        self._pieces = _pieces(vae.decoder) if streams.queues else []
        width, height = sizes[0] if sizes else (TEST_CARD_SIZE, TEST_CARD_SIZE)
        self._card_size = (height, width)
        self._scaling = float(vae.config.scaling_factor)
        self._mean = self._constant("latents_mean")
        self._std = self._constant("latents_std")
        self._rgb_map: torch.Tensor | None = None

    def decode(self, latents: torch.Tensor, make_way: MakeWay = go_straight_on) -> Pixels:
        """Latents 1 × 4 × h × w, as they leave the sampler, to 8h × 8w × 3.

        Raises:
            GenerationFailed: what came out are not all finite numbers. And what `make_way` raises.
        """
        latents = latents.to(self._vae.dtype)
        if self._mean is not None and self._std is not None:
            latents = latents * self._std / self._scaling + self._mean
        else:
            latents = latents / self._scaling
        with _after_each(self._pieces, lambda: make_way(self._streams.finish)):
            image = self._vae.decode(latents, return_dict=False)[0]
        # Both in one copy: each would be a wait of its own.
        finite = torch.isfinite(image).all().byte()
        fetched = self._streams.fetch(torch.cat([_to_bytes(image).flatten(), finite[None]])).wait()
        if not fetched[-1]:
            raise GenerationFailed("the decoded picture holds values that are not finite numbers")
        height, width = image.shape[-2:]
        pixels: Pixels = fetched[:-1].view(height, width, 3).numpy()
        return pixels

    def enlarge(self, latents: torch.Tensor, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        """Latents 1 × 4 × h × w to those of a picture of `size` (width, height)."""
        mode, antialias = FILTERS[upscaler]
        width, height = (side // PIXELS_PER_LATENT for side in size)
        larger = F.interpolate(latents.float(), (height, width), mode=mode, antialias=antialias)
        enlarged: Latents = self._streams.fetch(larger[0]).wait().numpy()
        return enlarged

    def encode(
        self, pixels: Pixels, generator: torch.Generator, *, blank: Mask | None = None
    ) -> torch.Tensor:
        """8h × 8w × 3 to latents 1 × 4 × h × w, drawn with `generator` from what the VAE finds likely.

        blank: what is made grey first, where it is not 0.

        Whether they are finite numbers, the first pass tells.
        """
        unit = torch.from_numpy(pixels.astype(np.float32) / 255.0)
        image = (2.0 * unit - 1.0).permute(2, 0, 1).unsqueeze(0)
        if blank is not None:
            image = image * torch.from_numpy(blank == 0)
        image = to_device(image.to(self._vae.dtype), self._vae.device)
        # The generator is the CPU's, and what it draws has to be brought over.
        with WithoutWaiting(self._vae.device) if self._streams.queues else nullcontext():
            return self._normalised(self._vae.encode(image).latent_dist.sample(generator))

    def preview(self, latents: torch.Tensor) -> PendingPreview:
        """Clean latents 1 × 4 × h × w to 8h × 8w × 3 by the small decoder; without one to h × w × 3, by one
        linear map for the colour of each cell."""
        if self._preview_vae is not None:
            vae = self._preview_vae
            image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
            return self._fetch_preview(image)
        if self._rgb_map is None:
            self._rgb_map = self._fit_rgb_map()
        cells = latents[0].float().flatten(1).T
        colours = torch.cat([cells, cells.new_ones(len(cells), 1)], dim=1) @ self._rgb_map
        height, width = latents.shape[-2:]
        image = colours.T.reshape(1, 3, height, width)
        return self._fetch_preview(image)

    def _fetch_preview(self, image: torch.Tensor) -> PendingPreview:
        fetched = self._streams.fetch(_to_bytes(torch.nan_to_num(image)))
        # A copy: whoever gives pinned memory back while its stream is recorded disturbs the recording, and a
        # preview is given back by whoever was shown it.
        return lambda: fetched.wait().numpy().copy() if fetched.arrived() else None

    def _fit_rgb_map(self) -> torch.Tensor:
        """Least squares from the VAE's latents of a test card to the card's colours; 5 × 3.

        The card is soft random colour, always the same, so a preview never depends on what came before.
        """
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
        card = F.interpolate(coarse, size=self._card_size, mode="bicubic").clamp(-1, 1)
        card = card.to(device=self._vae.device, dtype=self._vae.dtype)
        latents = self._normalised(self._vae.encode(card).latent_dist.mode())
        height, width = latents.shape[-2:]
        colours = F.adaptive_avg_pool2d(card.float(), (height, width))
        cells = latents[0].float().flatten(1).T
        cells = torch.cat([cells, cells.new_ones(len(cells), 1)], dim=1)
        solution = torch.linalg.lstsq(cells.cpu(), colours[0].flatten(1).T.cpu()).solution
        return torch.nan_to_num(solution).to(self._vae.device)

    def _normalised(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's latents as samplers and the UNet see them: of about unit variance."""
        if self._mean is not None and self._std is not None:
            return (latents - self._mean) * self._scaling / self._std
        return latents * self._scaling

    def _constant(self, name: str) -> torch.Tensor | None:
        values = getattr(self._vae.config, name, None)
        if values is None:
            return None
        return torch.tensor(values, device=self._vae.device, dtype=self._vae.dtype).view(1, -1, 1, 1)


def _pieces(decoder: nn.Module) -> list[nn.Module]:
    return [module for module in decoder.modules() if isinstance(module, PIECES)]


@contextmanager
def _after_each(modules: Sequence[nn.Module], call: Callable[[], None]) -> Iterator[None]:
    """Within, `call` is called whenever one of `modules` has computed."""
    handles = [module.register_forward_hook(lambda *_: call()) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_bytes(image: torch.Tensor) -> torch.Tensor:
    """1 × 3 × h × w in -1…1 to h × w × 3 bytes, rounding as `VaeImageProcessor` does."""
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    return (unit[0].permute(1, 2, 0).float() * 255).round().to(torch.uint8)
