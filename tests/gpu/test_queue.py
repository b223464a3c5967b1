"""Passes on a real GPU's queue: recorded, never waited for, rows failing alone, decodes in their order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.backends.cuda_graphs import GraphedCalls
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import GenerationRequest, Pixels, ResolvedRequest
from mezzotint.errors import GenerationFailed
from mezzotint.resolving import resolve
from mezzotint.samplers import SAMPLERS
from mezzotint.tuning import Tuning
from tests.gpu.needs import GPU

pytestmark = GPU
Make = Callable[..., DiffusersBackend]


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


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, torch raises where an operation of its own would wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("name", [sampler.name for sampler in SAMPLERS])
def test_neither_starting_nor_stepping_waits(fresh_modules: Make, name: str, guidance_scale: float) -> None:
    backend = fresh_modules(tuning=Tuning(cuda_graphs="off"))
    request = request_for(backend, scheduler=name, guidance_scale=guidance_scale)
    # The first of each kind is waited for, by an event, to be measured.
    draw(backend, request)
    with no_waiting():
        for request_id in ("a", "b"):
            backend.start(request_id, request)
        for _ in range(request.evaluations):
            assert backend.step(["a", "b"]) == {}


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


def test_a_row_that_is_no_longer_finite_fails_alone_a_step_later_at_most(fresh_modules: Make) -> None:
    backend = fresh_modules()
    request = request_for(backend)
    expected = draw(backend, request).astype(int)
    for request_id in ("sound", "broken"):
        backend.start(request_id, request)
    row = backend._rows["broken"]
    row.latents = torch.full_like(row.latents, float("nan"))
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
    row = backend._rows["a"]
    row.latents = torch.full_like(row.latents, float("nan"))
    backend.step(["a"])
    with pytest.raises(GenerationFailed, match="not a finite number"):
        backend.decode("a")


def test_decodes_beside_steps_change_neither(fresh_modules: Make) -> None:
    backend = fresh_modules()
    request = request_for(backend, steps=20)
    expected = draw(backend, request)
    other = request_for(backend, steps=20, seed=9)
    untouched = draw(backend, other)
    for _ in range(5):
        backend.start("finished", request)
        backend.start("running", other)
        for _ in range(request.evaluations):
            backend.step(["finished"])
        # At once: the last pass is still in the queue.
        decoded: list[Pixels] = []
        thread = threading.Thread(target=lambda into=decoded: into.append(backend.decode("finished")))
        thread.start()
        for _ in range(other.evaluations):
            assert backend.step(["running"]) == {}
        thread.join(60)
        pairs = ((decoded[0], expected), (backend.decode("running"), untouched))
        for found, alone in pairs:
            assert np.abs(found.astype(int) - alone.astype(int)).max() <= 1
        for request_id in ("finished", "running"):
            backend.release(request_id)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_passes_draw_nearly_the_same_picture(demo_studio: Any, kind: Any) -> None:
    pytest.importorskip("torchao", reason="the extra quantisation is not installed")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no fp8")
    from mezzotint.models.loading import load_backend

    backend = load_backend("demo", device="cuda", dtype="bf16", tuning=Tuning(quantisation=kind))
    assert isinstance(backend, DiffusersBackend)
    request = demo_studio.request(prompt="a red apple", steps=8)
    plain = demo_studio.draw((0, request))[0].astype(int)
    assert np.abs(draw(backend, request).astype(int) - plain).mean() < 12
