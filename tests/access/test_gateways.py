"""Two gateways of one service over HTTP: a key's limits, its revocation and its jobs are the same on both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ResolvedRequest
from mezzotint.errors import MezzotintError, StoreUnavailable
from mezzotint.serve.access import cache
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.stores.keys import Key, KeyStore, NewKey
from tests.api.inprocess import Gate, gate, replica_of, settings_of, usage_written
from tests.waiting import WAIT_SECONDS

GENERATIONS = "/v1/images/generations"
HELD = "held"


@dataclass
class Service:
    """A picture of the prompt `HELD` is not drawn before `go_on` is set."""

    gates: tuple[Gate, Gate]
    keys: KeyStore
    go_on: threading.Event

    async def key(self, **limits: object) -> tuple[Key, dict[str, str]]:
        key, text = await self.keys.create(replace(NewKey("test"), **limits))  # type: ignore[arg-type]
        return key, {"Authorization": f"Bearer {text}"}

    async def draw(self, number: int, headers: dict[str, str], **fields: object) -> httpx.Response:
        body = {"prompt": "an apple", "size": "64x64", "num_inference_steps": 1, **fields}
        return await self.gates[number % 2].client.post(GENERATIONS, json=body, headers=headers)


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> AsyncIterator[Service]:
    settings = settings_of(tmp_path, auth="on", database_url=database_url)
    go_on = threading.Event()

    def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
        if where == "step" and request.prompt == HELD:
            assert go_on.wait(WAIT_SECONDS)
        return None

    replica = replica_of(settings, FakeBackend(pass_seconds=0.02, fault=fault))
    async with gate(settings, replica) as one, gate(settings, replica) as other:
        yield Service((one, other), KeyStore(one.services.database), go_on)
        go_on.set()
    replica.close()


async def test_the_rate_holds_over_both_and_the_refusal_says_when_to_come_back(service: Service) -> None:
    _, headers = await service.key(requests_per_minute=2)
    answers = await asyncio.gather(*(service.draw(number, headers) for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 10 <= int(refused.headers["retry-after"]) <= 31
    assert refused.headers["x-should-retry"] == "true"
    _, others = await service.key()
    assert (await service.draw(0, others)).status_code == 200


async def test_the_concurrency_holds_over_both(service: Service) -> None:
    _, headers = await service.key(concurrent_images=2)
    drawing = [asyncio.create_task(service.draw(number, headers, prompt=HELD)) for number in range(6)]
    async with asyncio.timeout(WAIT_SECONDS):
        while sum(each.done() for each in drawing) < 4:
            await asyncio.sleep(0.01)
    service.go_on.set()
    answers = await asyncio.gather(*drawing)
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 4
    assert (await service.draw(1, headers)).status_code == 200
    assert (await service.draw(0, headers, n=3)).status_code == 403


async def test_the_quota_holds_over_both_and_usage_is_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a step costs is learnt while drawing; here it must stay the same.
    monkeypatch.setattr(Gateway, "cost_s", lambda *_: 2.0)
    key, headers = await service.key(compute_s_per_day=5.0)
    answers = [await service.draw(number, headers) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    # In a day at most, which clients are told as the longest that they will wait for.
    assert answers[2].headers["retry-after"] == "120"
    for one in service.gates:
        await usage_written(one.services.access)
    used = {each.caller.id: each for each in await service.keys.list()}[key.caller.id]
    assert (used.used_images, used.used_compute_s, used.rejected) == (2, 4.0, 2)


async def test_a_revoked_key_is_refused_by_both_within_a_second(service: Service) -> None:
    assert cache.FRESH_SECONDS < 1.0
    key, headers = await service.key()
    for one in service.gates:
        assert (await one.client.get("/v1/models", headers=headers)).status_code == 200
    await service.keys.revoke(key.caller.id)
    revoked_at = time.monotonic()
    for one in service.gates:
        while (await one.client.get("/v1/models", headers=headers)).status_code == 200:
            # And what a busy machine adds to it.
            assert time.monotonic() - revoked_at < 30.0
            await asyncio.sleep(0.01)


async def test_without_the_database_pictures_are_drawn_for_keys_that_are_known(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, known = await service.key(requests_per_minute=60, concurrent_images=4)
    _, unknown = await service.key()
    assert (await service.draw(0, known)).status_code == 200

    async def no_answer(*_: object) -> object:
        raise StoreUnavailable("the database does not answer", retry_after_s=1.0)

    database = service.gates[0].services.database
    monkeypatch.setattr(database, "read", no_answer)
    monkeypatch.setattr(database, "write", no_answer)
    assert (await service.draw(0, known)).status_code == 200
    refused = await service.draw(0, unknown)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert refused.headers["retry-after"]
    assert (await service.gates[0].client.get("/v1/images/jobs", headers=known)).status_code == 503
    monkeypatch.undo()
