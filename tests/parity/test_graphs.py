"""Compiled graphs: at every occupancy the modules' picture, no slot touching another, no call refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.neuron.standin import StandIn
from mezzotint.core import Cancelled, Done, GenerationRequest, Pixels, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.models.graphs import load_graphs
from mezzotint.samplers import SAMPLERS
from tests.conftest import GRAPH_BATCH, GRAPH_SIZES

NAMES = [sampler.name for sampler in SAMPLERS]
SIZE = {"width": 64, "height": 64}


def mixed(studio: Any, count: int, guidance_scale: float) -> list[tuple[int, ResolvedRequest]]:
    """Requests of different steps, samplers, scales and prompts, each joining a pass later than the last."""
    return [
        (
            index,
            studio.request(
                prompt=f"picture {index}",
                negative_prompt=(None, "", "dull")[index % 3],
                scheduler=NAMES[3 * index % len(NAMES)],
                steps=3 + index,
                guidance_scale=guidance_scale + index if guidance_scale else 0.0,
                seed=100 + index,
                **SIZE,
            ),
        )
        for index in range(count)
    ]


def apart(drawn: Pixels, expected: Pixels) -> int:
    return int(np.abs(drawn.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("occupancy", range(1, GRAPH_BATCH + 1))
def test_mixed_steps_and_guidance_at_every_occupancy_draw_what_the_modules_draw(
    graphs_studio: Any, modules_studio: Any, occupancy: int, guidance_scale: float
) -> None:
    arrivals = mixed(graphs_studio, occupancy, guidance_scale)
    pictures = zip(graphs_studio.draw(*arrivals), modules_studio.draw(*arrivals), strict=True)
    assert max(apart(drawn, expected) for drawn, expected in pictures) <= 1


@pytest.mark.parametrize("guidance_scale", [5.0, 0.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("changed", range(GRAPH_BATCH))
def test_changing_one_slot_leaves_the_others_equal_to_the_bit(
    graphs_studio: Any, changed: int, guidance_scale: float
) -> None:
    requests = [request for _, request in mixed(graphs_studio, GRAPH_BATCH, guidance_scale)]
    # One length, so that the slots stay where they are.
    before = [replace(request, steps=4, scheduler="Euler a") for request in requests]
    after = list(before)
    after[changed] = replace(before[changed], prompt="another", seed=9, scheduler="DDIM")
    drawn = [graphs_studio.draw(*((0, request) for request in each)) for each in (before, after)]
    same = [bool(np.array_equal(*pair)) for pair in zip(*drawn, strict=True)]
    assert same == [index != changed for index in range(GRAPH_BATCH)]


def test_an_idle_slot_changes_nothing_to_the_bit(graphs_studio: Any) -> None:
    """Alone, a request has zeros in the slots beside it; the same request there twice has company."""
    request = graphs_studio.request(steps=3, guidance_scale=0.0, **SIZE)
    alone = graphs_studio.draw((0, request))[0]
    first, *_ = graphs_studio.draw((0, request), (0, replace(request, seed=8, prompt="another")))
    assert np.array_equal(alone, first)


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def engine(tiny_graphs: Path, stand_in: StandIn) -> Iterator[Engine]:
    with Engine(load_graphs(tiny_graphs, stand_in=stand_in)) as engine:
        yield engine


@st.composite
def requests(draw: Any) -> GenerationRequest:
    """Whatever a caller can ask of the tiny SDXL in its compiled sizes."""
    width, height = draw(st.sampled_from(GRAPH_SIZES))
    request = GenerationRequest(
        draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=40)) + "x",
        negative_prompt=draw(st.none() | st.sampled_from(["", "dull", "blue " * 30])),
        width=width,
        height=height,
        steps=draw(st.integers(1, 4)),
        guidance_scale=draw(st.sampled_from([0.0, 1.0, 1.5, 7.5])),
        scheduler=draw(st.sampled_from(NAMES)),
        seed=draw(st.integers(0, 2**63 - 1)),
        preview_every=draw(st.integers(0, 2)),
    )
    if not draw(st.booleans()):
        return request
    sides = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    image = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (*sides, 3), dtype=np.uint8)
    mask = draw(st.none() | st.sampled_from([0, 255]))
    # Without a size the engine takes the nearest that is compiled.
    size = draw(st.sampled_from([{}, {"width": None, "height": None}]))
    strength = draw(st.none() | st.sampled_from([0.3, 1.0])) if (request.steps or 0) > 3 else None
    return replace(
        request,
        image=image,
        mask=None if mask is None else np.full(sides, mask, np.uint8),
        strength=strength,
        **size,
    )


@settings(max_examples=25)
@given(st.lists(st.tuples(requests(), st.booleans()), min_size=1, max_size=7))
def test_no_call_that_the_engine_can_make_is_refused_by_the_stand_in(
    engine: Engine, stand_in: StandIn, asked: list[tuple[GenerationRequest, bool]]
) -> None:
    before = stand_in.calls.total()
    tickets = [(engine.submit(request), leaves) for request, leaves in asked]
    for ticket, leaves in tickets:
        if leaves:
            ticket.cancel()
    endings = [list(ticket.events())[-1] for ticket, _ in tickets]
    assert stand_in.refused == []
    assert {type(ending) for ending in endings} <= {Done, Cancelled}
    if not all(leaves for _, leaves in tickets):
        assert stand_in.calls.total() > before


async def test_warm_up_runs_each_size_and_the_cost_knows_them(tiny_graphs: Path) -> None:
    stand_in = StandIn()
    backend = load_graphs(tiny_graphs, stand_in=stand_in)
    with Engine(backend) as engine:
        await asyncio.to_thread(engine.warm_up)
        assert engine.info.max_batch == GRAPH_BATCH
        seen = {(key.width, key.height, key.guided) for key in engine.cost.known()}
    assert {(*size, guided) for size in GRAPH_SIZES for guided in (True, False)} <= seen
    assert stand_in.refused == []


def test_the_receipt_names_the_backend_the_model_and_the_graphs(
    graphs_studio: Any, modules_studio: Any
) -> None:
    info, modules = graphs_studio.backend.info, modules_studio.backend.info
    assert isinstance(graphs_studio.backend, DiffusersBackend)
    assert (info.model, info.backend, info.dtype) == (modules.model, "neuron-stand-in", "fp32")
    assert info.versions["torch"] == modules.versions["torch"]
    assert len(info.versions["artefact"]) == 16
