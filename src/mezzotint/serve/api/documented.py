"""What the OpenAPI document says of errors, headers and keys: one table of each for all routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

__all__ = ["DRAWN", "EVERYWHERE", "OPEN", "PLAIN", "answers", "describe", "headers"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    error: ErrorDetail


STATUSES: Mapping[int, str] = {
    400: "a value, a field or the body is not accepted; `param` names it",
    401: "no key, or one that is wrong, revoked or expired",
    403: "the key may not do this",
    404: "no such model, job or picture, or no such route",
    405: "the route takes another method",
    408: "the body came too slowly",
    409: "the same Idempotency-Key with another body, or a state that does not allow this",
    413: "the body or a picture in it has too many bytes or pixels",
    415: "a file that is no PNG, JPEG or WebP that can be read",
    429: "the key's limit or the backlog's; `Retry-After` says when to come back",
    431: "the header is too long",
    500: "the model failed, or a bug; not to be sent again",
    503: "loading, closing, lost, or a store does not answer; `Retry-After` says when to come back",
    504: "the request's deadline passed",
}
PLAIN = (400, 401, 403, 405, 408, 413, 429, 431, 500, 503)

HEADERS: Mapping[str, tuple[str, str]] = {
    "Allow": ("string", "the methods that the route takes"),
    "ETag": ("string", "names the picture, for If-None-Match; with a seed alone"),
    "Location": ("string", "where the job is"),
    "Retry-After": ("integer", "seconds after which to ask again, at most 120"),
    "WWW-Authenticate": ("string", "Bearer"),
    "retry-after-ms": ("integer", "the same in milliseconds"),
    "x-request-id": ("string", "names the request in the log; the client's own, if it is short and plain"),
    "x-mezzotint-seed": ("integer", "the first picture's"),
    "x-mezzotint-queue-ms": ("number", "the longest wait of a picture for its first step; not with events"),
    "x-mezzotint-compute-ms": ("number", "the longest time from there to a picture; not with events"),
    "x-should-retry": ("boolean", "whether sending the same again may help"),
}
DRAWN = ("x-mezzotint-seed", "x-mezzotint-queue-ms", "x-mezzotint-compute-ms")
"""Headers of what is answered once a seed is settled."""
WAIT = ("Retry-After", "retry-after-ms")
ON_ERRORS: Mapping[int, tuple[str, ...]] = {
    400: DRAWN,
    401: ("WWW-Authenticate",),
    403: DRAWN,
    404: DRAWN,
    405: ("Allow",),
    408: ("x-should-retry",),
    409: ("x-should-retry", *DRAWN),
    429: ("x-should-retry", *WAIT, *DRAWN),
    431: ("x-should-retry",),
    500: ("x-should-retry", *DRAWN),
    503: ("x-should-retry", *WAIT, *DRAWN),
    504: ("x-should-retry", *DRAWN),
}
KEYS: Mapping[str, Mapping[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the key"},
    "basic": {"type": "http", "scheme": "basic", "description": "the key as password, any name"},
}
OPEN: dict[str, Any] = {"security": []}
"""`openapi_extra=` of a route that asks for no key."""


def headers(*names: str) -> dict[str, Any]:
    """Of an answer that has these headers, or some of them."""
    told = {name: HEADERS[name] for name in names}
    return {
        "headers": {
            name: {"schema": {"type": kind}, "description": text} for name, (kind, text) in told.items()
        }
    }


def answers(*statuses: int, model: Any = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route or router that can answer with these errors."""
    return {
        status: {"model": model, "description": STATUSES[status], **headers(*ON_ERRORS.get(status, ()))}
        for status in statuses
    }


EVERYWHERE = answers(*PLAIN)
"""Of every route: the application's own."""


def describe(app: FastAPI) -> None:
    """Say how a key is sent and what every answer has; leave out FastAPI's 422, which no route answers."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            plain = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _with_keys(_with_ids(_without_422(plain)))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


def _with_ids(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                response["headers"] = {**headers("x-request-id")["headers"], **response.get("headers", {})}
    return document


def _with_keys(document: dict[str, Any]) -> dict[str, Any]:
    document.setdefault("components", {})["securitySchemes"] = {name: dict(KEYS[name]) for name in KEYS}
    # The empty one: a server that has no keys asks for none.
    document["security"] = [*({name: []} for name in KEYS), {}]
    return document
