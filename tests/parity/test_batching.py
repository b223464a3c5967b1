"""Batching never changes a picture: drawn among others, drawn alone, drawn by diffusers, it is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mezzotint.core import Pixels, ResolvedRequest
from mezzotint.samplers import SAMPLERS

NAMES = [sampler.name for sampler in SAMPLERS]
# diffusers' schedulers hand tensors to numpy.array, and torchsde float32 bounds to a float64 interval.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
SIZE = {"width": 64, "height": 64}


def assert_same(drawn: Pixels, expected: Pixels) -> None:
    assert drawn.shape == expected.shape
    difference = np.abs(drawn.astype(int) - expected.astype(int)).max()
    assert difference <= 1, f"up to {difference}/255 apart"


@pytest.mark.parametrize("scales", [(5.0,), (0.0,), (5.0, 0.0)], ids=["guided", "unguided", "both"])
def test_all_samplers_in_one_batch_draw_what_diffusers_draws_alone(
    tiny_studio: Any, scales: tuple[float, ...]
) -> None:
    arrivals: list[tuple[int, ResolvedRequest]] = []
    for index, name in enumerate(NAMES):
        guidance_scale = scales[index % len(scales)]
        request = tiny_studio.request(
            prompt=f"picture {index}",
            negative_prompt=(None, "", "dull")[index % 3],
            scheduler=name,
            steps=3 + index % 4,
            guidance_scale=guidance_scale + index / 4 if guidance_scale else index / 16,
            seed=1000 + index,
            **SIZE,
        )
        arrivals.append((index // 2, request))
    drawn = tiny_studio.draw(*arrivals)
    assert len({pixels.tobytes() for pixels in drawn}) == len(NAMES)
    for pixels, (_, request) in zip(drawn, arrivals, strict=True):
        assert_same(pixels, tiny_studio.reference(request))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_alone_is_the_same_to_the_byte(tiny_studio: Any, name: str) -> None:
    request = tiny_studio.request(scheduler=name, steps=4, **SIZE)
    first, second = (tiny_studio.draw((0, request))[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert_same(first, tiny_studio.reference(request))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_steps_draw_what_diffusers_draws(tiny_studio: Any, name: str, steps: int) -> None:
    request = tiny_studio.request(scheduler=name, steps=steps, **SIZE)
    assert_same(tiny_studio.draw((0, request))[0], tiny_studio.reference(request))


def test_sizes_that_are_not_square_or_round_draw_what_diffusers_draws(tiny_studio: Any) -> None:
    requests = [
        tiny_studio.request(width=width, height=height, steps=3, seed=width)
        for width, height in [(64, 32), (32, 64), (56, 72), (128, 64)]
    ]
    drawn = tiny_studio.draw(*((0, request) for request in requests))
    for pixels, request in zip(drawn, requests, strict=True):
        assert_same(pixels, tiny_studio.reference(request))


def test_each_way_to_leave_the_negative_prompt_out_is_its_own_picture(tiny_studio: Any) -> None:
    requests = [
        tiny_studio.request(steps=3, guidance_scale=9.0, negative_prompt=negative, **SIZE)
        for negative in (None, "", "blue")
    ]
    drawn = tiny_studio.draw(*((0, request) for request in requests))
    assert len({pixels.tobytes() for pixels in drawn}) == 3
    for pixels, request in zip(drawn, requests, strict=True):
        assert_same(pixels, tiny_studio.reference(request))


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
@pytest.mark.parametrize("name", ["Euler a", "DPM++ SDE"])
def test_the_widest_seeds_draw_what_diffusers_draws(tiny_studio: Any, name: str, seed: int) -> None:
    request = tiny_studio.request(scheduler=name, steps=3, seed=seed, **SIZE)
    assert_same(tiny_studio.draw((0, request))[0], tiny_studio.reference(request))


def test_the_demo_model_draws_what_diffusers_draws_with_every_sampler(demo_studio: Any) -> None:
    arrivals = [
        (
            index % 3,
            demo_studio.request(
                prompt="a red apple on a blue table",
                negative_prompt=(None, "green")[index % 2],
                scheduler=name,
                steps=4,
                guidance_scale=3.0 + index / 2,
                seed=index,
                **SIZE,
            ),
        )
        for index, name in enumerate(NAMES)
    ]
    for pixels, (_, request) in zip(demo_studio.draw(*arrivals), arrivals, strict=True):
        assert_same(pixels, demo_studio.reference(request))
