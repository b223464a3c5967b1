"""Textual inversions through the surfaces: told of, named in a prompt, in the receipt, in jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ServedEmbedding
from mezzotint.imaging.metadata import read_receipt
from tests.api.inprocess import Gate, serving
from tests.waiting import until

INK = ServedEmbedding("ink", "a" * 64, 4)
USED = [{"name": "ink", "sha256": INK.sha256}]
ASKED: dict[str, Any] = {"prompt": "a fox in ink", "seed": 1}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    async with serving(tmp_path, FakeBackend(embeddings=(INK,))) as opened:
        yield opened


async def test_clients_are_told_of_them(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert told["embeddings"] == [{"name": "ink", "vectors": 4, "sha256": INK.sha256}]
    loaded = (await server.json("GET", "/sdapi/v1/embeddings"))["loaded"]
    assert {name: each["vectors"] for name, each in loaded.items()} == {"ink": 4}


async def test_a_prompt_that_names_one_has_it_in_its_receipt_on_each_surface(server: Gate) -> None:
    [image] = (await server.json("POST", "/v1/images/generations", json=ASKED))["data"]
    assert image["receipt"]["embeddings"] == USED
    answer = await server.json("POST", "/sdapi/v1/txt2img", json=ASKED)
    assert read_receipt(base64.b64decode(answer["images"][0])).to_dict()["embeddings"] == USED
    assert 'TI hashes: "ink: aaaaaaaaaaaa"' in json.loads(answer["info"])["infotexts"][0]
    response = await server.client.get("/imagine", params=ASKED)
    assert read_receipt(response.content).to_dict()["embeddings"] == USED


async def test_a_job_draws_with_it(server: Gate) -> None:
    job = await server.json("POST", "/v1/images/jobs", json=ASKED)

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    [image] = (await until(done, "the job is done"))["images"]
    assert image["receipt"]["embeddings"] == USED
