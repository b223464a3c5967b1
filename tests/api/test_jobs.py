"""Jobs over the application: made, drawn, told, stopped, and carried on after a loss."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request
from PIL import Image
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.backends.fake import FakeBackend
from mezzotint.cli.top import read
from mezzotint.core import ResolvedRequest
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import GenerationFailed, MezzotintError, QueueFull, ReplicaLost, StoreUnavailable
from mezzotint.imaging.metadata import read_receipt
from mezzotint.serve.access.caller import ANYONE
from mezzotint.serve.api.jobs import events as follow
from mezzotint.serve.jobs import drawing, feed, runner
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.stores import database, images, janitor
from mezzotint.serve.stores.clock import Clock, steady
from mezzotint.serve.stores.database import open_database
from mezzotint.serve.stores.job import FINAL, Job, NewJob
from mezzotint.serve.stores.job_rows import MAX_LOST, settle_overdue
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.stores.tables import jobs
from mezzotint.serve.wire import Order, WireEvent
from tests.api.inprocess import Gate, gate, replica_of, settings_of
from tests.waiting import WAIT_SECONDS, until

JOBS = "/v1/images/jobs"
SMALL = {"prompt": "a lighthouse", "size": "64x64", "num_inference_steps": 4, "seed": 11}
LONG = {**SMALL, "num_inference_steps": 150}
GATED = {**LONG, "prompt": "gated"}
# In each pass a picture of that prompt waits for one of these; they are let through by the fixture `passes`.
let_through = threading.Semaphore(0)
ALL = 100_000


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    if request.prompt == GATED["prompt"] and where == "step":
        assert let_through.acquire(timeout=WAIT_SECONDS)
    return GenerationFailed("the device is lost") if request.prompt == "break" and where == "step" else None


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend(pass_seconds=0.01, fault=fault)


@pytest.fixture(scope="module")
def replica(backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineReplica]:
    replica = replica_of(settings_of(tmp_path_factory.mktemp("stores")), backend)
    yield replica
    replica.close()


@pytest.fixture
async def server(tmp_path: Path, replica: EngineReplica) -> AsyncIterator[Gate]:
    async with gate(settings_of(tmp_path), replica) as server:
        yield server


@pytest.fixture
def passes(backend: FakeBackend) -> Iterator[threading.Semaphore]:
    """Each release lets one picture of `GATED` take one step."""
    global let_through
    let_through = threading.Semaphore(0)
    yield let_through
    # Else the engine would hold up the tests after this one.
    let_through.release(ALL)


@pytest.fixture
async def pair(tmp_path: Path, database_url: str, replica: EngineReplica) -> AsyncIterator[tuple[Gate, Gate]]:
    """Two gateways of one service, on either database."""
    settings = settings_of(tmp_path, gateways=2, database_url=database_url)
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(gate(settings, replica)),
            await stack.enter_async_context(gate(settings, replica)),
        )


async def create(server: Gate, **fields: Any) -> dict[str, Any]:
    response = await server.client.post(JOBS, json={**SMALL, **fields})
    assert response.status_code == 202, response.text
    return dict(response.json())


async def ended(server: Gate, job: dict[str, Any]) -> dict[str, Any]:
    async def final() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told if told["state"] in FINAL else None

    return dict(await until(final, f"the end of {job['id']}"))


async def told_of(server: Gate, job: dict[str, Any], kind: str, count: int) -> None:
    """Wait until the store has so many events of the kind."""

    async def there() -> bool:
        told = await server.services.jobs.events.after(0, [job["id"]])
        return sum(event.kind == kind for event in told) >= count

    await until(there, f"{count} events of {kind} of {job['id']}")


async def running(server: Gate, job: dict[str, Any]) -> dict[str, Any]:
    async def begun() -> Any:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told if told["state"] == "running" and told["progress"] else None

    return dict(await until(begun, f"a step of {job['id']}"))


def read_events(text: str) -> list[tuple[int | None, str, dict[str, Any]]]:
    """Id, kind and data of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            number = int(lines["id"]) if "id" in lines else None
            found.append((number, lines["event"], json.loads(lines["data"])))
    return found


async def events(server: Gate, job: dict[str, Any], **headers: str) -> list[tuple[int | None, str, Any]]:
    response = await server.client.get(f"{JOBS}/{job['id']}/events", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    return read_events(response.text)


async def picture(server: Gate, job: dict[str, Any], number: int = 0) -> bytes:
    response = await server.client.get(f"{JOBS}/{job['id']}/images/{number}")
    assert response.status_code == 200, response.text
    return response.content


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_a_job_is_accepted_drawn_and_fetched(server: Gate) -> None:
    response = await server.client.post(JOBS, json={**SMALL, "n": 2, "output_format": "webp"})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"{JOBS}/{job['id']}"
    assert (job["state"], job["seeds"], job["size"], job["n"]) == ("queued", [11, 12], "64x64", 2)
    done = await ended(server, job)
    assert (done["state"], done["progress"], done["error"]) == ("done", 1.0, None)
    assert [(image["index"], image["seed"]) for image in done["images"]] == [(0, 11), (1, 12)]
    for number in range(2):
        receipt = read_receipt(await picture(server, job, number))
        assert (receipt.prompt, receipt.seed, receipt.steps) == ("a lighthouse", 11 + number, 4)
    answer = await server.client.get(f"{JOBS}/{job['id']}/images/1")
    assert answer.headers["content-type"] == "image/webp"
    assert (await server.client.get(f"{JOBS}/{job['id']}/images/2")).status_code == 404
    # The link needs no key.
    assert (await server.client.get(done["images"][1]["url"])).content == answer.content


async def test_a_job_draws_what_generations_draws(server: Gate) -> None:
    job = await create(server, n=1)
    now = await server.json("POST", "/v1/images/generations", json={**SMALL, "n": 1})
    assert (await ended(server, job))["state"] == "done"
    assert base64.b64decode(now["data"][0]["b64_json"]) == await picture(server, job)


async def test_an_edit_starts_from_its_pictures(server: Gate) -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.full((64, 64, 4), 255, np.uint8)
    mask[:, 32:, 3] = 0
    job = await create(server, image=png(image), mask=png(mask), strength=0.5)
    assert (await ended(server, job))["state"] == "done"
    receipt = read_receipt(await picture(server, job))
    assert receipt.strength == 0.5
    assert receipt.image_sha256
    assert receipt.mask_sha256


async def test_the_pictures_of_a_job_that_waited_long_are_there_until_it_is_forgotten(
    tmp_path: Path, replica: EngineReplica
) -> None:
    settings = settings_of(tmp_path, job_ttl_s=3_600.0)
    async with gate(settings, replica) as server:
        services = server.services
        services.runner._full_until = math.inf
        image = png(np.full((64, 64, 3), 90, np.uint8))
        job = await create(server, image=image, strength=0.5, n=2)
        services.database.now.follow(Clock(services.database.now() + 5 * 86_400.0, steady()))
        services.runner._full_until = 0.0
        assert (await ended(server, job))["state"] == "done"
        services.database.now.follow(Clock(services.database.now() + 3_000.0, steady()))
        await janitor.sweep(services.database, services.jobs, services.images, settings.job_ttl_s)
        assert read_receipt(await picture(server, job, 1)).strength == 0.5
        services.database.now.follow(Clock(services.database.now() + 1_000.0, steady()))
        await janitor.sweep(services.database, services.jobs, services.images, settings.job_ttl_s)
        assert list((tmp_path / "images").iterdir()) == []


async def test_a_job_that_is_not_taken_leaves_no_picture(tmp_path: Path, replica: EngineReplica) -> None:
    async with gate(settings_of(tmp_path, max_jobs=1), replica) as server:
        server.services.runner._full_until = math.inf
        await create(server)
        image = png(np.full((64, 64, 3), 90, np.uint8))
        response = await server.client.post(JOBS, json={**SMALL, "image": image})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("during", ["put", "create"])
async def test_a_client_that_leaves_leaves_no_picture_of_a_job_that_is_not_taken(
    tmp_path: Path,
    replica: EngineReplica,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    during: str,
) -> None:
    async with gate(settings_of(tmp_path, max_jobs=1), replica) as server:
        services = server.services
        services.runner._full_until = math.inf
        await create(server)
        put, ask, refused = services.images.put, services.jobs.create, asyncio.Event()

        def leave(now: str) -> None:
            if now == during:
                asyncio.get_running_loop().call_soon(asking.cancel)

        async def put_and_leave(*arguments: Any) -> str:
            leave("put")
            return await put(*arguments)

        async def ask_and_leave(new: NewJob) -> Job:
            leave("create")
            try:
                return await ask(new)
            except QueueFull:
                refused.set()
                raise

        monkeypatch.setattr(services.images, "put", put_and_leave)
        monkeypatch.setattr(services.jobs, "create", ask_and_leave)
        image = png(np.full((64, 64, 3), 90, np.uint8))
        asking = asyncio.create_task(server.client.post(JOBS, json={**SMALL, "image": image}))
        await asyncio.wait({asking})
        assert asking.cancelled()
        async with asyncio.timeout(WAIT_SECONDS):
            await refused.wait()
        await until(lambda: not list((tmp_path / "images").iterdir()), "its picture to be deleted")
        # What was refused is told of here, where nobody has heard of it: when nothing holds it any more.
        asking = asyncio.create_task(asyncio.sleep(0))
        await asking
        gc.collect()
        assert [each for each in caplog.records if each.name == "asyncio"] == []


async def test_a_key_that_the_engines_refused_is_asked_again_when_a_job_of_its_ends(
    server: Gate, passes: threading.Semaphore
) -> None:
    job = await create(server, **GATED)
    passes.release(1)
    await running(server, job)
    runner = server.services.runner
    [caller] = {held.job.caller for held in runner._held.values()}
    # Nothing is claimed meanwhile: when nobody else has work, all are asked again.
    runner._full_until = math.inf
    runner._refused_until = {caller: math.inf, "another": math.inf}
    passes.release(ALL)
    await ended(server, job)
    assert set(runner._refused_until) == {"another"}


async def test_a_picture_is_kept_only_where_the_database_takes_its_job(server: Gate, tmp_path: Path) -> None:
    database = server.services.database
    # Away, as it was found a moment ago.
    database._reads.reason, database._reads.ask_again_at = "away", math.inf
    image = png(np.full((64, 64, 3), 90, np.uint8))
    response = await server.client.post(JOBS, json={**SMALL, "image": image})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    database._reads.ask_again_at = 0.0
    assert list((tmp_path / "images").glob("*")) == []


async def test_the_same_idempotency_key_is_the_same_job(server: Gate) -> None:
    async def post(**fields: Any) -> httpx.Response:
        return await server.client.post(
            JOBS, json={"prompt": "a", "size": "64x64", **fields}, headers={"idempotency-key": "once"}
        )

    first, second, other = await post(), await post(), await post(n=2)
    assert first.json()["id"] == second.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    # The official client would send it again otherwise.
    assert other.headers["x-should-retry"] == "false"


async def test_one_idempotency_key_asked_for_at_once_keeps_one_jobs_pictures(
    tmp_path: Path, replica: EngineReplica
) -> None:
    async with gate(settings_of(tmp_path), replica) as server:
        server.services.runner._full_until = math.inf
        body = {**SMALL, "image": png(np.full((64, 64, 3), 90, np.uint8))}
        headers = {"idempotency-key": "once"}
        answers = await asyncio.gather(
            *(server.client.post(JOBS, json=body, headers=headers) for _ in range(4))
        )
        (id,) = {answer.json()["id"] for answer in answers}
        kept = (await server.services.jobs.get(id)).request["image"]
        assert [file.name for file in (tmp_path / "images").iterdir()] == [kept]


async def test_to_ask_a_job_for_no_stream_is_to_ask_for_nothing(server: Gate) -> None:
    await create(server, stream=False)
    response = await server.client.post(JOBS, json={**SMALL, "stream": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


async def test_events_tell_everything_once_and_end(server: Gate, passes: threading.Semaphore) -> None:
    job = await create(server, **GATED, n=2)
    listening = asyncio.create_task(events(server, job))
    for count in (1, 2):
        passes.release(60)
        await told_of(server, job, "progress", count)
    passes.release(ALL)
    told = await listening
    numbers, kinds = [number for number, _, _ in told], [kind for _, kind, _ in told]
    assert numbers == sorted(set(numbers))
    assert (kinds[0], kinds[1], kinds[-1]) == ("queued", "running", "done")
    assert sorted(data["index"] for _, kind, data in told if kind == "image") == [0, 1]
    progress = [data["progress"] for _, kind, data in told if kind == "progress"]
    assert progress == sorted(progress)
    assert len(progress) >= 2
    final = told[-1][2]
    assert [image["seed"] for image in final["images"]] == [11, 12]
    # Later, from the middle, and from the end.
    assert await events(server, job) == told
    middle = len(told) // 2
    assert await events(server, job, **{"last-event-id": str(numbers[middle])}) == told[middle + 1 :]
    past = await events(server, job, **{"last-event-id": str(numbers[-1])})
    assert [kind for _, kind, _ in past] == ["done"]


async def test_a_listener_that_comes_back_is_answered_at_once_however_long_nothing_happens(
    server: Gate,
) -> None:
    server.services.runner._full_until = math.inf
    job = await create(server)
    last = await server.services.jobs.events.last_id()
    request = Request({"type": "http", "headers": []})
    async with asyncio.timeout(60):
        answer = await follow(job["id"], request, server.services, ANYONE, last)
    assert answer.status_code == 200


async def test_many_listeners_get_the_same_whenever_they_come(server: Gate) -> None:
    job = await create(server, num_inference_steps=60)

    async def listen(delay: float) -> list[Any]:
        await asyncio.sleep(delay)
        return await events(server, job)

    heard = await asyncio.gather(*(listen(number * 0.02) for number in range(40)))
    assert all(each == heard[0] for each in heard)
    assert heard[0][-1][1] == "done"


@pytest.mark.parametrize(("steps", "shown_at"), [(8, [2, 4, 6]), (10, [2, 6]), (30, [6, 14, 22])])
async def test_previews_are_events_with_links(
    server: Gate, passes: threading.Semaphore, steps: int, shown_at: list[int]
) -> None:
    job = await create(server, **{**GATED, "num_inference_steps": steps}, partial_images=len(shown_at))
    # One that a newer step overtakes on its way would be told as that step's: each is waited for.
    for count, (before, at) in enumerate(pairwise([0, *shown_at]), start=1):
        passes.release(at - before)
        await told_of(server, job, "preview", count)
    passes.release(ALL)
    previews = [data for _, kind, data in await events(server, job) if kind == "preview"]
    assert [data["step"] for data in previews] == shown_at
    shown = await server.client.get(previews[0]["url"])
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)


async def test_a_running_job_tells_its_progress_and_a_delete_stops_it(
    server: Gate, backend: FakeBackend, passes: threading.Semaphore
) -> None:
    job, drawn = await create(server, **GATED), backend._decoded
    passes.release(30)
    told = await running(server, job)
    assert 0 < told["progress"] < 1
    assert told["eta_s"] > 0
    assert (await server.client.delete(f"{JOBS}/{job['id']}")).status_code == 200
    assert (await ended(server, job))["state"] == "cancelled"
    passes.release(ALL)

    async def idle() -> bool:
        return backend.held == 0

    await until(idle, "the engine to forget it")
    assert backend._decoded == drawn
    # Ended is ended.
    again = await server.json("DELETE", f"{JOBS}/{job['id']}")
    assert again["state"] == "cancelled"


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_job_that_its_own_runner_lost_and_claims_again_is_drawn_once_more_and_no_more(
    server: Gate,
    backend: FakeBackend,
    passes: threading.Semaphore,
    noticed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def lose(connection: AsyncConnection) -> None:
        await connection.execute(update(jobs).values(lease_ends=0.0))
        await settle_overdue(connection, server.services.database.now())

    store = server.services.jobs
    claim, release = store.claim, store.release

    async def lose_and_claim(*arguments: Any, **options: Any) -> Job | None:
        monkeypatch.setattr(store, "claim", claim)
        await store._change(lose)
        return await claim(*arguments, **options)

    async def release_late(id: str, *arguments: Any, **options: Any) -> bool:
        async def claimed() -> bool:
            return (await store.get(id)).state == "running"

        await until(claimed, "the job to be claimed again")
        return await release(id, *arguments, **options)

    job, drawn = await create(server, **GATED), backend._decoded
    passes.release(30)
    await running(server, job)
    first = server.services.runner._held[job["id"]].task
    if noticed:
        monkeypatch.setattr(store, "release", release_late)
        await store._change(lose)
    else:
        # Between the runner's looking after what it has and its claiming more.
        monkeypatch.setattr(store, "claim", lose_and_claim)
    server.services.runner.wake()
    # The first drawing is given up before the rest is let through: it might come to its end too.
    await told_of(server, job, "running", 2)
    await asyncio.wait({first}, timeout=WAIT_SECONDS)
    passes.release(ALL)
    kinds = [kind for _, kind, _ in await events(server, job) if kind != "progress"]
    assert kinds == ["queued", "running", "queued", "running", "image", "done"]

    async def idle() -> bool:
        return backend.held == 0

    await until(idle, "the engine to forget it")
    assert backend._decoded == drawn + 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_delete_on_another_gateway_stops_it(
    pair: tuple[Gate, Gate], passes: threading.Semaphore
) -> None:
    one, other = pair
    for seed in (1, 2, 3):
        job = await create(one, **{**GATED, "seed": seed})
        passes.release(30)
        await running(other, job)
        await other.json("DELETE", f"{JOBS}/{job['id']}")
        assert (await ended(one, job))["state"] == "cancelled"


async def test_either_gateway_lists_and_shows_every_job(pair: tuple[Gate, Gate]) -> None:
    one, other = pair
    made = [(await create(each))["id"] for each in (one, other, one)]
    listed = [(await each.json("GET", JOBS))["data"] for each in pair]
    assert [[job["id"] for job in jobs] for jobs in listed] == [made[::-1], made[::-1]]
    assert [kind for _, kind, _ in await events(other, {"id": made[0]})][-1] == "done"


async def test_pages_go_on_where_the_last_ended(server: Gate) -> None:
    made = [(await create(server))["id"] for _ in range(5)]
    found, cursor = [], None
    while True:
        asked = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = await server.json("GET", JOBS, params=asked)
        found += [job["id"] for job in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
    assert found == made[::-1]
    for id in made:
        await ended(server, {"id": id})
    assert (await server.json("GET", JOBS, params={"state": "queued"}))["data"] == []
    assert len((await server.json("GET", JOBS, params={"state": "done"}))["data"]) == 5


async def test_a_job_whose_model_fails_tells_why(server: Gate) -> None:
    done = await ended(server, await create(server, prompt="break"))
    assert (done["state"], done["error"]["code"]) == ("failed", "generation_failed")
    assert done["error"]["message"] == "the device is lost"


async def test_the_deadline_counts_from_creation(server: Gate, passes: threading.Semaphore) -> None:
    # One step, which by itself would be in time.
    asked = {**GATED, "num_inference_steps": 1, "deadline_s": 0.5}
    done = await ended(server, await create(server, **asked))
    assert (done["state"], done["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_a_job_that_by_itself_takes_longer_than_its_deadline_fails_at_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    replica = replica_of(settings, FakeBackend())
    replica._engine.cost.calibrate(BatchKey(64, 64, True), {1: 100.0})
    try:
        async with gate(settings, replica) as server:
            done = await ended(server, await create(server, **LONG, deadline_s=6_000.0))
    finally:
        replica.close()
    assert (done["state"], done["error"]["code"]) == ("failed", "deadline_unreachable")
    assert "with nothing ahead of it" in done["error"]["message"]


async def test_a_job_fails_at_its_deadline_though_nothing_is_claimed_meanwhile(server: Gate) -> None:
    services = server.services
    services.runner._full_until = math.inf
    job = await create(server, deadline_s=600.0)
    # What is put back with no room is not to be claimed for as long as that.
    claimed = await services.jobs.claim("another", lease_s=60.0)
    assert claimed is not None
    assert await services.jobs.release(claimed.id, "another", 6_000.0)
    services.database.now.follow(Clock(services.database.now() + 601.0, steady()))
    done = await ended(server, job)
    assert (done["state"], done["error"]["code"]) == ("failed", "deadline_exceeded")
    assert done["finished_at"] - done["deadline_at"] < 300.0


async def test_an_end_beyond_the_deadline_is_not_foreseen(server: Gate) -> None:
    await ended(server, await create(server))
    server.services.runner._full_until = math.inf
    # Minutes of work, by what the small one took.
    large = {**LONG, "size": "512x512", "n": 10}
    jobs = [await create(server, **{**large, "deadline_s": seconds}) for seconds in (60.0, 9_000.0)]
    soon, late = [await server.json("GET", f"{JOBS}/{job['id']}") for job in jobs]
    assert (soon["state"], soon["eta_s"]) == ("queued", None)
    assert late["eta_s"] > 60.0


async def test_a_picture_that_is_not_there_is_told_why(server: Gate) -> None:
    job = await create(server, n=1)
    await ended(server, job)
    for number, why in ((1, "the job has no picture 1; it has 1, from 0"), (-1, "it has 1, from 0")):
        response = await server.client.get(f"{JOBS}/{job['id']}/images/{number}")
        assert response.status_code == 404
        assert why in response.json()["error"]["message"]


async def test_a_job_that_ends_every_replica_fails_and_another_is_drawn(
    server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.01)
    replicas = server.services.gateway._replicas
    original, ended_replicas = replicas.generate, 0

    async def lose(order: Order) -> AsyncGenerator[WireEvent]:
        nonlocal ended_replicas
        if order.request.prompt == "end":
            ended_replicas += 1
            raise ReplicaLost("lost")
        async for event in original(order):
            yield event

    monkeypatch.setattr(replicas, "generate", lose)
    broken, sound = await create(server, prompt="end", n=2), await create(server)
    told = await ended(server, broken)
    assert (told["state"], told["error"]["code"]) == ("failed", "generation_failed")
    # Each time its pictures were sent once, and once more.
    assert ended_replicas <= 2 * 2 * (MAX_LOST + 1)
    series = (await server.client.get("/metrics")).text
    assert read(series).total("mezzotint_retries_total") > 0
    assert (await ended(server, sound))["state"] == "done"


async def test_a_job_whose_picture_cannot_be_read_keeps_no_other_waiting(
    server: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((runner, "MIN_RETRY_SECONDS"), (runner, "PAUSE_SECONDS"), (images, "RETRY_SECONDS")):
        monkeypatch.setattr(module, name, 0.01)
    server.services.runner._full_until = math.inf
    broken = await create(server, image=png(np.full((64, 64, 3), 90, np.uint8)))
    [file] = (tmp_path / "images").iterdir()
    file.unlink()
    # Neither there nor not there.
    file.symlink_to(file.name)
    sound = await create(server)
    server.services.runner._full_until = 0.0
    assert (await ended(server, sound))["state"] == "done"
    assert (await server.json("GET", f"{JOBS}/{broken['id']}"))["state"] in ("queued", "running")


async def test_a_job_without_a_deadline_takes_longer_than_a_request_may(
    tmp_path: Path, replica: EngineReplica
) -> None:
    async with gate(settings_of(tmp_path, deadline_s=0.3), replica) as server:
        job = await create(server, num_inference_steps=100)
        assert (await ended(server, job))["state"] == "done"


async def test_a_full_engine_makes_jobs_wait_and_fails_none(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, max_queue=1)
    replica = replica_of(settings, FakeBackend(pass_seconds=0.005, max_batch=1))
    try:
        async with gate(settings, replica) as server:
            jobs = [await create(server, n=3) for _ in range(3)]
            assert {(await ended(server, job))["state"] for job in jobs} == {"done"}
    finally:
        replica.close()


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"n": 11}, 400, "n"),
        ({"size": "65x64"}, 400, "size"),
        ({"stream": True}, 400, "stream"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"deadline_s": 0}, 400, "deadline_s"),
        ({"colour": "red"}, 400, "colour"),
        ({"mask": "aGVsbG8="}, 415, "mask"),
        ({"image": "aGVsbG8="}, 415, "image"),
        ({"image": "http://a.example/b.png"}, 400, "image"),
        ({"strength": 0.5}, 400, "strength"),
        ({"model": "sdxl-9"}, 404, "model"),
        ({"seed": 2**63 - 1, "n": 2}, 400, "seed"),
    ],
)
async def test_a_bad_field_is_refused_and_named(
    server: Gate, fields: dict[str, Any], status: int, param: str
) -> None:
    response = await server.client.post(JOBS, json={**SMALL, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{JOBS}/job_nothing", 404),
        (f"{JOBS}/job_nothing/events", 404),
        (f"{JOBS}/job_nothing/images/0", 404),
        (f"{JOBS}/{'x' * 200}", 400),
        (f"{JOBS}?limit=0", 400),
        (f"{JOBS}?limit=x", 400),
        (f"{JOBS}?cursor=!!", 400),
        (f"{JOBS}?cursor=LTE", 400),
        (f"{JOBS}?state=lost", 400),
    ],
)
async def test_a_bad_address_is_refused(server: Gate, path: str, status: int) -> None:
    response = await server.client.get(path)
    assert (response.status_code, set(response.json())) == (status, {"error"})


async def test_a_job_whose_gateway_was_lost_is_drawn_by_another_as_it_would_have_been(
    tmp_path: Path, database_url: str, replica: EngineReplica
) -> None:
    settings = settings_of(tmp_path, database_url=database_url)
    async with gate(settings, replica) as server:
        expected = await create(server)
        await ended(server, expected)
        wanted = await picture(server, expected)
    # Another runner claims the job and is never heard of again.
    async with gate(settings, replica) as server:
        await server.services.runner.__aexit__(None, None, None)
        job = await create(server)
        claimed = await server.services.jobs.claim("lost", lease_s=0.5)
        assert claimed is not None
        assert claimed.id == job["id"]
    async with gate(settings, replica) as server:
        assert (await ended(server, job))["state"] == "done"
        assert await picture(server, job) == wanted


async def test_a_gateway_that_stops_while_it_claims_a_job_gives_it_back(
    tmp_path: Path, replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, go_on = asyncio.Event(), asyncio.Event()
    claim = JobStore.claim

    async def slow(self: JobStore, *arguments: Any, **more: Any) -> Any:
        job = await claim(self, *arguments, **more)
        if job is not None:
            claimed.set()
            await go_on.wait()
        return job

    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "claim", slow)
        async with gate(settings, replica) as server:
            job = await create(server)
            await claimed.wait()
            asyncio.get_running_loop().call_later(0.1, go_on.set)
    async with open_database(settings.database_url) as database:
        left = await JobStore(database, 10).get(job["id"])
    assert (left.state, left.lost) == ("queued", 0)


async def test_a_gateway_that_stops_gives_its_jobs_back(
    tmp_path: Path, replica: EngineReplica, passes: threading.Semaphore
) -> None:
    settings = settings_of(tmp_path)
    async with gate(settings, replica) as server:
        job = await create(server, **GATED)
        passes.release(30)
        await running(server, job)
    passes.release(ALL)
    async with gate(settings, replica) as server:
        told = await events(server, job)
        # Given back, not taken from it when its lease had ended.
        assert (await server.services.jobs.get(job["id"])).lost == 0
        assert [kind for _, kind, _ in told if kind in ("queued", "running", "done")] == [
            "queued",
            "running",
            "queued",
            "running",
            "done",
        ]


async def test_a_job_outlasts_an_image_store_that_is_gone_for_a_while(server: Gate, tmp_path: Path) -> None:
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "images").write_text("in the way")
    job = await create(server, num_inference_steps=60)
    assert (await server.client.post("/v1/images/generations", json=SMALL)).status_code == 200

    async def drawn() -> bool:
        told = await server.json("GET", f"{JOBS}/{job['id']}")
        return told["progress"] == 1.0 and told["state"] == "running"

    await until(drawn, "its picture to be drawn and not stored")
    (tmp_path / "images").unlink()
    (tmp_path / "away").rename(tmp_path / "images")
    assert (await ended(server, job))["state"] == "done"
    assert read_receipt(await picture(server, job)).steps == 60


async def test_a_job_outlasts_a_database_that_is_locked_for_a_while(
    server: Gate, passes: threading.Semaphore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await create(server, **GATED)
    passes.release(30)
    await running(server, job)
    store, refused = server.services.jobs, asyncio.Event()
    set_image = store.set_image

    async def noted(*arguments: Any) -> bool:
        try:
            return await set_image(*arguments)
        except StoreUnavailable:
            refused.set()
            raise

    monkeypatch.setattr(store, "set_image", noted)
    file = tmp_path / "mezzotint.db"
    connecting = sqlite3.connect(file, WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    with closing(connecting) as other:
        # In a thread: whoever holds the database now goes on in this loop, and only then lets it go.
        await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")
        with monkeypatch.context() as patch:
            patch.setattr(database, "ANSWER_SECONDS", 0.5)
            response = await server.client.delete(f"{JOBS}/{job['id']}")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
            passes.release(ALL)
            async with asyncio.timeout(WAIT_SECONDS):
                await refused.wait()
        other.execute("ROLLBACK")

    async def answers() -> bool:
        return (await server.client.get(f"{JOBS}/{job['id']}")).is_success

    await until(answers, "the database to be asked again")
    assert (await ended(server, job))["state"] == "done"


async def test_a_database_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        asked = 0

        async def renew(self, *_: object) -> object:
            self.asked += 1
            raise StoreUnavailable("the database does not answer just now")

        held = renew

    nobody: Any = None
    away: Any = Away()
    async with asyncio.timeout(60):
        async with runner.JobRunner(nobody, nobody, away, nobody, gateways=1, ttl_s=60.0) as running:
            while away.asked < 5:
                running.wake()
                await asyncio.sleep(0.01)
    assert caplog.text.count("jobs wait") == 1


async def test_a_database_that_is_lost_while_a_job_is_drawn_and_followed_is_told_of_once(
    server: Gate,
    passes: threading.Semaphore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(drawing, "NEWS_SECONDS", 0.01)
    monkeypatch.setattr(feed, "POLL_SECONDS", 0.01)
    store, refused = server.services.jobs.events, Counter[str]()

    async def gone(_: object) -> None:
        raise OSError("the server is gone")

    def counted(name: str) -> None:
        ask = getattr(store, name)

        async def count(*arguments: Any) -> Any:
            try:
                return await ask(*arguments)
            except StoreUnavailable:
                refused[name] += 1
                raise

        monkeypatch.setattr(store, name, count)

    async def asked_in_vain() -> bool:
        passes.release()
        return min(refused["append"], refused["last_id"]) >= 3

    job = await create(server, **GATED)
    passes.release(1)
    await running(server, job)
    async with aclosing(server.services.feed.follow(job["id"])) as told:
        await anext(told)
        for name in ("append", "last_id"):
            counted(name)
        with monkeypatch.context() as patch:
            for name in ("_reading", "_writing"):
                patch.setattr(server.services.database, name, gone)
            await until(asked_in_vain, "news to be told and looked for in vain")
    lines = Counter(record.getMessage() for record in caplog.records)
    assert lines["the database does not answer: the server is gone"] == 1
    assert max(lines.values()) == 1, lines
