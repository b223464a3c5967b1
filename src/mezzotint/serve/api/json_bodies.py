"""JSON bodies, bounded before they are parsed: parsing is one piece of work, and the event loop waits.

A name that an object holds twice is refused, as in a query or a form: of the two Python would take the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from mezzotint.errors import InvalidRequest, PayloadTooLarge
from mezzotint.serve.api.dependencies import KeyedRoute, caller_of

__all__ = ["JsonRoute", "forget_body", "parse"]

# Values, lists and objects, counting what looks like one inside of texts: two prompts at their longest, all
# of commas, are less than half of it.
MAX_PARTS = 50_000
# Python itself refuses to read longer ones than 4,300, which take time that grows with their square.
MAX_DIGITS = 1_000


def _check_parts(body: bytes) -> None:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_PARTS:
        raise PayloadTooLarge(f"the body has more than {MAX_PARTS:,} values")


class JsonRoute(KeyedRoute):
    """A route whose body is JSON that may hold pictures: few values, some of them long.

    Base64 costs little to parse; as many bytes of short values take seconds and gigabytes, and a megabyte of
    empty lists holds the loop for two seconds already.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_counted(request: Request) -> Response:
            await caller_of(request)
            named = self.strict_content_type is not False
            return await _handled(handle, await _read(request, named=named))

        return handle_counted


def forget_body(request: Request) -> None:
    """Let go of the JSON that was sent, which the framework keeps until it is answered. Pictures in it were
    decoded, and may wait for long to be drawn from."""
    getattr(request.state, "sent", {}).clear()


class _StrictRequest(Request):
    """Whose JSON is parsed here, once, and whose bytes are not kept."""

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._sent = body

    async def body(self) -> bytes:
        # The framework only looks whether there is any.
        return self._sent[:1]

    async def json(self) -> Any:
        sent, self._sent = self._sent, b""
        parsed = parse(sent)
        if isinstance(parsed, dict):
            self.state.sent = parsed
        return parsed


async def _read(request: Request, *, named: bool) -> _StrictRequest:
    """named: whether the body must be said to be JSON; else it is only not said to be something else.

    Raises:
        PayloadTooLarge: the body has too many values.
        InvalidRequest: it is said to be something else than JSON, or said to be nothing.
    """
    body = b"".join([chunk async for chunk in request.stream()])
    _check_parts(body)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and (kind or named) and kind != "application/json" and not kind.endswith("+json"):
        raise InvalidRequest("the body must be application/json", param="content-type")
    return _StrictRequest(request, body)


def parse(text: str | bytes, refusal: str = "the body is not valid JSON", param: str | None = None) -> Any:
    """JSON. `refusal` and `param` tell of text that is none.

    Raises:
        InvalidRequest: it is none, is nested too deeply, or holds a name twice or too long a number.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except json.JSONDecodeError as error:
        # Some of Python's own words end in "at" already.
        found = error.msg.removesuffix(" at")
        reason = f"{found[:1].lower()}{found[1:]} at character {error.pos + 1}"
    except UnicodeDecodeError as error:
        reason = f"no {error.encoding.upper()} at byte {error.start + 1}"
    except RecursionError:
        reason = "its lists and objects are nested too deeply"
    raise InvalidRequest(f"{refusal}: {reason}", param=param)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidRequest(f"a number has {len(digits):,} digits; at most {MAX_DIGITS:,} are accepted")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest(f"{name} is given more than once", param=name)
        found[name] = value
    return found


async def _handled(handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request) -> Response:
    try:
        return await handle(request)
    except HTTPException as error:
        # FastAPI's own for whatever parsing raises.
        if isinstance(error.__cause__, InvalidRequest):
            raise error.__cause__ from None
        raise
