"""LoRAs through each surface: told of, asked for, in the receipt, in jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ServedLora
from mezzotint.imaging.metadata import read_receipt
from tests.api.inprocess import Gate, serving
from tests.waiting import until

INK = ServedLora("ink", "Ink", "a" * 64)
FEW = ServedLora("few-step", "Four steps", "b" * 64, steps=4, guidance_scale=1.0, scheduler="LCM")
ASKED: dict[str, Any] = {"prompt": "a fox", "seed": 1}
USED = [{"name": "ink", "scale": 0.5, "sha256": INK.sha256}]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    async with serving(tmp_path, FakeBackend(loras=(INK, FEW))) as opened:
        yield opened


async def test_capabilities_and_a1111s_list_tell_of_them(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert told["features"]["loras"]
    assert [lora["name"] for lora in told["loras"]] == ["ink", "few-step"]
    assert told["loras"][1]["defaults"] == {"steps": 4, "guidance_scale": 1.0, "scheduler": "LCM"}
    names = [(lora["name"], lora["alias"]) for lora in await server.json("GET", "/sdapi/v1/loras")]
    assert names == [("ink", "ink"), ("few-step", "few-step")]


async def test_each_surface_draws_with_them_and_says_so(server: Gate) -> None:
    body = {**ASKED, "loras": [{"name": "ink", "scale": 0.5}]}
    [image] = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    assert image["receipt"]["loras"] == USED
    asked = {**ASKED, "prompt": "a fox <lora:ink:0.5>"}
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=asked)
    same = base64.b64decode(answer["images"][0])
    assert same == base64.b64decode(image["b64_json"])
    assert read_receipt(same).to_dict()["loras"] == USED
    assert "<lora:ink:0.5>" in json.loads(answer["info"])["infotexts"][0]
    files = {"image": ("fox.png", same, "image/png")}
    form = {**ASKED, "loras": json.dumps(body["loras"])}
    [edited] = (await server.json("POST", "/v1/images/edits", data=form, files=files))["data"]
    assert edited["receipt"]["loras"] == USED


async def test_a_job_keeps_them(server: Gate) -> None:
    body = {**ASKED, "loras": [{"name": "ink", "scale": 0.5}]}
    job = await server.json("POST", "/v1/images/jobs", json=body)

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    [image] = (await until(done, "the job is done"))["images"]
    assert image["receipt"]["loras"] == USED


async def test_one_of_few_steps_is_drawn_with_its_own_defaults(server: Gate) -> None:
    body = {**ASKED, "loras": [{"name": "few-step"}]}
    [image] = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    receipt = image["receipt"]
    assert (receipt["steps"], receipt["guidance_scale"], receipt["scheduler"]) == (4, 1.0, "LCM")


@pytest.mark.parametrize(
    ("loras", "param", "told"),
    [
        ([{"name": "oil"}], "loras", "served are ink, few-step"),
        ([{"name": "ink", "scale": 5}], "loras[0].scale", "less than or equal to 4"),
        ([{"name": "few-step"}, {"name": "ink", "weight": 1}], "loras[1].weight", "unknown field"),
        ([{"scale": 1}], "loras[0].name", "is required"),
        ('[{"name": "ink"}]', "loras", "list"),
    ],
)
async def test_what_is_not_accepted_is_named(server: Gate, loras: object, param: str, told: str) -> None:
    answer = await server.client.post("/v1/images/generations", json={**ASKED, "loras": loras})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert told in error["message"]


@pytest.mark.parametrize(
    ("loras", "told"),
    [
        ("ink", "must be a JSON array"),
        ('[{"name": "ink", "name": "few-step"}]', "more than once"),
        ('[{"name": "ink", "scale": "0.5"}]', "loras[0].scale: input should be a valid number"),
        ('[{"name": "ink", "scale": null}]', None),
        ("", None),
    ],
)
async def test_a_forms_list_is_json(server: Gate, loras: str, told: str | None) -> None:
    [image] = (await server.json("POST", "/v1/images/generations", json=ASKED))["data"]
    files = {"image": ("fox.png", base64.b64decode(image["b64_json"]), "image/png")}
    answer = await server.client.post("/v1/images/edits", data={**ASKED, "loras": loras}, files=files)
    assert answer.status_code == (400 if told else 200)
    assert told is None or told in answer.json()["error"]["message"]


SPELLED_OUT = [{"loras[][name]": "ink"}, {"loras[0][name]": "ink"}, {"hires[scale]": "1.5"}]


@pytest.mark.parametrize("sent", SPELLED_OUT)
async def test_a_form_in_which_a_client_spells_out_a_list_or_an_object_is_told_of_json(
    server: Gate, sent: dict[str, str]
) -> None:
    # As OpenAI's own clients do with what they are given beside their fields.
    files = {"image": ("fox.png", b"", "image/png")}
    answer = await server.client.post("/v1/images/edits", data={**ASKED, **sent}, files=files)
    [name] = (each.partition("[")[0] for each in sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert "one text of JSON" in answer.json()["error"]["message"]


async def test_quality_is_a_share_of_the_loras_own_steps(server: Gate) -> None:
    body = {**ASKED, "loras": [{"name": "few-step"}], "quality": "high"}
    [image] = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    assert image["receipt"]["steps"] == 6


async def test_a_prompt_that_names_one_that_is_not_served_is_refused_as_a_prompt(server: Gate) -> None:
    answer = await server.client.post("/sdapi/v1/txt2img", json={"prompt": "a fox <lora:oil:1>"})
    assert answer.status_code == 400
    assert "prompt" in answer.json()["detail"]
    assert "oil" in answer.json()["detail"]


async def test_to_draw_without_those_that_the_prompt_names_is_refused_and_not_left_out(server: Gate) -> None:
    asked = {**ASKED, "prompt": "a fox <lora:ink:0.5>", "disable_extra_networks": True}
    answer = await server.client.post("/sdapi/v1/txt2img", json=asked)
    assert answer.status_code == 400, read_receipt(base64.b64decode(answer.json()["images"][0])).loras
    assert "disable_extra_networks" in answer.json()["detail"]
    await server.json("POST", "/sdapi/v1/txt2img", json={**asked, "disable_extra_networks": False})
