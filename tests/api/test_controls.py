"""ControlNets through each surface: told of, asked for, in the receipt, in jobs."""

from __future__ import annotations

import base64
import gc
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import Control, Image, Pixels, Receipt, ServedControlNet
from mezzotint.errors import StoreUnavailable
from mezzotint.imaging.inputs import pixels_sha256, resize_image
from mezzotint.imaging.metadata import read_receipt
from mezzotint.resolving import resolve
from mezzotint.serve import gateway
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.wire import Order
from tests.api.inprocess import Gate, serving
from tests.controlnets import lines, photo
from tests.waiting import until, wait_until

CANNY = ServedControlNet("canny", "a" * 64)
DEPTH = ServedControlNet("depth", "b" * 64)
UNION = tuple(ServedControlNet(f"union-{kind}", "c" * 64) for kind in ("canny", "depth"))
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
    async with serving(tmp_path, FakeBackend(controlnets=(CANNY, DEPTH, *UNION))) as opened:
        yield opened


async def drawn(server: Gate, **fields: Any) -> dict[str, Any]:
    """The only picture of a generation."""
    [image] = (await server.json("POST", "/v1/images/generations", json={**ASKED, **fields}))["data"]
    told: dict[str, Any] = image
    return told


async def test_capabilities_tell_of_them(server: Gate) -> None:
    told = await server.json("GET", "/v1/capabilities")
    assert told["features"]["controlnet"]
    assert [each["name"] for each in told["controlnets"]] == [
        "canny",
        "depth",
        "union-canny",
        "union-depth",
    ]
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


async def test_pictures_are_brought_to_size_off_the_event_loop(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def watched(*asked: Any) -> Any:
        threads.append(threading.get_ident())
        return resolve(*asked)

    monkeypatch.setattr(gateway, "resolve", watched)
    await drawn(server, controls=[CONTROL])
    await drawn(server)
    held, free = threads
    assert free == threading.get_ident() != held


async def test_a_picture_can_be_drawn_from_lines_alone(server: Gate) -> None:
    assert (await drawn(server, prompt="", controls=[CONTROL]))["receipt"]["prompt"] == ""


async def test_several_pictures_are_held_to_the_same(server: Gate) -> None:
    body = {**ASKED, "n": 3, "controls": [{**CONTROL, "preprocessor": "canny", "image": encoded(photo())}]}
    images = (await server.json("POST", "/v1/images/generations", json=body))["data"]
    assert len({image["b64_json"] for image in images}) == 3
    assert len({json.dumps(image["receipt"]["controls"]) for image in images}) == 1


async def test_what_it_reads_counts_as_a_picture_that_is_read(server: Gate) -> None:
    body = {**ASKED, "size": "128x128", "controls": [CONTROL, {**CONTROL, "name": "depth"}]}
    usage = (await server.json("POST", "/v1/images/generations", json=body))["usage"]
    assert usage["input_tokens_details"]["image_tokens"] == 2 * 8 * 8


async def test_one_of_no_strength_is_as_if_it_were_not_there(server: Gate) -> None:
    nothing = {**CONTROL, "scale": 0, "image": encoded(lines(0, 192, 96))}
    image = await drawn(server, controls=[nothing])
    assert image["receipt"]["controls"] == []
    assert image["b64_json"] == (await drawn(server))["b64_json"]
    empty = {**ASKED, "prompt": "", "controls": [nothing]}
    for path in ("/v1/images/generations", "/v1/images/jobs"):
        error = (await server.client.post(path, json=empty)).json()["error"]
        assert error["param"] == "prompt"


async def test_a_name_that_is_not_served_is_refused_before_a_picture_is_decoded(server: Gate) -> None:
    for controls in ([{**CONTROL, "name": "pose", "image": "!"}], [{**CONTROL, "image": "!"}] * 2):
        response = await server.client.post("/v1/images/generations", json={**ASKED, "controls": controls})
        assert response.json()["error"]["param"] == "controls"


async def test_while_it_is_drawn_nobody_holds_what_was_sent(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of no other test's size: the collector tells of theirs too.
    side = 504
    large = encoded(lines(0, side, side))
    drawn_without: list[Order] = []
    draw = EngineReplica.generate

    def nobody_holds_it() -> bool:
        gc.collect()
        controls = [each for each in gc.get_objects() if type(each) is Control]
        return not any(np.shape(each.image) == (side, side, 3) for each in controls)

    def looking(self: EngineReplica, order: Order) -> Any:
        # The thread that has read it lets go of it a moment after it has handed it on.
        wait_until(nobody_holds_it, "what was sent to be let go of", seconds=10)
        drawn_without.append(order)
        return draw(self, order)

    monkeypatch.setattr(EngineReplica, "generate", looking)
    await drawn(server, size="128x128", controls=[{**CONTROL, "image": large}])
    scripts = {"controlnet": {"args": [{"model": "canny", "image": large}]}}
    body = {**ASKED, "width": 128, "height": 128, "alwayson_scripts": scripts}
    await server.json("POST", "/sdapi/v1/txt2img", json=body)
    assert len(drawn_without) == 2


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
    for name in names:
        assert (await server.client.get(f"/v1/images/files/{name}")).status_code == 200
    assert await server.services.jobs.expired.forget(0, server.services.images.delete) == 1
    for name in names:
        assert (await server.client.get(f"/v1/images/files/{name}")).status_code == 404


async def test_of_a_job_whose_pictures_cannot_all_be_kept_none_is(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, kept = server.services.images, []
    put = images.put

    async def full(data: bytes, format: str, ttl_s: float | None = None) -> str:
        if len(kept) == 2:
            raise StoreUnavailable("the picture store is full")
        kept.append(await put(data, format, ttl_s))
        return kept[-1]

    monkeypatch.setattr(images, "put", full)
    body = {**ASKED, "image": CONTROL["image"], "controls": [CONTROL, {**CONTROL, "name": "depth"}]}
    assert (await server.client.post("/v1/images/jobs", json=body)).status_code == 503
    assert len(kept) == 2
    for name in kept:
        assert (await server.client.get(f"/v1/images/files/{name}")).status_code == 404


async def test_a_larger_picture_is_held_in_both_stages(server: Gate) -> None:
    receipt = (await drawn(server, size="128x128", controls=[CONTROL], hires={"scale": 1.5}))["receipt"]
    assert receipt["hires"]["scale"] == 1.5
    [told] = receipt["controls"]
    assert told["image_sha256"] == pixels_sha256(resize_image(LINES, 192, 192))


@pytest.mark.parametrize(
    ("control", "param", "told"),
    [
        ({**CONTROL, "name": "pose"}, "controls", "there is no ControlNet 'pose'; served are canny, depth"),
        ({"name": "canny"}, "controls[0].image", "is required"),
        ({**CONTROL, "image": "!"}, "controls[0].image", "base64"),
        ({**CONTROL, "image": encoded(LINES)[:200]}, "controls[0].image", "no PNG, JPEG or WebP"),
        ({**CONTROL, "scale": 2.5}, "controls[0].scale", "less than or equal to 2"),
        ({**CONTROL, "scale": "1"}, "controls[0].scale", "valid number"),
        ({**CONTROL, "start": 0.5, "end": 0.5}, "controls.start", "must be below the end of canny, 0.5"),
        ({**CONTROL, "start": 0.5, "end": 0.51}, "controls.start", "no whole step of 20"),
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


class TestA1111:
    """The units of its extension."""

    UNIT: ClassVar[dict[str, Any]] = {
        "model": "canny [aaaaaaaa]",
        "image": CONTROL["image"],
        "weight": 0.5,
        "guidance_start": 0.1,
        "guidance_end": 0.9,
    }
    # What clients send unasked.
    CHATTY: ClassVar[dict[str, Any]] = {
        "enabled": True,
        "module": "none",
        "resize_mode": "Crop and Resize",
        "control_mode": "Balanced",
        "processor_res": 512,
        "threshold_a": -1,
        "threshold_b": -1,
        "pixel_perfect": True,
        "low_vram": False,
        "hr_option": "Both",
        "mask": None,
        "guess_mode": False,
    }

    async def drawn(self, server: Gate, *units: Any, route: str = "txt2img", **fields: Any) -> Receipt:
        scripts = {"controlnet": {"args": list(units)}}
        body = {**ASKED, "alwayson_scripts": scripts, **fields}
        answer = await server.json("POST", f"/sdapi/v1/{route}", json=body)
        assert answer["parameters"]["alwayson_scripts"] is None
        return read_receipt(base64.b64decode(answer["images"][0]))

    async def test_a_unit_is_a_control(self, server: Gate) -> None:
        receipt = await self.drawn(server, {**self.CHATTY, **self.UNIT})
        assert receipt.to_dict()["controls"] == [USED]

    async def test_what_webuiapi_sends_is_understood(self, server: Gate) -> None:
        """Version 0.9.17's unit, as `ControlNetUnit.to_dict` has it when nothing else is said."""
        unit = {
            "image": CONTROL["image"],
            "mask": None,
            "module": "canny",
            "model": "canny [aaaaaaaa]",
            "weight": 1.0,
            "resize_mode": "Resize and Fill",
            "low_vram": False,
            "processor_res": 512,
            "threshold_a": 64,
            "threshold_b": 64,
            "guidance_start": 0.0,
            "guidance_end": 1.0,
            "control_mode": "Balanced",
            "pixel_perfect": False,
            "hr_option": "Both",
            "enabled": True,
        }
        body = {**ASKED, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        [told] = read_receipt(base64.b64decode(answer["images"][0])).controls
        assert (told.preprocessor, told.image_sha256) == ("canny", pixels_sha256(LINES))

    async def test_what_sd_api_sends_is_understood(self, server: Gate) -> None:
        unit = {
            "input_image": CONTROL["image"],
            "module": "none",
            "model": "canny",
            "weight": 1,
            "resize_mode": "Scale to Fit (Inner Fit)",
            "lowvram": False,
            "processor_res": 64,
            "threshold_a": 64,
            "threshold_b": 64,
            "guidance": 1,
            "guidance_start": 0,
            "guidance_end": 1,
            "guessmode": False,
        }
        (used,) = (await self.drawn(server, unit)).controls
        assert (used.name, used.scale, used.end) == ("canny", 1.0, 1.0)

    @pytest.mark.parametrize(
        ("model", "kind", "named"),
        [
            ("union [cccccccc]", "Depth", "union-depth"),
            ("union-depth [cccccccc]", "Depth", "union-depth"),
            ("union-depth", "Unknown", "union-depth"),
            ("union", "Hard Edge", "union-canny"),
            # The web page says it of other ControlNets too.
            ("canny [aaaaaaaa]", "Hard Edge", "canny"),
        ],
    )
    async def test_what_a_union_is_to_read_may_stand_beside_it(
        self, server: Gate, model: str, kind: str, named: str
    ) -> None:
        receipt = await self.drawn(server, {**self.UNIT, "model": model, "union_control_type": kind})
        assert [each.name for each in receipt.controls] == [named]

    async def test_a_size_out_of_all_bounds_is_refused_before_anything_is_made_of_it(
        self, server: Gate
    ) -> None:
        scripts = {"controlnet": {"args": [{**self.UNIT, "resize_mode": 2}]}}
        for mode in (1, 2):
            scripts["controlnet"]["args"][0]["resize_mode"] = mode
            for width in (0, -8, 10**9, 10**400):
                body = {**ASKED, "alwayson_scripts": scripts, "width": width, "height": 64}
                response = await server.client.post("/sdapi/v1/txt2img", json=body)
                assert response.status_code == 400
                assert "width" in response.json()["detail"]

    async def test_its_text_in_the_picture_is_the_extensions(self, server: Gate) -> None:
        body = {**ASKED, "alwayson_scripts": {"ControlNet": {"args": [{**self.UNIT, "module": "canny"}]}}}
        answer = await server.json("POST", "/sdapi/v1/txt2img", json=body)
        [text] = json.loads(answer["info"])["infotexts"]
        assert (
            'ControlNet 0: "Module: canny, Model: canny [aaaaaaaa], Weight: 0.5, Resize Mode: Just Resize, '
            'Control Mode: Balanced, Guidance Start: 0.1, Guidance End: 0.9"'
        ) in text

    async def test_the_size_is_not_the_controls(self, server: Gate) -> None:
        wide = {**self.UNIT, "image": encoded(lines(0, 192, 96))}
        receipt = await self.drawn(server, wide)
        assert (receipt.width, receipt.height) == (128, 128)

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("Just Resize", "pressed"),
            (0, "pressed"),
            ("Crop and Resize", "cropped"),
            (1, "cropped"),
            ("Scale to Fit (Inner Fit)", "cropped"),
            ("Inner Fit (Scale to Fit)", "cropped"),
            ("Resize and Fill", "filled"),
            (2, "filled"),
            ("Envelope (Outer Fit)", "filled"),
            ("Outer Fit (Shrink to Fit)", "filled"),
        ],
    )
    async def test_a_wide_one_is_pressed_cropped_or_put_on_a_canvas(
        self, server: Gate, mode: str | int, expected: str
    ) -> None:
        wide = lines(0, 192, 96)
        receipt = await self.drawn(
            server, {**self.UNIT, "image": encoded(wide), "resize_mode": mode}, width=96, height=96
        )
        filled = np.zeros((96, 96, 3), np.uint8)
        filled[24:72] = resize_image(wide, 96, 48)
        made = {"pressed": resize_image(wide, 96, 96), "cropped": wide[:, 48:144], "filled": filled}
        assert receipt.controls[0].image_sha256 == pixels_sha256(made[expected])

    async def test_without_a_picture_of_its_own_the_one_that_is_drawn_from_is_meant(
        self, server: Gate
    ) -> None:
        unit = {"model": "canny", "module": "canny"}
        image = photo(2, 128, 128)
        receipt = await self.drawn(server, unit, route="img2img", init_images=[encoded(image)])
        assert receipt.controls[0].image_sha256 == pixels_sha256(image) == receipt.image_sha256

    @pytest.mark.parametrize("mode", [None, "Crop and Resize", 2])
    async def test_the_lines_of_the_picture_that_is_drawn_from_lie_where_it_is_drawn(
        self, server: Gate, mode: str | int | None
    ) -> None:
        unit = {"model": "canny", "module": "canny", "resize_mode": mode}
        size = {"width": 96, "height": 96}
        wide = photo(2, 192, 96)
        receipt = await self.drawn(server, unit, route="img2img", init_images=[encoded(wide)], **size)
        assert receipt.controls[0].image_sha256 == receipt.image_sha256

    @pytest.mark.parametrize("place", ["image", "input_image", "dict"])
    async def test_its_picture_may_stand_in_three_places(self, server: Gate, place: str) -> None:
        unit = {**self.UNIT, "image": None}
        picture = CONTROL["image"]
        unit |= {"image": {"image": picture}} if place == "dict" else {place: picture}
        assert (await self.drawn(server, unit)).to_dict()["controls"] == [USED]

    async def test_of_a_picture_that_is_drawn_from_the_size_is_its_own(self, server: Gate) -> None:
        receipt = await self.drawn(
            server, self.UNIT, route="img2img", init_images=[encoded(photo(0, 96, 192))]
        )
        assert (receipt.width, receipt.height) == (96, 192)

    async def test_what_is_not_used_says_nothing(self, server: Gate) -> None:
        idle = ({**self.UNIT, "enabled": False}, {"model": "None", "module": "openpose"}, {})
        assert (await self.drawn(server, *idle)).controls == ()
        scripts = {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}, "roop": {}}
        body = {**ASKED, "alwayson_scripts": scripts}
        assert (await server.json("POST", "/sdapi/v1/txt2img", json=body))["images"]

    @pytest.mark.parametrize(
        ("unit", "told"),
        [
            ({"module": "openpose_full"}, "of module only none and canny"),
            ({"model": "pose [abcd1234]"}, "there is no ControlNet 'pose'"),
            ({"control_mode": "ControlNet is more important"}, "of control_mode only Balanced"),
            ({"resize_mode": 3}, "of resize_mode only Just Resize, Crop and Resize and Resize and Fill"),
            ({"module": "canny", "threshold_a": 50}, "threshold_a must be 100"),
            ({"weight": 3}, "weight"),
            ({"weight": True}, "weight"),
            ({"image": None}, "alwayson_scripts.controlnet[0].image is required"),
            ({"image": "!"}, "alwayson_scripts.controlnet[0].image"),
            ({"hr_option": "Low res only"}, "alwayson_scripts.controlnet.hr_option is not served here"),
            ({"mask": CONTROL["image"]}, "alwayson_scripts.controlnet.mask is not served here"),
            ({"advanced_weighting": [1.0]}, "advanced_weighting is not served here"),
            ({"model": "union"}, "there is no ControlNet 'union'; served are canny, depth, union-canny"),
            ({"model": "union", "union_control_type": "Tile"}, "there is no ControlNet 'union-tile'"),
            ({"model": "union-canny", "union_control_type": "Depth"}, "no ControlNet 'union-canny-depth'"),
            ({"union_control_type": "Lines"}, "union_control_type is one of openpose, depth, soft edge"),
            ({"guidance_start": 0.95}, "guidance_start must be below the end of canny, 0.9, not 0.95"),
            ({"image": {"image": 5}}, "must be base64"),
            ({"image": {"image": CONTROL["image"], "mask": CONTROL["image"]}}, "a mask of a unit's image"),
        ],
        ids=str,
    )
    async def test_what_is_not_accepted_is_named(self, server: Gate, unit: dict[str, Any], told: str) -> None:
        scripts = {"controlnet": {"args": [{**self.UNIT, **unit}]}}
        response = await server.client.post("/sdapi/v1/txt2img", json={**ASKED, "alwayson_scripts": scripts})
        assert response.status_code == 400, response.text
        assert told in response.json()["detail"]

    @pytest.mark.parametrize(
        "scripts",
        [
            {"ADetailer": {"args": [True]}},
            {"controlnet": {"args": "canny"}},
            {"controlnet": {"args": ["canny"]}},
            {"controlnet": {"args": [{"model": "canny"}] * 5}},
            {"controlnet": {"args": [{"model": "canny"}]}, "ControlNet": {"args": [{"model": "depth"}]}},
            {"controlnet": {"args": [{"model": "canny"}, {"model": "canny [aaaaaaaa]"}]}},
        ],
        ids=str,
    )
    async def test_other_scripts_and_odd_ones_are_refused(self, server: Gate, scripts: Any) -> None:
        response = await server.client.post("/sdapi/v1/txt2img", json={**ASKED, "alwayson_scripts": scripts})
        assert response.status_code == 400
        assert "alwayson_scripts" in response.json()["detail"]

    async def test_its_clients_find_what_they_ask_for(self, server: Gate) -> None:
        models = await server.json("GET", "/controlnet/model_list")
        union = ["union-canny [cccccccc]", "union-depth [cccccccc]"]
        assert models == {"model_list": ["canny [aaaaaaaa]", "depth [bbbbbbbb]", *union]}
        assert (await server.json("GET", "/controlnet/module_list"))["module_list"] == ["none", "canny"]
        assert await server.json("GET", "/controlnet/version") == {"version": 2}
        assert await server.json("GET", "/controlnet/model_list?update=true") == models
        assert (await server.json("GET", "/controlnet/module_list?alias_names=1"))["module_list"]
        wrong = (await server.client.get("/controlnet/version?x=1")).json()
        assert set(wrong) == {"error", "detail", "body", "errors"}
        assert await server.json("GET", "/controlnet/settings") == {"control_net_unit_count": 4}
