"""What the UNet reads beside latents and timestep, and how rows are laid side by side. Knows no requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from mezzotint.backends.image_prompts import join_images

__all__ = ["Conditioning", "guidance_embedding"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the UNet reads beside latents and timestep; one entry an evaluated row along dimension 0.

    channels: what a UNet that was trained for inpainting reads in channels of its own, n × 5 × h × w.
    images: as `image_prompts` has them.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    guidance_embedding: torch.Tensor | None
    _: KW_ONLY
    channels: torch.Tensor | None = None
    images: torch.Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Side by side, texts of different length too: those that end sooner are repeated.

        Attention is a mean of values weighed by softmax. Of tokens that are all there k times, each has a
        k-th of the weight, k times: to the UNet a text repeated is the text. So no row needs a mask or a pass
        of its own.
        """
        embeddings = [part.guidance_embedding for part in parts if part.guidance_embedding is not None]
        channels = [part.channels for part in parts if part.channels is not None]
        tokens = math.lcm(*(part.hidden.shape[1] for part in parts))
        return cls(
            torch.cat([part.hidden.repeat(1, tokens // part.hidden.shape[1], 1) for part in parts]),
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.time_ids for part in parts]),
            torch.cat(embeddings) if embeddings else None,
            channels=torch.cat(channels) if channels else None,
            images=join_images([part.images for part in parts]),
        )


def guidance_embedding(guidance_scale: float, width: int) -> torch.Tensor:
    """The guidance scale as a distilled model reads it, 1 × `width` (an even number).

    Sines and cosines of (scale - 1) · 1000, as in `StableDiffusionXLPipeline.get_guidance_scale_embedding`.
    """
    half = width // 2
    decay = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -decay)
    angles = torch.tensor([guidance_scale - 1]) * 1000.0 * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)]).unsqueeze(0)
