"""A second, larger stage through each surface: asked for, refused, in the receipt, in jobs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import UPSCALERS, Hires
from mezzotint.imaging.metadata import read_receipt
from tests.api.inprocess import Gate, serving
from tests.waiting import until

ASKED: dict[str, Any] = {"prompt": "a fox", "seed": 1}
DRAWN = Hires(2.0, 0.5, 10)
HIRES = {"scale": 2, "strength": 0.5, "steps": 10}
TOLD = {**HIRES, "scale": 2.0, "upscaler": "Lanczos"}
SIZE = "256x256"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    async with serving(tmp_path, FakeBackend()) as opened:
        yield opened


def read(data: bytes) -> tuple[str, Hires | None]:
    """Size and second stage of a file."""
    with PilImage.open(io.BytesIO(data)) as picture:
        return f"{picture.width}x{picture.height}", read_receipt(data).hires


async def test_each_surface_draws_it_and_tells_the_size_that_comes_of_it(server: Gate) -> None:
    body = {**ASKED, "num_inference_steps": 10, "hires": HIRES}
    answer = await server.json("POST", "/v1/images/generations", json=body)
    [image] = answer["data"]
    assert read(base64.b64decode(image["b64_json"])) == (SIZE, DRAWN)
    assert answer["size"] == SIZE
    assert (image["receipt"]["width"], image["receipt"]["hires"]) == (128, TOLD)
    larger = await server.json("POST", "/v1/images/generations", json={**ASKED, "size": SIZE})
    assert answer["usage"]["output_tokens"] == larger["usage"]["output_tokens"]
    imagined = await server.client.get("/imagine", params={**ASKED, "steps": 10, "hires_scale": 2})
    assert read(imagined.content) == (SIZE, Hires(2.0, 0.3, 10))
    plain = await server.client.get("/imagine", params={**ASKED, "steps": 10})
    assert plain.headers["etag"] != imagined.headers["etag"]
    told = await server.json("GET", "/v1/capabilities")
    assert (told["features"]["hires"], told["limits"]["hires_scale"]) == (True, 4.0)
    assert told["limits"]["hires_upscalers"] == list(UPSCALERS)


async def test_a1111s_hires_fix_is_this(server: Gate) -> None:
    body = {
        **ASKED,
        "enable_hr": True,
        "hr_scale": 2,
        "hr_upscaler": "Lanczos",
        "hr_second_pass_steps": 10,
        "denoising_strength": 0.5,
        "hr_prompt": "a fox",
    }
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
    assert read(base64.b64decode(answer["images"][0])) == (SIZE, DRAWN)
    info = json.loads(answer["info"])
    assert (info["width"], info["denoising_strength"]) == (128, 0.5)
    told = {"Hires upscale": "2", "Hires steps": 10, "Hires upscaler": "Lanczos"}
    assert info["extra_generation_params"] == told
    assert "Hires upscale: 2, Hires steps: 10, Hires upscaler: Lanczos" in info["infotexts"][0]
    served = await server.json("GET", "/sdapi/v1/upscalers")
    assert [each["name"] for each in served] == ["None", "Lanczos"]


async def test_latents_are_enlarged_where_they_are_asked_for(server: Gate) -> None:
    modes = await server.json("GET", "/sdapi/v1/latent-upscale-modes")
    assert [each["name"] for each in modes] == list(UPSCALERS[1:])
    drawn = set()
    for each in modes:
        # What webuiapi sends, whose default is "Latent".
        body = {**ASKED, "enable_hr": True, "hr_scale": 2, "hr_upscaler": each["name"], "steps": 10}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        data = base64.b64decode(answer["images"][0])
        assert read(data) == (SIZE, Hires(2.0, 0.7, 10, each["name"]))
        assert f"Hires upscaler: {each['name']}" in json.loads(answer["info"])["infotexts"][0]
        body = {**ASKED, "num_inference_steps": 10, "hires": {"scale": 2, "upscaler": each["name"]}}
        answer = await server.json("POST", "/v1/images/generations", json=body)
        assert base64.b64decode(answer["data"][0]["b64_json"]) == data
        drawn.add(data)
    assert len(drawn) == len(modes)


async def test_previews_are_of_the_pictures_size(server: Gate) -> None:
    body = {**ASKED, "hires": HIRES, "stream": True, "partial_images": 3}
    answer = await server.client.post("/v1/images/generations", json=body)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert {event["type"] for event in events[:-1]} == {"image_generation.partial_image"}
    assert events[-1]["type"] == "image_generation.completed"
    for event in events:
        with PilImage.open(io.BytesIO(base64.b64decode(event["b64_json"]))) as picture:
            assert f"{picture.width}x{picture.height}" == event["size"] == SIZE


async def test_previews_of_a_sampler_of_two_evaluations_a_step_are_as_many(server: Gate) -> None:
    body = {**ASKED, "scheduler": "Heun", "num_inference_steps": 150, "stream": True, "partial_images": 1}
    answer = await server.client.post(
        "/v1/images/generations", json={**body, "hires": {"scale": 2, "strength": 1}}
    )
    assert answer.text.count("event: image_generation.partial_image") == 1
    assert "event: image_generation.completed" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/images/generations", {"hires": {"scale": 1}}, "hires.scale"),
        ("/v1/images/generations", {"hires": {"scale": "2"}}, "hires.scale"),
        ("/v1/images/generations", {"hires": {"factor": 2}}, "hires.factor"),
        ("/v1/images/generations", {"hires": {"steps": 0}}, "hires.steps"),
        ("/v1/images/generations", {"hires": 2}, "hires"),
        ("/v1/images/generations", {"size": "512x512", "hires": {"scale": 4}}, "hires.scale"),
        ("/v1/images/jobs", {"hires": {"strength": 2}}, "hires.strength"),
        ("/v1/images/generations", {"hires": {"upscaler": "latent"}}, "hires.upscaler"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_scale": 1}, "hr_scale"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_resize_x": 512}, "hr_resize_x"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "denoising_strength": 2}, "denoising_strength"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_second_pass_steps": 999}, "hr_second_pass_steps"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_prompt": "an owl"}, "hr_prompt"),
        ("/sdapi/v1/txt2img", {"enable_hr": True, "hr_sampler_name": "Heun"}, "hr_sampler_name"),
    ],
)
async def test_what_is_not_drawn_is_refused_by_name(
    server: Gate, path: str, body: dict[str, Any], named: str
) -> None:
    answer = await server.client.post(path, json={**ASKED, **body})
    assert answer.status_code == 400
    assert named in answer.text
    if path.startswith("/v1"):
        assert answer.json()["error"]["param"] == named


async def test_of_a_picture_that_is_sent_it_is_refused(server: Gate) -> None:
    drawn = await server.client.get("/imagine", params=ASKED)
    for hires, told in (('{"scale": 2}', "ask for a larger size"), ("2", "hires"), ("{", "a JSON object")):
        files = {"image": ("fox.png", drawn.content, "image/png")}
        answer = await server.client.post("/v1/images/edits", data={**ASKED, "hires": hires}, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "hires")
        assert told in answer.text
    refused = await server.client.get("/imagine", params={**ASKED, "hires_scale": 9})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "hires_scale")


async def test_a_job_keeps_it(server: Gate) -> None:
    body = {**ASKED, "num_inference_steps": 10, "hires": HIRES}
    job = await server.json("POST", "/v1/images/jobs", json=body)
    assert job["size"] == SIZE

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    finished = await until(done, "the job is done")
    [image] = finished["images"]
    assert (finished["size"], image["receipt"]["hires"]) == (SIZE, TOLD)
