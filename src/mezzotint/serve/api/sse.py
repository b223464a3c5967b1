"""Server-sent events, for every surface that streams.

A surface gives an async generator of events; the answer sends them, pings while there are none, and closes
the generator the moment the client leaves or the server ends. Knows nothing of what the events mean.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from mezzotint.errors import MezzotintError
from mezzotint.serve.api.errors import error_body
from mezzotint.serve.background import is_cancelled

__all__ = ["DONE", "EventStream", "ServerEvent", "opened"]

logger = logging.getLogger(__name__)

# Shorter than the idle limit of any proxy in use.
PING_SECONDS = 5.0
PING = b": ping\n\n"
# What OpenAI's clients read as the end.
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Cache-Control": "no-store",
    # nginx would gather the events otherwise.
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True)
class ServerEvent:
    """`data` is sent as JSON on one line. `event` and `id` are single lines."""

    data: Mapping[str, Any]
    event: str | None = None
    id: str | None = None

    def encoded(self) -> bytes:
        lines = [f"{name}: {value}" for name, value in (("id", self.id), ("event", self.event)) if value]
        lines.append("data: " + json.dumps(self.data, separators=(",", ":")))
        return ("\n".join(lines) + "\n\n").encode()


Events = AsyncGenerator[ServerEvent | None]
"""`None` sends a ping: there is news, but none for the client."""


async def opened(events: Events) -> Events:
    """The same events, the first of them fetched: an error up to there is an answer with a status of its own.

    The generator is resumed from another task, so it must not hold a task's own state (`asyncio.timeout`, a
    task group) across a yield.

    Raises:
        MezzotintError: what the generator raised before its first event.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def all_of_them() -> Events:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()


class EventStream(StreamingResponse):
    """A 200 whose body is the events. An error among them becomes the last event, `error`.

    `end` is sent after the last one. Cancelling the answer, as `CancelOnDisconnect` does when the client has
    left, closes the generator at whatever await it is.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, *, end: bytes = b"") -> None:
        super().__init__(self._frames(events, end), headers=HEADERS)

    async def stream_response(self, send: Send) -> None:
        body = self.body_iterator
        assert isinstance(body, AsyncGenerator)
        async with aclosing(body):
            await super().stream_response(send)

    async def _frames(self, events: Events, end: bytes) -> AsyncGenerator[bytes]:
        # One: what a slow reader has not taken waits in the generator, not in memory here.
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        pump = asyncio.create_task(_pump(events, queue))
        try:
            while (frame := await _next(queue)) is not None:
                yield frame
            if end:
                yield end
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)


async def _pump(events: Events, queue: asyncio.Queue[bytes | None]) -> None:
    """The events as they come. In a task of its own, for a generator that is being asked cannot be closed."""
    try:
        async with aclosing(events):
            async for event in events:
                await queue.put(PING if event is None else event.encoded())
    except MezzotintError as error:
        await queue.put(_failure(error))
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        logger.exception("an event stream ended in an internal error")
        await queue.put(_failure(MezzotintError("internal error; the request id names it in the log")))
    await queue.put(None)


async def _next(queue: asyncio.Queue[bytes | None]) -> bytes | None:
    try:
        async with asyncio.timeout(PING_SECONDS):
            return await queue.get()
    except TimeoutError:
        return PING


def _failure(error: MezzotintError) -> bytes:
    return ServerEvent(error_body(error), "error").encoded()
