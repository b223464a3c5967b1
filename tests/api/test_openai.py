"""OpenAI's surface, field by field, on the application itself: what is refused, and how it is told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
from PIL import Image as PilImage
from pydantic import ValidationError

from mezzotint.backends.fake import FakeBackend
from mezzotint.config import Settings
from mezzotint.core import ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed, MezzotintError, StoreUnavailable
from mezzotint.imaging.uploads import MAX_UPLOAD_BYTES
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.api.dependencies import caller_of
from mezzotint.serve.api.openai_schemas import GenerationFields
from mezzotint.serve.http import build_http
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.services import Services, open_services
from mezzotint.serve.stores.images import open_images
from tests.api.inprocess import InProcessReplicas
from tests.api.live import live

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"


UNLUCKY_SEED = 13


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    failing = request.seed == UNLUCKY_SEED and where == "step"
    return GenerationFailed("the device is lost") if failing else None


@pytest.fixture(scope="module")
def replica() -> Iterator[EngineReplica]:
    replica = EngineReplica(Settings(), Engine(FakeBackend(fault=fault, pass_seconds=0.001)))
    yield replica
    replica.close()


@pytest.fixture
async def services(replica: EngineReplica, tmp_path: Path) -> AsyncIterator[Services]:
    settings = Settings(
        database_url=f"sqlite+aiosqlite:///{tmp_path / 'mezzotint.db'}",
        image_store=str(tmp_path / "images"),
        public_url="https://pictures.example/",
    )
    async with open_services(settings, InProcessReplicas(replica)) as services:
        yield services


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services) as client:
        yield client


def client_of(services: Services, caller: Caller | None = None) -> httpx.AsyncClient:
    app = build_http(services)
    if caller is not None:
        app.dependency_overrides[caller_of] = lambda: caller
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


def png(width: int = 128, height: int = 128) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("prompt", "", "invalid_value"),
        ("prompt", None, "invalid_value"),
        ("prompt", 7, "invalid_value"),
        ("prompt", "x" * 10_001, "invalid_value"),
        ("prompt", "half a character \ud800", "invalid_value"),
        ("n", 0, "invalid_value"),
        ("n", 11, "invalid_value"),
        ("n", True, "invalid_value"),
        ("n", "2", "invalid_value"),
        ("n", 1.5, "invalid_value"),
        ("size", "big", "invalid_value"),
        ("size", "100x100", "invalid_value"),
        ("size", "4096x4096", "invalid_value"),
        ("quality", "best", "invalid_value"),
        ("response_format", "bytes", "invalid_value"),
        ("output_format", "gif", "invalid_value"),
        ("output_compression", 101, "invalid_value"),
        ("background", "transparent", "not_supported"),
        ("moderation", "none", "invalid_value"),
        ("input_fidelity", "highest", "invalid_value"),
        ("style", "baroque", "invalid_value"),
        ("partial_images", 4, "invalid_value"),
        ("partial_images", 2, "invalid_value"),
        ("negative_prompt", 3, "invalid_value"),
        ("num_inference_steps", 0, "invalid_value"),
        ("num_inference_steps", 151, "invalid_value"),
        ("guidance_scale", 51, "invalid_value"),
        ("guidance_scale", False, "invalid_value"),
        ("seed", -1, "invalid_value"),
        ("seed", 2**63, "invalid_value"),
        ("seed", 10**40, "invalid_value"),
        ("scheduler", "magic", "invalid_value"),
        ("strength", 0.5, "invalid_value"),
        ("style_preset", "baroque", "invalid_value"),
        ("deadline_s", 0, "invalid_value"),
        ("deadline_s", 86_401, "invalid_value"),
        ("priority", "highest", "invalid_value"),
        ("deterministic", True, "not_supported"),
        ("loras", [{"name": "a", "scale": 1}], "invalid_value"),
        ("loras", "ink", "invalid_value"),
        ("loras", [{"name": "a"}] * 9, "invalid_value"),
        ("refiner", "sdxl-refiner", "not_supported"),
        ("svg", {"model": "a"}, "not_supported"),
        ("sampler", "Euler", "invalid_value"),
        ("model", "sdxl-turbo", "model_not_found"),
    ],
)
async def test_a_value_that_is_not_accepted_is_refused_by_its_name(
    client: httpx.AsyncClient, field: str, value: object, code: str
) -> None:
    # Not by httpx, which would not send half a character.
    body = json.dumps({"prompt": "a", field: value})
    answer = await client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = error_of(answer)
    assert (error["param"], error["code"], error["type"]) == (field, code, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_are_refused(client: httpx.AsyncClient, number: str) -> None:
    body = f'{{"prompt": "a", "guidance_scale": {number}}}'
    answer = await client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "guidance_scale"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "7", '"a"', "null", "\x00", "[" * 40_000, '{"prompt": 1' + "0" * 5_000 + "}"]
)
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: str) -> None:
    answer = await client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize(
    ("body", "headers", "message", "param"),
    [
        (
            '{"prompt": "a"}',
            {"content-type": "text/plain"},
            "the body must be application/json",
            "content-type",
        ),
        ('{"prompt": "a"}', {"content-type": ""}, "the body must be application/json", "content-type"),
        ("", {}, "the body is required", None),
        ("[]", {}, "the body must be a JSON object", None),
        (
            "{",
            {},
            "the body is not valid JSON: expecting property name enclosed in double quotes at character 2",
            None,
        ),
        ("prompt", {}, "the body is not valid JSON: expecting value at character 1", None),
        (
            '{"prompt": "a',
            {},
            "the body is not valid JSON: unterminated string starting at character 12",
            None,
        ),
        (b'{"prompt": "\xff"}', {}, "the body is not valid JSON: no UTF-8 at byte 13", None),
        ("[" * 40_000, {}, "the body is not valid JSON: its lists and objects are nested too deeply", None),
        (
            '{"prompt": "a", "seed": ' + "1" * 5_000 + "}",
            {},
            "a number has 5,000 digits; at most 1,000 are accepted",
            None,
        ),
        (
            "{}",
            {"content-encoding": "gzip"},
            "the body must be sent as it is, without a content-encoding",
            "content-encoding",
        ),
    ],
)
@pytest.mark.parametrize("path", [GENERATIONS, "/v1/images/jobs"])
async def test_a_body_that_cannot_be_read_is_told_why(
    client: httpx.AsyncClient, path: str, body: str | bytes, headers: dict[str, str], message: str, param: str
) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == 400
    assert (error_of(answer)["message"], error_of(answer)["param"]) == (message, param)


async def test_a_field_of_half_a_character_is_told_of_without_it(client: httpx.AsyncClient) -> None:
    body = '{"prompt": "a", "\\ud800": 1}'
    answer = await client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] in ("?", None)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [("100x100", "96x96"), ("8x8", "64x64"), ("4096x2048", "1024x512"), ("2000x100", "1024x64")],
)
async def test_a_size_that_is_not_served_is_answered_with_the_nearest_that_is(
    client: httpx.AsyncClient, size: str, nearest: str
) -> None:
    error = error_of(await client.post(GENERATIONS, json={"prompt": "a", "size": size}))
    assert f"the nearest that is served is {nearest}" in error["message"]
    again = await client.post(GENERATIONS, json={"prompt": "a", "size": nearest, "num_inference_steps": 1})
    assert again.status_code == 200


@pytest.mark.parametrize("path", [GENERATIONS, "/v1/images/jobs", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('{"prompt": "a", "seed": 1, "seed": 2}', "seed"),
        ('{"prompt": "a", "seed": 1, "se\\u0065d": 1}', "seed"),
        ('{"prompt": "a", "override_settings": {"b": 1, "b": 1}}', "b"),
    ],
)
async def test_a_field_that_json_holds_twice_is_refused_by_its_name(
    client: httpx.AsyncClient, path: str, body: str, named: str
) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert f"{named} is given more than once" in answer.text


async def test_null_is_as_good_as_left_out(client: httpx.AsyncClient) -> None:
    fields = ("n", "size", "quality", "response_format", "background", "user", "seed", "loras", "stream")
    answer = await client.post(GENERATIONS, json={"prompt": "a", **dict.fromkeys(fields)})
    assert answer.status_code == 200


# What a form sends of a field that nobody filled in, and what says no to a thing that is not served.
NOTHING = {
    **dict.fromkeys(
        ("model", "n", "size", "quality", "style", "background", "moderation", "output_format"), ""
    ),
    **dict.fromkeys(("negative_prompt", "num_inference_steps", "guidance_scale", "seed", "scheduler"), ""),
    **dict.fromkeys(("strength", "style_preset", "loras", "deadline_s", "priority", "stream", "user"), ""),
    "refiner": False,
    "svg": False,
    "deterministic": False,
}


async def test_an_empty_field_is_as_good_as_left_out_on_every_route(client: httpx.AsyncClient) -> None:
    json_body = {"prompt": "a", **NOTHING}
    assert (await client.post(GENERATIONS, json=json_body)).status_code == 200
    assert (await client.post("/v1/images/jobs", json=json_body)).status_code == 202
    form = {name: "false" if value is False else value for name, value in NOTHING.items()}
    for path, fields in ((EDITS, {"prompt": "a", **form}), (VARIATIONS, form)):
        answer = await client.post(path, data=fields, files={"image": png()})
        assert answer.status_code == 200, answer.text
    query = dict.fromkeys(
        ("width", "height", "size", "steps", "guidance_scale", "seed", "format", "model"), ""
    )
    assert (await client.get("/imagine", params={"prompt": "a", **query})).status_code == 200


@pytest.mark.parametrize("nothing", ['; filename=""\r\nContent-Type: application/octet-stream', ""])
async def test_a_file_that_nobody_chose_in_a_form_is_as_good_as_left_out(
    client: httpx.AsyncClient, nothing: str
) -> None:
    def part(name: str, more: str, content: bytes) -> bytes:
        return (
            f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        )

    kind = {"content-type": "multipart/form-data; boundary=x"}
    prompt, mask = part("prompt", "", b"a"), part("mask", nothing, b"")
    chosen = prompt + mask + part("image", '; filename="a.png"', png()) + b"--x--"
    answer = await client.post(EDITS, content=chosen, headers=kind)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["receipt"]["mask_sha256"] is None
    neither = prompt + mask + part("image", nothing, b"") + b"--x--"
    answer = await client.post(EDITS, content=neither, headers=kind)
    assert (answer.status_code, error_of(answer)["message"]) == (400, "image is required")


async def test_a_picture_may_be_followed_without_words_and_nothing_else(client: httpx.AsyncClient) -> None:
    assert (await client.post(EDITS, data={"prompt": ""}, files={"image": png()})).status_code == 200
    assert error_of(await client.post(GENERATIONS, json={"prompt": ""}))["param"] == "prompt"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"background": "clear"}, "background: input should be 'auto' or 'opaque'"),
        ({"background": "none"}, "background: input should be 'auto' or 'opaque'"),
        (
            {"seed": 2**63 - 1, "n": 2},
            "seed must be at most 9,223,372,036,854,775,806 with 2 pictures, whose seeds follow it, not "
            "9223372036854775807",
        ),
        (
            {"prompt": "x" * 9_990, "style": "vivid"},
            "prompt has 9,990 characters, and 33 more with the style's words; at most 10,000 are accepted",
        ),
    ],
)
async def test_a_refusal_tells_of_what_was_sent_and_of_what_is_accepted(
    client: httpx.AsyncClient, fields: dict[str, Any], told: str
) -> None:
    answer = await client.post(GENERATIONS, json={"prompt": "a", **fields})
    assert (answer.status_code, error_of(answer)["message"]) == (400, told)


async def test_quality_and_steps_contradict_each_other(client: httpx.AsyncClient) -> None:
    answer = await client.post(GENERATIONS, json={"prompt": "a", "quality": "high", "num_inference_steps": 3})
    assert error_of(answer)["param"] == "quality"


async def test_the_last_seed_of_n_pictures_must_exist_too(client: httpx.AsyncClient) -> None:
    answer = await client.post(GENERATIONS, json={"prompt": "a", "n": 2, "seed": 2**63 - 1})
    assert error_of(answer)["param"] == "seed"


@pytest.mark.parametrize("stream", [False, True])
async def test_one_of_n_pictures_that_fails_is_the_answer_and_stops_the_others(
    client: httpx.AsyncClient, replica: EngineReplica, stream: bool
) -> None:
    body = {"prompt": "a", "n": 3, "seed": UNLUCKY_SEED - 1, "num_inference_steps": 150, "stream": stream}
    answer = await client.post(GENERATIONS, json=body)
    if stream:
        assert answer.status_code == 200
        *_, error, done = answer.text.strip().split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("event: error\ndata: "))["error"]["code"] == "generation_failed"
    else:
        assert answer.status_code == 500
        assert error_of(answer)["code"] == "generation_failed"
    async with asyncio.timeout(30):
        while replica._engine.status().running:
            await asyncio.sleep(0.005)


async def test_style_adds_its_words_and_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.post(GENERATIONS, json={"prompt": "a cat", "style": "vivid"})
    assert answer.json()["data"][0]["revised_prompt"] == "a cat, vivid colors, dramatic lighting"


async def test_aliases_can_be_turned_off(services: Services) -> None:
    settings = services.settings.model_copy(update={"model_aliases": False})
    async with client_of(replace(services, settings=settings)) as client:
        answer = await client.post(GENERATIONS, json={"prompt": "a", "model": "dall-e-3"})
        assert answer.status_code == 404
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["fake"]


async def test_a_key_uses_only_its_models_and_its_priorities(services: Services) -> None:
    async with client_of(services, Caller("key", models=("another",))) as client:
        refused = await client.post(GENERATIONS, json={"prompt": "a"})
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "permission_denied"
        assert (await client.get("/v1/models")).json()["data"] == []
    async with client_of(services, Caller("key")) as client:
        refused = await client.post(GENERATIONS, json={"prompt": "a", "priority": "high"})
        assert (refused.status_code, error_of(refused)["param"]) == (403, "priority")
    # Who asks for none has the highest that the key may have, up to normal.
    async with client_of(services, Caller("key", max_priority="low")) as client:
        assert (await client.post(GENERATIONS, json={"prompt": "a"})).status_code == 200
        assert (await client.get("/imagine", params={"prompt": "a"})).status_code == 200
        assert (await client.post("/v1/images/jobs", json={"prompt": "a"})).json()["priority"] == "low"
        refused = await client.post(GENERATIONS, json={"prompt": "a", "priority": "normal"})
        assert (refused.status_code, error_of(refused)["param"]) == (403, "priority")


async def test_a_new_job_is_below_the_public_url(client: httpx.AsyncClient) -> None:
    made = await client.post("/v1/images/jobs", json={"prompt": "a"})
    assert made.headers["location"] == f"https://pictures.example/v1/images/jobs/{made.json()['id']}"


async def test_a_link_is_below_the_public_url_and_any_gateway_serves_it(
    client: httpx.AsyncClient, services: Services, replica: EngineReplica
) -> None:
    body = {"prompt": "a", "response_format": "url", "output_format": "webp"}
    url = (await client.post(GENERATIONS, json=body)).json()["data"][0]["url"]
    assert url.startswith("https://pictures.example/v1/images/files/")
    path = url.removeprefix("https://pictures.example")
    async with (
        open_services(services.settings, InProcessReplicas(replica)) as others,
        client_of(others) as another,
    ):
        answer = await another.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert PilImage.open(io.BytesIO(answer.content)).format == "WEBP"


@pytest.mark.parametrize(
    "name", ["none.png", "..%2f..%2fmezzotint.db", "%2e%2e/mezzotint.db", "%00", "x" * 300, "."]
)
async def test_what_is_no_picture_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/v1/images/files/{name}")).status_code == 404


async def test_without_the_image_store_the_picture_comes_in_the_answer(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> str:
        raise StoreUnavailable("the image store does not answer")

    monkeypatch.setattr(type(services.images), "put", fail)
    answer = await client.post(GENERATIONS, json={"prompt": "a", "response_format": "url"})
    (item,) = answer.json()["data"]
    assert "url" not in item
    assert base64.b64decode(item["b64_json"]).startswith(b"\x89PNG")
    assert item["warning"] == "the image store does not answer"


async def test_a_slow_image_store_is_waited_for_once_however_many_pictures_there_are(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_asked = asyncio.Barrier(3)

    async def fail(*_: object) -> str:
        async with asyncio.timeout(30), all_asked:
            raise StoreUnavailable("the image store does not answer")

    monkeypatch.setattr(type(services.images), "put", fail)
    answer = await client.post(GENERATIONS, json={"prompt": "a", "n": 3, "seed": 5, "response_format": "url"})
    assert [(item["seed"], bool(item["b64_json"])) for item in answer.json()["data"]] == [
        (seed, True) for seed in (5, 6, 7)
    ]


async def test_why_the_image_store_fails_is_logged_once_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    async with open_images(str(folder), 60.0, time.time) as images:
        for _ in range(2):
            name = await images.put(b"a picture", "png")
            assert (await images.get(name))[0] == b"a picture"
            shutil.rmtree(folder)
            folder.touch()
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await images.get(name)
            folder.unlink()
            folder.mkdir()
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2
    assert all("does not answer: " in line and "…" in line for line in told)
    assert name not in caplog.text


async def test_an_edit_without_a_picture_or_with_text_for_one_is_refused(client: httpx.AsyncClient) -> None:
    without = await client.post(EDITS, data={"prompt": "a"}, files={"mask": png()})
    assert (without.status_code, error_of(without)["param"]) == (400, "image")
    text = await client.post(EDITS, data={"prompt": "a", "image": "a"}, files={"mask": png()})
    assert (text.status_code, error_of(text)["param"]) == (400, "image")
    file = await client.post(EDITS, files={"image": png(), "prompt": png()})
    assert (file.status_code, error_of(file)["param"]) == (400, "prompt")


async def test_what_a_form_brings_of_a_field_that_is_not_served_is_not_supported(
    client: httpx.AsyncClient,
) -> None:
    # As the official client sends them: a file, an object by its parts.
    markup = {"image": png(), "markup": png()}
    for data, files in (({}, markup), ({"svg[model]": "a"}, {"image": png()})):
        answer = await client.post(EDITS, data={"prompt": "a", **data}, files=files)
        assert answer.status_code == 400
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("not_supported", "svg" if data else "markup")


async def test_a_form_is_as_strict_as_json_about_what_the_text_says(client: httpx.AsyncClient) -> None:
    for field, value in (
        ("n", "many"),
        ("n", "11"),
        ("seed", "1.5"),
        ("stream", "perhaps"),
        ("colour", "red"),
    ):
        answer = await client.post(EDITS, data={"prompt": "a", field: value}, files={"image": png()})
        assert (answer.status_code, error_of(answer)["param"]) == (400, field)
    twice = await client.post(EDITS, data={"prompt": ["a", "b"]}, files={"image": png()})
    assert error_of(twice)["param"] == "prompt"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_an_edit_is_a_multipart_form(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(EDITS, content=b"prompt=a", headers={"content-type": kind})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "content-type")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'),
        (
            "multipart/form-data; boundary=x; charset=idna",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nxn--\xff\xfe\r\n--x--\r\n',
        ),
        ("multipart/form-data; boundary=" + "x" * 5_000, b"--x\r\n"),
    ],
)
async def test_a_broken_form_is_refused(client: httpx.AsyncClient, kind: str, body: bytes) -> None:
    answer = await client.post(EDITS, content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize(
    ("charset", "status"),
    [("utf-8", 200), ("UTF8", 200), ("us-ascii", 200), ('"latin-1"', 200), ("punycode", 400), ("x\xff", 400)],
)
async def test_a_forms_character_set_is_one_of_few(
    client: httpx.AsyncClient, charset: str, status: int
) -> None:
    head = b"--x\r\nContent-Disposition: form-data; name="
    parts = [
        b'"prompt"\r\n\r\na',
        b'"num_inference_steps"\r\n\r\n2',
        b'"image"; filename="a.png"\r\n\r\n' + png(),
    ]
    body = b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"
    kind = f"multipart/form-data; boundary=x; charset={charset}".encode("latin-1")
    answer = await client.post(EDITS, content=body, headers=[(b"content-type", kind)])
    assert answer.status_code == status, answer.text
    if status == 400:
        assert error_of(answer)["param"] == "content-type"


@pytest.mark.parametrize(
    ("form", "part", "prompt", "drawn"),
    [
        ("", "", "Füchse 狐".encode(), "Füchse 狐"),
        ("", "", "狐".encode("gbk"), None),
        ("", "", "Füchse".encode("latin-1"), None),
        ("; charset=latin-1", "", "Füchse".encode("latin-1"), "Füchse"),
        ("; charset=us-ascii", "", "Füchse".encode(), None),
        # Java's clients say of each part what it is written in.
        ("", "; charset=ISO-8859-1", "Füchse".encode("latin-1"), "Füchse"),
        ("; charset=latin-1", "; charset=UTF-8", "Füchse".encode(), "Füchse"),
        ("", "; charset=gbk", "狐".encode("gbk"), None),
    ],
)
async def test_a_forms_text_is_read_as_what_it_is_said_to_be_or_refused(
    client: httpx.AsyncClient, form: str, part: str, prompt: bytes, drawn: str | None
) -> None:
    head = b"--x\r\nContent-Disposition: form-data; name="
    text = b'"prompt"\r\nContent-Type: text/plain' + part.encode() + b"\r\n\r\n" + prompt
    parts = [text, b'"image"; filename="a.png"\r\n\r\n' + png()]
    body = b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"
    kind = {"content-type": f"multipart/form-data; boundary=x{form}"}
    answer = await client.post(EDITS, content=body, headers=kind)
    if drawn is None:
        assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt")
    else:
        assert answer.json()["data"][0]["revised_prompt"] == drawn


async def test_a_form_that_breaks_off_is_refused_and_not_drawn_without_its_last_part(
    client: httpx.AsyncClient,
) -> None:
    def part(name: str, content: bytes) -> bytes:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"

    image = part('image"; filename="a.png', png())
    whole = image + part("prompt", b"a") + part("num_inference_steps", b"2")
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert (await client.post(EDITS, content=whole + b"--x--", headers=kind)).status_code == 200
    for cut in (whole, whole + b"--x", whole[:-10]):
        answer = await client.post(EDITS, content=cut, headers=kind)
        assert answer.status_code == 400
        assert error_of(answer)["message"].startswith("the form cannot be read: it breaks off")


async def test_a_part_of_a_form_that_is_too_much_is_413_and_named(client: httpx.AsyncClient) -> None:
    long = {"prompt": "a" * 70_000}
    answer = await client.post(EDITS, data=long, files={"image": png()})
    assert (answer.status_code, error_of(answer)["param"]) == (413, "prompt")
    assert "65,536 bytes" in error_of(answer)["message"]
    files = [("image[]", (f"{number}.png", b"")) for number in range(18)]
    answer = await client.post(EDITS, data={"prompt": "a"}, files=files)
    assert (answer.status_code, error_of(answer)["param"]) == (413, "image[]")
    assert "17 files" in error_of(answer)["message"]
    many = {f"field{number:02}": "" for number in range(65)}
    answer = await client.post(EDITS, data=many, files={"image": png()})
    assert (answer.status_code, error_of(answer)["param"]) == (413, "field64")


async def test_a_file_that_is_no_picture_is_415(client: httpx.AsyncClient) -> None:
    for data in (b"", b"GIF89a", b"<svg/>", png()[:50]):
        answer = await client.post(VARIATIONS, files={"image": ("picture.png", data, "image/png")})
        assert (answer.status_code, error_of(answer)["param"]) == (415, "image")


async def test_a_mask_has_the_pictures_size(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    PilImage.new("RGBA", (64, 64)).save(buffer, "PNG")
    files = {"image": png(), "mask": buffer.getvalue()}
    answer = await client.post(EDITS, data={"prompt": "a"}, files=files)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "mask")
    assert error_of(answer)["message"] == "mask must have the picture's size, 128x128 pixels, not 64x64"


async def test_a_file_that_is_too_long_is_413_before_it_has_been_read(services: Services) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while read < 2 * MAX_UPLOAD_BYTES:
            read += 1_000_000
            yield bytes(1_000_000)

    async with client_of(services) as client:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        answer = await client.post(EDITS, content=body(), headers=kind)
    assert (answer.status_code, error_of(answer)["param"]) == (413, "image")
    assert read < MAX_UPLOAD_BYTES + 5_000_000


async def test_a_picture_of_too_many_pixels_is_413(client: httpx.AsyncClient) -> None:
    answer = await client.post(VARIATIONS, files={"image": png(8_000, 8_000)})
    assert (answer.status_code, error_of(answer)["param"]) == (413, "image")


async def test_imagine_streams_its_progress_and_the_picture(client: httpx.AsyncClient) -> None:
    accept = {"accept": "text/event-stream"}
    query = {"prompt": "a", "steps": "4", "seed": "3"}
    answer = await client.get("/imagine", params=query, headers=accept)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-mezzotint-seed"] == "3"
    events = [
        dict(line.split(": ", 1) for line in event.split("\n")) for event in answer.text.strip().split("\n\n")
    ]
    kinds = [event["event"] for event in events]
    assert kinds == sorted(kinds, key=["queued", "progress", "done"].index)
    assert (kinds[0], kinds[-1]) == ("queued", "done")
    steps = [json.loads(event["data"]) for event in events if event["event"] == "progress"]
    assert steps[-1] == {"step": 4, "total": 4}
    done = json.loads(events[-1]["data"])
    plain = await client.get("/imagine", params=query)
    assert base64.b64decode(done["image"].removeprefix("data:image/png;base64,")) == plain.content
    refused = await client.get("/imagine", params={"prompt": ""}, headers=accept)
    assert refused.status_code == 400


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3"])
async def test_librechat_and_langchain_get_links_from_the_models_that_answer_them(
    client: httpx.AsyncClient, model: str
) -> None:
    """LibreChat's tool for DALL-E 3 and LangChain's DallEAPIWrapper say no format, and read `url`."""
    asked = {"model": model, "prompt": "a", "n": 1, "quality": "standard", "style": "vivid"}
    (item,) = (await client.post(GENERATIONS, json=asked)).json()["data"]
    assert item["url"].endswith(".png")
    assert "b64_json" not in item
    asked["response_format"] = "b64_json"
    (item,) = (await client.post(GENERATIONS, json=asked)).json()["data"]
    assert "url" not in item
    del asked["response_format"]
    assert (
        "image_generation.completed" in (await client.post(GENERATIONS, json={**asked, "stream": True})).text
    )


async def test_lobe_chat_edits_though_it_always_asks_for_high_fidelity(client: httpx.AsyncClient) -> None:
    asked = {"model": "gpt-image-1", "n": "1", "input_fidelity": "high", "prompt": "a", "size": "64x64"}
    answer = await client.post(EDITS, data=asked, files={"image": png()})
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(b"\x89PNG")


async def test_big_agi_draws_with_what_it_asks_for_unless_its_user_says_otherwise(
    client: httpx.AsyncClient,
) -> None:
    asked = {
        "model": "gpt-image-1-mini",
        "prompt": "a",
        "n": 1,
        "size": "128x128",
        "quality": "high",
        "background": "auto",
        "output_format": "webp",
        "output_compression": 100,
        "moderation": "low",
    }
    answer = (await client.post(GENERATIONS, json=asked)).json()
    assert base64.b64decode(answer["data"][0]["b64_json"])[8:12] == b"WEBP"


@pytest.mark.parametrize("model", ["gpt-image-1.5", "gpt-image-2.5-flare-2026-09-08", "chatgpt-image-latest"])
async def test_openais_later_models_mean_the_served_one_too(client: httpx.AsyncClient, model: str) -> None:
    """Open WebUI offers the first; the official clients know all of them."""
    (item,) = (await client.post(GENERATIONS, json={"prompt": "a", "model": model})).json()["data"]
    assert item["receipt"]["model"] == "fake"
    assert (await client.get(f"/v1/models/{model}")).json()["id"] == model


async def test_what_open_web_ui_sends_for_its_openai_engine_gets_what_it_reads(tmp_path: Path) -> None:
    """The requests of its `routers/images.py`, with the library it uses."""
    with live(tmp_path, FakeBackend()) as server:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as session:
            body = {
                "model": "dall-e-3",
                "prompt": "a",
                "n": 2,
                "size": "512x512",
                "response_format": "b64_json",
            }
            url = f"{server.url}/v1/images/generations?api-version=2026-01-01"
            async with session.post(url, json=body) as answer:
                answer.raise_for_status()
                images = (await answer.json(content_type=None))["data"]
            assert [image.get("url") for image in images] == [None, None]
            assert all(base64.b64decode(image["b64_json"]).startswith(b"\x89PNG") for image in images)

            async with session.post(url, json={**body, "response_format": "url", "n": 1}) as answer:
                link = (await answer.json(content_type=None))["data"][0]["url"]
            async with session.get(link) as answer:
                answer.raise_for_status()
                assert answer.headers["content-type"].split("/")[0] == "image"

            form = aiohttp.FormData()
            for key, value in {"model": "gpt-image-1", "prompt": "a", "n": 1, "size": "128x128"}.items():
                form.add_field(key, str(value))
            form.add_field("image", io.BytesIO(png()), filename="a.png", content_type="image/png")
            async with session.post(f"{server.url}/v1/images/edits", data=form) as answer:
                answer.raise_for_status()
                (image,) = (await answer.json(content_type=None))["data"]
            assert base64.b64decode(image["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "a/b?c#d", "\\\\", "x" * 300, ""])
async def test_a_link_of_a_strange_host_is_refused_or_harmless(services: Services, host: str) -> None:
    settings = services.settings.model_copy(update={"public_url": ""})
    async with client_of(replace(services, settings=settings)) as client:
        body = {"prompt": "a", "response_format": "url", "num_inference_steps": 1}
        answer = await client.post(GENERATIONS, json=body, headers={"host": host})
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert error_of(answer)["param"] == "host"


def test_of_many_unknown_fields_one_is_looked_at() -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationFields.model_validate({"prompt": "a", **{f"x{number}": 0 for number in range(9)}})
    assert [error["loc"] for error in refused.value.errors()] == [("x0",)]
