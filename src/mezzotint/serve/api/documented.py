"""What the OpenAPI document says of errors: one table of statuses for all routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

__all__ = ["EVERYWHERE", "PLAIN", "ErrorBody", "answers", "describe"]


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
    503: "loading, closing, or a store does not answer; `Retry-After` says when to come back",
    504: "the request's deadline passed",
}
PLAIN = (400, 401, 403, 405, 408, 413, 429, 431, 500, 503)


def answers(*statuses: int, model: Any = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route or router that can answer with these errors."""
    return {status: {"model": model, "description": STATUSES[status]} for status in statuses}


EVERYWHERE = answers(*PLAIN)
"""Of every route: the application's own."""


def describe(app: FastAPI) -> None:
    """Leave out FastAPI's 422, which no route answers."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _without_422(
                get_openapi(title=app.title, version=app.version, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document
