"""Every HTTP request has an id, a log line, its place in the metrics, and a span."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from opentelemetry.trace import Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.serve.telemetry.metrics import GatewayMetrics, surface_of
from mezzotint.serve.telemetry.record import Record, is_plain_id, open_record
from mezzotint.serve.telemetry.tracing import Tracing, fail

__all__ = ["Observe"]

logger = logging.getLogger("mezzotint.access")

REQUEST_ID = "x-request-id"
# On every answer whose request got as far as a seed, errors and 304 too.
SEED = "x-mezzotint-seed"
QUEUE_MS = "x-mezzotint-queue-ms"
COMPUTE_MS = "x-mezzotint-compute-ms"
CLIENT_LEFT = 499


class Observe:
    """The outermost of the application's middlewares: what it adds is on every answer, errors too."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = Record(request_id=_id_of(headers))
        # Of this request alone: a server's own may be everybody's.
        scope["state"] = dict(scope.get("state", {}))
        answer = _Answer(send, record)
        surface, began = surface_of(scope["path"]), time.perf_counter()
        in_flight = self._metrics.in_flight.labels(surface)
        with open_record(record), self._tracing.request(scope["method"], headers) as span:
            in_flight.inc()
            try:
                await self._app(scope, receive, answer.send)
            finally:
                in_flight.dec()
                self._tell(scope, record, answer, surface, time.perf_counter() - began, span)

    def _tell(
        self, scope: Scope, record: Record, answer: _Answer, surface: str, seconds: float, span: Span
    ) -> None:
        caller = scope["state"].get("caller")
        record.key = caller.id if caller is not None else ""
        status, outcome = answer.outcome(record)
        # The route's own path: the one that was asked for may hold anything.
        route = getattr(scope.get("route"), "path", "")
        self._metrics.answered(surface, outcome, status, seconds, record)
        span.update_name(f"{scope['method']} {route}".strip())
        span.set_attributes(
            {
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "mezzotint.surface": surface,
                "mezzotint.outcome": outcome,
                "mezzotint.request_id": record.request_id,
            }
        )
        if status >= 500:
            fail(span, record.error.code if record.error else "internal_error")
        quiet = surface == "operations" and outcome == "ok"
        facts = {
            "surface": surface,
            "method": scope["method"],
            "route": route,
            "status": status,
            "outcome": outcome,
            "seconds": round(seconds, 4),
            **_facts_of(record),
        }
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"facts": facts})


class _Answer:
    """What was sent of an answer, and on it what is noted of its request: id, seed and times."""

    def __init__(self, send: Send, record: Record) -> None:
        self._send = send
        self._record = record
        self._status = 0
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            _add_headers(MutableHeaders(scope=message), self._record)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True

    def outcome(self, record: Record) -> tuple[int, str]:
        """The status, and what it comes to. A stream that has begun tells its error in an event."""
        if not self._complete:
            return (self._status or CLIENT_LEFT), "left"
        status = self._status
        if status < 400 and record.error is not None:
            status = record.error.status
        if status < 400:
            return status, "ok"
        return status, "refused" if status < 500 else "failed"


def _add_headers(headers: MutableHeaders, record: Record) -> None:
    headers[REQUEST_ID] = record.request_id
    if record.seed is None:
        return
    headers[SEED] = str(record.seed)
    # Of events the header goes out before anything is drawn, and a zero would lie.
    if not headers.get("content-type", "").startswith("text/event-stream"):
        headers[QUEUE_MS] = f"{(record.queue_s or 0.0) * 1000:.1f}"
        headers[COMPUTE_MS] = f"{(record.compute_s or 0.0) * 1000:.1f}"


def _id_of(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if is_plain_id(given) else f"req_{uuid.uuid4().hex}"


def _facts_of(record: Record) -> dict[str, Any]:
    facts = {
        "key": record.key,
        "images": record.images,
        "queue_s": _rounded(record.queue_s),
        "compute_s": _rounded(record.compute_s),
        "retries": record.retries,
        "prompt_characters": record.prompt_characters,
        "prompt_hash": record.prompt_hash,
        "error": record.error.code if record.error is not None else None,
    }
    return {name: value for name, value in facts.items() if value not in (None, "", 0)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
