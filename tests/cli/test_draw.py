"""`mezzotint draw` on the fake backend: what it writes, and what it refuses before any work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mezzotint.cli.main import run
from mezzotint.core import Receipt
from mezzotint.imaging.metadata import read_receipt

QUICK = ("--model", "fake", "--steps", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_words_are_one_prompt_and_the_picture_carries_its_receipt(here: Path) -> None:
    assert run(["draw", "a", "red", "circle", "--seed", "7", *QUICK]) == 0
    assert files(here) == ["plate-7.png"]
    receipt = read_receipt(here / "plate-7.png")
    assert (receipt.prompt, receipt.seed, receipt.steps, receipt.model) == ("a red circle", 7, 2, "fake")


def test_without_a_seed_the_file_is_named_for_the_one_that_was_drawn(here: Path) -> None:
    assert run(["draw", "a", *QUICK]) == 0
    (name,) = files(here)
    assert name == f"plate-{read_receipt(here / name).seed}.png"


def test_every_option_reaches_the_picture(here: Path) -> None:
    options = ["--size", "64x96", "--guidance", "1.5", "--scheduler", "dpm++ 2m", "--negative", "blue"]
    assert run(["draw", "a", "-o", "out.webp", "--seed", "1", *options, *QUICK]) == 0
    receipt = read_receipt(here / "out.webp")
    assert (receipt.width, receipt.height, receipt.guidance_scale) == (64, 96, 1.5)
    assert (receipt.scheduler, receipt.negative_prompt) == ("DPM++ 2M", "blue")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("out.jpg", ["out-0.jpg", "out-1.jpg", "out-2.jpg"]),
        ("{i}-out.png", ["0-out.png", "1-out.png", "2-out.png"]),
        (".", ["plate-5.png", "plate-6.png", "plate-7.png"]),
    ],
)
def test_n_pictures_have_seeds_that_count_up_and_a_path_each(
    here: Path, output: str, names: list[str]
) -> None:
    assert run(["draw", "a", "-n", "3", "--seed", "5", "-o", output, *QUICK]) == 0
    assert files(here) == names
    assert [read_receipt(here / name).seed for name in names] == [5, 6, 7]


def test_one_of_several_equals_the_same_seed_drawn_alone(here: Path) -> None:
    assert run(["draw", "a", "-n", "2", "--seed", "5", *QUICK]) == 0
    assert run(["draw", "a", "--seed", "6", "-o", "alone.png", *QUICK]) == 0
    assert (here / "plate-6.png").read_bytes() == (here / "alone.png").read_bytes()


def test_what_the_model_does_not_know_is_said_once_for_all_pictures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["draw", "two", "cats", "-n", "2", "--steps", "1"]) == 0
    assert len(files(here)) == 2
    assert capsys.readouterr().err.count('note: prompt: the model does not know "cats"\n') == 1


def test_json_is_the_receipts_and_paths_and_nothing_else(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["draw", "a", "-n", "2", "--seed", "3", "--json", *QUICK]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [each["path"] for each in images] == ["plate-3.png", "plate-4.png"]
    for each in images:
        assert Receipt.from_dict(each["receipt"]) == read_receipt(here / each["path"])


REFUSALS = {
    "empty prompt": (["  "], "prompt is empty"),
    "no prompt": ([], "PROMPT"),
    "over-long prompt": (["a" * 10_001], "prompt has 10,001 characters"),
    "over-long negative prompt": (["a", "--negative", "b" * 10_001], "negative_prompt has"),
    "a width off the grid": (["a", "--size", "100x64"], "width must be a multiple of 8"),
    "a height off the grid": (["a", "--size", "64x100"], "height must be a multiple of 8"),
    "too large": (["a", "--size", "4096x4096"], "width must be"),
    "no size": (["a", "--size", "big"], "size must be"),
    "no steps": (["a", "--steps", "0"], "steps must be"),
    "too many steps": (["a", "--steps", "100000"], "steps must be"),
    "steps in words": (["a", "--steps", "ten"], "--steps"),
    "negative guidance": (["a", "--guidance", "-1"], "guidance_scale must be"),
    "NaN guidance": (["a", "--guidance", "nan"], "guidance_scale must be"),
    "infinite guidance": (["a", "--guidance", "inf"], "guidance_scale must be"),
    "negative seed": (["a", "--seed", "-1"], "seed must be"),
    "seeds that count too far": (["a", "--seed", str(2**63 - 1), "-n", "2"], "seed must be"),
    "unknown scheduler": (["a", "--scheduler", "fastest"], "unknown scheduler 'fastest'"),
    "unknown model": (["a", "--model", "no-such-model"], "no model 'no-such-model'"),
    "a fake model's mistake": (["a", "--model", "fake:speed=1"], "fake takes"),
    "no images": (["a", "-n", "0"], "-n must be"),
    "too many images": (["a", "-n", "101"], "-n must be"),
    "unknown option": (["a", "--stepz", "3"], "--stepz"),
    "a missing folder": (["a", "-o", "missing/a.png"], "no folder missing"),
    "a parent that is a file": (["a", "-o", "/proc/version/a.png"], "cannot write"),
    "a folder that takes no file": (["a", "-o", "/proc/a.png"], "cannot write"),
    "a device": (["a", "-o", "/dev/null"], "not a file"),
    "an unknown suffix": (["a", "-o", "a.gif"], "suffix must be"),
    "a name that is too long": (["a", "-o", "a" * 300 + ".png"], "file name too long"),
    "a model's name that is too long": (["a", "--model", "a" * 300], "file name too long"),
    "a model of nobody's": (["a", "--model", "~nosuchuser/x"], "there is no user of that name"),
    "an empty path": (["a", "-o", ""], "output path is empty"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_line_and_code_2_with_nothing_written(
    here: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_loading(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("mezzotint.engine.engine.Engine.load", no_loading)
    arguments, told = REFUSALS[case]
    model = [] if "--model" in arguments else ["--model", "fake"]
    assert run(["draw", *arguments, *model]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    assert told in captured.err
    assert captured.out == ""
    assert files(here) == []


def test_what_no_command_foresaw_of_files_is_one_line_and_code_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "weights")

    monkeypatch.setattr("mezzotint.engine.engine.Engine.load", fail)
    assert run(["draw", "a", *QUICK]) == 1
    assert capsys.readouterr().err == "error: weights: input/output error\n"


def test_a_failure_of_the_machine_is_one_line_and_code_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mezzotint.backends.fake import FakeBackend
    from mezzotint.core import ResolvedRequest
    from mezzotint.engine.engine import Engine
    from mezzotint.errors import GenerationFailed, MezzotintError

    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        return GenerationFailed("the device is\nlost") if (where, done) == ("step", 1) else None

    monkeypatch.setattr(Engine, "load", lambda *_, **__: Engine(FakeBackend(fault=fault)))
    assert run(["draw", "a", "-n", "2", *QUICK]) == 1
    assert capsys.readouterr().err == "error: the device is lost\n"
    assert files(here) == []


class TestControls:
    """A picture held to another, by a ControlNet. The fake backend has none; what is refused comes first."""

    def test_one_without_the_other_is_refused(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["draw", "a", "--controlnet", "canny", *QUICK]) != 0
        assert "--controlnet needs --control-image" in capsys.readouterr().err
        assert run(["draw", "a", "--control-image", "lines.png", *QUICK]) != 0
        assert "--control-image needs --controlnet" in capsys.readouterr().err
        assert run(["draw", "a", "--preprocessor", "canny", *QUICK]) != 0
        assert "--preprocessor needs --controlnet" in capsys.readouterr().err

    def test_a_picture_that_cannot_be_read_is_named(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (here / "text.png").write_text("no picture")
        for path, told in (("nowhere.png", "no such file"), ("text.png", "no PNG, JPEG or WebP")):
            assert run(["draw", "a", "--controlnet", "canny", "--control-image", path, *QUICK]) != 0
            assert told in capsys.readouterr().err
        assert files(here) == ["text.png"]

    def test_one_that_is_not_served_is_named(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run(["draw", "a", "-o", "a.png", *QUICK])
        assert run(["draw", "a", "--controlnet", "pose:0.5", "--control-image", "a.png", *QUICK]) != 0
        assert "there is no ControlNet 'pose'" in capsys.readouterr().err
        assert run(["draw", "a", "--controlnet", "pose:much", "--control-image", "a.png", *QUICK]) != 0
        assert "--controlnet takes NAME, PATH" in capsys.readouterr().err


class TestImagePrompts:
    """A picture that is read beside the prompt, by an IP-Adapter; the same of one."""

    def test_one_without_the_other_is_refused(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["draw", "a", "--ip-adapter", "style", *QUICK]) != 0
        assert "--ip-adapter needs --image-prompt" in capsys.readouterr().err
        assert run(["draw", "a", "--image-prompt", "fox.png", *QUICK]) != 0
        assert "--image-prompt needs --ip-adapter" in capsys.readouterr().err

    def test_what_cannot_be_read_or_is_not_served_is_named(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["draw", "a", "--ip-adapter", "style", "--image-prompt", "nowhere.png", *QUICK]) != 0
        assert "--image-prompt: nowhere.png: no such file" in capsys.readouterr().err
        run(["draw", "a", "-o", "a.png", *QUICK])
        assert run(["draw", "a", "--ip-adapter", "style:0.5", "--image-prompt", "a.png", *QUICK]) != 0
        assert "there is no IP-Adapter 'style'" in capsys.readouterr().err
        assert run(["draw", "a", "--ip-adapter", "style:much", "--image-prompt", "a.png", *QUICK]) != 0
        assert "--ip-adapter takes NAME, PATH" in capsys.readouterr().err
