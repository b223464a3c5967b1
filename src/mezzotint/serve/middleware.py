"""What stands between the server and the routes: limits on what comes in, headers on what goes out.

The limits are counted while a body is read, whatever its Content-Length says; nothing is read beyond them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.errors import BodyTooSlow, HeadersTooLarge, InvalidRequest, MezzotintError, PayloadTooLarge
from mezzotint.serve.api.errors import error_response
from mezzotint.serve.telemetry.record import current

__all__ = ["AnswerOrigins", "LimitRequests", "SecureHeaders"]

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
# More than one of these, and two readers of the request may take it for two different ones.
ONLY_ONCE = (b"host", b"content-length", b"authorization", b"content-type", b"x-api-key")
# The longest pause between two parts of a body, and the rate that it must keep on average.
BODY_PAUSE_SECONDS = 10.0
BODY_BYTES_A_SECOND = 10_000

SECURE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    # An answer is data. A page sets its own.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class SecureHeaders:
    """Tells browsers to take an answer for nothing but what it says it is. A route's own header stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, tell)


class AnswerOrigins(CORSMiddleware):
    """CORS, with a refusal in our shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        usual = super().preflight_response(request_headers)
        if usual.status_code < 400:
            return usual
        told = {name: value for name, value in usual.headers.items() if not name.startswith("content-")}
        # Starlette's words: which of origin, method and headers it is.
        return error_response(InvalidRequest(bytes(usual.body).decode().lower(), param="origin"), told)


class LimitRequests:
    """Answers 431, 400, 413 or 408 itself, and then closes the connection instead of reading to the end."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, pause_s: float = BODY_PAUSE_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_body_bytes
        self._pause_s = pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal_of_header(scope)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self._pause_s)
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            # Whatever the application makes of a body that broke off, the answer is ours.
            if body.refusal is None or begun:
                begun = True
                await send(message)

        try:
            await self._app(scope, body.receive, tell)
        except MezzotintError:
            if body.refusal is None:
                raise
        if body.refusal is not None and not begun:
            await _refuse(body.refusal, scope, receive, send)

    def _refusal_of_header(self, scope: Scope) -> MezzotintError | None:
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return HeadersTooLarge(
                f"the header has {len(headers)} fields and {size:,} bytes; at most {MAX_HEADERS} and "
                f"{MAX_HEADER_BYTES:,} are accepted"
            )
        counts = Counter(name for name, _ in headers)
        for name in ONLY_ONCE:
            if counts[name] > 1:
                return InvalidRequest(f"the header {name.decode()} is given more than once")
        encoding = dict(headers).get(b"content-encoding", b"identity")
        if encoding.strip().lower() not in (b"", b"identity"):
            return InvalidRequest(
                "the body must be sent as it is, without a content-encoding", param="content-encoding"
            )
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit():
            return InvalidRequest("the header content-length must be a number of bytes")
        # The comparison of lengths first: Python refuses to read a number of thousands of digits.
        if len(length) > 18 or int(length) > self._max_bytes:
            return _too_large(self._max_bytes)
        return None


class _Body:
    """A request's body as it comes, up to what is accepted."""

    def __init__(self, receive: Receive, max_bytes: int, pause_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._pause_s = pause_s
        self._began = time.monotonic()
        self._count = 0
        self._ended = False
        self.refusal: MezzotintError | None = None

    async def receive(self) -> Message:
        """The next message.

        Raises:
            MezzotintError: the refusal.
        """
        if self._ended:
            return await self._receive()
        if self.refusal is not None:
            raise self.refusal
        try:
            async with asyncio.timeout(self._patience()):
                message = await self._receive()
        except TimeoutError:
            self.refusal = BodyTooSlow("the request's body did not come in time")
            raise self.refusal from None
        self._count += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._count > self._max_bytes:
            self.refusal, self._ended = _too_large(self._max_bytes), False
            raise self.refusal
        return message

    def _patience(self) -> float:
        allowed = self._began + self._pause_s + self._count / BODY_BYTES_A_SECOND
        return max(0.0, min(self._pause_s, allowed - time.monotonic()))


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request's body is larger than {most / 1e6:g} MB")


async def _refuse(error: MezzotintError, scope: Scope, receive: Receive, send: Send) -> None:
    current().error = error
    response = error_response(error, {"connection": "close"}, path=scope.get("path", ""))
    await response(scope, receive, send)
