"""Weights in prompts through each surface: asked for, refused, in the receipt, in jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.imaging.metadata import read_receipt
from tests.api.inprocess import Gate, serving
from tests.waiting import until

PROMPT = "a (fox:1.3) [sleeping]"
ASKED: dict[str, Any] = {"prompt": PROMPT, "seed": 1}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    backend = FakeBackend()
    backend._info = replace(backend.info, limits=replace(backend.info.limits, prompt_tokens=300))
    async with serving(tmp_path, backend) as opened:
        yield opened


async def test_each_surface_weighs_words_when_it_is_asked_to_and_says_so(server: Gate) -> None:
    for asked in (None, False, True):
        body = {**ASKED, "emphasis": asked}
        [image] = (await server.json("POST", "/v1/images/generations", json=body))["data"]
        assert image["receipt"]["emphasis"] is bool(asked)
        assert image["receipt"]["prompt"] == PROMPT
        picture = base64.b64decode(image["b64_json"])
        form = {**ASKED, "emphasis": "true"} if asked else ASKED
        files = {"image": ("fox.png", picture, "image/png")}
        [edited] = (await server.json("POST", "/v1/images/edits", data=form, files=files))["data"]
        assert edited["receipt"]["emphasis"] is bool(asked)
        query = {**ASKED, "emphasis": "true"} if asked else ASKED
        imagined = await server.client.get("/imagine", params=query)
        assert read_receipt(imagined.content).emphasis is bool(asked)
    told = await server.json("GET", "/v1/capabilities")
    assert (told["features"]["emphasis"], told["limits"]["prompt_tokens"]) == (True, 300)


async def test_a1111s_clients_weigh_words_unless_they_say_otherwise(server: Gate) -> None:
    for settings, told in (
        (None, "No norm"),
        ({"emphasis": "No norm"}, "No norm"),
        ({"emphasis": "None"}, "None"),
    ):
        body = {**ASKED, "override_settings": settings}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        assert read_receipt(base64.b64decode(answer["images"][0])).emphasis is (told == "No norm")
        assert f"Emphasis: {told}" in json.loads(answer["info"])["infotexts"][0]
    assert (await server.json("GET", "/sdapi/v1/options"))["emphasis"] == "No norm"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"negative_prompt": "(owl:99)", "emphasis": True}),
        ("/v1/images/jobs", {"negative_prompt": "(owl:99)", "emphasis": True}),
        ("/sdapi/v1/txt2img", {"negative_prompt": "(owl:99)"}),
        ("/sdapi/v1/txt2img", {"negative_prompt": "[owl|eagle]"}),
    ],
)
async def test_what_is_not_served_is_refused_by_name(server: Gate, path: str, body: dict[str, Any]) -> None:
    answer = await server.client.post(path, json={**ASKED, **body})
    assert answer.status_code == 400
    assert "negative_prompt: " in answer.text


async def test_a_job_keeps_it(server: Gate) -> None:
    job = await server.json("POST", "/v1/images/jobs", json={**ASKED, "emphasis": True})

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    [image] = (await until(done, "the job is done"))["images"]
    assert image["receipt"]["emphasis"] is True
