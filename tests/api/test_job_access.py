"""Whose a job is: each key sees and stops its own, within its limits, as long as it is good."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import GenerationFailed, MezzotintError, QueueFull
from mezzotint.serve.access import access
from mezzotint.serve.access.admission import Admission
from mezzotint.serve.access.limits import Limits
from mezzotint.serve.jobs import runner
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.stores.keys import KeyStore, NewKey
from mezzotint.serve.wire import Order, WireEvent
from tests.api.inprocess import Gate, gate, replica_of, settings_of, usage_written
from tests.waiting import WAIT_SECONDS, until

JOBS = "/v1/images/jobs"
SMALL = {"prompt": "a lighthouse", "size": "64x64", "num_inference_steps": 4, "seed": 11}
# Half a minute at least: not over before somebody has stopped it.
LONG = {**SMALL, "prompt": "slow", "num_inference_steps": 150}
MakeKey = Callable[..., Awaitable[dict[str, str]]]


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    if request.prompt == LONG["prompt"] and where == "step":
        time.sleep(0.2)
    return None


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineReplica]:
    backend = FakeBackend(pass_seconds=0.03, fault=fault)
    replica = replica_of(settings_of(tmp_path_factory.mktemp("stores")), backend)
    yield replica
    replica.close()


@pytest.fixture
async def server(tmp_path: Path, replica: EngineReplica) -> AsyncIterator[Gate]:
    async with gate(settings_of(tmp_path, auth="on"), replica) as server:
        yield server


@pytest.fixture
def make_key(server: Gate) -> MakeKey:
    """Headers with a new key."""

    async def make(name: str, **limits: Any) -> dict[str, str]:
        _, text = await KeyStore(server.services.database).create(NewKey(name, **limits))
        return {"authorization": f"Bearer {text}"}

    return make


async def create(server: Gate, key: dict[str, str], **fields: Any) -> dict[str, Any]:
    return dict(await server.json("POST", JOBS, json={**SMALL, **fields}, headers=key))


async def reached(server: Gate, key: dict[str, str], job: dict[str, Any], *states: str) -> dict[str, Any]:
    async def there() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}", headers=key)
        return told if told["state"] in states else None

    return dict(await until(there, f"{job['id']} to be {states}"))


async def test_a_job_is_there_for_its_own_key_alone(server: Gate, make_key: MakeKey) -> None:
    mine, other = await make_key("mine"), await make_key("other")
    job = await create(server, mine)
    await reached(server, mine, job, "done")
    path = f"{JOBS}/{job['id']}"
    for method, address in (
        ("GET", path),
        ("GET", path + "/events"),
        ("GET", path + "/images/0"),
        ("DELETE", path),
    ):
        response = await server.client.request(method, address, headers=other)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found"), address
        response = await server.client.request(method, address)
        assert response.status_code == 401, address
    assert (await server.json("GET", JOBS, headers=other))["data"] == []
    assert [each["id"] for each in (await server.json("GET", JOBS, headers=mine))["data"]] == [job["id"]]


async def test_two_keys_may_use_one_idempotency_key(server: Gate, make_key: MakeKey) -> None:
    ids = set()
    for name in ("one", "two"):
        headers = {**await make_key(name), "idempotency-key": "once"}
        ids.add((await server.json("POST", JOBS, json=SMALL, headers=headers))["id"])
    assert len(ids) == 2


async def test_a_waiting_job_of_a_revoked_key_is_not_drawn(server: Gate, make_key: MakeKey) -> None:
    mine = await make_key("mine")
    server.services.runner._full_until = math.inf
    waiting = await create(server, mine)
    keys = KeyStore(server.services.database)
    key = next(key for key in await keys.list() if key.caller.name == "mine")
    assert await keys.revoke(key.caller.id)

    async def refused() -> bool:
        return (await server.client.get(JOBS, headers=mine)).status_code == 401

    await until(refused, "the revocation to be known here")
    server.services.runner._full_until = 0.0

    async def failed() -> Any:
        job = await server.services.jobs.get(waiting["id"])
        return job if job.state == "failed" else None

    job = await until(failed, "the job to fail")
    assert job.error["code"] == "invalid_api_key"


async def test_jobs_beyond_a_keys_concurrency_wait_for_it(server: Gate, make_key: MakeKey) -> None:
    mine = await make_key("mine", concurrent_images=1)
    jobs = [await create(server, mine, num_inference_steps=20) for _ in range(6)]
    begun = 0
    for job in jobs:
        assert (await reached(server, mine, job, "done", "failed"))["state"] == "done"
        events = (await server.client.get(f"{JOBS}/{job['id']}/events", headers=mine)).text
        begun += events.count("event: running")
    # They wait for each other, instead of being begun and refused again and again.
    assert begun <= 3 * len(jobs)
    response = await server.client.post(JOBS, json={**SMALL, "n": 2}, headers=mine)
    assert (response.status_code, response.json()["error"]["param"]) == (403, "n")


async def test_a_key_whose_share_of_the_engine_is_used_up_keeps_no_other_keys_job_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.01)
    opened = threading.Event()

    def closed(where: str, request: ResolvedRequest, done: int) -> None:
        assert where != "step" or opened.wait(WAIT_SECONDS)

    settings = settings_of(tmp_path, auth="on", max_backlog_s=100.0)
    replica = replica_of(settings, FakeBackend(fault=closed, max_batch=1))
    replica._engine.cost.calibrate(BatchKey(128, 128, True), {1: 1.0})
    try:
        async with gate(settings, replica) as server:
            jobs, keys = server.services.jobs, KeyStore(server.services.database)
            flood, flooding = await keys.create(NewKey("flood"))
            _, asking = await keys.create(NewKey("other"))
            with suppress(QueueFull):
                while True:
                    replica._engine.submit(GenerationRequest("a fox", steps=20, tenant=flood.caller.id))
            server.services.runner._full_until = math.inf
            for text in [flooding] * 6 + [asking]:
                # 20 s of work each: of the flood's there is no room for another one.
                job = await create(
                    server, {"authorization": f"Bearer {text}"}, size="128x128", num_inference_steps=20
                )
            server.services.runner._full_until = 0.0

            async def taken() -> bool:
                # By an engine: else there is no news of it.
                return await jobs.events.latest(job["id"], "progress") is not None

            await until(taken, "an engine to take the other key's job")
            begun = [each.job_id for each in await jobs.events.after(0) if each.kind == "running"]
    finally:
        opened.set()
        replica.close()
    assert job["id"] in begun[:5]


@pytest.mark.parametrize("path", ["generations", "generations, streamed", "jobs", "txt2img"])
async def test_of_a_request_that_fails_what_was_drawn_is_charged(
    server: Gate, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    mine = await make_key("mine", compute_s_per_day=100.0)
    admissions: list[Admission] = []
    monkeypatch.setattr(
        access, "Admission", lambda images: admissions.append(Admission(images)) or admissions[-1]
    )
    replicas = server.services.gateway._replicas
    original = replicas.generate

    async def fail_after_the_first(order: Order) -> AsyncGenerator[WireEvent]:
        while order.request.seed == 12 and not any(each.drawn for each in admissions):
            await asyncio.sleep(0.01)
        if order.request.seed == 12:
            raise GenerationFailed("no usable picture")
        async for event in original(order):
            yield event

    monkeypatch.setattr(replicas, "generate", fail_after_the_first)
    if path == "jobs":
        await reached(server, mine, await create(server, mine, n=2), "failed")
    elif path == "txt2img":
        wanted = {"prompt": "a", "width": 64, "height": 64, "steps": 2, "seed": 11, "batch_size": 2}
        await server.client.post("/sdapi/v1/txt2img", json=wanted, headers=mine)
    else:
        body = {**SMALL, "n": 2, "stream": "streamed" in path}
        await server.client.post("/v1/images/generations", json=body, headers=mine)
    assert await used_images(server) == 1


async def used_images(server: Gate) -> int:
    await usage_written(server.services.access)
    [key] = await KeyStore(server.services.database).list()
    return key.used_images


async def test_of_a_job_that_is_given_back_the_rest_is_not_charged_twice(
    server: Gate, make_key: MakeKey
) -> None:
    mine = await make_key("mine", compute_s_per_day=100.0)
    job = await create(server, mine, **LONG, n=2)
    await until(lambda: begun_by(server, mine, job), "a step")
    await server.services.runner.__aexit__(None, None, None)
    assert (await server.services.jobs.get(job["id"])).state == "queued"
    assert await used_images(server) == 0


async def test_of_a_job_whose_lease_is_lost_the_rest_is_not_charged_twice(
    server: Gate, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await make_key("mine", compute_s_per_day=100.0)

    async def not_held(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(server.services.jobs, "set_image", not_held)
    job = await create(server, mine)
    await reached(server, mine, job, "failed")
    assert await used_images(server) == 0


async def test_a_job_that_its_owner_cancels_is_charged(server: Gate, make_key: MakeKey) -> None:
    mine = await make_key("mine", compute_s_per_day=100.0)
    job = await create(server, mine, **LONG, n=2)
    await until(lambda: begun_by(server, mine, job), "a step")
    await server.client.delete(f"{JOBS}/{job['id']}", headers=mine)
    await reached(server, mine, job, "cancelled")
    assert await used_images(server) == 2


async def begun_by(server: Gate, key: dict[str, str], job: dict[str, Any]) -> bool:
    told = await server.json("GET", f"{JOBS}/{job['id']}", headers=key)
    return bool(told["state"] == "running" and told["progress"])


async def test_an_interruption_before_a_request_is_let_in_is_not_lost(
    server: Gate, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await make_key("mine", concurrent_images=1)
    taking, go_on = asyncio.Event(), asyncio.Event()
    take = Limits.take

    async def slow(self: Limits, *arguments: Any) -> str:
        taking.set()
        await go_on.wait()
        return await take(self, *arguments)

    monkeypatch.setattr(Limits, "take", slow)
    wanted = {"prompt": "a", "width": 64, "height": 64, "steps": 2}
    drawing = asyncio.create_task(server.client.post("/sdapi/v1/txt2img", json=wanted, headers=mine))
    await taking.wait()
    await server.json("POST", "/sdapi/v1/interrupt", headers=mine)
    go_on.set()
    answer: httpx.Response = await drawing
    assert answer.json()["images"] == []
    assert json.loads(answer.json()["info"])["interrupted"] is True


async def test_asking_for_jobs_is_within_the_keys_rate(server: Gate, make_key: MakeKey) -> None:
    mine = await make_key("mine", requests_per_minute=2)
    jobs = [await create(server, mine) for _ in range(2)]
    response = await server.client.post(JOBS, json=SMALL, headers=mine)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert float(response.headers["retry-after"]) > 0
    for job in jobs:
        await reached(server, mine, job, "done")


async def test_a1111s_clients_log_in_with_a_password_and_are_refused_in_its_shape(
    server: Gate, make_key: MakeKey
) -> None:
    key = (await make_key("mine"))["authorization"].removeprefix("Bearer ")
    basic = base64.b64encode(f"any:{key}".encode()).decode()
    options = await server.json("GET", "/sdapi/v1/options", headers={"authorization": f"Basic {basic}"})
    assert options["sd_model_checkpoint"] == "fake"
    for headers in ({}, {"authorization": ""}, {"authorization": "Basic " + basic[:-4]}):
        response = await server.client.get("/sdapi/v1/options", headers=headers)
        assert response.status_code == 401
        assert set(response.json()) == {"error", "detail", "body", "errors"}
        assert "www-authenticate" in response.headers


async def test_progress_and_interrupt_are_of_ones_own_key(server: Gate, make_key: MakeKey) -> None:
    mine, other = await make_key("mine"), await make_key("other")
    wanted = {"prompt": LONG["prompt"], "width": 64, "height": 64, "steps": 150}
    drawing = asyncio.create_task(server.client.post("/sdapi/v1/txt2img", json=wanted, headers=mine))

    async def begun() -> Any:
        return (await server.json("GET", "/sdapi/v1/progress", headers=mine))["progress"]

    await until(begun, "progress")
    assert (await server.json("GET", "/sdapi/v1/progress", headers=other))["state"]["job_count"] == 0
    await server.json("POST", "/sdapi/v1/interrupt", headers=other)
    assert (await begun()) > 0
    await server.json("POST", "/sdapi/v1/interrupt", headers=mine)
    answer: httpx.Response = await drawing
    assert answer.json()["images"] == []
