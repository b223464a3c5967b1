"""The studios of tests/parity on a CUDA device or its stand-in, with all on that a GPU has on by itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.models.loading import load_backend
from tests.gpu.needs import HAS_CUDA
from tests.gpu.stand_in import StandIn
from tests.parity.conftest import Studio, controlnets, ip_adapters, making, open_studio, unions

__all__ = ["controlnets", "ip_adapters", "unions"]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[StandIn | None]:
    """None for a real one."""
    if HAS_CUDA:
        yield None
        return
    with StandIn().installed() as stand_in:
        yield stand_in


@pytest.fixture(autouse=True)
def no_faults(gpu: StandIn | None) -> Iterator[None]:
    if gpu is None:
        yield
        return
    gpu.faults.clear()
    yield
    gc.collect()
    assert gpu.faults == []


@pytest.fixture(scope="module", autouse=True)
def exact_convolutions() -> Iterator[None]:
    """cuDNN's fp32 is by default one of ten bits, in which nobody's pictures are the same to 1/255."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def loading(gpu: StandIn | None) -> AbstractContextManager[None]:
    """Within, modules can be brought to "cuda"."""
    return nullcontext() if gpu is None else gpu.modes()


def studio_on(
    gpu: StandIn | None, model: str, *, load: Mapping[str, Any] | None = None, **options: Any
) -> Studio:
    """Where there is no GPU, diffusers' own pipeline draws on the CPU. load: for the backend alone."""
    with loading(gpu):
        backend = load_backend(model, device="cuda", threads=1, **options, **(load or {}))
    return open_studio(model, backend, device="cpu" if gpu else "cuda", **options)


@pytest.fixture(scope="module")
def tiny_studio(gpu: StandIn | None, tiny_sdxl: Path) -> Studio:
    return studio_on(gpu, str(tiny_sdxl), dtype="fp32")


@pytest.fixture(scope="module")
def modules_studio(tiny_studio: Studio) -> Studio:
    return tiny_studio


@pytest.fixture(scope="module")
def inpainting_studio(gpu: StandIn | None, inpainting_sdxl: Path) -> Studio:
    return studio_on(gpu, str(inpainting_sdxl), dtype="fp32")


@pytest.fixture(scope="module")
def controls_studio(gpu: StandIn | None, tiny_sdxl: Path, controlnets: list[str]) -> Studio:
    studio = studio_on(gpu, str(tiny_sdxl), load={"controlnets": controlnets}, dtype="fp32")
    return replace(studio, controlnets=controlnets)


@pytest.fixture(scope="module")
def unions_studio(gpu: StandIn | None, tiny_sdxl: Path, unions: list[str]) -> Studio:
    studio = studio_on(gpu, str(tiny_sdxl), load={"controlnets": unions}, dtype="fp32")
    return replace(studio, controlnets=unions)


@pytest.fixture(scope="module")
def images_studio(gpu: StandIn | None, tiny_sdxl: Path, ip_adapters: dict[str, Any]) -> Studio:
    return replace(studio_on(gpu, str(tiny_sdxl), load=ip_adapters, dtype="fp32"), **ip_adapters)


@pytest.fixture(scope="module")
def bf16_studio(gpu: StandIn | None, tiny_sdxl: Path) -> Studio:
    return studio_on(gpu, str(tiny_sdxl), dtype="bf16")


@pytest.fixture(scope="module")
def demo_studio(gpu: StandIn | None) -> Studio:
    return studio_on(gpu, "demo", dtype="fp32")


@pytest.fixture
def fresh_modules(gpu: StandIn | None, tiny_sdxl: Path) -> Iterator[Callable[..., DiffusersBackend]]:
    for make in making(str(tiny_sdxl), device="cuda", dtype="fp32"):

        def load(make: Callable[..., DiffusersBackend] = make, **options: Any) -> DiffusersBackend:
            with loading(gpu):
                return make(**options)

        yield load
