"""The stand-in forgives nothing that it says it does not. Runs where there is no GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from mezzotint.backends.cuda_graphs import CudaRecorder
from tests.gpu.needs import HAS_CUDA
from tests.gpu.stand_in import StandIn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device, and nothing stands in for it"),
]


@pytest.fixture(autouse=True)
def in_use(gpu: StandIn) -> Iterator[None]:
    with gpu.modes(), torch.inference_mode():
        yield


def pinned(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).pin_memory()


def looked_at_in_vain(given: torch.Tensor) -> bool:
    """Whoever catches what the look raises is told at the recording's end."""
    with suppress(RuntimeError):
        given.sum().item()
    return True


def recorded(recorder: CudaRecorder, call: Callable[[], torch.Tensor]) -> Any:
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        recorded = recorder.record(call)
    torch.cuda.synchronize()
    return recorded


def test_numbers_are_the_cpus() -> None:
    weight, image = torch.randn(8, 4, 3, 3), torch.randn(1, 4, 8, 8)
    expected = torch.nn.functional.conv2d(image, weight).softmax(1)
    found = torch.nn.functional.conv2d(image.cuda(), weight.to("cuda")).softmax(1)
    assert found.device == torch.device("cuda:0")
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: there[here.long()],
    ],
)
def test_tensors_of_two_devices_do_not_meet(mix: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="the CPU"):
        mix(torch.zeros(2), torch.zeros(2, device="cuda"))


def test_a_single_number_of_the_cpus_meets_any() -> None:
    assert (torch.ones(2, device="cuda") * torch.tensor(3.0)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "wait",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.isfinite().all()),
        lambda there: float(there[0]),
        lambda there: there.tolist(),
        lambda there: there.cpu(),
        lambda there: there[there > 0],
        lambda there: torch.linalg.solve(there.diag(), there),
        lambda there: torch.zeros(2).copy_(there),
        lambda there: there.copy_(torch.zeros(2)),
        lambda there: torch.zeros(2).to("cuda"),
        lambda there: torch.zeros(2).to("cuda", non_blocking=True),
        lambda there: torch.tensor([1.0], device="cuda"),
        lambda there: pinned(1.0).to("cuda"),
    ],
)
def test_where_the_host_must_not_wait_it_raises(wait: Callable[..., Any]) -> None:
    there = torch.ones(2, device="cuda")
    wait(there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="would wait"):
            wait(there)
        # What does not wait.
        pinned(1.0).to("cuda", non_blocking=True)
        torch.empty(2, pin_memory=True).copy_(there, non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_stream_reads_what_another_made_only_after_waiting_for_it() -> None:
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        made = torch.ones(2, device="cuda")
    with torch.cuda.stream(second):
        with pytest.raises(RuntimeError, match="race"):
            made + 1
        second.wait_stream(first)
        assert (made + 1).tolist() == [2.0, 2.0]


def test_a_stream_changes_what_another_reads_only_after_waiting_for_it() -> None:
    made = torch.ones(2, device="cuda")
    torch.cuda.synchronize()
    reader, writer = torch.cuda.Stream(), torch.cuda.Stream()
    done = torch.cuda.Event()
    with torch.cuda.stream(reader):
        half = made[:1] * 2
        done.record()
    with torch.cuda.stream(writer):
        with pytest.raises(RuntimeError, match="race"):
            made.zero_()
        done.synchronize()
        made.zero_()
    torch.cuda.synchronize()
    assert half.tolist() == [2.0]


def test_memory_is_given_back_once_nobody_uses_it(gpu: StandIn) -> None:
    stream = torch.cuda.Stream()
    for waits in (True, False):
        made = torch.ones(2, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            kept = made + 1
        if waits:
            torch.cuda.synchronize()
        del made
        gc.collect()
        assert [*gpu.faults] == [] if waits else len(gpu.faults) == 1
        del kept
    gpu.faults.clear()


def test_what_is_fetched_is_rubbish_until_it_was_waited_for() -> None:
    made = torch.ones(2, device="cuda")
    host = torch.empty(2, pin_memory=True)
    host.copy_(made, non_blocking=True)
    fetched = torch.cuda.Event(enable_timing=True)
    fetched.record()
    assert not torch.equal(host, torch.ones(2))
    with pytest.raises(RuntimeError, match="has not passed"):
        fetched.elapsed_time(fetched)
    fetched.synchronize()
    assert torch.equal(host, torch.ones(2))
    assert fetched.elapsed_time(fetched) == 0.0


def test_a_recording_computes_nothing_and_a_replay_all_of_it() -> None:
    given = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="default stream"):
        CudaRecorder().record(lambda: given * 2)
    replay, result = recorded(CudaRecorder(), lambda: (given * 2).add_(1).view(1, 2))
    assert result.isnan().all().item()
    replay()
    assert result.tolist() == [[3.0, 3.0]]
    given.fill_(5)
    replay()
    assert result.tolist() == [[11.0, 11.0]]


def test_nothing_is_collected_while_a_graph_is_recorded() -> None:
    given, collects = torch.ones(2, device="cuda"), []

    def call() -> torch.Tensor:
        collects.append(gc.isenabled())
        return given * 2

    recorded(CudaRecorder(), call)
    assert (collects, gc.isenabled()) == ([False], True)


def test_graphs_of_one_pool_overwrite_each_others_results() -> None:
    given, recorder = torch.ones(2, device="cuda"), CudaRecorder()
    (first, result), (second, _) = (recorded(recorder, lambda by=by: given * by) for by in (2, 3))
    first()
    kept = result.clone()
    second()
    assert kept.tolist() == [2.0, 2.0]
    assert result.isnan().all().item()


@pytest.mark.parametrize(
    "call",
    [
        lambda given: given[given > 0],
        lambda given: given * float(given[0]),
        lambda given: given.add_(1),
        lambda given: given + torch.ones(2).to("cuda"),
        lambda given: given + 1 if looked_at_in_vain(given) else given,
    ],
)
def test_what_cannot_be_recorded_raises(call: Callable[..., Any]) -> None:
    given, recorder = torch.ones(2, device="cuda"), CudaRecorder()
    with pytest.raises((RuntimeError, NotImplementedError)):
        recorded(recorder, lambda: call(given))
    # Nothing is left of the try.
    assert (given + 1).tolist() == [2.0, 2.0]
    replay, result = recorded(recorder, lambda: given + 1)
    replay()
    assert result.tolist() == [2.0, 2.0]
