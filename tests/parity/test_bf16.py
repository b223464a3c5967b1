"""In bf16 a batch strays no further from the exact pictures than diffusers does alone in bf16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mezzotint.samplers import SAMPLERS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
# Both round differently at every step; twice the other's distance and half of 1/255 are within chance.
SPARE, FACTOR = 0.5, 2.0


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
def test_all_samplers_in_one_batch_draw_nearly_what_diffusers_draws(
    bf16_studio: Any, modules_studio: Any, guidance_scale: float
) -> None:
    arrivals = [
        (
            index // 4,
            bf16_studio.request(
                prompt=f"picture {index}",
                scheduler=sampler.name,
                steps=3 + index % 3,
                guidance_scale=guidance_scale,
                seed=2000 + index,
                width=64,
                height=64,
            ),
        )
        for index, sampler in enumerate(SAMPLERS)
    ]
    drawn = bf16_studio.draw(*arrivals)
    assert len({pixels.tobytes() for pixels in drawn}) == len(arrivals)
    for pixels, (_, request) in zip(drawn, arrivals, strict=True):
        exact = modules_studio.reference(request).astype(int)
        ours, theirs = (
            np.abs(each.astype(int) - exact).mean() for each in (pixels, bf16_studio.reference(request))
        )
        assert ours <= FACTOR * theirs + SPARE, f"{request.scheduler}: {ours:.2f} and {theirs:.2f} of 255"
