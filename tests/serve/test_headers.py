"""The seed and the times on every answer whose request got as far as a seed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.engine.rows import BatchKey
from mezzotint.serve.replica import EngineReplica
from tests.api.inprocess import Gate, gate, replica_of, settings_of
from tests.waiting import until

PASS_SECONDS = 0.02
SMALL = {"prompt": "a", "steps": 2, "seed": 7, "width": 64, "height": 64}
OPENAI = {"prompt": "a", "num_inference_steps": 2, "seed": 7, "size": "64x64"}
TIMES = ("x-mezzotint-queue-ms", "x-mezzotint-compute-ms")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineReplica]:
    settings = settings_of(tmp_path_factory.mktemp("stores"))
    replica = replica_of(settings, FakeBackend(pass_seconds=PASS_SECONDS))
    yield replica
    replica.close()


@pytest.fixture
async def server(tmp_path: Path, replica: EngineReplica) -> AsyncIterator[Gate]:
    async with gate(settings_of(tmp_path), replica) as server:
        yield server


def told(response: httpx.Response) -> tuple[str | None, ...]:
    return tuple(response.headers.get(name) for name in ("x-mezzotint-seed", *TIMES))


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "/imagine", {"params": SMALL}),
        ("POST", "/v1/images/generations", {"json": {**OPENAI, "n": 2}}),
        ("POST", "/sdapi/v1/txt2img", {"json": {**SMALL, "batch_size": 2}}),
    ],
)
async def test_a_drawn_answer_says_the_first_seed_and_the_times(
    server: Gate, method: str, path: str, fields: dict[str, Any]
) -> None:
    response = await server.client.request(method, path, **fields)
    seed, queue_ms, compute_ms = told(response)
    assert (response.status_code, seed) == (200, "7")
    assert float(queue_ms or "") >= 0
    assert float(compute_ms or "") >= 2 * PASS_SECONDS * 1000


async def test_a_304_says_the_seed_and_that_nothing_was_drawn(server: Gate) -> None:
    first = await server.client.get("/imagine", params=SMALL)
    known = {"If-None-Match": first.headers["etag"]}
    response = await server.client.get("/imagine", params=SMALL, headers=known)
    assert (response.status_code, told(response)) == (304, ("7", "0.0", "0.0"))


async def test_a_request_that_came_too_late_says_the_seed_and_that_no_picture_came(
    server: Gate, replica: EngineReplica
) -> None:
    # What is known to take longer is refused.
    replica._engine.cost.calibrate(BatchKey(64, 64, True), {1: PASS_SECONDS / 1000})
    await server.services.gateway.look()
    late = {**OPENAI, "num_inference_steps": 100, "deadline_s": 0.1}
    response = await server.client.post("/v1/images/generations", json=late)
    assert (response.status_code, told(response)) == (504, ("7", "0.0", "0.0"))


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "/imagine", {"params": SMALL, "headers": {"Accept": "text/event-stream"}}),
        ("POST", "/v1/images/generations", {"json": {**OPENAI, "stream": True}}),
    ],
)
async def test_events_say_the_seed_and_no_times_before_there_are_any(
    server: Gate, method: str, path: str, fields: dict[str, Any]
) -> None:
    response = await server.client.request(method, path, **fields)
    assert (response.status_code, told(response)) == (200, ("7", None, None))


async def test_every_answer_about_a_job_says_its_seed_and_that_this_request_drew_nothing(
    server: Gate,
) -> None:
    made = await server.client.post("/v1/images/jobs", json={**OPENAI, "n": 2})
    assert (made.status_code, told(made)) == (202, ("7", "0.0", "0.0"))
    job = f"/v1/images/jobs/{made.json()['id']}"

    async def done() -> bool:
        return (await server.client.get(job)).json()["state"] == "done"

    await until(done, "the end of the job")
    for path, seed in {job: "7", f"{job}/images/1": "8"}.items():
        assert told(await server.client.get(path)) == (seed, "0.0", "0.0")
    assert told(await server.client.get(f"{job}/events")) == ("7", None, None)
    assert told(await server.client.delete(job)) == ("7", "0.0", "0.0")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/imagine?prompt="])
async def test_where_no_seed_was_settled_there_is_none_to_tell(server: Gate, path: str) -> None:
    assert told(await server.client.get(path)) == (None, None, None)


async def test_requests_side_by_side_do_not_mix_their_seeds(server: Gate) -> None:
    asked = [server.client.get("/imagine", params={**SMALL, "seed": seed}) for seed in range(8)]
    answered = await asyncio.gather(*asked)
    assert [told(each)[0] for each in answered] == [str(seed) for seed in range(8)]
