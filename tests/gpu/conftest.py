"""The studios of tests/parity on a CUDA device, with everything on that a GPU has on by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mezzotint.backends.diffusers import DiffusersBackend
from tests.parity.conftest import Studio, making, open_studio


@pytest.fixture(scope="session", autouse=True)
def exact_convolutions() -> Iterator[None]:
    """cuDNN's fp32 is by default one of ten bits, in which nobody's pictures are the same to 1/255."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def tiny_studio(tiny_sdxl: Path) -> Studio:
    return open_studio(str(tiny_sdxl), device="cuda")


@pytest.fixture(scope="session")
def modules_studio(tiny_studio: Studio) -> Studio:
    return tiny_studio


@pytest.fixture(scope="session")
def bf16_studio(tiny_sdxl: Path) -> Studio:
    return open_studio(str(tiny_sdxl), device="cuda", dtype="bf16")


@pytest.fixture(scope="session")
def demo_studio() -> Studio:
    return open_studio("demo", device="cuda")


@pytest.fixture
def fresh_modules(tiny_sdxl: Path) -> Iterator[Callable[..., DiffusersBackend]]:
    yield from making(str(tiny_sdxl), device="cuda", dtype="fp32")
