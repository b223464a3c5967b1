"""In bf16 a batch draws what diffusers draws alone in bf16, as far as so few digits tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mezzotint.samplers import SAMPLERS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
# In 1/255, on average. Eight bits of mantissa are half of 1/255 in one rounding, and there are many.
BAR = 2.0


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
def test_all_samplers_in_one_batch_draw_nearly_what_diffusers_draws(
    bf16_studio: Any, guidance_scale: float
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
        expected = bf16_studio.reference(request).astype(int)
        difference = np.abs(pixels.astype(int) - expected).mean()
        assert difference <= BAR, f"{request.scheduler}: {difference:.2f}/255 apart on average"
