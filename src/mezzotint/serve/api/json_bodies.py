"""JSON bodies, bounded before they are parsed: parsing is one piece of work, and the event loop waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message

from mezzotint.errors import PayloadTooLarge
from mezzotint.serve.api.dependencies import KeyedRoute, caller_of

__all__ = ["JsonRoute", "PictureJsonRoute"]

# Both prompts at their longest, each character escaped, are a quarter of it.
MAX_JSON_BYTES = 1_000_000
# Values, lists and objects, counting what looks like one inside of texts: two prompts at their longest, all
# of commas, are less than half of it.
MAX_PARTS = 50_000


class JsonRoute(KeyedRoute):
    """A route whose body is JSON without pictures, and short."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_short(request: Request) -> Response:
            await caller_of(request)
            messages = [await _short_body(request)]

            async def receive() -> Message:
                return messages.pop() if messages else await request.receive()

            return await handle(Request(request.scope, receive))

        return handle_short


async def _short_body(request: Request) -> Message:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_JSON_BYTES:
            raise PayloadTooLarge(f"the body has more than {MAX_JSON_BYTES:,} bytes")
    return {"type": "http.request", "body": bytes(body), "more_body": False}


class PictureJsonRoute(KeyedRoute):
    """A route whose body is JSON that may hold pictures: few values, some of them long.

    Base64 costs little to parse; as many bytes of short values take seconds and gigabytes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_counted(request: Request) -> Response:
            await caller_of(request)
            # Kept by the request, whose next reader gets it again.
            body = await request.body()
            if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_PARTS:
                raise PayloadTooLarge(f"the body has more than {MAX_PARTS:,} values")
            return await handle(request)

        return handle_counted
