"""A second stage from enlarged latents draws what diffusers draws, handed the same latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mezzotint.core import UPSCALERS, Hires, Pixels, ResolvedRequest, Upscaler
from mezzotint.samplers import find_sampler
from tests.parity.conftest import Studio
from tests.parity.test_batching import assert_same

# As A1111's `latent_upscale_modes` has them: written down here too, so that one taken for another is caught.
FILTERS: dict[Upscaler, dict[str, Any]] = {
    "Latent": {"mode": "bilinear"},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic"},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (nearest-exact)": {"mode": "nearest-exact"},
}


def larger(studio: Studio, upscaler: Upscaler, **fields: Any) -> ResolvedRequest:
    hires = Hires(2.0, 0.6, 5, upscaler)
    return studio.request(**{"steps": 3, "width": 64, "height": 32, **fields}, hires=hires)


def second_stage(studio: Studio, request: ResolvedRequest) -> ResolvedRequest:
    """With what the first leaves it."""
    first, second = request.stages
    assert request.hires is not None
    backend = studio.backend
    backend.start("first", first)
    for _ in range(first.evaluations):
        assert backend.step(["first"]) == {}
    latents = backend.latents("first", request.size, request.hires.upscaler)
    backend.release("first")
    assert latents.shape == (4, second.height // 8, second.width // 8)
    return replace(second, latents=latents)


def drawn_by_diffusers(studio: Studio, request: ResolvedRequest) -> Pixels:
    assert request.hires is not None
    sampler = find_sampler(request.scheduler)
    scheduler = getattr(diffusers, sampler.diffusers_class)

    def draw(pipeline: Any, steps: int, **inputs: Any) -> Any:
        pipeline.scheduler = scheduler.from_config(studio.scheduler_config, **sampler.overrides)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            request.prompt,
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **inputs,
        ).images

    components = studio.pipeline.components
    of_words = diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False)
    latents = draw(of_words, request.steps, width=request.width, height=request.height, output_type="latent")
    width, height = (side // 8 for side in request.size)
    latents = F.interpolate(latents, (height, width), **FILTERS[request.hires.upscaler])
    of_latents = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    steps, strength = request.hires.steps, request.hires.strength
    assert steps is not None
    return np.asarray(draw(of_latents, steps, image=latents, strength=strength)[0])


@pytest.mark.parametrize("upscaler", UPSCALERS[1:])
def test_each_way_to_enlarge_is_the_one_of_its_name(modules_studio: Studio, upscaler: Upscaler) -> None:
    request = larger(modules_studio, upscaler)
    [drawn] = modules_studio.draw((0, second_stage(modules_studio, request)))
    assert_same(drawn, drawn_by_diffusers(modules_studio, request))


@pytest.mark.parametrize(("sampler", "guidance_scale"), [("Euler a", 5.0), ("DPM++ 2M Karras", 1.0)])
def test_from_enlarged_latents_beside_others_it_is_what_diffusers_draws(
    tiny_studio: Studio, sampler: str, guidance_scale: float
) -> None:
    request = larger(tiny_studio, "Latent", scheduler=sampler, guidance_scale=guidance_scale)
    stage = second_stage(tiny_studio, request)
    other = tiny_studio.request(steps=4, seed=2, width=128, height=64)
    drawn, beside, late = tiny_studio.draw((1, stage), (0, other), (2, stage))
    assert_same(drawn, drawn_by_diffusers(tiny_studio, request))
    assert_same(late, drawn)
    assert_same(beside, tiny_studio.reference(other))
