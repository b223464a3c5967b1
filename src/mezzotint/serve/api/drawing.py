"""The pictures of one request drawn together, within what its key may use: at once, or as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from mezzotint.core import Queued
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.background import in_background
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.services import Services
from mezzotint.serve.several import together, watch_all
from mezzotint.serve.wire import Drawn, Step

__all__ = ["draw_all", "stream_all"]

Told = tuple[int, Queued | Step | Drawn]


async def draw_all(services: Services, caller: Caller, requests: Sequence[PreparedRequest]) -> list[Drawn]:
    """The pictures in the order of `requests`. When one fails the others are cancelled.

    Raises:
        MezzotintError: why the first of them failed.
    """
    gateway = services.gateway
    cost_s = gateway.cost_s(requests)
    async with services.access.admit(caller, images=len(requests), compute_s=cost_s) as admission:

        async def draw(prepared: PreparedRequest) -> Drawn:
            drawn = await gateway.draw(prepared)
            admission.drawn += 1
            return drawn

        return await together(*(draw(prepared) for prepared in gateway.admit(requests)))


async def stream_all(
    services: Services, caller: Caller, requests: Sequence[PreparedRequest]
) -> AsyncGenerator[Told]:
    """Every picture's events with its number, as they come. Closing it cancels all of them.

    Raises:
        MezzotintError: why the first of them failed; the others were cancelled.
    """
    gateway = services.gateway
    cost_s = gateway.cost_s(requests)
    async with services.access.admit(caller, images=len(requests), compute_s=cost_s) as admission:
        told: asyncio.Queue[Told | Exception | None] = asyncio.Queue(len(requests))

        async def tell(number: int, event: Queued | Step | Drawn) -> None:
            admission.drawn += isinstance(event, Drawn)
            await told.put((number, event))

        async def watch() -> None:
            try:
                await watch_all(gateway, requests, tell)
            except Exception as error:
                await told.put(error)
            else:
                await told.put(None)

        # In a task of its own, for a generator may be resumed from any.
        async with in_background(watch()):
            while (event := await told.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
