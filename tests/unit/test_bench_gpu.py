"""`bench gpu` in small on this machine: every part runs, and its figures are what they can be."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.backends.pictures import _after_each, _pieces
from mezzotint.backends.tuned import RECOMPILE_LIMIT
from mezzotint.bench.fullsize import FULL_SIZE, Modules, _without_numbers, tflop_of_decode, tflop_of_row
from mezzotint.bench.gpu import FULL, QUICK, WHOLE_SECONDS, GpuBench, run_parts
from mezzotint.bench.gpu_compile import _cold_start
from mezzotint.bench.gpu_parts import PARTS
from mezzotint.cli.main import run
from mezzotint.tuning import Tuning

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
HERE = [name for name in PARTS if name != "compile"]


@pytest.fixture(scope="module")
def full_size() -> Modules:
    return _without_numbers(FULL_SIZE)


def test_the_full_size_is_sdxls(full_size: Modules) -> None:
    def billions(module: Any) -> float:
        return sum(weight.numel() for weight in module.parameters()) / 1e9

    # The published counts, and the work by which the design reckons its floors.
    assert billions(full_size.unet) == pytest.approx(2.567, abs=0.001)
    assert billions(full_size.vae) == pytest.approx(0.0837, abs=0.0001)
    assert billions(full_size.text_encoder_2) == pytest.approx(0.6947, abs=0.001)
    assert tflop_of_row(FULL_SIZE, 1024, 1024) == pytest.approx(6.76, abs=0.01)
    assert tflop_of_row(FULL_SIZE, 512, 512) == pytest.approx(1.59, abs=0.02)
    assert tflop_of_decode(FULL_SIZE, 1024, 1024) == pytest.approx(10.5, abs=0.05)


def test_a_decode_has_eighteen_pieces_none_of_more_than_an_eighth_of_its_work(full_size: Modules) -> None:
    done = [0]
    latents = torch.empty(1, 4, 128, 128, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        pieces = _pieces(full_size.vae.decoder)
        with _after_each(pieces, lambda: done.append(counter.get_total_flops())):
            full_size.vae.decode(latents)
    whole = counter.get_total_flops()
    assert len(done) == 1 + 18
    assert max(after - before for before, after in pairwise(done)) < whole / 8
    assert whole - done[-1] < whole / 100


def test_every_part_of_a_quick_run_finds_what_can_be(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "gpu.json"
    arguments = [word for name in HERE for word in ("--part", name)]
    # Time for all of them where the machine is busy elsewhere too.
    options = ["--quick", "--device", "cpu", "--seconds", "2400", "--json", str(file)]
    assert run(["bench", "gpu", *options, *arguments]) == 0
    kept = json.loads(file.read_text())
    assert {"cpu", "cores", "commit", "command", "versions", "device"} <= kept["run"].keys()
    assert {"torch", "cuda"} <= kept["run"]["versions"].keys()
    found = {(each["part"], each["name"]): each["value"] for each in kept["results"]}
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    # A CPU has no such kernels. What an engine finds worth sharing it has measured itself, on a machine that
    # may be busy: at some width it may share too little to be measured.
    too_few = ": too few passes were shared"
    kinds = ("quantisation ", "switches, attention")
    assert all(each.startswith(kinds) or each.endswith(too_few) for each in kept["left_out"])
    assert {name for name, _ in found} == set(HERE)

    def of(part: str, *words: str) -> list[float]:
        return [
            value for (owner, name), value in found.items() if owner == part and all(w in name for w in words)
        ]

    assert max(of("matrix", "³")) == of("matrix", "the best")[0]
    # How large these are is the benchmark's to say: a machine that is shared is busy with one side alone.
    assert len(of("unet", "share")) == len(QUICK.sizes) * len(QUICK.widths)
    assert of("loop", "÷", "width 1")
    assert of("throughput", "ours ÷ diffusers serially")
    assert of("throughput", "ours ÷ request batches")
    assert {"mean", "p99"} == {
        word for (_, name) in found for word in ("mean", "p99") if f"{word} ÷ request" in name
    }
    assert of("memory", "GiB")[0] < 64


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile on a CPU needs a C++ compiler, and there is none here",
)
@pytest.mark.slow
def test_a_cold_start_compiles_and_a_warm_cache_is_found(tmp_path: Path) -> None:
    bench = GpuBench(replace(QUICK, budgets={"compile": 240.0}), torch.device("cpu"))
    results = run_parts(bench, ["compile"], {"compile": PARTS["compile"]})
    seconds = {each.name: each.details["phases"] for each in results if "phases" in each.details}
    assert bench.left_out == []
    assert [name.partition(":")[0] for name in seconds] == ["blocks, cold", "blocks, warm cache"]
    for phases in seconds.values():
        parts = sum(phases[name] for name in ("import", "build", "warm_up", "first_image"))
        assert 0 < parts < phases["whole"]


def test_a_cold_start_that_runs_out_of_time_leaves_no_process(tmp_path: Path) -> None:
    bench = GpuBench(QUICK, torch.device("cpu"))
    before = set(psutil.Process().children(recursive=True))
    with bench.within(0.0):
        assert _cold_start(bench, "blocks", str(tmp_path)) is None
    assert set(psutil.Process().children(recursive=True)) <= before


def test_diffusers_is_compiled_without_a_limit_in_whichever_thread() -> None:
    bench = GpuBench(replace(QUICK, tuning=Tuning(compile="blocks")), torch.device("cpu"))
    unet = bench.compiled.pipeline.unet
    seen: list[int] = []
    unet.forward = lambda: seen.append(torch._dynamo.config.recompile_limit)
    thread = threading.Thread(target=unet)
    thread.start()
    thread.join()
    assert seen == [RECOMPILE_LIMIT]


def test_what_the_first_run_takes_longer_is_no_reason_for_few_repetitions() -> None:
    bench, runs = GpuBench(replace(QUICK, repetitions=30), torch.device("cpu")), 0

    def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            time.sleep(0.3)

    bench.seconds_of(run, budget=1.0)
    assert runs > 30


def test_images_in_a_pass_are_those_of_the_measured_backlogs(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = GpuBench(replace(QUICK, steps=2), torch.device("cpu"))
    # What it would find worth sharing on a machine that may be busy is none of this.
    monkeypatch.setattr(bench.engine.cost, "knee", lambda key: 4)
    # What is drawn before, to warm up, one by one.
    for request in bench.requests(bench.mix(bench.size, steps=(30,)), 2):
        bench.engine.generate(request)
    found = {each.name: each.value for each in PARTS["throughput"](bench)}
    bench.close()
    assert found["ours, images in a pass, mean"] > 1.5


def test_a_part_without_time_says_what_it_left_out_and_the_run_goes_on() -> None:
    preset = replace(QUICK, budgets={**QUICK.budgets, "unet": 0.0, "quantisation": 0.0})
    bench = GpuBench(preset, torch.device("cpu"))
    results = run_parts(bench, ["unet", "quantisation", "matrix"], PARTS)
    assert {each.part for each in results if each.name != "seconds it took"} == {"matrix"}
    assert len(bench.left_out) == len(QUICK.sizes) * len(QUICK.widths) + 2
    assert all(each.endswith("out of time") for each in bench.left_out)


def test_however_long_the_steps_beside_decodes_take_the_vaes_attention_is_measured() -> None:
    bench = GpuBench(QUICK, torch.device("cpu"))
    assert bench.backend.info
    with bench.within(0.01):
        found = [each.name for each in PARTS["decode"](bench)]
    assert any("torch's attention ÷ as served" in name for name in found)
    assert bench.left_out


def test_a_part_that_fails_is_told_and_the_others_are_measured() -> None:
    class OfTheCompiler(Exception):
        pass

    def broken(_: GpuBench) -> list[Any]:
        raise OfTheCompiler("CUDA error: an illegal memory access\nand much more")

    bench = GpuBench(replace(QUICK, budgets={"broken": 5.0, "matrix": 5.0}), torch.device("cpu"))
    results = run_parts(bench, ["broken", "matrix"], {"broken": broken, "matrix": PARTS["matrix"]})
    assert bench.left_out == ["broken: failed, CUDA error: an illegal memory access"]
    assert any(each.part == "matrix" for each in results)


def test_parts_that_are_asked_for_alone_have_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def part(bench: GpuBench) -> list[Any]:
        given.append(bench.left)
        return []

    bench = GpuBench(replace(FULL, budgets={"a": 10.0, "b": 30.0, "c": 400.0}), torch.device("cpu"))
    run_parts(bench, ["a", "b"], dict.fromkeys("abc", part))
    assert given == pytest.approx([WHOLE_SECONDS / 4, WHOLE_SECONDS * 3 / 4], abs=5)
    given.clear()
    run_parts(bench, ["a", "c"], dict.fromkeys("abc", part))
    assert given == pytest.approx([10 * WHOLE_SECONDS / 410, 400 * WHOLE_SECONDS / 410], abs=5)


def test_the_whole_run_is_given_less_than_nine_minutes() -> None:
    assert FULL.budgets.keys() == PARTS.keys() == QUICK.budgets.keys()
    assert sum(FULL.budgets.values()) <= WHOLE_SECONDS < 9 * 60


@NO_GPU
def test_the_full_size_without_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "gpu", "--json", str(tmp_path / "x.json")]) == 2
    assert "--quick" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--part", "speed"], "throughput"), (["--quick", "--device", "tpu"], "auto, cpu or cuda")],
)
def test_what_is_not_accepted_is_refused_with_what_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["bench", "gpu", "--json", str(tmp_path / "x.json"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(["bench", "gpu", "--quick", "--json", str(tmp_path / "file" / "x.json")]) != 0
    assert "cannot write" in capsys.readouterr().err
