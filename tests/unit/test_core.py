"""Resolving a request: defaults filled in, and every bad value refused by name."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import GenerationRequest, Hires
from mezzotint.errors import InvalidRequest
from mezzotint.resolving import resolve


def test_what_is_left_out_is_the_models_default() -> None:
    resolved = resolve(GenerationRequest("a fox"), FAKE_LIMITS)
    assert (resolved.width, resolved.height, resolved.steps) == (128, 128, 20)
    assert (resolved.guidance_scale, resolved.scheduler) == (5.0, "Euler")
    assert 0 <= resolved.seed < 2**32


def test_a_scheduler_is_found_by_either_name_and_stored_by_one() -> None:
    for name in ("Euler a", "euler A", "EulerAncestralDiscreteScheduler", "Euler ancestral"):
        assert resolve(GenerationRequest("x", scheduler=name), FAKE_LIMITS).scheduler == "Euler a"


def test_default_steps_bow_to_a_sampler_that_takes_fewer() -> None:
    assert resolve(GenerationRequest("x", scheduler="LCM"), FAKE_LIMITS).steps == 20
    with pytest.raises(InvalidRequest, match="50 with LCM"):
        resolve(GenerationRequest("x", scheduler="LCM", steps=51), FAKE_LIMITS)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "", "empty"),
        ("prompt", "   ", "empty"),
        ("prompt", "x" * 10_001, "10,000"),
        ("prompt", "\ud800", "Unicode"),
        ("prompt", 7, "text"),
        ("negative_prompt", "x" * 10_001, "10,000"),
        ("width", 127, "multiple of 8"),
        ("width", 8, "from 64"),
        ("height", 4096, "to 1024"),
        ("height", True, "int"),
        ("width", 128.0, "int"),
        ("steps", 0, "1…150"),
        ("steps", 151, "1…150"),
        ("steps", True, "int"),
        ("steps", 2.5, "int"),
        ("guidance_scale", -0.1, "0…50"),
        ("guidance_scale", 50.1, "0…50"),
        ("guidance_scale", math.nan, "0…50"),
        ("guidance_scale", math.inf, "0…50"),
        ("guidance_scale", "5", "float"),
        ("scheduler", "Eular", "Euler a"),
        ("seed", -1, "0…"),
        ("seed", 2**63, "0…"),
        ("deadline_s", 0.0, "positive"),
        ("deadline_s", math.nan, "positive"),
        ("deadline_s", "soon", "float"),
        ("deadline_s", 10**400, "86,400"),
        ("guidance_scale", 10**400, "0…50"),
        ("preview_every", -1, "0…"),
        ("emphasis", "yes", "bool"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_what_is_accepted(field: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolve(GenerationRequest(**{"prompt": "a fox", field: value}), FAKE_LIMITS)
    assert refused.value.param == field
    assert says in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_weight_that_is_not_accepted_names_its_prompt(field: str) -> None:
    request = replace(GenerationRequest("a fox", emphasis=True), **{field: "a (very heavy:11) owl"})
    with pytest.raises(
        InvalidRequest, match=f"{field}: 'very heavy' weighs 11; accepted is -10…10"
    ) as refused:
        resolve(request, FAKE_LIMITS)
    assert refused.value.param == field
    assert resolve(replace(request, emphasis=False), FAKE_LIMITS)


def test_a_second_stage_is_image_to_image_at_its_own_size() -> None:
    asked = GenerationRequest("a fox", steps=20, hires=Hires(1.3))
    request = resolve(asked, FAKE_LIMITS)
    assert request.hires == Hires(1.3, 0.3, 20)
    assert (request.width, request.size) == (128, (160, 160))
    first, second = request.stages
    assert first == replace(request, hires=None)
    assert second == replace(first, width=160, height=160, strength=0.3)
    assert (request.steps_taken, request.evaluations) == (26, 26)
    heun = resolve(GenerationRequest("a fox", steps=5, scheduler="Heun", hires=Hires(2, 0.4)), FAKE_LIMITS)
    assert (heun.steps_taken, heun.evaluations) == (7, 9 + 3)
    # What is resolved once more is the same.
    again = GenerationRequest(**{field.name: getattr(request, field.name) for field in fields(asked)})
    assert resolve(again, FAKE_LIMITS) == request
    assert resolve(GenerationRequest("a fox", steps=2, hires=Hires()), FAKE_LIMITS).hires == Hires(
        1.5, 0.5, 2
    )
    # Latents that are enlarged are blurred, and less would leave them so.
    of_latents = resolve(replace(asked, hires=Hires(1.3, upscaler="Latent (bicubic)")), FAKE_LIMITS)
    assert of_latents.hires == Hires(1.3, 0.7, 20, "Latent (bicubic)")


@pytest.mark.parametrize(
    ("hires", "param", "says"),
    [
        (Hires(1.0), "hires.scale", "above 1 and at most 4, not 1.0"),
        (Hires(4.5), "hires.scale", "above 1 and at most 4, not 4.5"),
        (Hires(math.nan), "hires.scale", "above 1"),
        (Hires(True), "hires.scale", "int or float, not True"),
        (Hires(1.01), "hires.scale", "of 1.01 makes 512x512 no larger"),
        (Hires("2"), "hires.scale", "int or float, not '2'"),  # type: ignore[arg-type]
        (Hires(4.0), "hires.scale", r"of 4 makes 512x512 2048x2048: width must be .* to 1024"),
        (Hires(2.0, 0.0), "hires.strength", "above 0 and at most 1, not 0.0"),
        (Hires(2.0, 0.01), "hires.strength", "0.01 takes none of 20 steps; at least 0.05"),
        (Hires(2.0, None, 0), "hires.steps", "1…150, not 0"),
        (Hires(2.0, None, 2.5), "hires.steps", "int, not 2.5"),  # type: ignore[arg-type]
        (Hires(upscaler="ESRGAN"), "hires.upscaler", r"one of Lanczos, Latent, .*, not 'ESRGAN'"),  # type: ignore[arg-type]
        (2.0, "hires", "takes a mezzotint.core.Hires, not 2.0"),
    ],
)
def test_a_second_stage_that_is_not_drawn_is_refused_by_name(hires: Any, param: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        resolve(GenerationRequest("a fox", width=512, height=512, steps=20, hires=hires), FAKE_LIMITS)
    assert refused.value.param == param


def test_an_image_has_no_second_stage() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InvalidRequest, match="ask for a larger size") as refused:
        resolve(GenerationRequest("a fox", image=image, hires=Hires()), FAKE_LIMITS)
    assert refused.value.param == "hires"


def test_emphasis_that_changes_nothing_is_none() -> None:
    request = GenerationRequest("a fox: red, 2/3", negative_prompt="an owl", emphasis=True)
    assert resolve(replace(request, seed=1), FAKE_LIMITS) == resolve(
        replace(request, seed=1, emphasis=False), FAKE_LIMITS
    )
    assert resolve(replace(request, negative_prompt="(an owl)"), FAKE_LIMITS).emphasis


@pytest.mark.parametrize("field", ["steps", "seed", "width", "guidance_scale", "deadline_s"])
def test_an_integer_too_long_to_print_is_refused_like_any_other(field: str) -> None:
    # Not a parameter of the test: pytest would try to print it.
    value = -(10**5000)
    with pytest.raises(InvalidRequest) as refused:
        resolve(GenerationRequest(**{"prompt": "a fox", field: value}), FAKE_LIMITS)
    assert refused.value.param == field


@given(
    width=st.integers(-64, 4096),
    height=st.integers(-64, 4096),
    steps=st.integers(-5, 500),
    guidance=st.floats(),
    seed=st.integers(-(2**70), 2**70),
)
def test_a_request_is_either_refused_or_within_every_limit(
    width: int, height: int, steps: int, guidance: float, seed: int
) -> None:
    request = GenerationRequest(
        "x", width=width, height=height, steps=steps, guidance_scale=guidance, seed=seed
    )
    try:
        resolved = resolve(request, FAKE_LIMITS)
    except InvalidRequest:
        return
    assert resolved.width % 8 == resolved.height % 8 == 0
    assert resolved.width * resolved.height <= FAKE_LIMITS.max_pixels
    assert 1 <= resolved.steps <= FAKE_LIMITS.max_steps
    assert 0 <= resolved.guidance_scale <= FAKE_LIMITS.max_guidance_scale
    assert 0 <= resolved.seed < 2**63
