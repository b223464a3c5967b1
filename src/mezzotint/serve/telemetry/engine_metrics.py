"""What an engine replica counts: passes, waits, pictures, and the steps that came to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mezzotint.core import Cancelled, Done, Event, Failed
from mezzotint.engine.observer import Observer
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.ticket import Ticket
from mezzotint.errors import GenerationFailed, MezzotintError, ModelInvalid
from mezzotint.serve.telemetry.exposition import Families, families_of
from mezzotint.serve.telemetry.metrics import SECONDS, BoundedLabel

if TYPE_CHECKING:
    from mezzotint.engine.engine import Engine

__all__ = ["EngineMetrics"]

STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Shapes and widths are what a client asks for, so they are told by class. 1.05 takes SDXL's own sizes in.
MEGAPIXELS = (0.07, 0.27, 0.6, 1.06, 1.6, 2.2, 4.2)
NO_KEY = "none"


def shape_class(key: BatchKey) -> str:
    """The pixels of an image, as the least of `MEGAPIXELS` that holds them."""
    pixels = key.width * key.height / 1e6
    return next((f"{most:g}" for most in MEGAPIXELS if pixels <= most), "more")


def width_class(width: int) -> str:
    return str(next((most for most in WIDTHS if width <= most), "more"))


class EngineMetrics(Observer):
    def __init__(self, engine: Engine, name: str) -> None:
        self._labels = {"process": "engine", "replica": name}
        self._key = BoundedLabel()
        registry = self._registry = CollectorRegistry()
        registry.register(_State(engine))
        self._step_seconds = Histogram(
            "mezzotint_step_seconds",
            "One pass of the UNet, by the images in it and their size in megapixels (at most)",
            ("width", "megapixels", "guided"),
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self._widths = Histogram(
            "mezzotint_batch_width_images", "Images in one pass", buckets=WIDTHS, registry=registry
        )
        self._image_steps = Counter(
            "mezzotint_image_steps_total", "Evaluations of one image", registry=registry
        )
        self._queue_wait = _seconds("mezzotint_queue_wait_seconds", "Until the first pass begins", registry)
        self._first_step = _seconds(
            "mezzotint_time_to_first_step_seconds", "Until the first pass has ended", registry
        )
        self._decode = _seconds("mezzotint_decode_seconds", "From latents to pixels", registry)
        self._encode = Histogram(
            "mezzotint_encode_seconds",
            "From pixels to a file",
            ("format",),
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter("mezzotint_images_total", "Pictures drawn", registry=registry)
        self._failed = Counter(
            "mezzotint_images_failed_total", "Pictures that came to nothing", ("reason",), registry=registry
        )
        # From zero on: to Prometheus a series that begins at three, as a sick replica's would, never rose.
        for kind in (GenerationFailed, MezzotintError, ModelInvalid):
            self._failed.labels(kind.code)
        self._cancelled = Counter(
            "mezzotint_cancelled_total",
            "Pictures cancelled, by how far they were",
            ("phase",),
            registry=registry,
        )
        self._wasted = Counter(
            "mezzotint_wasted_steps_total",
            "Evaluations of images that were never finished",
            registry=registry,
        )
        self._compute = Counter(
            "mezzotint_compute_seconds_total", "Seconds of passes, shared by their images' keys", ("key",),
            registry=registry,
        )  # fmt: skip
        engine.observe(self)

    def passed(self, key: BatchKey, tenants: Sequence[str], seconds: float) -> None:
        width = len(tenants)
        guided = "true" if key.guided else "false"
        self._step_seconds.labels(width_class(width), shape_class(key), guided).observe(seconds)
        self._widths.observe(width)
        self._image_steps.inc(width)
        for tenant in tenants:
            self._compute.labels(self._key(tenant or NO_KEY)).inc(seconds / width)

    def ended(self, ticket: Ticket, event: Event) -> None:
        if ticket.started is not None:
            self._queue_wait.observe(ticket.started - ticket.submitted)
        if ticket.first_step is not None:
            self._first_step.observe(ticket.first_step - ticket.submitted)
        match event:
            case Done(compute_s=compute_s):
                # Whether it is a picture, is told by `encoded` or `unused`.
                if ticket.decoding is not None and ticket.started is not None:
                    self._decode.observe(ticket.started + compute_s - ticket.decoding)
                return
            case Failed(error=error):
                self._failed.labels(error.code).inc()
            case Cancelled():
                self._cancelled.labels(ticket.phase).inc()
        self._wasted.inc(ticket.evaluated)

    def encoded(self, format: str, seconds: float) -> None:
        """Of a picture, a file of `format` was made in `seconds`."""
        self._images.inc()
        self._encode.labels(format).observe(seconds)

    def unused(self, error: BaseException, evaluated: int) -> None:
        """What took `evaluated` evaluations became no file: it shows nothing, or its caller has left."""
        if isinstance(error, Exception):
            kind = error if isinstance(error, MezzotintError) else MezzotintError
            self._failed.labels(kind.code).inc()
        else:
            self._cancelled.labels("decoding").inc()
        self._wasted.inc(evaluated)

    def families(self) -> Families:
        return families_of(self._registry, self._labels)


def _seconds(name: str, what: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, what, buckets=SECONDS, registry=registry)


class _State(Collector):
    """What the engine itself knows, read when it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        images = GaugeMetricFamily("mezzotint_images_in_engine", "Pictures here, by state", labels=["state"])
        for state in ("queued", "running", "decoding"):
            images.add_metric([state], getattr(status, state))
        yield images
        yield GaugeMetricFamily(
            "mezzotint_backlog_seconds",
            "Seconds of work until all is done, decoding included",
            status.backlog_s,
        )
        yield CounterMetricFamily("mezzotint_passes", "Passes of the UNet", status.passes)
        yield CounterMetricFamily("mezzotint_pass_seconds", "Seconds in passes", status.pass_s)
        yield CounterMetricFamily(
            "mezzotint_busy_seconds", "Seconds in which the loop had work", status.busy_s
        )
        phases = GaugeMetricFamily(
            "mezzotint_cold_start_seconds", "What this replica's start took", labels=["phase"]
        )
        for phase, seconds in self._engine.cold_start_s.items():
            phases.add_metric([phase], seconds)
        yield phases
        found = CounterMetricFamily(
            "mezzotint_prompt_cache", "Prompts looked up among the remembered embeddings", labels=["found"]
        )
        for name, count in self._engine.counters.items():
            found.add_metric([name.removeprefix("prompt_cache_")], count)
        yield found
