"""Prompts of several windows: each drawn as the UNet draws it alone, whatever lengths share its passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from mezzotint.core import Pixels, ResolvedRequest
from tests.parity.test_batching import SIZE, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# Within the tiny model's 14 tokens, each of them a letter.
WINDOWS = ("a red fox", "in snow", "by night", "and an owl")


def asked(studio: Any, count: int, **fields: Any) -> ResolvedRequest:
    asked = {
        "prompt": " BREAK ".join(WINDOWS[:count]),
        "negative_prompt": "dull",
        "emphasis": True,
        "seed": count,
        "scheduler": "Euler",
        "steps": 4,
        **SIZE,
    }
    request: ResolvedRequest = studio.request(**{**asked, **fields})
    return request


@torch.inference_mode()
def reference(studio: Any, request: ResolvedRequest) -> Pixels:
    """By diffusers' modules: each window encoded by itself, each text evaluated at its own length."""
    pipeline = studio.pipeline
    device = pipeline.unet.device
    sides = (request.height, request.width, 0, 0, request.height, request.width)
    time_ids = torch.tensor([sides], dtype=pipeline.unet.dtype, device=device)

    def conditioning(windows: Sequence[str]) -> dict[str, Any]:
        embeds = [
            pipeline.encode_prompt(window, device=device, do_classifier_free_guidance=False)
            for window in windows
        ]
        return {
            "encoder_hidden_states": torch.cat([each[0] for each in embeds], dim=1),
            "added_cond_kwargs": {"text_embeds": embeds[0][2], "time_ids": time_ids},
        }

    positive = conditioning(request.prompt.split(" BREAK "))
    negative = conditioning([request.negative_prompt or ""])
    scheduler = diffusers.EulerDiscreteScheduler.from_config(studio.scheduler_config)
    scheduler.set_timesteps(request.steps)
    shape = (1, 4, request.height // pipeline.vae_scale_factor, request.width // pipeline.vae_scale_factor)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(request.seed)).to(device)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        predicted = pipeline.unet(scaled, timestep.to(device), **positive).sample
        if request.guided:
            without = pipeline.unet(scaled, timestep.to(device), **negative).sample
            predicted = without + request.guidance_scale * (predicted - without)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    [image] = pipeline.image_processor.postprocess(decoded)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["modules", "demo"])
def test_texts_of_all_lengths_share_passes_and_draw_what_each_draws_alone(
    name: str, request: pytest.FixtureRequest
) -> None:
    studio = request.getfixturevalue(f"{name}_studio")
    requests = [
        asked(studio, count, guidance_scale=guidance_scale)
        for count in (1, 2, 3, 4)
        for guidance_scale in (5.0, 0.0)
    ]
    drawn = studio.draw(*((index // 2, each) for index, each in enumerate(requests)))
    assert len({pixels.tobytes() for pixels in drawn}) == len(requests)
    for pixels, each in zip(drawn, requests, strict=True):
        assert_same(pixels, reference(studio, each))


def test_a_longer_negative_prompt_is_read_to_its_end(modules_studio: Any) -> None:
    windows = "dull", "grey", "a blur"
    steered = [
        asked(modules_studio, 1, negative_prompt=" BREAK ".join(windows[:count]), guidance_scale=5.0)
        for count in (1, 2, 3)
    ]
    drawn = modules_studio.draw(*((0, each) for each in steered))
    assert len({pixels.tobytes() for pixels in drawn}) == 3
    alone = [modules_studio.draw((0, each))[0] for each in steered]
    for one, other in zip(drawn, alone, strict=True):
        assert_same(one, other)


def test_where_the_unet_takes_one_window_a_break_is_nothing(graphs_studio: Any) -> None:
    parts, whole = asked(graphs_studio, 2), asked(graphs_studio, 1, prompt="a red fox in snow", seed=2)
    (drawn,), (expected,) = (graphs_studio.draw((0, each)) for each in (parts, whole))
    assert drawn.tobytes() == expected.tobytes()
