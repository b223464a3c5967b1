"""`mezzotint models pull` with the Hub's own client, from a server on loopback that answers as the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mezzotint.models.locations import check
from tests.hub import Hub, serve_hub

PULL_SECONDS = 240.0
CODE = "import sys; from mezzotint.cli import main; main(sys.argv[1:])"


def as_on_the_hub(folder: Path) -> dict[str, Path]:
    """A diffusers folder's files, named as in Stable Diffusion XL's repository, and what lies beside them."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    for name, path in list(files.items()):
        if name.endswith(".safetensors"):
            files[name.removesuffix("safetensors") + "fp16.safetensors"] = path
    return {**files, "model.ckpt": folder / "model_index.json", "LICENSE.md": folder / "model_index.json"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models' home."""
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "home"))
    return tmp_path / "home/models"


@pytest.fixture
def hub(tiny_sdxl: Path) -> Iterator[Hub]:
    with serve_hub(as_on_the_hub(tiny_sdxl)) as hub:
        yield hub


def pull(hub: Hub, name: str, home: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home.parents[1] / "notes"),
        "MEZZOTINT_HOME": str(home.parent),
    }
    command = [python, "-c", CODE, "models", "pull", name]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PULL_SECONDS, env=environment, check=False
    )


def test_the_files_that_are_needed_come_and_no_others(hub: Hub, home: Path) -> None:
    ran = pull(hub, "sdxl", home)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert check("sdxl").verified
    names = {str(path.relative_to(home / "sdxl")) for path in (home / "sdxl").rglob("*") if path.is_file()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert weights == {name for name in hub.files if name.endswith(".fp16.safetensors")}
    assert names == set(hub.asked) | {"manifest.json"}
    assert "model.ckpt" not in names
    assert [path.name for path in home.iterdir()] == ["sdxl"]


def test_a_file_that_ends_in_the_middle_leaves_nothing(hub: Hub, home: Path) -> None:
    hub.cut = {"unet/diffusion_pytorch_model.fp16.safetensors"}
    ran = pull(hub, "sdxl", home)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "error: sdxl could not be fetched from the Hugging Face Hub: " in ran.stderr
    assert list(home.iterdir()) == []


def test_a_repository_that_asks_for_its_licence_to_be_accepted_says_so(hub: Hub, home: Path) -> None:
    hub.closed = True
    ran = pull(hub, "sdxl", home)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "could not be fetched from the Hugging Face Hub: 403" in ran.stderr
