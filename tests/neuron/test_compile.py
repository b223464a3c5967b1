"""`mezzotint compile`: what was made is kept by what it follows from, and a set is there whole or not at
all.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.backends.parts import PipelineParts
from mezzotint.cli.main import run
from mezzotint.core import GenerationRequest
from mezzotint.errors import InvalidRequest, ModelInvalid, ModelNotFound, OutputUnwritable, SettingInvalid
from mezzotint.models import compiling, graphs
from mezzotint.models import tracing as tracing_module
from mezzotint.models.artefact import read_artefact, verify_artefact
from mezzotint.models.artefact_store import download
from mezzotint.models.compiling import Order, compile_model
from mezzotint.models.loading import load_backend
from mezzotint.models.locations import describe
from mezzotint.models.manifest import read_manifest, write_manifest
from mezzotint.models.reading import load_parts
from mezzotint.resolving import resolve

SIZES = ((64, 64), (64, 32))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own: nothing is kept there yet."""
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def parts(tiny_sdxl: Path) -> PipelineParts:
    return load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def traced(parts: PipelineParts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that were traced, in order. What they become is a few bytes: nothing here reads a graph,
    and the model is read once for all.
    """
    names: list[str] = []
    monkeypatch.setattr(compiling, "load_parts", lambda *_, **__: parts)

    def trace(component: str, parts: Any, configuration: Any, target: str, path: Path) -> None:
        names.append(component)
        path.write_bytes(f"{component} for {configuration['neuron']}".encode())

    monkeypatch.setattr(compiling, "trace", trace)
    return names


def order(folder: Path, **changes: Any) -> Order:
    return Order(**{"model": str(folder), "target": "cpu", "sizes": SIZES, "batch": 2, "cores": 2, **changes})


def test_a_set_is_laid_out_as_optimum_neuron_lays_out_a_pipeline(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str]
) -> None:
    told: list[tuple[str, str]] = []
    place = compile_model(order(tiny_sdxl), str(tmp_path / "out"), lambda *each: told.append(each))
    assert place == str(tmp_path / "out")
    files = set(read_manifest(Path(place)) or {})
    parts = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
    layout = {f"{part}/{name}" for part in parts for name in ("model.neuron", "config.json")}
    layout |= {"model_index.json", "scheduler/scheduler_config.json"}
    layout |= {f"tokenizer{n}/{name}" for n in ("", "_2") for name in ("vocab.json", "merges.txt")}
    layout |= {f"tokenizer{n}/tokenizer_config.json" for n in ("", "_2")}
    assert files == {f"{size}/{name}" for size in ("64x64", "64x32") for name in layout} | {"mezzotint.json"}
    artefact = read_artefact(Path(place))
    assert (artefact.batch, artefact.cores, artefact.target) == (2, 2, "cpu")
    assert [(bucket.width, bucket.height) for bucket in artefact.buckets] == list(SIZES)
    verify_artefact(Path(place))
    # The text encoders know no size, and are one file under two names.
    assert traced.count("text_encoder") == traced.count("text_encoder_2") == 1
    assert traced.count("unet") == traced.count("vae_encoder") == traced.count("vae_decoder") == 2
    assert ("unet 64x32", "compiling") in told
    assert ("unet 64x32", "done") in told


def test_what_a_model_says_that_it_knows_comes_along(tiny_sdxl: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_sdxl, tmp_path / "model"))
    (model / "vocabulary.json").write_text('{"glyphs": ["fox"]}')
    place = compile_model(order(model), str(tmp_path / "out"))
    assert describe(place)["vocabulary"] == {"glyphs": ["fox"]}
    verify_artefact(Path(place))
    backend = load_backend(place, device="neuron", stand_in=True, threads=1)
    request = resolve(GenerationRequest("a fox", seed=1), backend.info.limits)
    # Of this tokenizer a letter is a token.
    assert backend.start("r", request) == ('prompt: the model does not know "fox"',)
    backend.close()


def test_a_run_that_was_broken_off_goes_on_where_it_stopped(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compiling.trace

    def breaks(component: str, *rest: Any) -> None:
        if component == "vae_encoder":
            rest[-1].write_bytes(b"half of")
            raise KeyboardInterrupt
        whole(component, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(compiling, "trace", breaks)
        with pytest.raises(KeyboardInterrupt):
            compile_model(order(tiny_sdxl), str(tmp_path / "out"))
    assert traced == ["text_encoder", "text_encoder_2", "unet"]
    assert not (tmp_path / "out").exists()
    traced.clear()
    compile_model(order(tiny_sdxl), str(tmp_path / "out"))
    assert traced == ["vae_encoder", "vae_decoder", "unet", "vae_encoder", "vae_decoder"]
    assert not list(tmp_path.glob(".partial*"))


def test_what_was_kept_and_is_no_longer_whole_is_compiled_anew(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], own_home: Path
) -> None:
    compile_model(order(tiny_sdxl), str(tmp_path / "first"))
    graphs_kept = sorted(own_home.glob("compiled/*/model.neuron"))
    next(path for path in graphs_kept if b"vae_dec" in path.read_bytes()).write_bytes(b"something else")
    traced.clear()
    compile_model(order(tiny_sdxl), str(tmp_path / "second"))
    assert traced == ["vae_decoder"]
    verify_artefact(tmp_path / "second")


@pytest.mark.parametrize(
    ("changes", "made_anew"),
    [
        ({}, 0),
        ({"cores": 1}, 0),
        ({"batch": 3}, 2),
        ({"sizes": ((64, 64), (32, 64))}, 3),
        ({"sizes": SIZES[:1]}, 0),
    ],
)
def test_what_is_compiled_again_is_what_follows_from_the_change(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], changes: dict[str, Any], made_anew: int
) -> None:
    compile_model(order(tiny_sdxl), str(tmp_path / "out"))
    traced.clear()
    compile_model(order(tiny_sdxl, **changes), str(tmp_path / "out"))
    assert len(traced) == made_anew
    assert len(read_artefact(tmp_path / "out").buckets) == len(changes.get("sizes", SIZES))


def test_other_weights_or_another_compiler_are_another_graph(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_sdxl, tmp_path / "model"))
    compile_model(order(model), str(tmp_path / "out"))
    for change in ("weights", "compiler"):
        traced.clear()
        if change == "weights":
            (model / "vae/README.txt").write_text("any other file of the model")
        else:
            monkeypatch.setattr(compiling, "toolchain_of", lambda _: {"torch": "0.1"})
        compile_model(order(model), str(tmp_path / "out"))
        assert len(traced) == 8


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"target": "gpu"}, SettingInvalid, "--target takes inf2, trn1, cpu"),
        ({"target": "inf2"}, SettingInvalid, "needs torch-neuronx and neuronx-cc"),
        ({"target": "trn1"}, SettingInvalid, "needs torch-neuronx and neuronx-cc"),
        ({"batch": 0}, SettingInvalid, "--batch takes 1…64"),
        ({"cores": 33}, SettingInvalid, "--cores takes 1…32"),
        ({"sizes": ()}, SettingInvalid, "--size"),
        ({"sizes": ((64, 64), (64, 64))}, SettingInvalid, "--size"),
        ({"sizes": ((64, 60),)}, InvalidRequest, "height must be a multiple of 8"),
        ({"sizes": ((64, 4096),)}, InvalidRequest, "height"),
        ({"model": "no-such-model"}, ModelNotFound, "no-such-model"),
    ],
)
def test_an_order_that_cannot_be_met_is_refused_before_anything_is_traced(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], changes: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        compile_model(order(tiny_sdxl, **changes), str(tmp_path / "out"))
    assert traced == []


def test_a_folder_with_something_else_in_it_is_left_alone(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("dear")
    with pytest.raises(OutputUnwritable, match="no set of compiled graphs"):
        compile_model(order(tiny_sdxl), str(tmp_path / "letters"))
    assert (tmp_path / "letters/dear.txt").read_text() == "dear"
    assert traced == []


def test_graphs_are_not_compiled_again(tiny_graphs: Path, tmp_path: Path, traced: list[str]) -> None:
    with pytest.raises(ModelInvalid, match="compiled graphs already"):
        compile_model(order(tiny_graphs), str(tmp_path / "out"))


def test_a_model_that_reads_its_guidance_scale_is_not_compiled(build_tiny: Any, tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "model", time_cond_proj_dim=32)
    with pytest.raises(ModelInvalid, match="guidance scale"):
        compile_model(order(model), str(tmp_path / "out"))


def test_a_set_goes_to_s3_and_comes_back_whole(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], s3_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_model(order(tiny_sdxl), f"{s3_url}/tiny") == f"{s3_url}/tiny"
    folder = download(f"{s3_url}/tiny", tmp_path / "served")
    verify_artefact(folder)
    assert read_artefact(folder).limits.served == SIZES
    assert run(["models", "pull", f"{s3_url}/tiny"]) == 0
    assert capsys.readouterr().out.strip().endswith("home/models/tiny")


def test_a_set_in_s3_that_is_not_whole_leaves_nothing_here(
    tiny_sdxl: Path, tmp_path: Path, traced: list[str], s3_url: str
) -> None:
    import boto3

    compile_model(order(tiny_sdxl), f"{s3_url}/tiny")
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    key = f"{prefix}/tiny/64x64/unet/model.neuron"
    client.put_object(Bucket=bucket, Key=key, Body=b"altered")
    with pytest.raises(ModelInvalid, match=r"64x64/unet/model\.neuron is not the file"):
        download(f"{s3_url}/tiny", tmp_path / "served")
    client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ModelNotFound, match="cannot be read"):
        download(f"{s3_url}/tiny", tmp_path / "served")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        download(f"{s3_url}/nothing", tmp_path / "served")
    assert not list(tmp_path.glob("served*"))
    assert not list(tmp_path.glob(".partial*"))


def test_a_manifest_cannot_write_outside_its_folder(tmp_path: Path, s3_url: str) -> None:
    import boto3

    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    manifest = {"files": {"../outside": {"sha256": "0" * 64, "size": 1}}}
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=f"{prefix}/tiny/manifest.json", Body=json.dumps(manifest).encode())
    with pytest.raises(ModelInvalid, match="outside its folder"):
        download(f"{s3_url}/tiny", tmp_path / "served")


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/demo", "s3://bucket/a..", "s3://bucket/…"])
def test_only_a_name_for_a_folder_is_pulled(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    if url.endswith("a.."):
        url = "s3://bucket/..a"
    assert run(["models", "pull", url]) == 2
    assert "ends in no name" in capsys.readouterr().err


STUB = """
import torch
calls = []

def trace(module, examples, compiler_args, cpu_backend, inline_weights_to_neff):
    calls.append((examples, compiler_args, cpu_backend, inline_weights_to_neff))
    return torch.jit.trace(torch.nn.Identity(), examples[0])
"""


@pytest.fixture
def torch_neuronx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of that name that notes what it is told to compile."""
    package = tmp_path / "stubs"
    package.mkdir()
    (package / "torch_neuronx.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(package))
    versions = {"torch": "2.8.0", "torch-neuronx": "2.8.0.2.10.16998", "neuronx-cc": "2.21.33363"}
    monkeypatch.setattr(tracing_module, "installed", versions.get)
    yield
    sys.modules.pop("torch_neuronx", None)


@pytest.mark.usefixtures("torch_neuronx")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_for_a_chip_each_component_gets_its_flags_and_the_unet_a_timestep_a_row(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    compile_model(order(tiny_sdxl, target="inf2", sizes=SIZES[:1], batch=3), str(tmp_path / "out"))
    calls = sys.modules["torch_neuronx"].calls
    cast = ["--auto-cast", "matmult", "--auto-cast-type", "bf16", "--target", "inf2"]
    assert [flags[0] for _, flags, _, _ in calls] == ["--model-type=transformer"] * 2 + [
        "--model-type=unet-inference"
    ] * 3
    assert all(flags[-6:] == cast and cpu and inlined for _, flags, cpu, inlined in calls)
    sample, timestep, *_ = calls[2][0]
    assert sample.shape == (3, 4, 8, 8)
    assert timestep.shape == (3,)
    assert len(set(timestep.tolist())) == 3
    artefact = read_artefact(tmp_path / "out")
    assert artefact.toolchain["neuronx-cc"] == "2.21.33363"
    neuron = artefact.buckets[0].configurations["unet"]["neuron"]
    assert (neuron["compiler_type"], neuron["compiler_version"]) == ("neuronx-cc", "2.21.33363")
    assert (neuron["auto_cast"], neuron["auto_cast_type"]) == ("matmul", "bf16")
    assert graphs._dtype(artefact.buckets[0]) == "bf16"


def test_a_placeholder_of_the_compiler_is_told_from_the_real_one(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "installed", {"torch-neuronx": "1.0", "neuronx-cc": "1.0"}.get)
    monkeypatch.setitem(sys.modules, "torch_neuronx", None)
    with pytest.raises(SettingInvalid, match="cannot be imported"):
        compile_model(order(tiny_sdxl, target="inf2"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compile", "--target", "inf2", "-o", "out"], "needs torch-neuronx"),
        (["compile", "--target", "cpu"], "--output takes a folder"),
        (["compile", "--size", "64", "-o", "out"], "size must be WIDTHxHEIGHT"),
        (["compile", "--model", "nothing", "-o", "out"], "no model 'nothing'"),
        (["compile", "--adopt", "nowhere"], "no folder of compiled graphs"),
        (["draw", "--stand-in", "a fox"], "--stand-in is for --device neuron"),
        (["draw", "--device", "neuron", "a fox"], "demo has none; make some with: mezzotint compile"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_what_is_adopted_is_printed(tmp_path: Path, tiny_sdxl: Path, traced: list[str], capsys: Any) -> None:
    place = Path(compile_model(order(tiny_sdxl), str(tmp_path / "out")))
    assert run(["compile", "--adopt", str(place / "64x64")]) == 0
    assert capsys.readouterr().out.strip() == str(place / "64x64/manifest.json")
    write_manifest(place)
    verify_artefact(place)
