"""diffusers' own pipeline on the same files, as the yardstick: for pictures, throughput and bare passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.parts import PipelineParts
from mezzotint.core import PIXELS_PER_LATENT, GenerationRequest
from mezzotint.errors import SettingInvalid
from mezzotint.models.catalogue import CATALOGUE
from mezzotint.models.loading import DTYPES
from mezzotint.models.locations import find_model
from mezzotint.models.reading import load_parts

__all__ = ["Reference", "unet_inputs"]


class Reference:
    """`StableDiffusionXLPipeline` on modules of its own."""

    def __init__(self, parts: PipelineParts) -> None:
        self._device, self._dtype = parts.unet.device, parts.unet.dtype
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

    @classmethod
    def load(cls, model: str, info: BackendInfo) -> Reference:
        """On a copy of `model`'s modules, in the dtype and place that `info` tells of.

        Raises:
            SettingInvalid: that pipeline does not draw with it.
        """
        # "cpu (x86_64)" and "cuda (…)" describe the device; the first word is torch's name for it.
        device = torch.device(info.device.split()[0])
        entry = CATALOGUE.get(model)
        parts = load_parts(find_model(model), entry, dtype=DTYPES[info.dtype], device=device)
        if parts.unet.config.in_channels != parts.vae.config.latent_channels:
            raise SettingInvalid(
                "diffusers' pipeline from text, the yardstick, takes no model trained for inpainting",
                param="model",
            )
        return cls(parts)

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

    def unet_pass(self, images: int, width: int, height: int) -> Callable[[], None]:
        """A bare pass of the UNet for `images` guided pictures of width × height pixels, and nothing else."""
        pipeline = self.pipeline
        args, kwargs = unet_inputs(pipeline.unet, pipeline.text_encoder_2, 2 * images, width, height)

        def run() -> None:
            with torch.inference_mode():
                self.pipeline.unet(*args, **kwargs)
            if self._device.type == "cuda":
                torch.cuda.synchronize()

        return run


def unet_inputs(
    unet: Any, encoder: Any, rows: int, width: int, height: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a pass of `rows` rows is called with, for pictures of width × height pixels; random numbers.

    encoder: the model's second text encoder.
    """
    tokens = encoder.config.max_position_embeddings
    like: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    shape = (rows, unet.config.in_channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    latents = torch.randn(shape, **like)
    sizes = torch.tensor([[height, width, 0, 0, height, width]], **like)
    return (latents, torch.full((rows,), 500.0, device=unet.device)), {
        "encoder_hidden_states": torch.randn(rows, tokens, unet.config.cross_attention_dim, **like),
        "timestep_cond": None,
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, encoder.config.projection_dim, **like),
            "time_ids": sizes.repeat(rows, 1),
        },
        "return_dict": False,
    }
