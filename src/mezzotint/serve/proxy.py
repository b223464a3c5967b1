"""Between clients and Ray Serve's HTTP proxy: headers that would steer Ray Serve are taken away, and what
the proxy itself answers, when there is no gateway to answer, is said in the shape of every other error.

The proxy runs this wherever its environment has `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` set to
`PROXY_CALLBACK`.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.errors import RETRY_AFTER_SECONDS, MezzotintError, ModelLoading, QueueFull
from mezzotint.serve.api.errors import error_response, http_error
from mezzotint.serve.telemetry.record import is_plain_id

__all__ = ["LOST_HEADER", "PROXY_CALLBACK", "TellErrors", "proxy_middleware"]

REQUEST_ID = b"x-request-id"
PROXY_CALLBACK = "mezzotint.serve.proxy.proxy_middleware"
# The first turns Serve's timeout off, the second its watch for clients that leave; the others choose among
# replicas. Serve takes them with either separator.
STRIPPED = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
LOST_HEADER = "x-mezzotint-lost"


class StripHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [each for each in scope["headers"] if not _steers(*each)]}
        await self._app(scope, receive, send)


def _steers(name: bytes, value: bytes) -> bool:
    name = name.replace(b"_", b"-")
    # Serve reads an id of any bytes as UTF-8, and answers one that is not with 500.
    return name in STRIPPED or (name == REQUEST_ID and not is_plain_id(value.decode("latin-1")))


class TellErrors:
    """The proxy's own errors are plain text, and a bare 500 where a gateway was lost; the application's are
    not. Each of them means that no gateway answered, or that none had room: the same request succeeds
    elsewhere, or soon."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not path.startswith("/"):
            # `OPTIONS *`: of no route, so that the proxy finds no gateway for it.
            refusal = http_error(HTTPStatus.NOT_FOUND, scope["method"], path)
            await error_response(refusal)(scope, receive, send)
            return
        begun = replaced = False

        async def watch(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start":
                begun, replaced = True, _is_the_proxys(message)
                if replaced:
                    error = _in_words(message)
                    await error_response(error, _lost(error), path=path)(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, watch)
        if not begun:
            error = _not_here()
            await error_response(error, _lost(error), path=path)(scope, receive, send)


class OneRequestId:
    """The proxy would add the client's own id to the answer, beside the application's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                ids = [each for each in message["headers"] if each[0].lower() == REQUEST_ID]
                others = [each for each in message["headers"] if each[0].lower() != REQUEST_ID]
                message = {**message, "headers": [*others, *ids[:1]]}
            await send(message)

        await self._app(scope, receive, once)


def _is_the_proxys(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    # `SecureHeaders` marks what the application answers: in plain text, that a page elsewhere may not ask.
    ours = b"x-content-type-options" in headers
    return start["status"] >= 400 and not ours and headers.get(b"content-type", b"").startswith(b"text/plain")


def _in_words(start: Message) -> MezzotintError:
    if start["status"] != 429:
        return _not_here()
    headers = {name.lower(): value for name, value in start["headers"]}
    told = headers.get(b"retry-after", b"").decode("latin-1")
    # Or a date, which Ray Serve does not send.
    retry_after_s = float(told) if told.isdecimal() else RETRY_AFTER_SECONDS
    return QueueFull("the gateways have too many requests", retry_after_s=retry_after_s)


def _lost(error: MezzotintError) -> dict[str, str]:
    """For an edge in front: no gateway has the request, or none any more, so it may send it again."""
    return {LOST_HEADER: "gateway"} if isinstance(error, ModelLoading) else {}


def _not_here() -> ModelLoading:
    return ModelLoading("no gateway answers: it is starting or stopping", retry_after_s=RETRY_AFTER_SECONDS)


def proxy_middleware() -> list[Middleware]:
    """For Ray Serve."""
    return [Middleware(StripHeaders), Middleware(TellErrors), Middleware(OneRequestId)]
