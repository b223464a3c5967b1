"""The HTTP application without a server: an engine with the fake backend, SQLite and a folder."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.fake import FakeBackend
from mezzotint.config import Settings
from mezzotint.engine.engine import Engine
from mezzotint.serve.access.access import Access
from mezzotint.serve.dispatch import Replicas
from mezzotint.serve.http import build_http
from mezzotint.serve.peers import Peers
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.services import Services, open_services
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.wire import Order, Report, WireEvent
from tests.waiting import until

__all__ = ["Gate", "InProcessReplicas", "gate", "replica_of", "serving", "settings_of", "usage_written"]


class InProcessReplicas(Replicas):
    """One replica, called directly. Closing the replica is its owner's."""

    def __init__(self, replica: EngineReplica) -> None:
        self.replica = replica

    async def info(self) -> BackendInfo:
        return await self.replica.info()

    async def reports(self) -> list[Report]:
        return [await self.replica.report()]

    async def metrics(self) -> list[Families]:
        return [await self.replica.metrics()]

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        async with aclosing(self.replica.generate(order)) as events:
            async for event in events:
                yield event


@dataclass
class Gate:
    """One gateway: its services, and a client of its application."""

    services: Services
    client: httpx.AsyncClient

    async def json(self, method: str, path: str, **fields: Any) -> Any:
        """The answer's body; anything but a 2xx fails the test."""
        response = await self.client.request(method, path, **fields)
        assert response.is_success, response.text
        return response.json()


def settings_of(folder: Path, **changes: Any) -> Settings:
    stores = {
        "database_url": f"sqlite+aiosqlite:///{folder / 'mezzotint.db'}",
        "image_store": str(folder / "images"),
    }
    return Settings(**{**stores, "deadline_s": 60.0, **changes})


@asynccontextmanager
async def gate(settings: Settings, replica: EngineReplica, peers: Peers | None = None) -> AsyncIterator[Gate]:
    """A gateway in front of `replica`; several of the same settings are gateways of one service."""
    async with open_services(settings, InProcessReplicas(replica), peers=peers) as services:
        transport = httpx.ASGITransport(build_http(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield Gate(services, client)


def replica_of(settings: Settings, backend: FakeBackend) -> EngineReplica:
    """An engine's replica; closing it is the test's."""
    engine = Engine(backend, max_queue=settings.max_queue, max_backlog_s=settings.max_backlog_s)
    return EngineReplica(settings, engine)


@asynccontextmanager
async def serving(folder: Path, backend: FakeBackend, **changes: Any) -> AsyncIterator[Gate]:
    """A gateway in front of an engine of its own. changes: of the settings."""
    settings = settings_of(folder, **changes)
    with closing(replica_of(settings, backend)) as replica:
        async with gate(settings, replica) as opened:
            yield opened


async def usage_written(access: Access) -> None:
    """Wait until the database has all that was used: some of it may just be on its way there by itself."""
    usage = access._usage

    async def written() -> bool:
        await usage.flush()
        return not usage._used and not usage._unsettled

    await until(written, "usage to be written")
