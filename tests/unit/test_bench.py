"""The benchmark: loads come at their rate, peers batch as they claim, and a run leaves its figures."""

from __future__ import annotations

import json
import random
import statistics
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from mezzotint.backends.fake import FakeBackend
from mezzotint.bench.load import Mix, backlog, poisson, replay
from mezzotint.bench.pictures import measure_png, synthetic
from mezzotint.bench.scheduling import compare_rules
from mezzotint.bench.servers import RecordingBackend, engine_server, request_batch_server
from mezzotint.cli.main import run
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.rules import Rules

MIX = Mix(steps=(4, 8), guidance=(0.0, 5.0), width=128, height=128)


def test_poisson_arrivals_come_at_their_rate_with_exponential_gaps() -> None:
    arrivals = poisson(MIX, rate=5.0, count=4000, rng=random.Random(1))
    gaps = [b.at - a.at for a, b in pairwise(arrivals)]
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.1)
    # An exponential distribution's deviation is its mean.
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.1)
    assert len({arrival.request.prompt for arrival in arrivals}) == len(arrivals)


def test_request_batches_hold_equal_parameters_and_no_more_than_their_bound() -> None:
    batches: list[list[GenerationRequest]] = []
    all_here = threading.Event()

    def draw(requests: Sequence[GenerationRequest]) -> None:
        assert all_here.wait(20)
        batches.append(list(requests))

    requests = [MIX.draw(random.Random(i), i) for i in range(40)]
    with request_batch_server(draw, max_batch=4) as serve:
        futures = [serve(request) for request in requests]
        all_here.set()
        for future in futures:
            future.result(20)
    assert sorted(r.seed or 0 for batch in batches for r in batch) == list(range(40))
    assert 1 < max(len(batch) for batch in batches) <= 4
    for batch in batches:
        assert len({(r.steps, r.guidance_scale) for r in batch}) == 1


def test_a_peer_that_fails_fails_its_requests_and_goes_on() -> None:
    def draw(requests: Sequence[GenerationRequest]) -> None:
        if requests[0].seed == 0:
            raise RuntimeError("no")

    first, second = (MIX.draw(random.Random(1), number) for number in (0, 1))
    with request_batch_server(draw, max_batch=1) as serve:
        with pytest.raises(RuntimeError):
            serve(first).result(20)
        serve(second).result(20)


def test_replay_reports_a_latency_for_every_arrival() -> None:
    recorder = RecordingBackend(FakeBackend(pass_seconds=0.002))
    with Engine(recorder) as engine, engine_server(engine) as serve:
        arrivals = poisson(MIX, rate=100.0, count=20, rng=random.Random(2))
        latencies = replay(serve, arrivals)
        assert len(latencies) == 20
        # At least the passes of the shortest request.
        assert min(latencies) >= 4 * 0.002
        assert backlog(serve, [arrival.request for arrival in arrivals]) > 0
    assert sum(len(p.request_ids) for p in recorder.passes) >= 2 * 20 * 4


def test_a_run_leaves_json_with_its_hardware_and_a_plot(tmp_path: Path) -> None:
    assert run(["bench", "engine", "--quick", "--part", "load", "--output", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "engine.json").read_text())
    assert {"cpu", "cores", "commit", "command", "versions"} <= kept["run"].keys()
    assert {result["part"] for result in kept["results"]} == {"load"}
    assert all(result["value"] > 0 for result in kept["results"])
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_part_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "engine", "--part", "speed", "--output", str(tmp_path / "x")]) == 2
    assert "throughput" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_trained_for_inpainting_is_refused(
    inpainting_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bench", "engine", "--quick", "--model", str(inpainting_sdxl), "--output", str(tmp_path)]
    assert run(asked) == 2
    assert "takes no model trained for inpainting" in capsys.readouterr().err


def test_the_schedulers_rules_can_be_compared_on_the_virtual_clock() -> None:
    same, narrow = compare_rules([Rules(), Rules(narrowing=1.0)], arrivals=150)
    # Passes as narrow as Smith's rule likes throw throughput away: the reason for `narrowing`.
    assert same.latency[-1][0] < narrow.latency[-1][0]
    assert same.short_among_long < 2
    assert same.saturated <= 1.05


def test_png_files_are_compared_in_time_and_size() -> None:
    results = measure_png(synthetic(side=128), trials=2)
    assert len({result.name for result in results}) == 2 * 4
    assert all(result.value > 0 for result in results)
    # Grain is what a diffusion model's pictures have; how long it takes is the benchmark's to say.
    assert all(result.met for result in results if "noisy: size" in result.name)


def test_the_gate_draws_what_the_model_knows_and_leaves_what_it_saw(tmp_path: Path) -> None:
    assert run(["bench", "quality", "--glyphs", "8", "--output", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "quality.json").read_text())
    assert {"commit", "dtype", "command"} <= kept["run"].keys()
    found = {result["name"]: result for result in kept["results"]}
    assert found["the pictogram asked for"]["value"] >= 0.875
    assert found["the pictogram asked for"]["details"]["pictures"] == 8
    with Image.open(tmp_path / "quality.png") as sheet:
        assert sheet.size == (8 * 128, 128)


def test_the_gate_fails_what_has_not_drawn_enough(tmp_path: Path) -> None:
    # Of one step there comes no picture.
    assert run(["bench", "quality", "--glyphs", "4", "--steps", "1", "--output", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "quality.json").read_text())["results"]
    assert not found[0]["met"]
    assert found[0]["details"]["misses"]


def test_the_gate_refuses_a_model_that_says_not_what_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert run(["bench", "quality", "--model", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "vocabulary.json" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
