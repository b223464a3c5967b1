"""Image-to-image and inpainting, alone or in a batch with text-to-image, draw what diffusers draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from mezzotint.core import Mask, Pixels, ResolvedRequest
from mezzotint.samplers import SAMPLERS
from tests.parity.test_batching import assert_same

NAMES = [sampler.name for sampler in SAMPLERS]
# diffusers' schedulers hand tensors to numpy.array, and torchsde float32 bounds to a float64 interval.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
# Each strength with one guidance scale: neither changes what the other does.
STRENGTHS = [(1.0, 0.0), (0.75, 5.0), (0.5, 0.0), (0.29, 5.0)]


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Pixels:
    """Soft colours, as a photograph has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(PilImage.fromarray(coarse).resize((width, height), PilImage.Resampling.BICUBIC))


def hole(width: int = 64, height: int = 64) -> Mask:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    return mask


@pytest.mark.parametrize(("strength", "guidance_scale"), STRENGTHS)
def test_every_sampler_with_and_without_image_and_mask_shares_passes(
    tiny_studio: Any, strength: float, guidance_scale: float
) -> None:
    """With each sampler a picture from text, one from an image, and one inpainted, all in one batch."""
    inputs: tuple[dict[str, Any], ...] = (
        {},
        {"image": picture(seed=1), "strength": strength},
        {"image": picture(seed=2), "strength": strength, "mask": hole()},
    )
    arrivals: list[tuple[int, ResolvedRequest]] = []
    for index, name in enumerate(NAMES):
        for kind, given in enumerate(inputs):
            request = tiny_studio.request(
                prompt=f"picture {index}",
                negative_prompt=(None, "", "dull")[index % 3],
                scheduler=name,
                steps=4 + (index + kind) % 4,
                guidance_scale=guidance_scale,
                seed=1000 + index,
                width=64,
                height=64,
                **given,
            )
            arrivals.append((index // 3, request))
    drawn = tiny_studio.draw(*arrivals)
    for pixels, (_, request) in zip(drawn, arrivals, strict=True):
        # The ones from text alone are `test_batching`'s; here they are company.
        if request.image is not None:
            assert_same(pixels, tiny_studio.reference(request))


@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_evaluations_draw_what_diffusers_draws(tiny_studio: Any, name: str, masked: bool) -> None:
    mask = {"mask": hole()} if masked else {}
    for steps, strength in ((1, 1.0), (5, 0.2), (20, 0.05)):
        request = tiny_studio.request(
            scheduler=name, steps=steps, strength=strength, image=picture(), width=64, height=64, **mask
        )
        assert request.steps_taken == 1
        assert_same(tiny_studio.draw((0, request))[0], tiny_studio.reference(request))


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "DPM++ SDE", "LCM", "Heun"])
def test_the_same_image_twice_is_the_same_to_the_byte(tiny_studio: Any, name: str) -> None:
    request = tiny_studio.request(
        scheduler=name, steps=6, strength=0.7, image=picture(), mask=hole(), width=64, height=64
    )
    first, second = (tiny_studio.draw((0, request))[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_an_image_of_another_size_is_resized_as_diffusers_resizes(tiny_studio: Any) -> None:
    image, mask = picture(150, 90, seed=3), hole(150, 90)
    fields = {"steps": 4, "strength": 0.5, "width": 96, "height": 64, "image": image}
    plain, masked = tiny_studio.request(**fields), tiny_studio.request(**fields, mask=mask)
    assert plain.image.shape == (64, 96, 3)
    assert masked.mask.shape == (64, 96)
    from diffusers.image_processor import VaeImageProcessor

    expected = VaeImageProcessor().preprocess(PilImage.fromarray(image), height=64, width=96)
    resized = (expected[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.array_equal(resized.round().astype(np.uint8), plain.image)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected_mask = processor.preprocess(PilImage.fromarray(mask), height=64, width=96)[0, 0].numpy() * 255
    assert np.array_equal(expected_mask.astype(np.uint8), masked.mask)
    for request in (plain, masked):
        assert_same(tiny_studio.draw((0, request))[0], tiny_studio.reference(request))


def test_inpainting_keeps_what_the_mask_leaves_up_to_the_vae(demo_studio: Any) -> None:
    image = demo_studio.draw((0, demo_studio.request(prompt="a red apple", steps=8)))[0]
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[: len(mask) // 2] = 255
    request = demo_studio.request(
        prompt="a blue cup", steps=8, strength=1.0, image=image, mask=mask, scheduler="Euler"
    )
    drawn = demo_studio.draw((0, request))[0]
    assert_same(drawn, demo_studio.reference(request))
    change = np.abs(drawn.astype(int) - image.astype(int)).mean(axis=(1, 2))
    kept, redrawn = change[3 * len(mask) // 4 :].mean(), change[: len(mask) // 4].mean()
    assert kept < 8 < redrawn


def test_a_mask_that_redraws_nothing_is_said_in_the_receipts_warnings(tiny_studio: Any) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[1:7, 1:7] = 255
    request = tiny_studio.request(steps=4, image=picture(), mask=mask)
    assert tiny_studio.backend.start("a", request) == (
        "mask: nothing is redrawn; it is read at every eighth pixel, and is 127 or less at all of them",
    )
    tiny_studio.backend.release("a")
