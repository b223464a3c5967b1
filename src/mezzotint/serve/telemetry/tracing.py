"""OpenTelemetry spans, from a request's header to the encoded file, across gateway and replica.

Off unless there is somewhere to send them. No span holds a prompt. A generator may be closed from another
task than the one that began it, so spans that live across a `yield` are never made the task's current one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.trace import NoOpTracer, Span, SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from mezzotint import __version__
from mezzotint.core import Done, Event, Failed
from mezzotint.engine.ticket import Ticket

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

__all__ = ["OFF", "Tracing", "fail", "headers_of"]

CLOSE_SECONDS = 2.0
_propagator = TraceContextTextMapPropagator()
Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """One process's spans. Without a `provider`, nothing is made, and each call costs next to nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer: Tracer = NoOpTracer() if provider is None else provider.get_tracer("mezzotint")

    @classmethod
    def to(cls, endpoint: str, process: str, replica: str, processor: SpanProcessor | None = None) -> Tracing:
        """Spans sent to the OTLP/HTTP address, `/v1/traces` added where it names no path; empty means off.

        `processor` takes the spans instead of the sender to `endpoint`.
        """
        if not endpoint and processor is None:
            return cls()
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create(
            {
                "service.name": f"mezzotint-{process}",
                "service.version": __version__,
                "service.instance.id": replica,
            }
        )
        # The process's own end is `close`; an exit handler would try again, after everything is gone.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(processor or _sender(endpoint))
        return cls(provider)

    def close(self) -> None:
        """Send what is left, for at most two seconds."""
        if self._provider is None:
            return
        # The SDK keeps to no limit of its own: it waits ten seconds for a silent collector, for each batch.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of an HTTP request, current within; a child of the client's, where it sent one."""
        parent = _propagator.extract(headers)
        with self._tracer.start_as_current_span(
            name, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        below: Span | Mapping[str, str] | None = None,
    ) -> Iterator[Span]:
        """A span below the current one, or below another, or below one of another process by its W3C headers.

        It is never the current one itself. Of an error the code is noted, not the message.
        """
        context = None
        if below is not None:
            context = set_span_in_context(below) if isinstance(below, Span) else _propagator.extract(below)
        span = self._tracer.start_span(name, context, attributes=attributes)
        try:
            yield span
        except Exception as error:
            fail(span, getattr(error, "code", type(error).__name__))
            raise
        finally:
            span.end()

    def ran(self, below: Span, ticket: Ticket, event: Event) -> None:
        """What became of a request in the engine: its waiting, its steps, its decoding, from the times it
        kept."""
        context = set_span_in_context(below)
        ended = time.monotonic()
        if isinstance(event, Failed):
            fail(below, event.error.code)
        elif not isinstance(event, Done):
            fail(below, "cancelled")
        started, last = ticket.started, ticket.last_step
        # Once for all, or else one span's end would not be the next one's beginning: between its looks at the
        # two clocks this thread may have to wait.
        zero_ns = time.time_ns() - time.monotonic_ns()

        def past(name: str, began: float, ended: float, attributes: Attributes | None = None) -> None:
            at = [zero_ns + int(moment * 1e9) for moment in (began, ended)]
            self._tracer.start_span(name, context, attributes=attributes, start_time=at[0]).end(at[1])

        past("queue", ticket.submitted, started or ended)
        if started is not None:
            past("steps", started, last or ended, {"evaluations": ticket.evaluated})
        if last is not None:
            past("decode", ticket.decoding or last, ended)


OFF = Tracing()


def headers_of(span: Span) -> dict[str, str]:
    """The W3C headers with which another process finds its spans' parent."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, set_span_in_context(span))
    return carrier


def fail(span: Span, code: str) -> None:
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", code)


def _sender(endpoint: str) -> SpanProcessor:
    from urllib.parse import urlsplit

    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint))
