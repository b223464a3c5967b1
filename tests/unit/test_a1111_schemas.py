"""What A1111's clients send: what is taken, what is let pass, what is refused and by which name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mezzotint.core import MAX_SEED, Lora
from mezzotint.errors import InvalidRequest, NotSupported
from mezzotint.samplers import SAMPLERS
from mezzotint.serve.api import a1111_schemas
from mezzotint.serve.api.a1111_answers import echo_of
from mezzotint.serve.api.a1111_schemas import Img2Img, Txt2Img, sampler_of
from mezzotint.serve.api.bounds import seeds_of

# SillyTavern's request, with A1111's own defaults for the rest.
CHATTY = {
    "url": "http://localhost:7860",
    "auth": "user:key",
    "prompt": "a lighthouse",
    "negative_prompt": "",
    "seed": -1,
    "subseed": 5,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": 0,
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_second_pass_steps": 10,
    "denoising_strength": 0.7,
    "styles": [],
    "eta": None,
    "s_churn": 0,
    "s_tmax": math.inf,
    "s_noise": 1.0,
    "override_settings": {
        "CLIP_stop_at_last_layers": 1,
        "sd_vae": "Automatic",
        "show_progress_every_n_steps": 5,
        "show_progress_type": "Full",
    },
    "override_settings_restore_afterwards": True,
    "script_name": None,
    "script_args": [],
    "alwayson_scripts": {},
    "send_images": True,
    "save_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
    "refiner_checkpoint": "",
    "refiner_switch_at": 0.8,
    "clip_skip": 1,
}
# KoboldAI Lite's, which are A1111's own defaults.
SETTINGS = {
    "eta_noise_seed_delta": 0.0,
    "CLIP_stop_at_last_layers": 1.0,
    "ddim_discretize": "uniform",
    "img2img_fix_steps": False,
    "sd_hypernetwork": "None",
    "inpainting_mask_weight": 1.0,
    "initial_noise_multiplier": 1.0,
    "comma_padding_backtrack": 20.0,
}


def test_settings_that_say_what_holds_anyway_are_let_pass() -> None:
    assert Txt2Img(prompt="a", override_settings=SETTINGS).to_request()
    for name, other in (("ddim_discretize", "quad"), ("comma_padding_backtrack", 50)):
        with pytest.raises(NotSupported, match=name):
            Txt2Img(prompt="a", override_settings={**SETTINGS, name: other}).to_request()


def test_a_key_in_the_body_is_not_told_back() -> None:
    assert "key" not in echo_of(Txt2Img.model_validate(CHATTY))


def test_what_says_nothing_is_let_pass() -> None:
    request = Txt2Img.model_validate(CHATTY).to_request()
    assert (request.prompt, request.scheduler, request.steps) == ("a lighthouse", "Euler a", 20)
    assert (request.width, request.height, request.guidance_scale) == (512, 512, 7.0)
    assert (request.seed, request.negative_prompt) == (None, None)


@pytest.mark.parametrize(
    "field",
    [
        {"styles": ["noir"]},
        {"script_name": "X/Y/Z plot"},
        {"restore_faces": True},
        {"tiling": True},
        {"subseed_strength": 0.2},
        {"refiner_checkpoint": "refiner"},
        {"eta": 0.5},
        {"distilled_cfg_scale": 3.5},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_would_change_the_picture_is_refused_by_name(field: dict[str, Any]) -> None:
    name = next(iter(field))
    with pytest.raises(NotSupported, match=name) as refused:
        Txt2Img.model_validate({"prompt": "a", **field}).to_request()
    assert refused.value.param == name


def test_a_setting_that_would_change_the_picture_is_refused() -> None:
    with pytest.raises(NotSupported, match="CLIP_stop_at_last_layers"):
        Txt2Img(prompt="a", override_settings={"CLIP_stop_at_last_layers": 4}).to_request()


def test_loras_in_the_prompt_are_read_and_leave_it() -> None:
    request = Txt2Img(prompt="<lora:ink> a cat <lyco:pixel art:-0.8>").to_request()
    assert request.prompt == "a cat"
    assert request.loras == (Lora("ink", 1.0), Lora("pixel art", -0.8))


def test_a_prompt_is_measured_before_it_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a1111_schemas, "loras_of", lambda _: pytest.fail("searched"))
    with pytest.raises(InvalidRequest, match="prompt has 80,000 characters"):
        Txt2Img(prompt="<lora:a>" * 10_000).to_request()


@pytest.mark.parametrize("tag", ["<hypernet:a:1>", "<lora:a:0.5:0.7>", "<lora:a:te=1>", "<lora:>"])
def test_another_network_in_the_prompt_is_refused(tag: str) -> None:
    with pytest.raises(NotSupported, match="only <lora:name:scale> is served") as refused:
        Txt2Img(prompt=f"a cat {tag}").to_request()
    assert refused.value.param == "prompt"


def test_a_loras_scale_must_be_a_number() -> None:
    with pytest.raises(InvalidRequest, match="no number"):
        Txt2Img(prompt="a cat <lora:a:1.2.3>").to_request()


def test_a_scale_that_is_no_number_is_told_of_as_one() -> None:
    with pytest.raises(InvalidRequest, match="<lora:night:x> has a scale that is no number"):
        Txt2Img(prompt="a cat <lora:night:x>").to_request()


def test_brackets_weigh_words_unless_the_setting_says_that_they_are_text() -> None:
    for setting, weigh in ((None, True), ("", True), ("No norm", True), ("None", False)):
        fields = Txt2Img(prompt="a (cat:1.2)", override_settings={"emphasis": setting})
        assert fields.to_request().emphasis is weigh
    assert Txt2Img(prompt="a (cat:1.2)").to_request().emphasis


@pytest.mark.parametrize("kind", ["Original", "Ignore", 1, ["None"]])
def test_another_kind_of_emphasis_is_refused(kind: object) -> None:
    with pytest.raises(NotSupported, match='only "No norm" and "None"') as refused:
        Txt2Img(prompt="a", override_settings={"emphasis": kind}).to_request()
    assert refused.value.param == "emphasis"


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ({"eta": 0.5}, "eta is not served here; accepted are 1, null, false, 0 or empty"),
        ({"styles": ["noir"]}, "styles is not served here; accepted are null, false, 0 or empty"),
        (
            {"initial_noise_multiplier": 0},
            "initial_noise_multiplier is not served here; accepted are 1, null or empty",
        ),
    ],
)
def test_a_refusal_says_what_is_accepted(field: dict[str, Any], accepted: str) -> None:
    with pytest.raises(NotSupported) as refused:
        Txt2Img.model_validate({"prompt": "a", **field}).to_request()
    assert refused.value.message == accepted


def test_null_and_the_empty_text_are_the_defaults() -> None:
    said = {name: "" for name in Img2Img.model_fields if name not in ("prompt", "init_images")}
    for nothing in (said, dict.fromkeys(said)):
        fields = Img2Img.model_validate({"prompt": "a", "init_images": ["x"], **nothing})
        assert fields == Img2Img(prompt="a", init_images=["x"])


@pytest.mark.parametrize(("name", "value"), [("steps", True), ("seed", "many"), ("batch_size", 0)])
def test_a_number_must_be_one(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Txt2Img.model_validate({"prompt": "a", name: value})


def test_the_files_format_and_the_model_are_settings() -> None:
    fields = Txt2Img(prompt="a", override_settings={"samples_format": "jpg", "sd_model_checkpoint": "demo"})
    assert (fields.format, fields.model) == ("jpeg", "demo")
    assert Txt2Img(prompt="a", override_settings={"samples_format": None}).format == "png"
    with pytest.raises(InvalidRequest, match="samples_format"):
        _ = Txt2Img(prompt="a", override_settings={"samples_format": "avif"}).format


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        (None, None, None),
        ("", "Automatic", None),
        ("Euler a", None, "Euler a"),
        ("euler A", "Automatic", "Euler a"),
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "karras", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Automatic", "DPM++ 2M Karras"),
        ("PLMS", None, "PNDM"),
    ],
)
def test_a_sampler_and_a_schedule_combine(name: str, schedule: str, expected: str) -> None:
    assert sampler_of(name, schedule, "sampler_name") == expected


def test_every_sampler_is_found_by_its_own_name() -> None:
    assert [sampler_of(each.name, "Automatic", "sampler_name") for each in SAMPLERS] == [
        each.name for each in SAMPLERS
    ]


@pytest.mark.parametrize(
    ("name", "schedule", "param"),
    [("Fast", None, "sampler_name"), ("Euler", "Karras", "scheduler"), (None, "Karras", "scheduler")],
)
def test_a_sampler_that_there_is_not_is_refused(name: str, schedule: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sampler_of(name, schedule, "sampler_name")
    assert refused.value.param == param


def test_picture_i_has_seed_plus_i_as_long_as_there_are_seeds() -> None:
    assert list(seeds_of(7, 3)) == [7, 8, 9]
    with pytest.raises(InvalidRequest, match="seed"):
        list(seeds_of(MAX_SEED, 2))


def test_the_mask_is_blurred_and_inverted_as_asked() -> None:
    image, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    plain = {"prompt": "a", "init_images": ["…"]}

    def prepared(**fields: Any) -> np.ndarray:
        asked = Img2Img.model_validate({**plain, **fields})
        found = asked.with_pictures(asked.to_request(), image, mask).mask
        assert found is not None
        return found

    assert (prepared(mask_blur=0) == mask).all()
    for invert, expected in ((1, 255 - mask), (True, 255 - mask), (0, mask), (False, mask)):
        assert (prepared(mask_blur=0, inpainting_mask_invert=invert) == expected).all()
    blurred = prepared()
    assert 0 < blurred[16, 14] < blurred[16, 17] < 255
    # The edge is upright, so blurring sideways is all there is.
    assert (prepared(mask_blur_x=4, mask_blur_y=0) == blurred).all()
    assert (prepared(mask_blur_x=0) == mask).all()
    # A1111's own example of a request has its defaults of the two sides beside the one for both.
    assert (prepared(mask_blur=0, mask_blur_x=4, mask_blur_y=4) == mask).all()
    assert (prepared(mask_blur=4, mask_blur_x=0, mask_blur_y=0) == blurred).all()


def test_under_a_mask_the_original_is_kept_whatever_a1111_would_do_by_default() -> None:
    plain = {"prompt": "a", "init_images": ["…"], "mask": "…"}
    for fill in (2, 3):
        with pytest.raises(NotSupported, match="inpainting_fill"):
            Img2Img.model_validate({**plain, "inpainting_fill": fill}).to_request()
    for default in ({"inpainting_fill": 0}, {"inpainting_fill": 1}, {"inpaint_full_res": True}):
        assert Img2Img.model_validate({**plain, **default}).to_request()
