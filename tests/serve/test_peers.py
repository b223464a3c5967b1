"""A1111's `progress` and `interrupt` behind several gateways, called directly: no Ray runs."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mezzotint.backends.fake import FakeBackend
from mezzotint.serve.peers import Peers
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.services import Services
from mezzotint.serve.stores.keys import KeyStore, NewKey
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.wire import RunStatus
from tests.api.inprocess import Gate, gate, replica_of, settings_of
from tests.waiting import until

# 30 s of drawing: every test interrupts what it began.
LONG = {"prompt": "a lighthouse", "width": 64, "height": 64, "steps": 150}
PREVIEWS = {"override_settings": {"show_progress_every_n_steps": 1}}


class Neighbours(Peers):
    """Gateways of the same process. What crosses between them is pickled, as Ray does it."""

    def __init__(self) -> None:
        self.services: list[Services] = []
        self.previews: list[bool] = []
        self.crossed = 0
        self.fault: Callable[[], Awaitable[None]] | None = None

    async def metrics(self) -> Sequence[Families]:
        return self._sent([each.metrics.families() for each in self.services])

    async def runs(self, caller_id: str, *, preview: bool) -> Sequence[RunStatus]:
        self.previews.append(preview)
        if self.fault is not None:
            await self.fault()
        found = [each.runs.latest_here(caller_id, preview=preview) for each in self.services]
        return self._sent([each for each in found if each is not None])

    async def interrupt(self, caller_id: str) -> None:
        for each in self.services:
            each.runs.interrupt_here(caller_id)

    def _sent(self, answers: Any) -> Any:
        sent = pickle.dumps(answers)
        self.crossed = len(sent)
        return pickle.loads(sent)


class Service:
    """Gateways of one service before one engine; `gates[i]` asks through `peers[i]`."""

    def __init__(self, gates: Sequence[Gate], peers: Sequence[Neighbours]) -> None:
        self.gates = gates
        self.peers = peers
        self._drawing: list[asyncio.Task[httpx.Response]] = []

    def draw(self, at: int, headers: Any = None, **fields: Any) -> asyncio.Task[httpx.Response]:
        """Begin a long request at one gateway."""
        sent = self.gates[at].client.post("/sdapi/v1/txt2img", json={**LONG, **fields}, headers=headers)
        self._drawing.append(asyncio.create_task(sent))
        return self._drawing[-1]

    async def progress(self, at: int, headers: Any = None, **params: Any) -> Any:
        return await self.gates[at].json("GET", "/sdapi/v1/progress", params=params, headers=headers)

    async def interrupt(self, at: int, headers: Any = None) -> None:
        assert await self.gates[at].json("POST", "/sdapi/v1/interrupt", headers=headers) == {}

    async def drawn_at(self, at: int, headers: Any = None, images: int = 1) -> Any:
        """The progress, once a request of so many images is some steps on."""

        async def begun() -> Any:
            told = await self.progress(at, headers)
            return told if told["progress"] and told["state"]["job_count"] == images else None

        return await until(begun, "progress of a running request")

    async def close(self) -> None:
        for each in self._drawing:
            each.cancel()
        await asyncio.gather(*self._drawing, return_exceptions=True)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineReplica]:
    replica = replica_of(settings_of(tmp_path_factory.mktemp("stores")), FakeBackend(pass_seconds=0.2))
    yield replica
    replica.close()


@pytest.fixture
async def open_service(
    tmp_path: Path, replica: EngineReplica
) -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    """Opens a service of so many gateways; closed with the test."""
    # Of the test before, the engine may still count what was cancelled, and refuse for it.
    await until(lambda: not replica._engine.outlook().backlogs, "an idle engine")
    async with AsyncExitStack() as stack:

        async def open_(gateways: int, **changes: Any) -> Service:
            settings = settings_of(tmp_path, gateways=gateways, **changes)
            peers = [Neighbours() for _ in range(gateways)]
            gates = [await stack.enter_async_context(gate(settings, replica, each)) for each in peers]
            for index, each in enumerate(peers):
                each.services += [other.services for number, other in enumerate(gates) if number != index]
            service = Service(gates, peers)
            stack.push_async_callback(service.close)
            return service

        yield open_


async def test_every_gateway_tells_of_the_request_that_one_draws(open_service: Any) -> None:
    service = await open_service(3)
    service.draw(1, batch_size=2, **PREVIEWS)
    for at in range(3):

        async def begun(at: int = at) -> Any:
            told = await service.progress(at)
            return told if told["current_image"] else None

        told = await until(begun, "a preview")
        assert 0 < told["progress"] < 1
        assert told["eta_relative"] > 0
        assert (told["state"]["job_count"], told["state"]["sampling_steps"]) == (2, 150)
        assert 0 < told["state"]["sampling_step"] < 150
    stamps = {(await service.progress(at))["state"]["job_timestamp"] for at in range(3)}
    assert len(stamps) == 1


@pytest.mark.parametrize("at", range(3))
async def test_an_interruption_at_any_gateway_ends_the_requests_of_all(open_service: Any, at: int) -> None:
    service = await open_service(3)
    drawing = [service.draw(each) for each in range(2)]

    async def begun() -> bool:
        here = [each.services.runs.latest_here("", preview=False) for each in service.gates[:2]]
        return all(each is not None and each.step for each in here)

    await until(begun, "both are being drawn")
    await service.interrupt(at)
    for answer in await asyncio.gather(*drawing):
        assert answer.json()["images"] == []
        assert json.loads(answer.json()["info"])["interrupted"] is True
    assert [(await service.progress(each))["state"]["job_count"] for each in range(3)] == [0, 0, 0]


async def test_of_the_runs_of_several_gateways_the_one_that_began_last_is_told(open_service: Any) -> None:
    service = await open_service(2)
    drawing = []
    for images, at in enumerate((0, 1, 0), start=1):
        drawing.append(service.draw(at, batch_size=images))

        async def begun(images: int = images, at: int = at) -> bool:
            here = service.gates[at].services.runs.latest_here("", preview=False)
            return here is not None and here.images == images

        await until(begun, "the request is known where it is drawn")
        for asked in range(2):
            assert (await service.progress(asked))["state"]["job_count"] == images
    assert not any(each.done() for each in drawing)


async def test_a_preview_crosses_only_when_it_is_asked_for(open_service: Any) -> None:
    service = await open_service(2)
    service.draw(0, **PREVIEWS)

    async def seen() -> Any:
        return (await service.progress(1))["current_image"]

    image = await until(seen, "a preview")
    assert service.peers[1].crossed > len(image) / 2
    unseen = await service.progress(1, skip_current_image="true")
    assert (unseen["current_image"], service.peers[1].previews[-1]) == (None, False)
    assert service.peers[1].crossed < 500


async def test_a_key_neither_sees_nor_stops_anothers_requests_on_any_gateway(open_service: Any) -> None:
    service = await open_service(2, auth="on")
    keys = KeyStore(service.gates[0].services.database)
    alice, bob = [
        {"Authorization": f"Bearer {(await keys.create(NewKey(name)))[1]}"} for name in ("alice", "bob")
    ]
    drawing = service.draw(0, alice, **PREVIEWS)
    await service.drawn_at(1, alice)
    for at in range(2):
        told = await service.progress(at, bob)
        assert (told["progress"], told["state"]["job_count"], told["current_image"]) == (0.0, 0, None)
        await service.interrupt(at, bob)
    assert (await service.progress(1, alice))["state"]["interrupted"] is False
    # Its own latest, although another key's began later.
    other = service.draw(1, bob, batch_size=2)
    await service.drawn_at(0, bob, images=2)
    assert (await service.progress(1, alice))["state"]["job_count"] == 1
    await service.interrupt(1, alice)
    assert json.loads((await drawing).json()["info"])["interrupted"] is True
    assert (await service.progress(0, bob))["state"]["job_count"] == 2
    assert not other.done()


@pytest.mark.parametrize("fault", ["silent", "broken"])
async def test_without_an_answer_of_the_others_a_gateway_tells_of_its_own(
    open_service: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.serve.peers.GATHER_SECONDS", 0.2)

    async def fail() -> None:
        if fault == "broken":
            raise ConnectionError("the other gateway is away")
        await asyncio.Event().wait()

    service = await open_service(2)
    service.peers[0].fault = fail
    service.draw(1, batch_size=2)
    await service.drawn_at(1, images=2)
    assert (await service.progress(0))["state"]["job_count"] == 0
    service.draw(0)
    assert (await service.drawn_at(0))["state"]["job_count"] == 1


class BroadcastHandle:
    """A deployment handle whose replicas answer what they are given: a value, an error, or nothing at all.

    found: when Ray knows the replicas. told: how often they were.
    """

    def __init__(self, *replicas: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.found = asyncio.Event()
        self.told = 0
        self._replicas = replicas

    def broadcast(self, *asked: Any) -> BroadcastHandle:
        self.asked.append(asked)
        return self

    async def _fetch_replica_results_async(self) -> list[_Answer]:
        await self.found.wait()
        self.told += 1
        return [_Answer(each) for each in self._replicas]


class _Answer:
    def __init__(self, value: Any) -> None:
        self._value = value

    async def get_async(self) -> Any:
        if self._value is Ellipsis:
            await asyncio.Event().wait()
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


@pytest.mark.filterwarnings("ignore")  # of Ray's own, when it is imported
async def test_on_ray_a_gateway_that_is_silent_or_lost_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.exceptions import ActorDiedError

    from mezzotint.serve import routing

    monkeypatch.setattr(routing, "ANSWER_SECONDS", 0.1)
    handle = BroadcastHandle("one", ..., ActorDiedError(), None, "other")
    handle.found.set()
    monkeypatch.setattr(routing, "get_deployment_handle", lambda *_: handle)
    runs = await routing.RayPeers("gateway", "mezzotint", "me").runs("key", preview=False)
    assert runs == ["one", "other"]
    assert handle.asked == [("run", "me", "key", False)]


@pytest.mark.filterwarnings("ignore")
async def test_on_ray_an_interruption_outlasts_what_ray_needs_to_find_the_gateways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mezzotint.serve import routing

    monkeypatch.setattr(routing, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(routing, "INTERRUPT_SECONDS", 60.0)
    handle = BroadcastHandle(None)
    monkeypatch.setattr(routing, "get_deployment_handle", lambda *_: handle)
    peers = routing.RayPeers("gateway", "mezzotint", "me")
    interrupting = asyncio.create_task(peers.interrupt("key"))
    # A poll gives up meanwhile.
    assert await peers.runs("key", preview=False) == []
    assert not interrupting.done()
    handle.found.set()
    await interrupting
    assert handle.told == 1
    assert ("interrupt", "me", "key") in handle.asked
