"""The backend and the engine on a queue that lags a pass behind, as a GPU's does: on a CPU, whose numbers are
there at once but whose flags are told late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.backends.base import Backend
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.lanes import HostLanes
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed
from mezzotint.models.reading import load_parts
from mezzotint.resolving import resolve

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LIMIT_SECONDS = 60.0


class Late:
    """Flags that are known once somebody waits for them."""

    def __init__(self, flags: torch.Tensor) -> None:
        self._flags, self._waited = flags, False

    def passed(self) -> bool:
        return self._waited

    def wait(self) -> list[bool]:
        self._waited = True
        flags: list[bool] = self._flags.tolist()
        return flags

    def device_seconds(self) -> float:
        assert self._waited
        return 0.0


class LateLanes(HostLanes):
    queues = True

    def mark(self, begun: Any, flags: torch.Tensor) -> Late:
        return Late(flags)


@pytest.fixture
def late(tiny_sdxl: Path, tiny_modules_backend: Backend) -> DiffusersBackend:
    parts = load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))
    backend = DiffusersBackend(parts, tiny_modules_backend.info, lanes=LateLanes())
    # Of a kind that nothing is known of a pass is waited for.
    for count in (1, 2):
        ids = [f"first-{number}" for number in range(count)]
        for request_id in ids:
            backend.start(request_id, request_for(backend))
        for _ in range(2):
            backend.step(ids)
        for request_id in ids:
            backend.release(request_id)
    return backend


def request_for(backend: DiffusersBackend, **fields: Any) -> ResolvedRequest:
    fields = {"prompt": "a fox", "seed": 1, "width": 64, "height": 64, "steps": 4, **fields}
    return resolve(GenerationRequest(**fields), backend.info.limits)


def spoil(backend: DiffusersBackend, request_id: str) -> None:
    row = backend._rows[request_id]
    row.latents = torch.full_like(row.latents, float("nan"))


def test_a_row_that_is_no_longer_finite_fails_alone_in_its_next_step(
    late: DiffusersBackend, tiny_modules_backend: Any
) -> None:
    request = request_for(late)
    tiny_modules_backend.start("alone", request)
    for _ in range(request.evaluations):
        tiny_modules_backend.step(["alone"])
    expected = tiny_modules_backend.decode("alone").astype(int)
    tiny_modules_backend.release("alone")
    for request_id in ("sound", "broken"):
        late.start(request_id, request)
    spoil(late, "broken")
    assert late.step(["sound", "broken"]) == {}
    failed = late.step(["sound", "broken"])
    assert list(failed) == ["broken"]
    assert isinstance(failed["broken"], GenerationFailed)
    for _ in range(request.evaluations - 2):
        assert late.step(["sound"]) == {}
    assert np.abs(late.decode("sound").astype(int) - expected).max() <= 1


def test_what_the_last_pass_broke_is_found_at_the_decoding(late: DiffusersBackend) -> None:
    late.start("a", request_for(late, steps=1))
    spoil(late, "a")
    assert late.step(["a"]) == {}
    with pytest.raises(GenerationFailed, match="not a finite number"):
        late.decode("a")


def test_in_an_engine_the_neighbour_of_a_broken_row_is_drawn(
    late: DiffusersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = late.start

    def start(request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        warnings = begin(request_id, request)
        if request.prompt == "broken":
            spoil(late, request_id)
        return warnings

    monkeypatch.setattr(late, "start", start)
    with Engine(late) as engine:
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


def test_a_pass_that_is_over_does_not_keep_its_rows(late: DiffusersBackend) -> None:
    late.start("a", request_for(late))
    late.step(["a"])
    row = late._rows["a"]
    late.step(["a"])
    late.decode("a")
    assert row.in_pass is not None
    assert row.in_pass._rows == ()
    late.close()
