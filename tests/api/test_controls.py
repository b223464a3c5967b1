"""ControlNets through each surface: told of, asked for, in the receipt, in jobs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import Control, GenerationRequest, Image, Pixels, Receipt, ServedControlNet
from mezzotint.imaging.inputs import pixels_sha256, resize_image
from mezzotint.imaging.metadata import read_receipt
from mezzotint.resolving import resolve
from mezzotint.serve.access.caller import ANYONE
from mezzotint.serve.plate import Plate
from mezzotint.serve.wire import Order
from tests.api.inprocess import Gate, gate, replica_of, settings_of
from tests.controlnets import lines, photo
from tests.waiting import until

CANNY = ServedControlNet("canny", "a" * 64)
DEPTH = ServedControlNet("depth", "b" * 64)
ASKED: dict[str, Any] = {"prompt": "a fox", "seed": 1}


def encoded(pixels: Pixels) -> str:
    """As a client sends it."""
    receipt = Receipt("", None, 0, "Euler", 1, 1.0, 8, 8, "", "", "", "")
    return base64.b64encode(Image(pixels, receipt).encode()).decode()


LINES = lines(0, 128, 128)
USED = {
    "name": "canny",
    "preprocessor": "none",
    "scale": 0.5,
    "start": 0.1,
    "end": 0.9,
    "image_sha256": pixels_sha256(LINES),
    "sha256": CANNY.sha256,
}
CONTROL = {"name": "canny", "image": encoded(LINES), "scale": 0.5, "start": 0.1, "end": 0.9}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Gate]:
    settings = settings_of(tmp_path)
    replica = replica_of(settings, FakeBackend(controlnets=(CANNY, DEPTH)))
    async with gate(settings, replica) as opened:
        yield opened
    replica.close()


async def drawn(server: Gate, **fields: Any) -> dict[str, Any]:
    """The only picture of a generation."""
    [image] = (await server.json("POST", "/v1/images/generations", json={**ASKED, **fields}))["data"]
    told: dict[str, Any] = image
    return told


async def test_capabilities_tell_of_them(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert told["features"]["controlnet"]
    assert [each["name"] for each in told["controlnets"]] == ["canny", "depth"]
    assert told["preprocessors"] == ["none", "canny"]
    assert (told["limits"]["controls"], told["limits"]["control_scale"]) == (4, 2.0)


async def test_a_generation_is_held_to_a_picture_and_says_so(server: Gate) -> None:
    image = await drawn(server, controls=[CONTROL])
    assert image["receipt"]["controls"] == [USED]
    data = base64.b64decode(image["b64_json"])
    assert read_receipt(data).to_dict()["controls"] == [USED]
    assert data != base64.b64decode((await drawn(server))["b64_json"])
    other = await drawn(server, controls=[{**CONTROL, "image": encoded(lines(1, 128, 128))}])
    assert base64.b64decode(other["b64_json"]) != data


async def test_the_pictures_size_is_the_controls_unless_it_is_said(server: Gate) -> None:
    wide = {**CONTROL, "image": encoded(lines(0, 192, 96))}
    receipt = (await drawn(server, controls=[wide]))["receipt"]
    assert (receipt["width"], receipt["height"]) == (192, 96)
    receipt = (await drawn(server, controls=[wide], size="128x64"))["receipt"]
    assert (receipt["width"], receipt["height"]) == (128, 64)
    [told] = receipt["controls"]
    assert told["image_sha256"] == pixels_sha256(resize_image(lines(0, 192, 96), 128, 64))


async def test_a_picture_can_be_drawn_from_lines_alone(server: Gate) -> None:
    assert (await drawn(server, prompt="", controls=[CONTROL]))["receipt"]["prompt"] == ""


async def test_several_pictures_are_held_to_the_same(server: Gate) -> None:
    body = {**ASKED, "n": 3, "controls": [{**CONTROL, "preprocessor": "canny", "image": encoded(photo())}]}
    images = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    assert len({image["b64_json"] for image in images}) == 3
    assert len({json.dumps(image["receipt"]["controls"]) for image in images}) == 1


async def test_one_of_no_strength_is_as_if_it_were_not_there(server: Gate) -> None:
    image = await drawn(server, size="128x128", controls=[{**CONTROL, "scale": 0}])
    assert image["receipt"]["controls"] == []
    assert image["b64_json"] == (await drawn(server, size="128x128"))["b64_json"]


async def test_a_job_keeps_them_with_a_picture_and_forgets_them_with_it(server: Gate) -> None:
    image = encoded(photo(1, 128, 128))
    body = {**ASKED, "controls": [CONTROL, {"name": "depth", "image": image}], "image": image}
    job = await server.json("POST", "/v1/images/jobs", json=body)
    stored = await server.services.jobs.get(job["id"])
    assert stored is not None
    names = [stored.request["image"], *(each["image"] for each in stored.request["controls"])]
    assert len(set(names)) == 3

    async def done() -> Any:
        told = await server.json("GET", f"/v1/images/jobs/{job['id']}")
        return told if told["state"] == "done" else None

    [drawn_image] = (await until(done, "the job is done"))["images"]
    first, second = drawn_image["receipt"]["controls"]
    assert (first, second["name"]) == (USED, "depth")
    await server.client.delete(f"/v1/images/jobs/{job['id']}")
    for name in names:
        assert (await server.client.get(f"/v1/images/{name}")).status_code == 404


async def test_a_larger_picture_is_held_in_both_stages(server: Gate) -> None:
    receipt = (await drawn(server, size="128x128", controls=[CONTROL], hires={"scale": 1.5}))["receipt"]
    assert receipt["hires"]["scale"] == 1.5
    [told] = receipt["controls"]
    assert told["image_sha256"] == pixels_sha256(resize_image(LINES, 192, 192))


def test_what_is_drawn_is_named_by_the_picture_too() -> None:
    info = FakeBackend(controlnets=(CANNY,)).info

    def etag(image: Pixels, **fields: Any) -> str:
        asked = GenerationRequest("a fox", seed=1, controls=(Control("canny", image, **fields),))
        return Plate(Order(resolve(asked, info.limits)), ANYONE, info, 0.0).etag

    assert etag(LINES) == etag(LINES.copy())
    assert len({etag(LINES), etag(lines(1, 128, 128)), etag(LINES, scale=0.5)}) == 3


@pytest.mark.parametrize(
    ("control", "param", "told"),
    [
        ({**CONTROL, "name": "pose"}, "controls", "there is no ControlNet 'pose'; served are canny, depth"),
        ({"name": "canny"}, "controls[0].image", "is required"),
        ({**CONTROL, "image": "!"}, "controls[0].image", "base64"),
        ({**CONTROL, "image": encoded(LINES)[:200]}, "controls[0].image", "no PNG, JPEG or WebP"),
        ({**CONTROL, "scale": 2.5}, "controls[0].scale", "less than or equal to 2"),
        ({**CONTROL, "scale": "1"}, "controls[0].scale", "valid number"),
        ({**CONTROL, "start": 0.5, "end": 0.5}, "controls.start", "must be below controls.end"),
        ({**CONTROL, "preprocessor": "depth"}, "controls[0].preprocessor", "'none' or 'canny'"),
        ({**CONTROL, "model": "canny"}, "controls[0].model", "unknown field"),
    ],
)
async def test_what_is_not_accepted_is_named(
    server: Gate, control: dict[str, Any], param: str, told: str
) -> None:
    response = await server.client.post("/v1/images/generations", json={**ASKED, "controls": [control]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (415 if "PNG" in told else 400, param), error
    assert told in error["message"]


async def test_one_name_twice_and_too_many_are_refused(server: Gate) -> None:
    for controls in ([CONTROL, CONTROL], [CONTROL] * 5):
        response = await server.client.post("/v1/images/generations", json={**ASKED, "controls": controls})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "controls")


async def test_a_form_says_where_they_are_taken(server: Gate) -> None:
    files = {"image": ("fox.png", base64.b64decode(CONTROL["image"]), "image/png")}
    form = {**ASKED, "controls": json.dumps([CONTROL])}
    response = await server.client.post("/v1/images/edits", data=form, files=files)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "controls", "not_supported")
    assert "a job takes image, mask and controls" in error["message"]
