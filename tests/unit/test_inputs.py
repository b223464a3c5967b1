"""Images and masks in a request: checked by name, sized, and counted in steps as diffusers counts them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.core import GenerationRequest, Progress, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.inputs import pixels_sha256
from mezzotint.imaging.metadata import parameters_text, read_receipt
from mezzotint.imaging.size import fitting_size
from mezzotint.resolving import resolve
from mezzotint.samplers import SAMPLERS

IMAGE = np.zeros((64, 96, 3), np.uint8)
MASK = np.full((64, 96), 255, np.uint8)


def resolved(**fields: Any) -> ResolvedRequest:
    return resolve(GenerationRequest(**{"prompt": "a fox", "image": IMAGE, **fields}), FAKE_LIMITS)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"image": "picture.png"}, "image", "not str"),
        ({"image": IMAGE.astype(np.float32)}, "image", "float32"),
        ({"image": IMAGE[..., :2]}, "image", "64 × 96 × 2"),
        ({"image": IMAGE[0]}, "image", "96 × 3"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "image", "0 × 8"),
        ({"mask": IMAGE}, "mask", "image's size, 64 × 96"),
        ({"mask": MASK.T}, "mask", "96 × 64"),
        ({"mask": MASK > 0}, "mask", "bool"),
        ({"image": None, "mask": MASK}, "mask", "needs an image"),
        ({"image": None, "strength": 0.5}, "strength", "needs an image"),
        ({"strength": 0.0}, "strength", "above 0"),
        ({"strength": 1.01}, "strength", "at most 1"),
        ({"strength": math.nan}, "strength", "above 0"),
        ({"strength": 10**400}, "strength", "30 digits"),
        ({"strength": True}, "strength", "float"),
        ({"strength": "much"}, "strength", "float"),
        ({"strength": 0.04, "steps": 20}, "strength", "at least 0.05"),
        ({"width": 65}, "width", "multiple of 8"),
    ],
)
def test_a_bad_image_mask_or_strength_is_refused_by_name(
    fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolved(**fields)
    assert refused.value.param == param
    assert says in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((96, 64), (96, 64)),
        ((103, 71), (96, 64)),
        ((2048, 1024), (1024, 512)),
        ((4000, 3000), (1024, 768)),
        ((32, 64), (64, 128)),
        ((5000, 10), (1024, 64)),
        ((1, 1), (64, 64)),
    ],
)
def test_without_a_size_the_picture_has_the_images_or_the_nearest(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    width, height = shape
    request = resolved(image=np.zeros((height, width, 3), np.uint8))
    assert (request.width, request.height) == size
    assert request.image is not None
    assert request.image.shape == (size[1], size[0], 3)


@given(st.integers(), st.integers())
@example(10**5000, 2 * 10**5000)
@example(10**5000, -1)
@example(0, 0)
def test_any_size_has_one_in_its_place_that_the_model_draws(width: int, height: int) -> None:
    own, other = fitting_size(width, height, FAKE_LIMITS)
    resolve(GenerationRequest("a", width=own, height=other), FAKE_LIMITS)


COMPILED = replace(FAKE_LIMITS, served=((128, 128), (96, 160), (192, 320), (160, 96)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((128, 128), (128, 128)),
        ((1000, 1001), (128, 128)),
        ((300, 500), (192, 320)),
        ((90, 150), (96, 160)),
        ((10, 6000), (192, 320)),
        ((2000, 1), (160, 96)),
    ],
)
def test_where_sizes_are_compiled_an_image_gets_the_nearest_in_proportion_then_in_area(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    image = np.zeros((shape[1], shape[0], 3), np.uint8)
    request = resolve(GenerationRequest("a", image=image), COMPILED)
    assert (request.width, request.height) == size
    assert fitting_size(*shape, COMPILED) == size


@pytest.mark.parametrize(
    "size", [(128, 96), (320, 192), (8, 128), (2048, 128), (100, 100), (0, -8), (10**5000, 128)]
)
def test_a_size_that_is_not_compiled_is_refused_with_those_that_are(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="128x128, 96x160, 192x320, 160x96") as refused:
        resolve(GenerationRequest("a", width=size[0], height=size[1]), COMPILED)
    assert refused.value.param == "size"
    assert fitting_size(*size, COMPILED) in (COMPILED.served or ())


def test_the_default_strength_is_diffusers_and_takes_at_least_one_step() -> None:
    assert resolved().strength == 0.3
    assert resolved(mask=MASK).strength == 0.9999
    assert resolved(steps=2).strength == 0.5
    assert resolved(steps=1, mask=MASK).strength == 1.0
    assert resolve(GenerationRequest("a"), FAKE_LIMITS).strength is None


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_evaluations_are_counted_as_diffusers_cuts_timesteps(sampler: Any) -> None:
    for steps in (1, 2, 7, 20, 49):
        timesteps = sampler.evaluations(steps)
        for strength in (1.0, 0.99, 0.75, 0.58, 0.3, 0.07):
            taken = min(int(steps * strength), steps)
            if taken:
                request = resolved(scheduler=sampler.name, steps=steps, strength=strength)
                first = (steps - taken) * (2 if sampler.evaluations_per_step == 2 else 1)
                assert (request.steps_taken, request.evaluations) == (taken, len(range(timesteps)[first:]))


def test_painting_in_the_callers_array_later_changes_nothing() -> None:
    painted = np.full((64, 64, 3), 9, np.uint8)
    once = resolved(image=painted)
    painted[:] = 0
    assert once.image is not None
    assert (once.image == 9).all()


def test_resolving_again_changes_nothing() -> None:
    once = resolved(image=np.full((70, 90, 3), 9, np.uint8), mask=np.full((70, 90), 200, np.uint8))
    again = resolve(
        GenerationRequest(**{name: getattr(once, name) for name in GenerationRequest.__dataclass_fields__}),
        FAKE_LIMITS,
    )
    assert again == once
    assert again.image is once.image
    assert again.mask is not None
    assert once.mask is not None
    assert np.array_equal(again.mask, once.mask)


def test_the_receipt_names_strength_and_inputs_in_every_form() -> None:
    with Engine(FakeBackend()) as engine:
        picture = engine.generate(GenerationRequest("a", image=IMAGE, mask=MASK, strength=0.75, steps=8))
        plain = engine.generate(GenerationRequest("a", steps=1))
    receipt = read_receipt(picture.encode("png"))
    assert receipt == picture.receipt
    assert (receipt.strength, receipt.image_sha256, receipt.mask_sha256) == (
        0.75,
        pixels_sha256(IMAGE),
        pixels_sha256(MASK),
    )
    assert parameters_text(receipt).endswith("Denoising strength: 0.75")
    assert (plain.receipt.strength, plain.receipt.image_sha256, plain.receipt.mask_sha256) == (
        None,
        None,
        None,
    )
    assert "Denoising" not in parameters_text(plain.receipt)


def test_the_fake_picture_follows_from_image_mask_and_strength_not_from_who_asks() -> None:
    other = IMAGE + np.uint8(1)
    variants: list[dict[str, Any]] = [
        {},
        {"image": IMAGE},
        {"image": other},
        {"image": IMAGE, "strength": 0.5},
        {"image": IMAGE, "mask": MASK},
        {"image": IMAGE, "mask": 255 - MASK},
    ]
    with Engine(FakeBackend()) as engine:
        drawn = [
            [
                engine.generate(
                    GenerationRequest("a", seed=1, steps=4, width=96, height=64, tenant=tenant, **fields)
                ).pixels.tobytes()
                for tenant in ("one", "another")
            ]
            for fields in variants
        ]
    assert all(first == second for first, second in drawn)
    assert len({first for first, _ in drawn}) == len(variants)


def test_progress_counts_the_steps_that_are_taken() -> None:
    backend = FakeBackend()
    with Engine(backend) as engine:
        ticket = engine.submit(GenerationRequest("a", image=IMAGE, strength=0.5, steps=10, scheduler="Heun"))
        steps = [event for event in ticket.stream if isinstance(event, Progress)]
    assert (steps[-1].step, steps[-1].total, backend.passes) == (5, 5, 9)
