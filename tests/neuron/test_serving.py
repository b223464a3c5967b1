"""The embedded model, compiled by the command and served over HTTP on the stand-in, as a person would."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as PilImage

from mezzotint.backends.base import Backend
from mezzotint.cli.main import run
from mezzotint.config import Settings
from mezzotint.core import GenerationRequest, Pixels
from mezzotint.errors import SettingInvalid
from mezzotint.models.loading import load_backend
from mezzotint.resolving import resolve
from mezzotint.serve.local import check_neuron
from tests.servers import Server

SIZES = ((128, 128), (96, 160))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "demo"
    sizes = ",".join(f"{width}x{height}" for width, height in SIZES)
    order = ["--target", "cpu", "--model", "demo", "--batch", "4", "--size", sizes, "--output", str(folder)]
    assert run(["compile", *order]) == 0
    return folder


@pytest.fixture(scope="module")
def server(graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--model", str(graphs), "--device", "neuron", "--stand-in")
    # A range, as a person would write it; the replica finds it spelled out.
    cores = {"NEURON_RT_VISIBLE_CORES": "0-1"}
    with (
        Server(folder, *options, environment=cores) as running,
        httpx.Client(base_url=running.address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def modules() -> Backend:
    return load_backend("demo", device="cpu")


def drawn_by(backend: Backend, **fields: Any) -> Pixels:
    request = resolve(GenerationRequest(**fields), backend.info.limits)
    backend.start("a", request)
    for _ in range(request.evaluations):
        assert backend.step(["a"]) == {}
    pixels = backend.decode("a")
    backend.release("a")
    return pixels


def read(body: bytes) -> Pixels:
    return np.asarray(PilImage.open(io.BytesIO(body)).convert("RGB"))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("guidance_scale", [5.0, 0.0])
def test_what_is_served_is_what_the_modules_draw(
    server: httpx.Client, modules: Backend, width: int, height: int, guidance_scale: float
) -> None:
    fields = {
        "prompt": "a red apple",
        "seed": 7,
        "steps": 6,
        "width": width,
        "height": height,
        "guidance_scale": guidance_scale,
    }
    answer = server.get("/imagine", params=fields)
    assert answer.status_code == 200, answer.text
    difference = np.abs(read(answer.content).astype(int) - drawn_by(modules, **fields)).max()
    assert difference <= 1, f"up to {difference}/255 apart"


def test_another_size_is_refused_naming_those_that_are_compiled(server: httpx.Client) -> None:
    for asked in ({"width": 128, "height": 96}, {"size": "128x96"}):
        answer = server.get("/imagine", params={"prompt": "a", **asked})
        assert answer.status_code == 400
        error = answer.json()["error"]
        # Named as it was sent.
        assert (error["code"], error["param"]) == ("invalid_value", next(iter(asked)))
        assert "128x128, 96x160" in error["message"]
    body = {"prompt": "a", "size": "1024x1024"}
    error = server.post("/v1/images/generations", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "size")
    assert "128x128, 96x160" in error["message"]
    assert "the nearest that is served is 128x128" in error["message"]


def test_capabilities_list_the_compiled_sizes(server: httpx.Client, modules: Backend) -> None:
    told = server.get("/v1/capabilities").json()
    assert told["sizes"]["served"] == ["128x128", "96x160"]
    assert told["sizes"]["default"] == "128x128"
    model = told["models"][0]
    assert (model["id"], model["backend"]) == ("demo", "neuron-stand-in")
    assert model["revision"] == modules.info.revision


def test_an_image_without_a_size_is_drawn_at_the_nearest_compiled_one(server: httpx.Client) -> None:
    file = io.BytesIO()
    PilImage.new("RGB", (300, 480), "teal").save(file, "PNG")
    files = {"image": ("a.png", file.getvalue(), "image/png")}
    data = {"prompt": "a boat", "response_format": "url"}
    answer = server.post("/v1/images/edits", files=files, data=data)
    assert answer.status_code == 200, answer.text
    picture = read(server.get(answer.json()["data"][0]["url"]).content)
    assert picture.shape == (160, 96, 3)


def test_the_command_draws_the_same(graphs: Path, modules: Backend, tmp_path: Path) -> None:
    output = tmp_path / "apple.png"
    chosen = ["--model", str(graphs), "--device", "neuron", "--stand-in", "--output", str(output)]
    assert run(["draw", *chosen, "--seed", "7", "--steps", "4", "a red apple"]) == 0
    expected = drawn_by(modules, prompt="a red apple", seed=7, steps=4)
    assert np.abs(read(output.read_bytes()).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (Settings(device="neuron"), 2),
        (Settings(device="neuron", replicas=2), 4),
        (Settings(device="neuron", stand_in=True), 0),
        (Settings(), 0),
    ],
)
def test_a_server_starts_where_ray_finds_the_cores_it_wants(settings: Settings, found: int) -> None:
    check_neuron(settings, found)


def test_serving_on_chips_that_are_not_here_says_so() -> None:
    with pytest.raises(SettingInvalid, match="4 NeuronCores are wanted and Ray finds 2 here"):
        check_neuron(Settings(device="neuron", replicas=2), 2)
