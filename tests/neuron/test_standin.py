"""The stand-in refuses what the chip refuses, and fails as the chip's runtime fails."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.backends.neuron.graphs import Placed
from mezzotint.backends.neuron.shapes import Input, inputs_of
from mezzotint.backends.neuron.standin import StandIn
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed
from mezzotint.models.artefact import read_artefact
from mezzotint.models.graphs import load_graphs
from mezzotint.models.manifest import write_manifest
from mezzotint.resolving import resolve
from mezzotint.serve.health import Health
from tests.conftest import GRAPH_BATCH

LIMIT_SECONDS = 60.0
# The runtime raises RuntimeError alone; what happened is in the words (nrt_status.h).
ALLOCATION_FAILURE = 'nrt_tensor_allocate status=4 message="Allocation Failure"'
DEVICE_LOST = 'nrt_execute status=6 message="Hardware Error"'
TIMEOUT = 'nrt_execute status=5 message="Timeout"'
Tensors = list[torch.Tensor]


@pytest.fixture(scope="module")
def unet(tiny_graphs: Path) -> tuple[StandIn, Any, tuple[Input, ...]]:
    """The stand-in, its UNet for 64×64 pixels, and what that takes."""
    stand_in, bucket = StandIn(), read_artefact(tiny_graphs).buckets[0]
    inputs = bucket.inputs("unet")
    return stand_in, stand_in.load("unet", bucket.folder / "unet/model.neuron", inputs, 0), inputs


def fitting(inputs: tuple[Input, ...]) -> Tensors:
    return [torch.zeros(each.shape, dtype=getattr(torch, each.dtype)) for each in inputs]


def change(index: int, to: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: [to(each) if i == index else each for i, each in enumerate(tensors)]


WRONG: dict[str, Callable[[Tensors], Tensors]] = {
    "another size": change(0, lambda t: torch.zeros(4, 4, 8, 16)),
    "one row less": lambda tensors: [tensor[:3] for tensor in tensors],
    "one row more": lambda tensors: [torch.cat([tensor, tensor[:1]]) for tensor in tensors],
    "half precision": change(0, lambda t: t.half()),
    "a timestep of whole numbers": change(1, lambda t: t.long()),
    "one timestep for all": change(1, lambda t: t[0]),
    "a timestep with a rank too many": change(1, lambda t: t[:, None]),
    "a shorter text": change(2, lambda t: t[:, :-1].contiguous()),
    "a tensor that is not contiguous": change(0, lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)),
    "channels last": change(0, lambda t: t.contiguous(memory_format=torch.channels_last)),
    "another device": change(0, lambda t: t.to("meta")),
    "an input less": lambda tensors: tensors[:-1],
    "an input more": lambda tensors: [*tensors, tensors[0]],
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_call_that_the_graph_was_not_compiled_for_is_refused(
    unet: tuple[StandIn, Any, tuple[Input, ...]], what: str
) -> None:
    stand_in, graph, inputs = unet
    calls = stand_in.calls["unet"]
    with pytest.raises(RuntimeError, match="Bad Input"):
        graph(*WRONG[what](fitting(inputs)))
    assert stand_in.calls["unet"] == calls
    assert stand_in.refused[-1].startswith("unet: ")


def test_a_call_of_the_compiled_shapes_is_made_and_counted(
    unet: tuple[StandIn, Any, tuple[Input, ...]],
) -> None:
    stand_in, graph, inputs = unet
    calls = stand_in.calls["unet"]
    assert graph(*fitting(inputs))[0].shape == inputs[0].shape
    assert stand_in.calls["unet"] == calls + 1


def test_a_plain_graph_would_take_what_the_stand_in_refuses(tiny_graphs: Path) -> None:
    """Why there is a stand-in at all."""
    from mezzotint.backends.neuron.runtime import read_graph

    bucket = read_artefact(tiny_graphs).buckets[0]
    plain = read_graph(bucket.folder / "unet/model.neuron")
    tensors = fitting(bucket.inputs("unet"))
    assert plain(*[tensor[:3] for tensor in tensors])[0].shape[0] == 3


@pytest.fixture
def engine_with(small_graphs: Path) -> Iterator[Callable[..., tuple[Engine, StandIn]]]:
    made: list[Engine] = []

    def make(**options: Any) -> tuple[Engine, StandIn]:
        stand_in = StandIn(**options)
        made.append(Engine(load_graphs(small_graphs, stand_in=stand_in)))
        return made[-1], stand_in

    yield make
    for engine in made:
        engine.close()


def ask(**fields: Any) -> GenerationRequest:
    return GenerationRequest("a fox", **{"seed": 1, "steps": 2, **fields})


def test_a_device_without_memory_fails_the_pass_and_serves_the_next(
    engine_with: Callable[..., tuple[Engine, StandIn]],
) -> None:
    def fault(component: str, number: int) -> None:
        if (component, number) == ("unet", 1):
            raise RuntimeError(ALLOCATION_FAILURE)

    engine, _ = engine_with(fault=fault)
    with pytest.raises(GenerationFailed, match="ran out of memory; try a smaller size"):
        engine.generate(ask())
    assert engine.generate(ask()).width == 64


async def test_a_lost_device_has_its_replica_replaced(
    engine_with: Callable[..., tuple[Engine, StandIn]],
) -> None:
    def fault(component: str, number: int) -> None:
        raise RuntimeError(DEVICE_LOST)

    engine, stand_in = engine_with()
    health = Health(engine)
    engine.generate(ask())
    await health.check()
    stand_in.fault = fault
    for _ in range(3):
        with pytest.raises(GenerationFailed):
            engine.generate(ask())
        health.failed()
    with pytest.raises(RuntimeError, match="draws nothing any more"):
        await health.check()


class HungCall:
    """A fault: the `number`-th call of `component` does not come back until `end`, then as a time-out."""

    def __init__(self, component: str, number: int) -> None:
        self.began = threading.Event()
        self._component, self._number = component, number
        self._ended = threading.Event()

    def __call__(self, component: str, number: int) -> None:
        if (component, number) == (self._component, self._number):
            self.began.set()
            self._ended.wait()
            raise RuntimeError(TIMEOUT)

    def end(self) -> None:
        self._ended.set()


def test_a_hung_call_is_seen_as_a_long_pass_and_ends_with_the_runtimes_time_out(
    engine_with: Callable[..., tuple[Engine, StandIn]],
) -> None:
    hung = HungCall("unet", 2)
    engine, _ = engine_with(fault=hung)
    ticket = engine.submit(ask())
    assert hung.began.wait(LIMIT_SECONDS)
    age = engine.outlook().pass_age_s
    deadline = time.monotonic() + LIMIT_SECONDS
    while engine.outlook().pass_age_s <= age:
        assert time.monotonic() < deadline, "the pass does not age"
    hung.end()
    with pytest.raises(GenerationFailed):
        ticket.result(LIMIT_SECONDS)
    assert engine.generate(ask()).width == 64


def test_a_fault_on_one_core_fails_the_pass_after_the_other_core_has_ended(tiny_graphs: Path) -> None:
    ended = threading.Event()

    def slow(*tensors: torch.Tensor) -> torch.Tensor:
        ended.set()
        return tensors[0]

    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(DEVICE_LOST)

    for graphs in ([slow, broken], [broken, slow]):
        ended.clear()
        with pytest.raises(RuntimeError, match="Hardware Error"):
            Placed(graphs, [Input("sample", (2, 3))])(torch.zeros(4, 3))
        assert ended.is_set()


def test_guided_rows_are_on_both_cores_at_once(engine_with: Callable[..., tuple[Engine, StandIn]]) -> None:
    """Four guided pictures are eight rows, two pieces of four: each waits until the other has begun too."""
    together = threading.Barrier(2)

    def meet(component: str, number: int) -> None:
        if component == "unet":
            together.wait(LIMIT_SECONDS)

    engine, stand_in = engine_with(fault=meet)
    backend = engine._backend
    for index in range(4):
        backend.start(str(index), resolve(ask(seed=index), backend.info.limits))
    assert backend.step(["0", "1", "2", "3"]) == {}
    assert stand_in.calls["unet"] == 2


def test_rows_that_fit_one_piece_take_one_call(engine_with: Callable[..., tuple[Engine, StandIn]]) -> None:
    """Two guided pictures, or four unguided ones: a second call would take as long and bring nothing."""
    engine, stand_in = engine_with()
    engine.generate(ask(steps=3))
    assert stand_in.calls["unet"] == 3
    engine.generate(ask(steps=3, guidance_scale=0.0))
    assert stand_in.calls["unet"] == 6


def test_a_model_that_is_unguided_by_default_fills_both_cores_in_a_step(
    small_graphs: Path, tmp_path: Path
) -> None:
    """As turbo and lightning are: one row a picture, so twice as many pictures."""
    folder = Path(shutil.copytree(small_graphs, tmp_path / "turbo"))
    description = json.loads((folder / "mezzotint.json").read_text())
    description["limits"]["default_guidance_scale"] = 0.0
    (folder / "mezzotint.json").write_text(json.dumps(description))
    write_manifest(folder)
    stand_in = StandIn()
    backend = load_graphs(folder, stand_in=stand_in)
    assert backend.info.max_batch == 2 * GRAPH_BATCH
    names = [str(index) for index in range(backend.info.max_batch)]
    for name in names:
        backend.start(name, resolve(ask(seed=int(name)), backend.info.limits))
    assert backend.step(names) == {}
    assert stand_in.calls["unet"] == 2


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_any_number_of_rows_comes_back_in_order_from_any_number_of_cores(rows: int, cores: int) -> None:
    """Whatever an output is nested in, as traced graphs nest it."""

    def graph(rows: torch.Tensor) -> Any:
        assert rows.shape == (4, 2)
        assert rows.is_contiguous()
        return {"first": rows + 1, "rest": (rows * 2, [rows * 3])}

    placed = Placed([graph] * cores, [Input("rows", (4, 2))])
    given = torch.arange(2.0 * rows).view(2, rows).T
    first, (second, (third,)) = placed(given)
    for output, expected in ((first, given + 1), (second, given * 2), (third, given * 3)):
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_the_graphs_of_a_text_encoder_are_read_in_each_form_that_exporters_give() -> None:
    from mezzotint.backends.neuron.graphs import GraphTextEncoder

    pooled, last, states = (
        torch.zeros(1, 3),
        torch.ones(1, 2, 3),
        (torch.ones(1), torch.zeros(1), torch.ones(2)),
    )
    for outputs in ((pooled, last, states), (pooled, last, *states)):
        output = GraphTextEncoder(lambda _, outputs=outputs: outputs, {})(torch.zeros(1, 2))
        assert output[0] is pooled
        assert output.hidden_states[-2] is states[1]


def test_the_shapes_of_every_component_are_told_by_its_configuration(tiny_graphs: Path) -> None:
    bucket = read_artefact(tiny_graphs).buckets[1]
    assert (bucket.width, bucket.height) == (64, 32)
    assert bucket.inputs("vae_encoder") == (Input("sample", (1, 3, 32, 64)),)
    assert bucket.inputs("vae_decoder") == (Input("latent_sample", (1, 4, 4, 8)),)
    assert bucket.inputs("text_encoder") == (Input("input_ids", (1, 16), "int64"),)
    assert inputs_of("unet", bucket.configurations["unet"])[1] == Input("timestep", (4,))
