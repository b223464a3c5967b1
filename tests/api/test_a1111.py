"""A1111's API over the application: what its clients send, and what they read."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mezzotint.backends.fake import FakeBackend
from mezzotint.imaging.metadata import read_receipt
from mezzotint.serve.api.a1111_answers import written
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.runs import Run
from mezzotint.serve.wire import Drawn
from tests.api.inprocess import Gate, gate, replica_of, settings_of
from tests.pictures import endless_png
from tests.waiting import until

SMALL = {"prompt": "a lighthouse", "width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineReplica]:
    replica = replica_of(settings_of(tmp_path_factory.mktemp("stores")), FakeBackend(pass_seconds=0.005))
    yield replica
    replica.close()


@pytest.fixture
async def server(tmp_path: Path, replica: EngineReplica) -> AsyncIterator[Gate]:
    async with gate(settings_of(tmp_path), replica) as server:
        yield server


def picture(size: tuple[int, int] = (64, 64), mode: str = "RGB", color: Any = 90) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, color if mode == "L" else (color, 20, 200)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    assert "Traceback" not in response.text
    return dict(body)


async def send(server: Gate, **fields: Any) -> httpx.Response:
    """As JSON of Python's own kind: with NaN, Infinity and halves of characters."""
    headers = {"content-type": "application/json"}
    body = json.dumps({**SMALL, "send_images": False, **fields})
    return await server.client.post("/sdapi/v1/txt2img", content=body, headers=headers)


async def test_whatever_a_field_that_nobody_reads_holds_is_told_back_or_refused(server: Gate) -> None:
    told = (await send(server, s_tmax=math.inf, comments={"note": "\ud800"})).json()["parameters"]
    assert (told["s_tmax"], told["comments"]) == (None, {"note": "\ud800"})
    for name, value in {"refiner_switch_at": math.nan, "comments": {"note": [-math.inf]}}.items():
        response = await send(server, **{name: value})
        assert response.status_code == 400
        assert name in error_of(response)["detail"]


async def test_open_webui_gets_what_it_reads(server: Gate) -> None:
    """Its engine "automatic1111": the requests and the fields it reads, in its order."""
    # Without a password it still sends the header.
    headers = {"authorization": ""}
    options = await server.json("GET", "/sdapi/v1/options", headers=headers)
    models = await server.json("GET", "/sdapi/v1/sd-models", headers=headers)
    assert options["sd_model_checkpoint"] in [model["title"] for model in models]
    assert all(model["model_name"] for model in models)
    # Choosing the model sends all of the options back.
    await server.json("POST", "/sdapi/v1/options", json=options, headers=headers)
    wanted = {
        "prompt": "a boat",
        "batch_size": 2,
        "width": 64,
        "height": 64,
        "steps": 2,
        "negative_prompt": "",
    }
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=wanted, headers=headers)
    assert [decoded(image).size for image in answer["images"]] == [(64, 64), (64, 64)]
    assert isinstance(answer["info"], str)


async def test_txt2img_answers_pictures_parameters_and_info(server: Gate) -> None:
    wanted = {
        **SMALL,
        "seed": 11,
        "batch_size": 2,
        "n_iter": 2,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
    }
    answer = await server.json("POST", "/sdapi/v1/txt2img", json={**wanted, "cfg_scale": 3.5})
    assert set(answer) == {"images", "parameters", "info"}
    assert answer["parameters"]["prompt"] == "a lighthouse"
    info = json.loads(answer["info"])
    assert (info["seed"], info["all_seeds"]) == (11, [11, 12, 13, 14])
    assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == ("DPM++ 2M Karras", 3.5, 2)
    assert info["infotexts"][1].startswith("a lighthouse\nSteps: 2, Sampler: DPM++ 2M Karras")
    receipts = [read_receipt(base64.b64decode(image)) for image in answer["images"]]
    assert [receipt.seed for receipt in receipts] == [11, 12, 13, 14]


async def test_the_same_seed_is_the_same_picture_and_none_is_a_new_one(server: Gate) -> None:
    one, two, three = [
        await server.json("POST", "/sdapi/v1/txt2img", json={**SMALL, "seed": seed}) for seed in (5, 5, -1)
    ]
    assert one["images"] == two["images"] != three["images"]


async def test_the_format_is_a_setting_and_pictures_can_be_left_out(server: Gate) -> None:
    answer = await server.json(
        "POST", "/sdapi/v1/txt2img", json={**SMALL, "override_settings": {"samples_format": "webp"}}
    )
    assert decoded(answer["images"][0]).format == "WEBP"
    assert (await server.json("POST", "/sdapi/v1/txt2img", json={**SMALL, "send_images": False}))[
        "images"
    ] == []


async def test_img2img_starts_from_the_picture(server: Gate) -> None:
    wanted = {**SMALL, "seed": 3, "steps": 4, "denoising_strength": 0.5}
    first, second = [
        await server.json("POST", "/sdapi/v1/img2img", json={**wanted, "init_images": [picture(color=color)]})
        for color in (10, 200)
    ]
    assert first["images"] != second["images"]
    assert first["parameters"]["init_images"] is None
    assert json.loads(first["info"])["denoising_strength"] == 0.5
    assert read_receipt(base64.b64decode(first["images"][0])).strength == 0.5


async def test_a_mask_keeps_what_is_black(server: Gate) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "png")
    asked = {
        **SMALL,
        "seed": 3,
        "init_images": ["data:image/png;base64," + picture()],
        "mask": base64.b64encode(buffer.getvalue()).decode(),
        "mask_blur": 0,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
    }
    plain, inverted = [
        await server.json("POST", "/sdapi/v1/img2img", json={**asked, "inpainting_mask_invert": invert})
        for invert in (0, 1)
    ]
    receipts = [read_receipt(base64.b64decode(answer["images"][0])) for answer in (plain, inverted)]
    assert None not in [receipt.mask_sha256 for receipt in receipts]
    assert receipts[0].mask_sha256 != receipts[1].mask_sha256
    assert receipts[0].image_sha256 == receipts[1].image_sha256


@pytest.mark.parametrize(
    ("path", "fields", "status", "named"),
    [
        ("txt2img", {}, 400, "prompt"),
        ("txt2img", {"prompt": "  "}, 400, "prompt"),
        ("txt2img", {**SMALL, "width": 65}, 400, "width"),
        ("txt2img", {**SMALL, "steps": 0}, 400, "steps"),
        ("txt2img", {**SMALL, "sampler_name": "Fast"}, 400, "sampler_name"),
        ("txt2img", {**SMALL, "enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, 400, "hr_upscaler"),
        ("txt2img", {**SMALL, "enable_hr": True, "hr_scale": 9}, 400, "hr_scale"),
        ("img2img", {**SMALL, "enable_hr": True, "init_images": [picture()]}, 400, "enable_hr"),
        ("txt2img", {**SMALL, "batch_size": 11}, 400, "batch_size"),
        ("txt2img", {**SMALL, "batch_size": 5, "n_iter": 5}, 400, "batch_size"),
        ("txt2img", {**SMALL, "override_settings": {"sd_model_checkpoint": "v1-5"}}, 404, "v1-5"),
        ("txt2img", {**SMALL, "cfg_scale": 99}, 400, "cfg_scale"),
        ("txt2img", {**SMALL, "width": 100}, 400, "nearest that is served is 96x64"),
        ("txt2img", {**SMALL, "seed": 2**63}, 400, "seed"),
        (
            "img2img",
            {**SMALL, "init_images": [picture()], "denoising_strength": 2},
            400,
            "denoising_strength",
        ),
        (
            "img2img",
            {**SMALL, "init_images": [picture()], "denoising_strength": 0.1},
            400,
            "denoising_strength",
        ),
        (
            "img2img",
            {**SMALL, "init_images": [picture()], "mask": picture((32, 48), "L")},
            400,
            "mask must have the picture's size, 64x64 pixels, not 32x48",
        ),
        ("img2img", SMALL, 400, "init_images"),
        ("img2img", {**SMALL, "init_images": []}, 400, "init_images"),
        ("img2img", {**SMALL, "init_images": ["~"]}, 400, "init_images"),
        ("img2img", {**SMALL, "init_images": ["http://a.example/b.png"]}, 400, "init_images"),
        ("img2img", {**SMALL, "init_images": ["aGVsbG8gd29ybGQ="]}, 415, "init_images"),
        ("options", {"sd_model_checkpoint": "v1-5"}, 404, "v1-5"),
        ("options", {"emphasis": "None"}, 400, 'accepted are "No norm", null'),
        (
            "options",
            {"samples_format": "jpg"},
            400,
            'samples_format is not served here; accepted are "png", null, false, 0 or empty',
        ),
    ],
)
async def test_a_refusal_has_a1111s_shape_and_names_the_field(
    server: Gate, path: str, fields: dict[str, Any], status: int, named: str
) -> None:
    response = await server.client.post(f"/sdapi/v1/{path}", json=fields)
    assert response.status_code == status
    detail = error_of(response)["detail"]
    assert named in detail
    assert not re.search(r"guidance_scale|(?<!denoising_)strength|preview_every|uint8", detail)


async def test_previews_further_apart_than_there_are_steps_are_no_mistake(server: Gate) -> None:
    await server.json(
        "POST",
        "/sdapi/v1/txt2img",
        json={**SMALL, "override_settings": {"show_progress_every_n_steps": 1000}},
    )


async def test_what_is_said_of_a_mask_says_nothing_without_one(server: Gate) -> None:
    asked = {**SMALL, "steps": 4, "init_images": [picture()], "inpainting_fill": 2}
    answer = await server.json("POST", "/sdapi/v1/img2img", json=asked)
    assert len(answer["images"]) == 1
    response = await server.client.post("/sdapi/v1/img2img", json={**asked, "mask": picture(mode="L")})
    assert response.status_code == 400
    told = "inpainting_fill is not served here; accepted are 0, 1, null, false, 0 or empty"
    assert error_of(response)["detail"] == told


# What webuiapi 0.9.17 sends where its user says nothing but prompt, pictures and size.
WEBUIAPI = {
    "prompt": "a boat",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
WEBUIAPI_TXT2IMG = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
}
WEBUIAPI_IMG2IMG = {
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "image_cfg_scale": 1.5,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}


async def test_webuiapi_is_answered_pictures_though_its_user_chose_nothing(server: Gate) -> None:
    with_picture = {**WEBUIAPI, **WEBUIAPI_IMG2IMG, "init_images": [picture()]}
    for path, asked in (
        ("txt2img", {**WEBUIAPI, **WEBUIAPI_TXT2IMG}),
        ("img2img", with_picture),
        ("img2img", {**with_picture, "mask": picture(mode="L", color=255)}),
    ):
        answer = await server.json("POST", f"/sdapi/v1/{path}", json=asked)
        assert [decoded(image).size for image in answer["images"]] == [(64, 64)]


# What Dify's tool sends besides what its user says.
DIFY = {
    "prompt": "a boat",
    "negative_prompt": "",
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "sampler_index": "DPM++ SDE Karras",
    "seed_resize_from_w": -1,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": 0,
    "denoising_strength": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 0,
    "override_settings": {"sd_model_checkpoint": "fake"},
    "override_settings_restore_afterwards": True,
    "refiner_switch_at": 0,
    "disable_extra_networks": False,
    "comments": {},
    "enable_hr": False,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}


async def test_dify_is_answered_though_it_does_not_say_that_its_body_is_json(server: Gate) -> None:
    from_picture = {
        "init_images": [picture()],
        "prompt": "a boat",
        "negative_prompt": "",
        "denoising_strength": 0.9,
        "width": 64,
        "height": 64,
        "cfg_scale": 7,
        "sampler_name": "Euler a",
        "restore_faces": False,
        "steps": 2,
        "script_args": ["outpainting mk2"],
        "override_settings": {"sd_model_checkpoint": "fake"},
    }
    chosen = await server.json("POST", "/sdapi/v1/options", content='{"sd_model_checkpoint": "fake"}')
    assert chosen is None
    for path, asked in (("txt2img", DIFY), ("img2img", from_picture)):
        answer = await server.json("POST", f"/sdapi/v1/{path}", content=json.dumps(asked))
        assert decoded(answer["images"][0]).size == (64, 64)
    # Its later plug-in's own fields, which say again what the settings and the prompt say.
    again = {**DIFY, "model": "fake", "lora": "(bright:1.2)", "prompt": "(bright:1.2),a boat"}
    await server.json("POST", "/sdapi/v1/txt2img", content=json.dumps(again))
    for other in ({"model": "v1-5"}, {"lora": "(dark:1.2)"}):
        response = await server.client.post("/sdapi/v1/txt2img", json={**again, **other})
        assert error_of(response)["detail"].startswith(f"{next(iter(other))} is not served here")
    said = {"content-type": "text/plain"}
    response = await server.client.post("/sdapi/v1/txt2img", content=json.dumps(DIFY), headers=said)
    assert "application/json" in error_of(response)["detail"]


async def test_sd_api_is_answered_pictures_and_progress(server: Gate) -> None:
    """What it does not send of webuiapi's fields says nothing, and what it sends besides."""
    besides = {"alwayson_scripts": {"ControlNet": {"args": []}}, "use_deprecated_controlnet": False}
    for path, asked in (
        ("txt2img", {**WEBUIAPI, **WEBUIAPI_TXT2IMG}),
        ("img2img", {**WEBUIAPI, **WEBUIAPI_IMG2IMG, "init_images": [picture()], "mask": None}),
    ):
        answer = await server.json("POST", f"/sdapi/v1/{path}", json={**asked, **besides})
        assert decoded(answer["images"][0]).size == (64, 64)
    told = await server.json("GET", "/sdapi/v1/progress?skipCurrentImage=false")
    assert told["progress"] == 0.0


async def test_aiyabot_draws_in_no_style_and_reads_back_what_was_drawn(server: Gate) -> None:
    asked = {
        "prompt": "a boat",
        "negative_prompt": "",
        "steps": 2,
        "width": 64,
        "height": 64,
        "cfg_scale": 7.0,
        "sampler_index": "Euler a",
        "seed": 7,
        "seed_resize_from_h": 0,
        "seed_resize_from_w": 0,
        "denoising_strength": None,
        "n_iter": 1,
        "batch_size": 1,
        "styles": ["None"],
        "override_settings": {"CLIP_stop_at_last_layers": 1},
    }
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=asked)
    sent = {"image": "data:image/png;base64," + answer["images"][0]}
    told = await server.json("POST", "/sdapi/v1/png-info", json=sent)
    assert told["info"] == json.loads(answer["info"])["infotexts"][0]
    response = await server.client.post("/sdapi/v1/txt2img", json={**asked, "styles": ["None", "noir"]})
    assert error_of(response)["detail"].startswith("styles is not served here")


async def test_png_info_of_other_files_is_empty_or_refused(server: Gate) -> None:
    told = await server.json("POST", "/sdapi/v1/png-info", json={"image": picture()})
    assert told == {"info": "", "items": {"parameters": ""}}
    endless = base64.b64encode(endless_png(base64.b64decode(picture()))).decode()
    for image, status in (("aGVsbG8=", 415), (endless, 415), ("~", 400), ("http://a.example/b.png", 400)):
        response = await server.client.post("/sdapi/v1/png-info", json={"image": image})
        assert response.status_code == status
        assert error_of(response)["detail"].startswith("image")


async def test_ai_render_sends_its_own_names_of_what_it_says_in_a1111s_too(server: Gate) -> None:
    asked = {
        "prompt": "a boat",
        "negative_prompt": "ugly",
        "width": 64,
        "height": 64,
        "image_similarity": 0.4,
        "seed": 1_000_000_001,
        "cfg_scale": 7.0,
        "steps": 4,
        "sampler": "Euler a",
        "denoising_strength": 0.6,
        "sampler_index": "Euler a",
        "init_images": ["data:image/png;base64," + picture(mode="RGBA", color=90)],
    }
    answer = await server.json("POST", "/sdapi/v1/img2img", json=asked)
    assert decoded(answer["images"][0]).size == (64, 64)
    response = await server.client.post("/sdapi/v1/img2img", json={**asked, "sampler": "DDIM"})
    assert error_of(response)["detail"].startswith("sampler is not served here")


async def test_open_outpaint_sends_all_that_its_page_holds(server: Gate) -> None:
    asked = {
        "prompt": "a boat",
        "negative_prompt": "",
        "seed": "-1",
        "cfg_scale": 7,
        "sampler_index": "DDIM",
        "steps": 4,
        "denoising_strength": 1,
        "mask_blur": 0,
        "batch_size": 2,
        "width": 64,
        "height": 64,
        "n_iter": 1,
        "mask": "",
        "init_images": [],
        "inpaint_full_res": False,
        "inpainting_fill": 1,
        "outpainting_fill": 2,
        "sync_cursor_size": True,
        "enable_hr": False,
        "restore_faces": False,
        "firstphase_width": 32,
        "firstphase_height": 32,
        "hr_scale": 2.0,
        "hr_upscaler": "None",
        "hr_second_pass_steps": 0,
        "hr_resize_x": 0,
        "hr_resize_y": 0,
        "hr_square_aspect": False,
        "hr_denoising_strength": 0.7,
        "hr_fix_lock_px": 0,
        "styles": [],
    }
    white = picture(mode="L", color=255)
    for path, fields in (("txt2img", {}), ("img2img", {"init_images": [picture()], "mask": white})):
        answer = await server.json("POST", f"/sdapi/v1/{path}", json={**asked, **fields})
        assert len(answer["images"]) == len(json.loads(answer["info"])["all_seeds"]) == 2


async def test_auto_photoshop_sends_what_it_keeps_with_its_layers(server: Gate) -> None:
    asked = {
        "selection_info": {"left": 0, "top": 0, "width": 64, "height": 64},
        "alwayson_scripts": {},
        "prompt": "a boat",
        "negative_prompt": "ugly",
        "original_prompt": "a boat",
        "original_negative_prompt": "ugly",
        "steps": 4,
        "sampler_index": "Euler a",
        "width": 64,
        "height": 64,
        "denoising_strength": 0.7,
        "batch_size": 1,
        "cfg_scale": 7,
        "seed": "-1",
        "mask_blur": 4,
        "use_sharp_mask": "none",
        "use_prompt_shortcut": True,
        "prompt_shortcut_ui_dict": {"nice": "a nice boat"},
        "uniqueDocumentId": "e1c0f2d4",
        "restore_faces": False,
        "tiling": False,
    }
    white = picture(mode="L", color=255)
    inpainting = {
        "inpaint_full_res": False,
        "inpaint_full_res_padding": 32,
        "inpainting_fill": 0,
        "mask_expansion": 12,
        "mask": white,
        "expanded_mask": white,
        "init_images": [picture()],
    }
    for path, fields in (
        ("txt2img", {"mode": "txt2img"}),
        ("img2img", {"mode": "img2img", "init_images": [picture()]}),
        ("img2img", {"mode": "inpaint", **inpainting}),
    ):
        answer = await server.json("POST", f"/sdapi/v1/{path}", json={**asked, **fields})
        assert decoded(answer["images"][0]).size == (64, 64)
        assert "expanded_mask" not in answer["parameters"]


async def test_null_is_as_good_as_left_out(server: Gate) -> None:
    nothing = dict.fromkeys(("send_images", "seed", "sampler_name", "override_settings"))
    answer = await server.json("POST", "/sdapi/v1/txt2img", json={**SMALL, **nothing})
    assert len(answer["images"]) == 1
    await server.json("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": None})


async def test_whoever_refuses_below_sdapi_does_it_in_a1111s_shape(server: Gate) -> None:
    for response, status in (
        (await server.client.get("/sdapi/v1/nothing"), 404),
        (await server.client.get("/sdapi/v1/txt2img"), 405),
        (await server.client.post("/sdapi/v1/txt2img", headers={"content-length": "9" * 12}), 413),
        (await server.client.get("/sdapi/v1/options?colour=red"), 400),
        (
            await server.client.post("/sdapi/v1/txt2img", content=b"{", headers={"content-encoding": "gzip"}),
            400,
        ),
    ):
        assert response.status_code == status
        error_of(response)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"seed": -2}, "seed: input should be greater than or equal to -1"),
        ({"steps": True}, "steps: must be a number, not true or false"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae is not served here"),
        ({"sampler_name": "Oil"}, "unknown sampler_name 'Oil'"),
        ({"sampler_index": "Oil"}, "unknown sampler_index 'Oil'"),
        ({"seed": 2**63 - 1, "n_iter": 2}, "seed must be at most 9,223,372,036,854,775,806 with 2 pictures"),
    ],
)
async def test_a_refusal_tells_of_what_was_sent(server: Gate, fields: dict[str, Any], told: str) -> None:
    response = await server.client.post("/sdapi/v1/txt2img", json={**SMALL, **fields})
    assert response.status_code == 400
    assert error_of(response)["detail"].startswith(told)


async def test_a_body_that_is_no_json_is_refused_in_a1111s_shape(server: Gate) -> None:
    response = await server.client.post(
        "/sdapi/v1/txt2img", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/jobs", "/v1/images/generations"])
async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(server: Gate, path: str) -> None:
    response = await server.client.post(path, json={"prompt": "a", "styles": [0] * 60_000})
    assert response.status_code == 413
    assert "50,000" in response.text


@pytest.fixture
async def slow_server(tmp_path: Path) -> AsyncIterator[Gate]:
    """A picture of 150 steps takes half a minute."""
    settings = settings_of(tmp_path)
    replica = replica_of(settings, FakeBackend(pass_seconds=0.2))
    async with gate(settings, replica) as server:
        yield server
    replica.close()


async def test_progress_tells_of_the_running_request_and_interrupt_ends_it(slow_server: Gate) -> None:
    server = slow_server
    idle = await server.json("GET", "/sdapi/v1/progress")
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)

    long = {**SMALL, "steps": 150, "batch_size": 2, "override_settings": {"show_progress_every_n_steps": 1}}
    drawing = asyncio.create_task(server.client.post("/sdapi/v1/txt2img", json={**long}))

    async def begun() -> Any:
        told = await server.json("GET", "/sdapi/v1/progress")
        return told if told["current_image"] else None

    told = await until(begun, "progress with a preview")
    assert 0 < told["progress"] < 1
    assert told["eta_relative"] > 0
    assert (told["state"]["job_count"], told["state"]["sampling_steps"]) == (2, 150)
    assert decoded(told["current_image"]).size == (64, 64)
    unseen = await server.json("GET", "/sdapi/v1/progress", params={"skip_current_image": "true"})
    assert unseen["current_image"] is None

    assert await server.json("POST", "/sdapi/v1/interrupt") == {}
    answer = (await drawing).json()
    assert answer["images"] == []
    assert json.loads(answer["info"])["interrupted"] is True
    assert (await server.json("GET", "/sdapi/v1/progress"))["state"]["job_count"] == 0


async def test_after_an_interruption_the_lists_in_info_go_along_with_the_pictures(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    class Watched(Run):
        def __init__(self, requests: Any) -> None:
            super().__init__(requests)
            kept.append(self)

        async def _take(self, number: int, event: Any) -> None:
            # The second is the only one to finish.
            if number == 1 or not isinstance(event, Drawn):
                await super()._take(number, event)
            if 1 in self.drawn:
                self.interrupt()

    monkeypatch.setattr("mezzotint.serve.api.a1111.Run", Watched)
    asked = {**SMALL, "seed": 7, "batch_size": 3, "negative_prompt": "blue"}
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=asked)
    info = json.loads(answer["info"])
    assert (len(kept), len(answer["images"]), info["interrupted"]) == (1, 1, True)
    assert read_receipt(base64.b64decode(answer["images"][0])).seed == 8
    assert (info["all_seeds"], info["all_subseeds"]) == ([8], [8])
    assert (info["all_prompts"], info["all_negative_prompts"]) == (["a lighthouse"], ["blue"])
    assert len(info["infotexts"]) == 1


async def test_between_two_pictures_that_are_written_down_others_are_served() -> None:
    drawn = [Drawn(bytes([number]) * 1000, "png", {}, 0.0, 0.0) for number in range(10)]
    turns: list[int] = []

    async def another() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    asking = asyncio.create_task(another())
    files = json.loads(await written(drawn))
    asking.cancel()
    assert [base64.b64decode(file) for file in files] == [each.data for each in drawn]
    assert len(turns) >= len(drawn)


async def test_the_lists_that_clients_ask_for_on_their_start_are_there(server: Gate) -> None:
    names = [each["name"] for each in await server.json("GET", "/sdapi/v1/samplers")]
    assert "Euler a" in names
    labels = [each["label"] for each in await server.json("GET", "/sdapi/v1/schedulers")]
    assert labels == ["Automatic", "Karras"]
    for path in ("loras", "sd-vae", "hypernetworks", "prompt-styles"):
        assert await server.json("GET", f"/sdapi/v1/{path}") == []


async def test_capabilities_tell_what_is_drawn_and_for_whom(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert [model["id"] for model in told["models"]] == ["fake"]
    assert told["sizes"]["default"] == "128x128"
    assert {"png", "jpeg", "webp"} == set(told["formats"])
    assert "DPM++ 2M Karras" in [each["name"] for each in told["samplers"]]
    assert (told["features"]["edits"], told["features"]["loras"]) == (True, False)
    assert told["caller"]["concurrent_images"] is None
