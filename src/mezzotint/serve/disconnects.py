"""Stop answering whoever has left.

Servers tell an application that its client is gone by a message that nobody reads while a picture is drawn.
Here it is read for every route: the task that answers is cancelled, and what it waits for with it, down to
the engine's next step. It needs nothing of the server, so no header that a server obeys can turn it off.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CancelOnDisconnect"]


class CancelOnDisconnect:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # One: a body is read no faster than the application takes it.
        messages: asyncio.Queue[Message] = asyncio.Queue(1)
        answering = asyncio.ensure_future(self._app(scope, messages.get, send))
        # A body that means nothing is read by nobody, and would stand before the news of the client.
        bodiless = scope["method"] in ("GET", "HEAD")
        listening = asyncio.create_task(_listen(receive, messages, bodiless=bodiless))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.gather(answering, listening, return_exceptions=True)
        if not answering.cancelled():
            answering.result()
        elif not listening.cancelled():
            # The client has left, or what is outside of here has refused its body.
            listening.result()


async def _listen(receive: Receive, messages: asyncio.Queue[Message], *, bodiless: bool) -> None:
    """Pass the body on, or an empty one, until the client has left."""
    if bodiless:
        await messages.put({"type": "http.request", "body": b"", "more_body": False})
    while (message := await receive())["type"] != "http.disconnect":
        if not bodiless:
            await messages.put(message)
