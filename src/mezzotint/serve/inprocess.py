"""An engine in the gateway's own process: the whole HTTP application without Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from mezzotint.backends.base import BackendInfo
from mezzotint.serve.dispatch import Replicas
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.wire import Order, Report, WireEvent

__all__ = ["InProcessReplicas"]


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
