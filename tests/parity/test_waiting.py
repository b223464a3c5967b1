"""The host never waits for the device between two steps: shown on torch's `meta` device.

A tensor there has no numbers, so whatever would read one raises, in any library; and its copies and
factories can be watched. It stands in for a GPU where the host's waiting is concerned, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mezzotint.backends.base import Backend
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.lanes import HostLanes
from mezzotint.backends.sampling import SamplingFactory
from mezzotint.core import GenerationRequest
from mezzotint.models.reading import load_parts
from mezzotint.resolving import resolve
from mezzotint.samplers import SAMPLERS

META = torch.device("meta")
# DPM++ SDE draws its Brownian path on the latents' own device, which `meta` has no generator for.
NAMES = [sampler.name for sampler in SAMPLERS if not sampler.seeded_noise]
# On a GPU they end with a look at a status or a size; on `meta` they would pass.
LOOKING = ("linalg_solve", "linalg_inv", "linalg_cholesky", "nonzero", "masked_select", "unique")


class _Copies(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        given = [each for each in _tensors(args) if each.device == META]
        result = function(*args, **kwargs)
        made = isinstance(result, torch.Tensor) and result.device == META
        moves = name.startswith(("aten._to_copy.", "aten.to."))
        if moves and made and not given and not kwargs.get("non_blocking"):
            self._found.append(f"a blocking copy: {name}")
        if "copy_.default" in name and given and len(given) < 2:
            self._found.append(f"a copy between devices: {name}")
        # Indices are followed on the device; of a mask the host must know how many it holds.
        masks = "index" in name and any(each.dtype == torch.bool for each in _tensors(args[1:]))
        if given and (masks or any(each in name for each in LOOKING)):
            self._found.append(f"a look at the result: {name}")
        return result


class _Factories(TorchFunctionMode):
    """`torch.tensor` and its like copy inside, unseen by the other."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        makes = function in (torch.tensor, torch.as_tensor, torch.asarray)
        if makes and device is not None and torch.device(device) == META:
            self._found.append(f"made on the device from numbers: {function.__name__}")
        return function(*args, **kwargs)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def waits(run: Callable[[], object]) -> list[str]:
    """What of `run` would have made the host wait."""
    found: list[str] = []
    with torch.inference_mode(), _Factories(found), _Copies(found):
        run()
    return found


class _NoNumbers:
    """A place in the queue whose flags nobody can read."""

    def passed(self) -> bool:
        return True

    def wait(self) -> list[bool]:
        return [True] * 16

    def device_seconds(self) -> float:
        return 0.0


class _MetaLanes(HostLanes):
    queues = True

    def mark(self, begun: Any, flags: torch.Tensor) -> Any:
        assert flags.device == META
        return type("Mark", (_NoNumbers,), {"wait": lambda _: [True] * len(flags)})()


@pytest.fixture(scope="module")
def meta_backend(tiny_sdxl: Path, tiny_modules_backend: Backend) -> DiffusersBackend:
    parts = load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))
    for module in (parts.unet, *parts.text_encoders):
        module.to(META)
    return DiffusersBackend(parts, replace(tiny_modules_backend.info, device="meta"), lanes=_MetaLanes())


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("name", NAMES)
def test_neither_starting_nor_stepping_waits(
    meta_backend: DiffusersBackend, name: str, guidance_scale: float
) -> None:
    request = resolve(
        GenerationRequest(
            f"{name} {guidance_scale}",
            steps=4,
            scheduler=name,
            seed=1,
            guidance_scale=guidance_scale,
            width=64,
            height=64,
        ),
        meta_backend.info.limits,
    )

    def draw() -> None:
        for request_id in ("a", "b"):
            meta_backend.start(request_id, request)
        for _ in range(request.evaluations):
            assert meta_backend.step(["a", "b"]) == {}

    assert waits(draw) == []
    for request_id in ("a", "b"):
        meta_backend.release(request_id)


@pytest.mark.parametrize("name", NAMES)
def test_what_inpainting_keeps_is_blended_without_waiting(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    sampling = SamplingFactory(config, META).make(name, 4, 1, generator)
    clean, noise = torch.empty(2, 1, 4, 8, 8, device=META)
    assert waits(lambda: sampling.add_noise(clean, noise)) == []


@pytest.mark.parametrize("name", ["Euler a", "UniPC", "LCM"])
def test_the_schedulers_left_to_themselves_are_found_waiting(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sampling = SamplingFactory({}).make(name, 6, 1, generator)
    latents = torch.empty(1, 4, 8, 8, device=META)

    def walk() -> None:
        for _ in range(4):
            sampling.advance(latents, latents)

    assert waits(walk) != []


@pytest.mark.parametrize(
    "look",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: bool(tensor.isfinite().all()),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.cpu(),
    ],
)
def test_whatever_reads_a_number_raises(look: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        waits(lambda: look(torch.empty(2, 2, device=META)))


def test_noise_of_the_cpu_is_the_same_with_the_copies_watched() -> None:
    config = {"beta_schedule": "scaled_linear"}
    walked = []
    for device in (None, torch.device("meta")):
        sampling = SamplingFactory(config, device).make("Euler a", 4, 1, torch.Generator().manual_seed(1))
        latents = torch.ones(1, 4, 8, 8)
        for _ in range(4):
            latents = sampling.advance(0.1 * latents, latents)
        walked.append(latents.numpy())
    np.testing.assert_array_equal(*walked)
