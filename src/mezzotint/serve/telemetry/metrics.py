"""What a gateway counts, and the whole service's series on request.

Labels are few and ours: nothing that a client sends becomes one. A key's id does, within a bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from mezzotint.serve.peers import answers
from mezzotint.serve.stores.job import FINAL, JobState
from mezzotint.serve.telemetry.exposition import Families, families_of, join
from mezzotint.serve.telemetry.record import Record

__all__ = ["SECONDS", "BoundedLabel", "GatewayMetrics", "Gathering", "surface_of"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
LAG_EVERY_SECONDS = 0.1
MAX_LABELS = 100

SURFACES = (
    ("/imagine", "imagine"),
    ("/v1/images/jobs", "jobs"),
    ("/v1/", "openai"),
    ("/sdapi/", "a1111"),
    ("/controlnet/", "a1111"),
    ("/healthz", "operations"),
    ("/readyz", "operations"),
    ("/metrics", "operations"),
    ("/docs", "operations"),
    ("/openapi.json", "operations"),
)

Others = Callable[[], Awaitable[Sequence[Families]]]
"""Asks some other processes for their series."""


def surface_of(path: str) -> str:
    """Which of the surfaces a path belongs to; `none` for any other."""
    return next((surface for prefix, surface in SURFACES if path.startswith(prefix)), "none")


class BoundedLabel:
    """Values of a label whose number nobody else bounds: the first `most` as they are, then `other`."""

    def __init__(self, most: int = MAX_LABELS) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._most:
                return "other"
            self._known.add(value)
        return value


class Store(Protocol):
    """failures: how often it did not answer."""

    failures: int


class Orders(Protocol):
    """retries: how many pictures needed a second replica."""

    @property
    def retries(self) -> int: ...


class GatewayMetrics:
    def __init__(self, name: str) -> None:
        self._labels = {"process": "gateway", "replica": name}
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "mezzotint_requests_total",
            "HTTP requests answered: ok, refused (4xx), failed (5xx) or left (by the client)",
            ("surface", "outcome", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mezzotint_request_seconds",
            "From a request's header to the end of its answer",
            ("surface",),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "mezzotint_requests_in_flight", "HTTP requests being answered", ("surface",), registry=registry
        )
        self.rejected = Counter(
            "mezzotint_rejected_total",
            "Requests refused for their key, their size, their deadline, or for want of room",
            ("reason",),
            registry=registry,
        )
        self.loop_lag = Histogram(
            "mezzotint_event_loop_lag_seconds",
            "How late the event loop wakes a task",
            buckets=LAG_SECONDS,
            registry=registry,
        )

    async def watch_lag(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_SECONDS)
            self.loop_lag.observe(max(0.0, time.perf_counter() - began - LAG_EVERY_SECONDS))

    def answered(self, surface: str, outcome: str, status: int, seconds: float, record: Record) -> None:
        """A request has ended."""
        self.requests.labels(surface, outcome, str(status)).inc()
        self.request_seconds.labels(surface).observe(seconds)
        error = record.error
        if error is not None and error.status in (401, 403, 408, 413, 415, 429, 431, 503):
            self.rejected.labels(error.code).inc()

    def watch_orders(self, orders: Orders) -> None:
        """Tell how many of them needed a second replica, those of jobs too."""
        self._registry.register(_Retries(orders))

    def watch_stores(self, **stores: Store) -> None:
        """Tell how often each of them failed."""
        self._registry.register(_StoreErrors(stores))

    def watch_jobs(self, ended: Mapping[JobState, int]) -> None:
        """Tell how many jobs came to each final state here."""
        self._registry.register(_JobsEnded(ended))

    def families(self) -> Families:
        return families_of(self._registry, self._labels)


class _Retries(Collector):
    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "mezzotint_retries", "Pictures that needed a second replica", self._orders.retries
        )


class _JobsEnded(Collector):
    def __init__(self, ended: Mapping[JobState, int]) -> None:
        self._ended = ended

    def collect(self) -> Iterator[Metric]:
        found = CounterMetricFamily("mezzotint_jobs_finished", "Jobs that ended, by how", labels=["state"])
        for state in sorted(FINAL):
            found.add_metric([state], self._ended.get(state, 0))
        yield found


class _StoreErrors(Collector):
    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores

    def collect(self) -> Iterator[Metric]:
        found = CounterMetricFamily(
            "mezzotint_store_errors", "How often a store did not answer", labels=["store"]
        )
        for name, store in self._stores.items():
            found.add_metric([name], store.failures)
        yield found


class Gathering:
    """The series of every process: this gateway's, and those that each of `others` finds."""

    def __init__(self, own: GatewayMetrics, *others: Others) -> None:
        self._own = own
        self._others = others

    async def text(self) -> str:
        """In Prometheus' text format. A process that does not answer in time is left out."""
        found = await asyncio.gather(*(answers(other, "the series") for other in self._others))
        return join([self._own.families(), *(families for each in found for families in each)])
