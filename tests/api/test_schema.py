"""The OpenAPI document against the service: a sample of what `make fuzz` tries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ServedControlNet
from mezzotint.serve.stores.keys import KeyStore, NewKey
from tests.access.test_routes import OPEN
from tests.api.fuzz import fuzz
from tests.api.inprocess import serving

NO_PICTURE = {"name": "canny", "image": "AAAA"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """With a key that may draw one picture at a time."""
    backend = FakeBackend(controlnets=(ServedControlNet("canny", "a" * 64),))
    async with serving(tmp_path, backend, auth="on") as server:
        new = NewKey("alice", concurrent_images=1, is_admin=True)
        _, key = await KeyStore(server.services.database).create(new)
        server.client.headers["x-api-key"] = key
        yield server.client


async def test_the_document_says_how_a_key_is_sent_and_where_none_is_asked_for(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert {(each["type"], each.get("scheme") or each["name"]) for each in schemes.values()} == {
        ("http", "bearer"),
        ("http", "basic"),
        ("apiKey", "X-API-Key"),
    }
    assert {name for each in document["security"] for name in each} == set(schemes)
    without = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if operation.get("security") == []
    }
    assert without == OPEN


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("GET", "/imagine", {"params": {"prompt": "a", "seed": 1}}),
        ("GET", "/imagine", {"params": {"prompt": ""}}),
        ("POST", "/v1/images/generations", {"json": {"prompt": "a"}}),
        ("POST", "/v1/images/generations", {"json": {"prompt": "a", "deadline_s": 1e-9}}),
        ("POST", "/v1/images/generations", {"json": {"prompt": "a", "controls": [NO_PICTURE]}}),
        ("POST", "/v1/images/jobs", {"json": {"prompt": "a"}}),
        ("POST", "/v1/images/jobs", {"json": {"prompt": "a", "n": 2}}),
        ("POST", "/sdapi/v1/txt2img", {"json": {"prompt": "a"}}),
        ("POST", "/sdapi/v1/txt2img", {"json": {"prompt": "a", "seed": 2**63 - 1, "n_iter": 2}}),
        ("PUT", "/imagine", {}),
        ("GET", "/healthz", {}),
        ("GET", "/metrics", {}),
    ],
)
async def test_status_kind_and_every_header_of_ours_are_in_the_document(
    client: httpx.AsyncClient, method: str, path: str, asked: dict[str, Any]
) -> None:
    document = (await client.get("/openapi.json")).json()
    response = await client.request(method, path, **asked)
    operation = document["paths"][path].get(method.lower()) or next(iter(document["paths"][path].values()))
    told = operation["responses"][str(response.status_code)]
    assert response.headers["content-type"] in told["content"]
    declared = {name.lower() for name in told["headers"]}
    ours = ("x-request-id", "x-mezzotint", "x-should", "retry-after", "etag", "location", "allow")
    assert {name for name in response.headers if name.startswith(ours)} <= declared


async def test_bounds_are_told_in_the_words_of_json_schema(client: httpx.AsyncClient) -> None:
    document = await client.get("/openapi.json")
    assert re.findall(r'"(?:ge|gt|le|lt|min_length|max_length)":', document.text) == []
    asked = document.json()["components"]["schemas"]["Txt2Img"]["properties"]
    assert {"type": "integer", "minimum": 1, "maximum": 10} in asked["batch_size"]["anyOf"]


async def test_the_document_knows_both_names_of_a_picture(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    body = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "image[]", "mask", "mask[]", "prompt"} <= set(body["properties"])
    assert body["required"] == ["prompt"]
    assert body["allOf"] == [{"anyOf": [{"required": ["image"]}, {"required": ["image[]"]}]}]


async def test_what_a_route_never_takes_is_not_in_its_body(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    jobs = document["components"]["schemas"]["JobFields"]["properties"]
    assert not {"stream", "response_format"} & set(jobs)
    body = document["paths"]["/v1/images/variations"]["post"]["requestBody"]["content"]["multipart/form-data"]
    no_prompt = {"style", "style_preset", "negative_prompt", "stream", "partial_images"}
    assert not no_prompt & set(body["schema"]["properties"])


def test_generated_requests_get_no_5xx_and_no_status_that_the_document_does_not_name(tmp_path: Path) -> None:
    told = fuzz(tmp_path, cases=200, seed=1, phases="fuzzing")
    assert told["passed"], told["report"]
