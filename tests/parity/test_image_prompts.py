"""Pictures read beside the prompt by IP-Adapters: what diffusers' pipelines draw, whatever else is in the
pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mezzotint.core import ImagePrompt
from tests.controlnets import photo
from tests.parity.conftest import Studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
A, B = ImagePrompt("a", photo(1)), ImagePrompt("b", photo(2), 0.6)
PLUS = ImagePrompt("plus", photo(3))
CASES = {
    "plain": (A,),
    "weak": (replace(A, scale=0.4),),
    "plus": (PLUS,),
    "wide": (replace(PLUS, image=photo(4, 160, 96)),),
    "two": (A, B),
    "both kinds": (replace(A, scale=0.7), PLUS),
}


@pytest.mark.parametrize("prompts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_it_draws_what_diffusers_does(
    images_studio: Studio, prompts: tuple[ImagePrompt, ...], guidance: float
) -> None:
    request = images_studio.request(steps=4, image_prompts=prompts, guidance_scale=guidance, **SIZE)
    plain = images_studio.draw((0, images_studio.request(steps=4, guidance_scale=guidance, **SIZE)))[0]
    drawn = images_studio.draw((0, request))[0]
    assert_same(drawn, images_studio.reference(request))
    assert np.abs(drawn.astype(int) - plain).max() > 8


def test_those_with_and_without_share_passes_and_change_nothing_in_each_other(images_studio: Studio) -> None:
    prompts = [(), (A,), (PLUS,), (), (A, PLUS), (replace(B, scale=1.4),)]
    requests = [
        images_studio.request(
            # In the same places at the same time, so that the passes with images are as wide as those without.
            steps=3,
            seed=number,
            image_prompts=each,
            guidance_scale=1.0 if number % 2 else 5.0,
            negative_prompt="dark" if number % 3 == 0 else None,
            **SIZE,
        )
        for number, each in enumerate(prompts)
    ]
    together = images_studio.draw(*((number % 2, request) for number, request in enumerate(requests)))
    assert len({pixels.tobytes() for pixels in together}) == len(requests)
    for drawn, request in zip(together, requests, strict=True):
        assert_same(drawn, images_studio.reference(request))


def test_rows_without_are_the_same_to_the_byte_beside_one_that_has(images_studio: Studio) -> None:
    free = [images_studio.request(steps=3, seed=seed, **SIZE) for seed in (1, 2)]
    company = images_studio.request(steps=3, seed=3, **SIZE)
    reading = replace(company, image_prompts=images_studio.request(image_prompts=(A, PLUS)).image_prompts)
    before = images_studio.draw(*((0, each) for each in (*free, company)))
    after = images_studio.draw(*((0, each) for each in (*free, reading)))
    assert [each.tobytes() for each in after[:2]] == [each.tobytes() for each in before[:2]]
    assert not np.array_equal(after[2], before[2])


@pytest.mark.parametrize("masked", [False, True])
def test_from_a_picture_and_into_one(images_studio: Studio, masked: bool) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48] = 255
    drawn_from = {"image": photo(5), "mask": mask if masked else None, "strength": 0.7}
    request = images_studio.request(steps=5, image_prompts=(PLUS,), **drawn_from, **SIZE)
    assert_same(images_studio.draw((0, request))[0], images_studio.reference(request))


def test_a_negative_prompt_is_led_away_from_beside_no_picture(images_studio: Studio) -> None:
    for negative in ("", "dark"):
        request = images_studio.request(steps=3, image_prompts=(A,), negative_prompt=negative, **SIZE)
        assert_same(images_studio.draw((0, request))[0], images_studio.reference(request))


def test_a_text_of_several_windows_is_read_beside_one(images_studio: Studio) -> None:
    """Alone and beside others it is the same picture; diffusers reads no more than a window."""
    long = images_studio.request(prompt="a fox " * 30, steps=3, image_prompts=(A,), **SIZE)
    short = images_studio.request(steps=3, image_prompts=(PLUS,), **SIZE)
    alone = [images_studio.draw((0, each))[0] for each in (long, short)]
    for one, other in zip(images_studio.draw((0, long), (0, short)), alone, strict=True):
        assert_same(one, other)
