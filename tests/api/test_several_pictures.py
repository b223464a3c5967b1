"""A request of several pictures is let in as one: on an idle engine it is drawn, however long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import DeadlineUnreachable
from mezzotint.serve.jobs import drawing, runner
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.stores.job import FINAL
from mezzotint.serve.wire import Order, Refused, WireEvent
from tests.api.inprocess import Gate, InProcessReplicas, gate, settings_of
from tests.waiting import until

# Each of six pictures takes more than half of what the engine takes on at a time.
BACKLOG_SECONDS = 0.5
STEPS = 30
SEVERAL = {"prompt": "a", "n": 6, "size": "64x64", "num_inference_steps": STEPS}
A1111 = {"prompt": "a", "batch_size": 6, "width": 64, "height": 64, "steps": STEPS}
GENERATIONS = "/v1/images/generations"
JOBS = "/v1/images/jobs"


class Distant(InProcessReplicas):
    """As in another process: all pictures of a request are sent before the engine has answered the first."""

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        await asyncio.sleep(0.05)
        async for event in super().generate(order):
            yield event


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    monkeypatch.setattr("tests.api.inprocess.InProcessReplicas", Distant)
    settings = settings_of(tmp_path, max_backlog_s=BACKLOG_SECONDS)
    engine = Engine(FakeBackend(row_seconds=0.01, max_batch=2), max_backlog_s=BACKLOG_SECONDS)
    await asyncio.to_thread(engine.warm_up, [(64, 64)])
    replica = EngineReplica(settings, engine)
    try:
        async with gate(settings, replica) as server:
            yield server
    finally:
        replica.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [(GENERATIONS, SEVERAL), (GENERATIONS, {**SEVERAL, "stream": True}), ("/sdapi/v1/txt2img", A1111)],
)
async def test_an_idle_engine_draws_all_of_them(server: Gate, path: str, body: dict[str, Any]) -> None:
    prepared = await server.services.gateway.prepare(GenerationRequest("a", steps=STEPS, width=64, height=64))
    assert server.services.gateway.cost_s([prepared]) > BACKLOG_SECONDS / 2
    answer = await server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text


async def test_where_there_is_no_room_for_all_of_them_none_is_begun(server: Gate) -> None:
    long = asyncio.create_task(
        server.client.post(GENERATIONS, json={**SEVERAL, "n": 2, "num_inference_steps": 150})
    )

    async def busy() -> Any:
        return any(report.backlogs for report in server.services.gateway.reports)

    await until(busy, "the gateway to know that the engine is busy")
    answer = await server.client.post(GENERATIONS, json=SEVERAL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert (await long).status_code == 200


async def test_a_job_of_several_begins_at_once_and_is_not_begun_again(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_RETRY_SECONDS", 600.0)
    monkeypatch.setattr(runner, "MAX_RETRY_SECONDS", 600.0)
    job = await server.json("POST", JOBS, json=SEVERAL)

    async def ended() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told if told["state"] in FINAL else None

    assert (await until(ended, "the end of the job"))["state"] == "done"


async def test_a_job_whose_pictures_find_room_one_by_one_goes_on_with_those_that_did(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_RETRY_SECONDS", 600.0)
    monkeypatch.setattr(runner, "MAX_RETRY_SECONDS", 600.0)
    # Another's picture, so that the engine is not idle and has no room for six.
    short = {**SEVERAL, "n": 1, "num_inference_steps": 5}
    other = asyncio.create_task(server.client.post(GENERATIONS, json=short))
    job = await server.json("POST", JOBS, json={**SEVERAL, "num_inference_steps": 10})

    async def ended() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told if told["state"] in FINAL else None

    assert (await until(ended, "the end of the job"))["state"] == "done"
    assert (await other).status_code == 200


async def test_a_picture_that_comes_too_late_does_not_end_those_of_its_job_that_go_on(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "ROOM_SECONDS", 0.02)
    draw = Distant.generate

    async def refuse_the_second(self: Distant, order: Order) -> AsyncGenerator[WireEvent]:
        if order.request.seed == 8:
            yield Refused.from_error(DeadlineUnreachable("it takes longer alone", param="deadline_s"))
            return
        async for event in draw(self, order):
            yield event

    monkeypatch.setattr(Distant, "generate", refuse_the_second)
    job = await server.json("POST", JOBS, json={**SEVERAL, "n": 2, "seed": 7})

    async def ended() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told if told["state"] in FINAL else None

    told = await until(ended, "the end of the job")
    assert (told["state"], told["error"]["code"]) == ("failed", "deadline_unreachable")
    assert [image["seed"] for image in told["images"]] == [7]
