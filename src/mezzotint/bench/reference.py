"""diffusers' own pipeline on the same files, as the yardstick: for pictures, throughput and bare passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from mezzotint.backends.base import BackendInfo
from mezzotint.core import GenerationRequest
from mezzotint.models import CATALOGUE, find_model
from mezzotint.models.loading import DTYPES, load_parts

__all__ = ["Reference"]


class Reference:
    """`StableDiffusionXLPipeline` on a copy of the model's modules, in the engine's dtype and place."""

    def __init__(self, model: str, *, info: BackendInfo) -> None:
        # "cpu (x86_64)" and "cuda (…)" describe the device; the first word is torch's name for it.
        self._device = info.device.split()[0]
        self._dtype = DTYPES[info.dtype]
        parts = load_parts(
            find_model(model), CATALOGUE.get(model), dtype=self._dtype, device=torch.device(self._device)
        )
        self.pipeline: Any = StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoders[0],
            text_encoder_2=parts.text_encoders[1],
            tokenizer=parts.tokenizers[0],
            tokenizer_2=parts.tokenizers[1],
            unet=parts.unet,
            scheduler=EulerDiscreteScheduler.from_config(parts.scheduler_config),
            force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, requests: Sequence[GenerationRequest]) -> Any:
        """One call for requests that differ only in prompt and seed. Returns Pillow images."""
        first = requests[0]
        return self.pipeline(
            prompt=[request.prompt for request in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            width=first.width,
            height=first.height,
            generator=[torch.Generator("cpu").manual_seed(request.seed or 0) for request in requests],
        ).images

    def unet_pass(self, images: int, width: int, height: int, *, guided: bool) -> Callable[[], None]:
        """A bare pass of the UNet for `images` pictures of width × height pixels, and nothing else."""
        unet, encoder = self.pipeline.unet, self.pipeline.text_encoder_2
        rows = images * (2 if guided else 1)
        tokens = self.pipeline.tokenizer.model_max_length
        factor = self.pipeline.vae_scale_factor
        like: dict[str, Any] = {"device": self._device, "dtype": self._dtype}
        latents = torch.randn(rows, unet.config.in_channels, height // factor, width // factor, **like)
        hidden = torch.randn(rows, tokens, unet.config.cross_attention_dim, **like)
        conditions = {
            "text_embeds": torch.randn(rows, encoder.config.projection_dim, **like),
            "time_ids": torch.tensor([[height, width, 0, 0, height, width]], **like).repeat(rows, 1),
        }
        timesteps = torch.full((rows,), 500.0, device=self._device)

        def run() -> None:
            with torch.inference_mode():
                unet(latents, timesteps, hidden, added_cond_kwargs=conditions, return_dict=False)
            if self._device == "cuda":
                torch.cuda.synchronize()

        return run
