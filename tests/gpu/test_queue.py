"""Passes on a real GPU's queue: recorded, never waited for, rows failing alone, decodes in their order."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.backends.base import go_straight_on
from mezzotint.backends.cuda_graphs import CudaRecorder, GraphedCalls
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import GenerationRequest, Pixels, Progress, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.pace import DecodePace, Passes
from mezzotint.errors import GenerationFailed, SettingInvalid
from mezzotint.models.loading import load_backend
from mezzotint.resolving import resolve
from mezzotint.samplers import SAMPLERS
from mezzotint.tuning import Tuning
from tests.gpu.conftest import loading
from tests.gpu.needs import GPU, needs_cuda
from tests.gpu.stand_in import StandIn
from tests.parity.test_image_inputs import hole, picture

pytestmark = GPU
Make = Callable[..., DiffusersBackend]
LIMIT_SECONDS = 60.0


def request_for(backend: DiffusersBackend, **fields: Any) -> ResolvedRequest:
    fields = {"prompt": "a fox", "seed": 1, "width": 64, "height": 64, "steps": 6, **fields}
    return resolve(GenerationRequest(**fields), backend.info.limits)


def draw(backend: DiffusersBackend, request: ResolvedRequest, request_id: str = "a") -> Pixels:
    backend.start(request_id, request)
    for _ in range(request.evaluations):
        assert backend.step([request_id]) == {}
    pixels = backend.decode(request_id)
    backend.release(request_id)
    return pixels


def spoil(backend: DiffusersBackend, request_id: str) -> None:
    row = backend._rows[request_id]
    with backend._streams.steps():
        row.latents = torch.full_like(row.latents, float("nan"))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, torch raises where an operation of its own would wait for the GPU."""
    try:
        with warnings.catch_warnings():
            # That it is a prototype, which is told once, after it was set.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


INPUTS: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 5.0},
    {"guidance_scale": 0.0},
    {"image": picture(), "strength": 0.75},
    {"image": picture(), "strength": 0.75, "mask": hole()},
)


@pytest.mark.parametrize("name", [sampler.name for sampler in SAMPLERS])
def test_nothing_waits_between_the_start_and_the_decoding(fresh_modules: Make, name: str) -> None:
    check_that_nothing_waits(fresh_modules(tuning=Tuning(cuda_graphs="off")), name)


def test_nor_where_the_unet_reads_masks(gpu: StandIn | None, inpainting_sdxl: Path) -> None:
    with loading(gpu):
        backend = load_backend(
            str(inpainting_sdxl), device="cuda", dtype="fp32", threads=1, tuning=Tuning(cuda_graphs="off")
        )
    assert isinstance(backend, DiffusersBackend)
    check_that_nothing_waits(backend, "Euler a")
    backend.close()


def check_that_nothing_waits(backend: DiffusersBackend, name: str) -> None:
    requests = {
        str(number): request_for(backend, scheduler=name, steps=4, preview_every=1, **inputs)
        for number, inputs in enumerate(INPUTS)
    }

    def step_all() -> None:
        left = {request_id: request.evaluations for request_id, request in requests.items()}
        for request_id, request in requests.items():
            backend.start(request_id, request)
        while left:
            assert backend.step([*left]) == {}
            for request_id in left:
                backend.preview(request_id)()
            left = {request_id: count - 1 for request_id, count in left.items() if count > 1}

    # The first pass of each kind is waited for, by an event, to be measured; and so is the first preview.
    step_all()
    for request_id in requests:
        backend.decode(request_id)
        backend.release(request_id)
    with no_waiting():
        step_all()


def test_recorded_passes_draw_the_same_picture(fresh_modules: Make) -> None:
    plain = fresh_modules(tuning=Tuning(cuda_graphs="off"))
    recorded = fresh_modules(tuning=Tuning(cuda_graphs="on"))
    for seed in range(3):
        for guidance_scale in (5.0, 0.0):
            request = request_for(plain, seed=seed, guidance_scale=guidance_scale)
            one, other = (draw(each, request).astype(int) for each in (plain, recorded))
            assert np.abs(one - other).max() <= 1
    graphs = recorded._unet
    assert isinstance(graphs, GraphedCalls)
    assert graphs.recorded == 2
    assert graphs.replayed > 0


def test_a_recording_that_fails_leaves_the_others_and_random_numbers(gpu: StandIn | None) -> None:
    recorder = CudaRecorder()
    with loading(gpu), torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        given = torch.ones(2, device="cuda")
        assert (given * 2).tolist() == [2.0, 2.0]
        replay, result = recorder.record(lambda: given * 2)
        with pytest.raises(RuntimeError):
            recorder.record(lambda: given * given.sum().item())
        replay()
        assert result.tolist() == [2.0, 2.0]
        assert torch.randn(2, device="cuda").isfinite().all()
        replay, result = recorder.record(lambda: given * 3)
        replay()
        assert result.tolist() == [3.0, 3.0]


def test_a_row_that_is_no_longer_finite_fails_alone_a_step_later_at_most(fresh_modules: Make) -> None:
    backend = fresh_modules()
    request = request_for(backend)
    expected = draw(backend, request).astype(int)
    for request_id in ("sound", "broken"):
        backend.start(request_id, request)
    spoil(backend, "broken")
    failed: dict[str, Any] = {}
    for _ in range(2):
        failed |= backend.step(["sound", "broken"])
    assert list(failed) == ["broken"]
    for _ in range(request.evaluations - 2):
        assert backend.step(["sound"]) == {}
    assert np.abs(backend.decode("sound").astype(int) - expected).max() <= 1


def test_what_the_last_pass_broke_is_found_at_the_decoding(fresh_modules: Make) -> None:
    backend = fresh_modules()
    request = request_for(backend, steps=3)
    draw(backend, request)
    backend.start("a", request)
    for _ in range(2):
        backend.step(["a"])
    spoil(backend, "a")
    backend.step(["a"])
    with pytest.raises(GenerationFailed, match="not a finite number"):
        backend.decode("a")


def test_in_an_engine_the_neighbour_of_a_broken_row_is_drawn(
    fresh_modules: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = fresh_modules()
    begin = backend.start

    def start(request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        warnings = begin(request_id, request)
        if request.prompt == "broken":
            spoil(backend, request_id)
        return warnings

    monkeypatch.setattr(backend, "start", start)
    with Engine(backend) as engine:
        tickets = {
            (prompt, steps): engine.submit(
                GenerationRequest(prompt, seed=1, steps=steps, width=64, height=64)
            )
            for prompt in ("sound", "broken")
            for steps in (1, 6)
        }
        for (prompt, _), ticket in tickets.items():
            if prompt == "broken":
                with pytest.raises(GenerationFailed, match="finite"):
                    ticket.result(LIMIT_SECONDS)
            else:
                assert ticket.result(LIMIT_SECONDS).width == 64


def test_a_pass_that_is_over_does_not_keep_its_rows(fresh_modules: Make) -> None:
    backend = fresh_modules()
    backend.start("a", request_for(backend))
    backend.step(["a"])
    row = backend._rows["a"]
    backend.step(["a"])
    backend.decode("a")
    assert row.in_pass is not None
    assert row.in_pass._rows == ()


@pytest.mark.parametrize("name", ["Euler a", "UniPC", "LCM"])
def test_the_schedulers_left_to_themselves_wait(fresh_modules: Make, name: str) -> None:
    backend = fresh_modules()
    request = request_for(backend, scheduler=name)
    backend.start("a", request)
    backend._rows["a"].sampling._device = None
    failed: dict[str, Any] = {}
    with no_waiting():
        for _ in range(4):
            failed |= backend.step(["a"])
    assert isinstance(failed["a"], GenerationFailed)


@pytest.mark.parametrize("making_way", [False, True])
def test_decodes_beside_steps_change_neither(fresh_modules: Make, making_way: bool) -> None:
    backend = fresh_modules()
    request = request_for(backend, steps=10)
    expected = draw(backend, request)
    other = request_for(backend, steps=10, seed=9)
    untouched = draw(backend, other)
    for _ in range(3):
        backend.start("finished", request)
        backend.start("running", other)
        for _ in range(request.evaluations):
            backend.step(["finished"])
        # At once: the last pass is still in the queue.
        decoded: list[Pixels] = []
        passes = Passes(threading.Condition())
        way = DecodePace(passes, lambda: 1) if making_way else go_straight_on
        passes.begin(0.0)
        thread = threading.Thread(
            target=lambda into=decoded, way=way: into.append(backend.decode("finished", way))
        )
        thread.start()
        for _ in range(other.evaluations):
            assert backend.step(["running"]) == {}
            passes.begin(0.0)
        passes.stop()
        thread.join(60)
        assert not isinstance(way, DecodePace) or way.rested > 0
        pairs = ((decoded[0], expected), (backend.decode("running"), untouched))
        for found, alone in pairs:
            assert np.abs(found.astype(int) - alone.astype(int)).max() <= 1
        for request_id in ("finished", "running"):
            backend.release(request_id)


def test_an_engine_shows_previews_of_both_devices_alike(fresh_modules: Make, tiny_sdxl: Path) -> None:
    request = GenerationRequest("a fox", seed=1, steps=8, width=64, height=64, preview_every=2)
    shown = []
    for backend in (load_backend(str(tiny_sdxl), device="cpu", threads=1), fresh_modules()):
        with Engine(backend) as engine:
            events = list(engine.submit(request).events())
        shown.append([each.preview for each in events if isinstance(each, Progress)])
    # Anybody may give them back while the loop records passes: they are no pinned memory of its stream.
    assert all(each.flags.owndata for previews in shown for each in previews if each is not None)
    # Where the device works behind the host a look comes a pass or two after it was asked for.
    on_cpu, on_gpu = ([each.astype(int) for each in previews if each is not None] for previews in shown)
    assert len(on_cpu) == 3
    assert len(on_gpu) >= 2
    for preview in on_gpu:
        assert min(np.abs(preview - each).max() for each in on_cpu) <= 1


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (Tuning(quantisation="int8"), "int8 needs compile"),
        (Tuning(quantisation="fp8", compile="blocks"), "fp8 needs dtype bf16"),
    ],
)
def test_what_quantisation_needs_is_said(fresh_modules: Make, tuning: Tuning, words: str) -> None:
    pytest.importorskip("torchao", reason="the extra quantisation is not installed")
    with pytest.raises(SettingInvalid, match=words):
        fresh_modules(tuning=tuning)


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_passes_draw_nearly_the_same_picture(demo_studio: Any, kind: Any) -> None:
    pytest.importorskip("torchao", reason="the extra quantisation is not installed")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no fp8")
    tuning = Tuning(quantisation=kind, compile="blocks" if kind == "int8" else "none")
    backend = load_backend("demo", device="cuda", dtype="bf16", tuning=tuning)
    assert isinstance(backend, DiffusersBackend)
    request = demo_studio.request(prompt="a red apple", steps=8)
    plain = demo_studio.draw((0, request))[0].astype(int)
    assert np.abs(draw(backend, request).astype(int) - plain).mean() < 12
