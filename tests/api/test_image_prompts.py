"""Image prompts through each surface: told of, asked for, in the receipt, in jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, Receipt, ServedControlNet, ServedIpAdapter
from mezzotint.imaging.inputs import clip_square, pixels_sha256
from mezzotint.imaging.metadata import read_receipt
from mezzotint.serve.api.a1111_controls import with_controls
from mezzotint.serve.api.openai_schemas import GenerationFields
from tests.api.inprocess import Gate, serving
from tests.api.test_controls import ASKED, CONTROL, encoded
from tests.controlnets import photo
from tests.waiting import until

SIDE = 32
STYLE = ServedIpAdapter("style", "a" * 64, SIDE, "e" * 64)
FACE = ServedIpAdapter("face", "b" * 64, SIDE, "e" * 64)
CANNY = ServedControlNet("canny", "c" * 64)
PICTURE = photo(0, 128, 96)
PROMPT = {"name": "style", "image": encoded(PICTURE), "scale": 0.6}
USED = {
    "name": "style",
    "scale": 0.6,
    "image_sha256": pixels_sha256(clip_square(PICTURE, SIDE)),
    "sha256": STYLE.sha256,
    "encoder_sha256": STYLE.encoder_sha256,
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    backend = FakeBackend(ip_adapters=(STYLE, FACE), controlnets=(CANNY,))
    async with serving(tmp_path, backend) as opened:
        yield opened


async def drawn(server: Gate, **fields: Any) -> dict[str, Any]:
    """The only picture of a generation."""
    [image] = (await server.json("POST", "/v1/images/generations", json={**ASKED, **fields}))["data"]
    told: dict[str, Any] = image
    return told


async def test_capabilities_tell_of_them(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert told["features"]["image_prompts"]
    assert told["ip_adapters"] == [{"name": each.name, "sha256": each.sha256} for each in (STYLE, FACE)]
    assert (told["limits"]["image_prompts"], told["limits"]["image_prompt_scale"]) == (4, 2.0)


async def test_a_generation_reads_a_picture_and_says_so(server: Gate) -> None:
    image = await drawn(server, image_prompts=[PROMPT])
    assert image["receipt"]["image_prompts"] == [USED]
    data = base64.b64decode(image["b64_json"])
    assert read_receipt(data).to_dict()["image_prompts"] == [USED]
    assert data != base64.b64decode((await drawn(server))["b64_json"])
    other = await drawn(server, image_prompts=[{**PROMPT, "image": encoded(photo(1))}])
    assert base64.b64decode(other["b64_json"]) != data


def test_of_a_decoded_picture_the_square_alone_is_kept_while_the_next_is_decoded() -> None:
    limits = FakeBackend(ip_adapters=(STYLE, FACE)).info.limits
    fields = GenerationFields(prompt="", image_prompts=[PROMPT, {**PROMPT, "name": "face"}])
    units = [{"model": name, "image": PROMPT["image"]} for name in ("style", "face")]
    by_unit = with_controls(GenerationRequest(""), {"controlnet": {"args": units}}, limits)
    for prompts in (fields.read_conditioning(limits)[1], by_unit.image_prompts):
        for each in prompts:
            assert np.array_equal(each.image, clip_square(PICTURE, SIDE))


async def test_it_has_no_say_in_the_size(server: Gate) -> None:
    receipt = (await drawn(server, image_prompts=[PROMPT]))["receipt"]
    assert (receipt["width"], receipt["height"]) == (128, 128)


async def test_a_picture_can_be_drawn_from_one_alone(server: Gate) -> None:
    assert (await drawn(server, prompt="", image_prompts=[PROMPT]))["receipt"]["prompt"] == ""


async def test_several_pictures_read_the_same_beside_a_control(server: Gate) -> None:
    body = {**ASKED, "n": 3, "image_prompts": [PROMPT], "controls": [CONTROL]}
    images = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    assert len({image["b64_json"] for image in images}) == 3
    assert all(image["receipt"]["image_prompts"] == [USED] for image in images)
    assert all(image["receipt"]["controls"] for image in images)


async def test_what_it_reads_counts_as_a_picture_that_is_read(server: Gate) -> None:
    body = {**ASKED, "image_prompts": [PROMPT, {**PROMPT, "name": "face"}]}
    usage = (await server.json("POST", "/v1/images/generations", json=body))["usage"]
    assert usage["input_tokens_details"]["image_tokens"] == 2 * (SIDE // 16) ** 2


async def test_one_of_no_scale_is_as_if_it_were_not_there(server: Gate) -> None:
    image = await drawn(server, image_prompts=[{**PROMPT, "scale": 0}])
    assert image["receipt"]["image_prompts"] == []
    assert image["b64_json"] == (await drawn(server))["b64_json"]


async def test_a_larger_picture_reads_it_in_both_stages(server: Gate) -> None:
    receipt = (await drawn(server, image_prompts=[PROMPT], hires={"scale": 1.5}))["receipt"]
    assert receipt["image_prompts"] == [USED]


async def test_a_job_keeps_them_and_forgets_them_with_it(server: Gate) -> None:
    body = {**ASKED, "image_prompts": [PROMPT, {**PROMPT, "name": "face"}], "image": encoded(photo(1))}
    job = await server.json("POST", "/v1/images/jobs", json={**body, "controls": [CONTROL]})
    stored = await server.services.jobs.get(job["id"])
    assert stored is not None
    asked = stored.request
    names = [asked["image"], *(each["image"] for each in (*asked["controls"], *asked["image_prompts"]))]
    assert len(set(names)) == 4

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    [image] = (await until(done, "the job is done"))["images"]
    assert USED in image["receipt"]["image_prompts"]
    assert {each["name"] for each in image["receipt"]["image_prompts"]} == {"face", "style"}
    for name in names:
        assert (await server.client.get(f"/v1/images/files/{name}")).status_code == 200
    assert await server.services.jobs.expired.forget(0, server.services.images.delete) == 1
    for name in names:
        assert (await server.client.get(f"/v1/images/files/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("prompts", "param", "told"),
    [
        ([{**PROMPT, "name": "ink", "image": "!"}], "image_prompts", "no IP-Adapter 'ink'; served are style"),
        ([PROMPT, PROMPT], "image_prompts", "names style twice"),
        ([PROMPT] * 5, "image_prompts", "at most 4"),
        ([{"name": "style"}], "image_prompts[0].image", "is required"),
        ([{**PROMPT, "image": "!"}], "image_prompts[0].image", "base64"),
        ([{**PROMPT, "scale": 2.5}], "image_prompts[0].scale", "less than or equal to 2"),
        ([{**PROMPT, "start": 0.5}], "image_prompts[0].start", "unknown field"),
    ],
)
async def test_what_is_not_accepted_is_named(
    server: Gate, prompts: list[dict[str, Any]], param: str, told: str
) -> None:
    response = await server.client.post("/v1/images/generations", json={**ASKED, "image_prompts": prompts})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert told in error["message"]


async def test_a_form_says_where_they_are_taken(server: Gate) -> None:
    files = {"image": ("fox.png", base64.b64decode(PROMPT["image"]), "image/png")}
    form = {**ASKED, "image_prompts": json.dumps([PROMPT])}
    response = await server.client.post("/v1/images/edits", data=form, files=files)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "image_prompts", "not_supported")
    assert "a job takes image, mask and image_prompts" in error["message"]


class TestA1111:
    """Units of its ControlNet extension that name an IP-Adapter."""

    # As its clients send one, with what they fill in unasked.
    UNIT: ClassVar[dict[str, Any]] = {
        "enabled": True,
        "model": "style [aaaaaaaa]",
        "module": "ip-adapter_clip_sdxl_plus_vith",
        "image": PROMPT["image"],
        "weight": 0.6,
        "resize_mode": "Crop and Resize",
        "guidance_start": 0,
        "guidance_end": 1,
        "control_mode": "ControlNet is more important",
        "pixel_perfect": True,
        "processor_res": 512,
        "threshold_a": 0.5,
        "threshold_b": 0.5,
    }

    async def drawn(self, server: Gate, *units: Any, **fields: Any) -> Receipt:
        body = {**ASKED, "alwayson_scripts": {"controlnet": {"args": list(units)}}, **fields}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        return read_receipt(base64.b64decode(answer["images"][0]))

    @pytest.mark.parametrize(
        "module", ["ip-adapter-auto", "ip-adapter_clip_sdxl", "ip-adapter_clip_g", "none"]
    )
    async def test_a_unit_is_an_image_prompt(self, server: Gate, module: str) -> None:
        receipt = await self.drawn(server, {**self.UNIT, "module": module})
        assert receipt.to_dict()["image_prompts"] == [USED]
        assert receipt.controls == ()

    async def test_it_stands_beside_a_control(self, server: Gate) -> None:
        control = {"model": "canny", "image": CONTROL["image"], "module": "canny"}
        receipt = await self.drawn(server, control, self.UNIT)
        assert receipt.to_dict()["image_prompts"] == [USED]
        assert [each.name for each in receipt.controls] == ["canny"]

    async def test_its_text_in_the_picture_is_the_extensions(self, server: Gate) -> None:
        body = {**ASKED, "alwayson_scripts": {"ControlNet": {"args": [self.UNIT]}}}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        [text] = json.loads(answer["info"])["infotexts"]
        assert 'ControlNet 0: "Module: ip-adapter-auto, Model: style [aaaaaaaa], Weight: 0.6"' in text

    @pytest.mark.parametrize(
        ("unit", "told"),
        [
            ({"model": "ink"}, "there is no IP-Adapter 'ink'; served are style, face"),
            ({"module": "canny"}, "of an IP-Adapter's modules ip-adapter-auto and"),
            ({"module": "ip-adapter_face_id"}, "of an IP-Adapter's modules ip-adapter-auto and"),
            ({"guidance_end": 0.8}, "guidance_start and guidance_end of an IP-Adapter must be 0 and 1"),
            ({"image": None}, "alwayson_scripts.controlnet[0].image is required"),
            ({"advanced_weighting": [1.0]}, "advanced_weighting is not served here"),
        ],
        ids=str,
    )
    async def test_what_is_not_accepted_is_named(self, server: Gate, unit: dict[str, Any], told: str) -> None:
        scripts = {"controlnet": {"args": [{**self.UNIT, **unit}]}}
        response = await server.client.post("/sdapi/v1/txt2img", json={**ASKED, "alwayson_scripts": scripts})
        assert response.status_code == 400, response.text
        assert told in response.json()["detail"]

    async def test_its_clients_find_what_they_ask_for(self, server: Gate) -> None:
        models = (await server.json("GET", "/controlnet/model_list"))["model_list"]
        assert models == ["canny [cccccccc]", "style [aaaaaaaa]", "face [bbbbbbbb]"]
        told = await server.json("GET", "/controlnet/module_list")
        assert {"none", "canny", "ip-adapter-auto", "ip-adapter_clip_sdxl"} <= set(told["module_list"])
        assert set(told["module_detail"]) == set(told["module_list"])
