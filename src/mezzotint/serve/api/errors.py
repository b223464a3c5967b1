"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`; A1111's for its routes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.errors import MAX_RETRY_AFTER_SECONDS, InvalidRequest, MezzotintError
from mezzotint.serve.telemetry.record import current

__all__ = [
    "error_body",
    "error_response",
    "http_error",
    "install_error_handlers",
    "invalid_body",
]

logger = logging.getLogger(__name__)

# A1111's clients read its own shape of an error.
A1111_PATHS = ("/sdapi/", "/controlnet/")


def error_response(
    error: MezzotintError, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> JSONResponse:
    """In the shape of those who ask below the path, whoever answers."""
    body = error_body(error)
    if path.startswith(A1111_PATHS):
        message = body["error"]["message"]
        body = {"error": type(error).__name__, "detail": message, "body": "", "errors": message}
    return JSONResponse(body, error.status, {**_headers(error), **(headers or {})})


def error_body(error: MezzotintError) -> dict[str, Any]:
    """The usual shape. Noted for the request's log line and metrics."""
    current().error = error
    return {"error": error.to_dict()}


def http_error(status: HTTPStatus, method: str, path: str) -> MezzotintError:
    """HTTP's own, which the tree has no class for: no such route, no such method on it."""
    error = MezzotintError(f"{status.phrase.lower()}: {method} {path}")
    error.status, error.code = status.value, status.name.lower()
    if status < 500:
        error.type = "invalid_request_error"
    return error


def _headers(error: MezzotintError) -> dict[str, str]:
    if error.status == 401:
        # Of HTTP, not for browsers: `Basic` would have them ask, and then send the key along everywhere.
        return {"WWW-Authenticate": "Bearer"}
    # The official clients send these again unless they are told not to.
    if error.status not in (408, 409) and error.status < 429:
        return {}
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_s is not None:
        seconds = min(error.retry_after_s, MAX_RETRY_AFTER_SECONDS)
        headers["Retry-After"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    return headers


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(MezzotintError, _on_mezzotint_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(ErrorBoundary)


async def _on_mezzotint_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MezzotintError)
    return error_response(error, path=request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(as_invalid_request(error.errors()[0]), path=request.url.path)


def as_invalid_request(first: Mapping[str, Any]) -> InvalidRequest:
    """What pydantic found, as one of ours."""
    location = first.get("loc", ())
    param = _place(location[1:]) if len(location) > 1 else None
    where = "the body" if param is None else param
    if first.get("type") == "extra_forbidden":
        return InvalidRequest(f"unknown field {where!r}", param=param)
    if first.get("type") == "missing":
        return InvalidRequest(f"{where} is required", param=param)
    if first.get("type") == "model_attributes_type" and param is None:
        return InvalidRequest("the body must be a JSON object")
    # What a check of our own raises, pydantic prefixes.
    reason = str(first.get("msg", "not accepted")).removeprefix("Value error, ")
    return InvalidRequest(f"{where}: {reason[:1].lower()}{reason[1:]}", param=param)


def invalid_body(error: ValidationError, *place: str) -> InvalidRequest:
    """What pydantic found in a part of the body that is checked by itself. place: where the part stands."""
    first = error.errors(include_url=False)[0]
    return as_invalid_request({**first, "loc": ("body", *place, *first["loc"])})


def _place(location: Sequence[str | int]) -> str:
    """`loras[0].scale`."""
    first, *inner = location
    return str(first) + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in inner)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own."""
    assert isinstance(error, HTTPException)
    status, path = HTTPStatus(error.status_code), request.url.path
    headers = dict(error.headers or {})
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names those of the first route of this path.
        headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return error_response(http_error(status, request.method, path), headers, path=path)


def _methods_of(request: Request) -> set[str]:
    """Of all routes of the request's path."""
    found: set[str] = set()
    for entry in request.app.routes:
        for route in getattr(getattr(entry, "original_router", None), "routes", (entry,)):
            if route.matches(request.scope)[0] is not Match.NONE:
                found |= route.methods
    return found


class ErrorBoundary:
    """What no handler knew becomes a bare 500 here, and a traceback in the log, not in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            logger.exception("a request ended in an internal error")
            # With half an answer sent, only cutting the connection still tells the client.
            if begun:
                raise
            error = MezzotintError("internal error; the request id names it in the log")
            response = error_response(error, path=scope["path"])
            await response(scope, receive, send)
