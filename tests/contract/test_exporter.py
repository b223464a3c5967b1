"""What optimum-neuron's own exporter writes is what is read here, and draws the same (`make contract`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mezzotint.backends.base import Backend
from mezzotint.backends.neuron.standin import StandIn
from mezzotint.core import GenerationRequest, Pixels
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models import graphs
from mezzotint.models.artefact import adopt, read_artefact
from mezzotint.models.loading import load_backend
from mezzotint.resolving import resolve

PYTHON = os.environ.get("CONTRACT_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs optimum-neuron's environment: make contract")
EXPORT_SECONDS = 240
SIZE = {"width": 64, "height": 32}


@pytest.fixture(scope="module")
def model(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL, its first text encoder's weights named as Stable Diffusion XL's own are."""
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path_factory.mktemp("contract") / "tiny"))
    file = folder / "text_encoder/model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    folder = model.parent / "exported"
    command = [PYTHON, str(Path(__file__).with_name("export.py")), str(model), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_SECONDS, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder


def test_the_layout_that_is_written_is_the_layout_that_is_read(exported: Path) -> None:
    artefact = read_artefact(exported)
    assert artefact.limits.served == ((64, 32),)
    assert (artefact.batch, artefact.cores) == (4, 2)
    assert artefact.toolchain == {"neuronx-cc": "2.21.33363.0"}
    (bucket,) = artefact.buckets
    assert [(each.name, each.shape) for each in bucket.inputs("unet")] == [
        ("sample", (4, 4, 4, 8)),
        ("timestep", (4,)),
        ("encoder_hidden_states", (4, 16, 96)),
        ("text_embeds", (4, 64)),
        ("time_ids", (4, 6)),
    ]


def test_it_is_refused_until_it_is_adopted_and_then_wants_a_chip(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "mine"))
    options: dict[str, Any] = {"device": "neuron", "stand_in": True, "threads": 1}
    with pytest.raises(ModelInvalid, match="--adopt"):
        load_backend(str(folder), **options)
    adopt(str(folder))
    with pytest.raises(SettingInvalid, match="cannot stand in"):
        load_backend(str(folder), **options)


def test_its_graphs_take_what_the_backend_gives_and_draw_the_modules_pictures(
    exported: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "mine"))
    adopt(str(folder))
    stand_in = StandIn()
    # The compiler was torch's tracer in the place of Neuron's: for once a CPU can stand in for what it made.
    monkeypatch.setattr(graphs, "_choose_runtime", lambda *_: stand_in)
    of_graphs = graphs.load_graphs(folder)
    of_modules = load_backend(str(model), device="cpu", threads=1)
    pairs = zip(draw(of_graphs), draw(of_modules), strict=True)
    assert max(np.abs(ours.astype(int) - theirs).max() for ours, theirs in pairs) <= 1
    assert stand_in.refused == []


def draw(backend: Backend) -> list[Pixels]:
    """Three guided pictures in one batch, of other steps each, the last one from an image."""
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    inputs: list[dict[str, Any]] = [{}, {}, {"image": image, "strength": 0.8}]
    left, pixels = {}, {}
    for index, given in enumerate(inputs):
        asked = GenerationRequest(f"fox {index}", seed=index, steps=4 + index, **SIZE, **given)
        request = resolve(asked, backend.info.limits)
        backend.start(str(index), request)
        left[str(index)] = request.evaluations
    while left:
        assert backend.step(list(left)) == {}
        left = {name: count - 1 for name, count in left.items()}
        for name in [name for name, count in left.items() if count == 0]:
            pixels[name] = backend.decode(name)
            backend.release(name)
            del left[name]
    return [pixels[name] for name in sorted(pixels)]
