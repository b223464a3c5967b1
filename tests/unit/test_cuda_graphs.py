"""The bookkeeping of recorded passes, with a recorder that replays by calling again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mezzotint.backends import cuda_graphs
from mezzotint.backends.cuda_graphs import CALLS_BETWEEN, MAX_FAILURES, GraphedCalls


class Recorder:
    """Replays as a graph does: the same tensors in, the same tensors out, whatever the call is given."""

    def __init__(self) -> None:
        self.fails = False
        self.records = 0

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.records += 1
        result = call()

        def replay() -> None:
            for held, made in zip(tensors_of(result), tensors_of(call()), strict=True):
                held.copy_(made)

        return replay, result


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for each in value:
            yield from tensors_of(each)


class ControlNet:
    """Gives a list and a tensor, as diffusers' does."""

    def __call__(self, sample: torch.Tensor, **inputs: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        picture = inputs["controlnet_cond"].mean()
        return [sample + picture, sample[:, :2] * picture], sample.mean() - picture


class Unet:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor]:
        self.calls += 1
        total = sample + timestep.view(-1, 1, 1, 1) + inputs["encoder_hidden_states"].mean()
        condition = inputs["timestep_cond"]
        if condition is not None:
            total = total + condition.sum()
        return (total + sum(each.sum() for each in inputs["added_cond_kwargs"].values()),)


def inputs(width: int, seed: int, *, condition: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return (random(width, 4, 8, 8), random(width)), {
        "encoder_hidden_states": random(width, 3, 5),
        "timestep_cond": random(width, 2) if condition else None,
        "added_cond_kwargs": {"text_embeds": random(width, 6), "time_ids": random(width, 6)},
        "return_dict": False,
    }


def test_what_gives_several_tensors_is_recorded_as_well() -> None:
    graphed, plain = GraphedCalls(ControlNet(), Recorder(), calls_before=1), ControlNet()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        sample, picture = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, generator=generator)
        torch.testing.assert_close(
            graphed(sample, controlnet_cond=picture), plain(sample, controlnet_cond=picture)
        )
    assert (graphed.recorded, graphed.replayed) == (1, 3)


@pytest.mark.parametrize("large", ["inputs", "results"])
def test_what_holds_too_much_is_launched_and_not_recorded(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = torch.zeros(1, 4, 8, 8)
    monkeypatch.setattr(
        cuda_graphs, "MAX_BYTES", sample.nbytes - 1 if large == "inputs" else 3 * sample.nbytes
    )

    def twice(given: torch.Tensor) -> tuple[torch.Tensor]:
        return (given.repeat(3, 1, 1, 1),)

    recorder = Recorder()
    graphed = GraphedCalls(twice, recorder, calls_before=1)
    for _ in range(3):
        assert torch.equal(graphed(sample)[0], sample.repeat(3, 1, 1, 1))
    assert (graphed.recorded, recorder.records) == (0, 0)


def test_calls_with_and_without_residuals_are_of_two_kinds() -> None:
    graphed = GraphedCalls(Unet(), Recorder(), calls_before=0)
    args, kwargs = inputs(1, 0)
    graphed(*args, **kwargs)
    graphed(*args, **kwargs, down_block_additional_residuals=(torch.zeros(1), torch.zeros(2)))
    graphed(*args, **kwargs)
    assert graphed.recorded == 2


@pytest.mark.parametrize("condition", [False, True])
def test_a_replay_gives_what_the_call_would(condition: bool) -> None:
    graphed, plain = GraphedCalls(Unet(), Recorder(), calls_before=1), Unet()
    for seed in range(6):
        args, kwargs = inputs(2, seed, condition=condition)
        torch.testing.assert_close(graphed(*args, **kwargs)[0], plain(*args, **kwargs)[0])
    assert (graphed.recorded, graphed.replayed) == (1, 5)


def test_a_result_is_the_callers_own() -> None:
    graphed = GraphedCalls(Unet(), Recorder(), calls_before=0)
    args, kwargs = inputs(1, 0)
    first = graphed(*args, **kwargs)[0]
    kept = first.clone()
    args, kwargs = inputs(1, 1)
    graphed(*args, **kwargs)
    assert torch.equal(first, kept)


def test_only_what_comes_often_is_recorded() -> None:
    recorder = Recorder()
    graphed = GraphedCalls(Unet(), recorder, calls_before=2)
    for width in range(1, 6):
        args, kwargs = inputs(width, 0)
        graphed(*args, **kwargs)
    assert recorder.records == 0
    for _ in range(3):
        args, kwargs = inputs(3, 0)
        graphed(*args, **kwargs)
    assert recorder.records == 1


def test_the_kind_that_was_used_longest_ago_makes_room() -> None:
    recorder = Recorder()
    graphed = GraphedCalls(Unet(), recorder, max_graphs=2, calls_before=0)
    for width in (1, 2, 1, 3):
        args, kwargs = inputs(width, 0)
        graphed(*args, **kwargs)
    assert recorder.records == 3
    args, kwargs = inputs(1, 0)
    graphed(*args, **kwargs)
    assert recorder.records == 3
    args, kwargs = inputs(2, 0)
    graphed(*args, **kwargs)
    assert recorder.records == 4


def test_what_cannot_be_recorded_is_called_and_seldom_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    unet, recorder = Unet(), Recorder()
    recorder.fails = True
    graphed, plain = GraphedCalls(unet, recorder, calls_before=0), Unet()
    times = (MAX_FAILURES + 2) * CALLS_BETWEEN
    for seed in range(times):
        args, kwargs = inputs(1, seed)
        torch.testing.assert_close(graphed(*args, **kwargs)[0], plain(*args, **kwargs)[0])
    assert unet.calls == times
    assert [record.levelname for record in caplog.records] == ["WARNING"] * MAX_FAILURES


def test_a_recording_that_another_thread_disturbed_is_made_later() -> None:
    recorder = Recorder()
    recorder.fails = True
    graphed = GraphedCalls(Unet(), recorder, calls_before=0)
    args, kwargs = inputs(1, 0)
    graphed(*args, **kwargs)
    recorder.fails = False
    for _ in range(CALLS_BETWEEN):
        graphed(*args, **kwargs)
        assert graphed.recorded == 0
    graphed(*args, **kwargs)
    assert (graphed.recorded, graphed.replayed) == (1, 1)


def test_disturbances_that_were_got_over_are_forgotten_and_cost_no_other_recording() -> None:
    recorder = Recorder()
    graphed = GraphedCalls(Unet(), recorder, calls_before=0, max_graphs=1)
    args, kwargs = inputs(1, 0)
    other = inputs(2, 0)
    for _ in range(MAX_FAILURES + 1):
        graphed(*args, **kwargs)
        recorder.fails = True
        graphed(*other[0], **other[1])
        replayed = graphed.replayed
        graphed(*args, **kwargs)
        # Still there, though another was to take its place.
        assert graphed.replayed == replayed + 1
        recorder.fails = False
        recorded = graphed.recorded
        for _ in range(CALLS_BETWEEN + 1):
            graphed(*other[0], **other[1])
        assert graphed.recorded == recorded + 1


def test_what_one_thread_has_called_is_not_ready_in_another() -> None:
    graphed = GraphedCalls(Unet(), Recorder(), calls_before=2)
    args, kwargs = inputs(1, 0)
    for _ in range(2):
        graphed(*args, **kwargs)
    thread = threading.Thread(target=lambda: graphed(*args, **kwargs))
    thread.start()
    thread.join()
    assert graphed.recorded == 0
    graphed(*args, **kwargs)
    assert graphed.recorded == 1
