"""`mezzotint models push` and `pull --to`: a model by way of a bucket, held to its manifest at both ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mezzotint.cli.main import run
from mezzotint.models.locations import find_model
from mezzotint.models.manifest import MANIFEST_NAME, check_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a manifest: the embedded model's own."""
    folder = tmp_path / "here" / "demo"
    shutil.copytree(find_model("demo"), folder)
    return folder


def test_a_model_goes_into_a_bucket_and_comes_out_the_same(
    model: Path, s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "push", str(model), f"{s3_url}/demo-1"]) == 0
    to = tmp_path / "there" / "demo"
    assert run(["models", "pull", f"{s3_url}/demo-1", "--to", str(to)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(to)
    check_manifest(to)
    assert (to / MANIFEST_NAME).read_bytes() == (model / MANIFEST_NAME).read_bytes()


def test_what_is_there_already_is_not_fetched_again_and_what_is_damaged_is(
    model: Path, s3_url: str, tmp_path: Path
) -> None:
    assert run(["models", "push", str(model), f"{s3_url}/demo-2"]) == 0
    to = tmp_path / "there" / "demo"
    pull = ["models", "pull", f"{s3_url}/demo-2", "--to", str(to)]
    assert run(pull) == 0
    inode = to.stat().st_ino
    assert run(pull) == 0
    assert to.stat().st_ino == inode
    (to / "model_index.json").write_text("{}")
    assert run(pull) == 0
    check_manifest(to)


def test_a_folder_of_other_things_is_not_replaced_and_an_empty_one_is(
    model: Path, s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "push", str(model), f"{s3_url}/demo-3"]) == 0
    to = tmp_path / "there"
    to.mkdir()
    pull = ["models", "pull", f"{s3_url}/demo-3", "--to", str(to)]
    # Of a web page; the same name as a set's own.
    other = to / MANIFEST_NAME
    other.write_text("{}")
    assert run(pull) == 2
    assert "there is there and is no pulled set" in capsys.readouterr().err
    assert other.read_text() == "{}"
    other.unlink()
    assert run(pull) == 0
    check_manifest(to)


def test_a_model_whose_files_were_altered_is_not_put_into_a_bucket(
    model: Path, s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "model_index.json").write_text("{}")
    assert run(["models", "push", str(model), f"{s3_url}/altered"]) == 2
    assert "model_index.json" in capsys.readouterr().err
    assert run(["models", "pull", f"{s3_url}/altered", "--to", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["push", "demo", "somewhere"], "s3://bucket/prefix"),
        (["pull", "demo", "--to", "x"], "--to is for a model from s3://"),
        (["push", "nothing", "s3://bucket/x"], "no model 'nothing'"),
        (["push", "sdxl-lightning", "s3://bucket/x"], "a UNet alone, which sdxl completes"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_without_a_manifest_is_not_put_into_a_bucket(
    model: Path, s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / MANIFEST_NAME).unlink()
    assert run(["models", "push", str(model), f"{s3_url}/plain"]) == 2
    assert "no manifest" in capsys.readouterr().err
