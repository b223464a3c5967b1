"""`mezzotint bench engine`: the step-level engine against the ways others serve, in one interleaved run.

Every part alternates its sides (A B A B …), so that a machine which slows down slows them all, and reports
ratios of medians or means. The parts, and what each claims, are the functions below.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from mezzotint.backends.base import Backend
from mezzotint.bench.load import Mix, backlog, poisson, replay
from mezzotint.bench.reference import Reference
from mezzotint.bench.servers import (
    RecordingBackend,
    blocking_server,
    engine_server,
    request_batch_server,
)
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.ticket import Ticket

__all__ = [
    "FULL",
    "PARTS",
    "QUICK",
    "Bench",
    "Effort",
    "Result",
    "at_least",
    "at_most",
    "figure",
    "pass_periods",
    "percentile",
    "summary",
]


@dataclass(frozen=True)
class Effort:
    """How much to measure. `QUICK` shows that the bench runs; only `FULL` is worth quoting."""

    rounds: int
    load_rounds: int
    backlog: int
    arrivals: int
    loads: tuple[float, ...]
    trials: int
    saturated_arrivals: int
    steps: tuple[int, ...] = (4, 8, 12, 20, 30, 50)


FULL = Effort(3, 2, 16, 30, (0.5, 0.7, 0.9), 30, 12)
QUICK = Effort(1, 1, 4, 6, (0.7,), 4, 3, steps=(2, 4, 8))


@dataclass(frozen=True)
class Result:
    """One figure and its bar, if it has one. `samples` are what it was computed from, in seconds where not
    said."""

    part: str
    name: str
    value: float
    bar: str
    met: bool
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def figure(part: str, name: str, value: float, **details: Any) -> Result:
    """A figure without a bar."""
    return Result(part, name, value, "", True, details)


def at_least(part: str, name: str, value: float, bar: float, **details: Any) -> Result:
    return Result(part, name, value, f"≥ {bar:g}", value >= bar, details)


def at_most(part: str, name: str, value: float, bar: float, **details: Any) -> Result:
    return Result(part, name, value, f"≤ {bar:g}", value <= bar, details)


class Bench:
    """One engine and one reference on the same weights, and the parts that compare them."""

    def __init__(self, backend: Backend, reference: Reference, effort: Effort) -> None:
        self.recorder = RecordingBackend(backend)
        self.engine = Engine(self.recorder, max_queue=10_000)
        self.engine.warm_up()
        self.reference = reference
        self.effort = effort
        self.rng = random.Random(0)
        limits = backend.info.limits
        self.width, self.height = limits.default_width, limits.default_height
        self.saturated = min(2 * self.width, limits.max_size)
        self.capacity: float | None = None

    def close(self) -> None:
        self.engine.close()

    def mix(self) -> Mix:
        return Mix(self.effort.steps, (0.0, 3.0, 5.0, 7.5), self.width, self.height)

    def requests(self, mix: Mix, count: int) -> list[GenerationRequest]:
        return [mix.draw(self.rng, number) for number in range(count)]

    # Parts

    def throughput(self) -> list[Result]:
        """Images a second of a backlog of 20-step guided requests, against diffusers in a serial loop."""
        mix = Mix((20,), (5.0,), self.width, self.height)
        ours, serial = [], []
        with engine_server(self.engine) as engine, blocking_server(self.reference.draw) as loop:
            for _ in range(max(2, self.effort.rounds)):
                requests = self.requests(mix, self.effort.backlog)
                ours.append(len(requests) / backlog(engine, requests))
                serial.append(len(requests) / backlog(loop, requests))
        ratio = statistics.median(ours) / statistics.median(serial)
        return [
            at_least(
                "throughput", "backlog, engine ÷ diffusers serially", ratio, 1.4, engine=ours, serial=serial
            )
        ]

    def load(self) -> list[Result]:
        """Latency under Poisson arrivals of mixed steps and guidance, at shares of the engine's capacity.

        The same arrivals go to every server. A peer of less capacity is loaded more heavily by them: that is
        what a site with this many customers would see, and why the shares are in the details.
        """
        capacity = self._measure_capacity()
        results = []
        for share in self.effort.loads:
            seconds: dict[str, list[float]] = {"engine": [], "request batches": [], "one at a time": []}
            for _ in range(self.effort.load_rounds):
                trace = poisson(self.mix(), share * capacity, self.effort.arrivals, self.rng)
                for name, server in self._servers():
                    with server as serve:
                        seconds[name] += replay(serve, trace)
            results += self._compare(share, capacity, seconds)
        return results

    def join(self) -> list[Result]:
        """How many passes a request waits for its first when a slot is free."""
        waits = []
        knee = self.engine.cost.knee(self._key())
        background = _Background(self, max(1, knee - 1))
        for _ in range(self.effort.trials):
            background.top_up()
            time.sleep(self.rng.uniform(0.0, 0.1))
            submitted = time.perf_counter()
            ticket = self.engine.submit(self._request(steps=4))
            ticket.result()
            first = next(p for p in list(self.recorder.passes) if ticket.request_id in p.request_ids)
            others = [p.ended - p.began for p in self.recorder.passes[-200:]]
            waits.append((first.began - submitted) / statistics.median(others))
        background.stop()
        p50, p99 = statistics.median(waits), percentile(waits, 0.99)
        return [
            at_most("join", "steps until the first, free slot, p50", p50, 1.0, samples=waits),
            at_most("join", "steps until the first, free slot, p99", p99, 2.0),
        ]

    def short_job(self) -> list[Result]:
        """A 4-step request among 50-step ones, against the same request alone."""
        alone, among = [], []
        crowd = 2 * self.engine.cost.knee(self._key())
        for _ in range(max(2, self.effort.trials // 6)):
            alone += [self._latency(steps=4) for _ in range(3)]
            background = _Background(self, crowd)
            for _ in range(3):
                background.top_up()
                time.sleep(self.rng.uniform(0.0, 0.1))
                among.append(self._latency(steps=4))
            background.stop()
        ratio = statistics.median(among) / statistics.median(alone)
        return [
            at_most(
                "short_job",
                f"4 steps among {crowd} jobs of 50, ÷ alone",
                ratio,
                2.0,
                alone=alone,
                among=among,
            )
        ]

    def loop(self) -> list[Result]:
        """Seconds of bare UNet passes over the engine's seconds a pass, at the same width and shape.

        The two alternate pass by pass on the loop's own thread, so that whatever slows the machine slows
        both. The engine's seconds are from the beginning of one pass to that of the next, less the bare one.
        """
        results = []
        width = 1
        knee = self.engine.cost.knee(self._key())
        while width <= knee:
            bare = self.reference.unet_pass(width, self.width, self.height)
            bare()
            self.recorder.beside = bare
            bare_s, engine_s = [], []
            for _ in range(max(2, self.effort.rounds)):
                for beside, period in self._pass_periods(width):
                    bare_s.append(beside)
                    engine_s.append(period - beside)
            self.recorder.beside = None
            # The worst tenth on either side is the machine's doing, not the loop's.
            ratio = trimmed_mean(bare_s) / trimmed_mean(engine_s)
            name = f"bare UNet ÷ engine loop, width {width}"
            results.append(at_least("loop", name, ratio, 0.95, engine=engine_s, bare=bare_s))
            width *= 2
        return results

    def saturated_shape(self) -> list[Result]:
        """Mean latency on a shape where batching gains nothing, against first come, first served."""
        size, steps = self.saturated, tuple(s for s in self.effort.steps if s <= 20)
        mix = Mix(steps, (5.0,), size, size)
        with blocking_server(self.reference.draw) as serial:
            count = max(2, self.effort.saturated_arrivals // 3)
            rate = count / backlog(serial, self.requests(mix, count))
        ours, first_come = [], []
        for _ in range(max(2, self.effort.rounds)):
            trace = poisson(mix, 0.7 * rate, self.effort.saturated_arrivals, self.rng)
            with engine_server(self.engine) as engine:
                ours += replay(engine, trace)
            with blocking_server(self.reference.draw) as serial:
                first_come += replay(serial, trace)
        ratio = statistics.fmean(ours) / statistics.fmean(first_come)
        name = f"{size}×{size}, mean latency ÷ first come, first served"
        return [at_most("saturated_shape", name, ratio, 1.05, engine=ours, first_come=first_come)]

    # What the parts share

    def _servers(self) -> Sequence[tuple[str, Any]]:
        return (
            ("engine", engine_server(self.engine)),
            ("request batches", request_batch_server(self.reference.draw)),
            ("one at a time", blocking_server(self.reference.draw)),
        )

    def _compare(self, share: float, capacity: float, seconds: dict[str, list[float]]) -> list[Result]:
        part = "load"
        latency = {name: summary(values) for name, values in seconds.items()}
        details = {"share": share, "rate": share * capacity, "latency": latency, "samples": seconds}
        ours, batches = latency["engine"], latency["request batches"]
        label = f"{share:.0%} load, engine ÷ request batches"
        return [
            at_most(part, f"{label}, mean", ours["mean"] / batches["mean"], 1 / 2.5, **details),
            at_most(part, f"{label}, p99", ours["p99"] / batches["p99"], 1 / 2.5),
        ]

    def _measure_capacity(self) -> float:
        """Images a second of a backlog of the mix: what 100 % load means here."""
        if self.capacity is None:
            requests = self.requests(self.mix(), 2 * self.effort.backlog)
            with engine_server(self.engine) as engine:
                self.capacity = len(requests) / backlog(engine, requests)
        return self.capacity

    def _key(self) -> BatchKey:
        return BatchKey(self.width, self.height, True)

    def _request(self, *, steps: int) -> GenerationRequest:
        return Mix((steps,), (5.0,), self.width, self.height).draw(self.rng, self.rng.randrange(10**6))

    def _latency(self, *, steps: int) -> float:
        began = time.perf_counter()
        self.engine.generate(self._request(steps=steps))
        return time.perf_counter() - began

    def _pass_periods(self, width: int) -> list[tuple[float, float]]:
        """For passes of `width` images while nothing comes or goes: (seconds beside, begin to next begin)."""
        return pass_periods(self.engine, self.recorder, [self._request(steps=50) for _ in range(width)])


class _Background:
    """Long requests that keep the engine busy while something else is timed."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._bench, self._count = bench, count
        self._tickets: list[Ticket] = []
        self.top_up()
        # Under way, not merely queued.
        time.sleep(0.2)

    def top_up(self) -> None:
        """Replace those that are done."""
        status = self._bench.engine.status()
        for _ in range(self._count - status.running - status.queued):
            self._tickets.append(self._bench.engine.submit(self._bench._request(steps=50)))

    def stop(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()
        while (status := self._bench.engine.status()).running + status.queued + status.decoding:
            time.sleep(0.005)


PARTS: dict[str, Callable[[Bench], list[Result]]] = {
    "throughput": Bench.throughput,
    "load": Bench.load,
    "join": Bench.join,
    "short_job": Bench.short_job,
    "loop": Bench.loop,
    "saturated_shape": Bench.saturated_shape,
}


def pass_periods(
    engine: Engine, recorder: RecordingBackend, requests: Sequence[GenerationRequest]
) -> list[tuple[float, float]]:
    """For the passes that all of `requests` share: (seconds beside, begin to next begin)."""
    first = len(recorder.passes)
    for ticket in [engine.submit(request) for request in requests]:
        ticket.result()
    passes = [p for p in recorder.passes[first:] if len(p.request_ids) == len(requests)]
    periods = [
        (before.beside_s, after.began - before.began)
        for before, after in pairwise(passes)
        if before.request_ids == after.request_ids
    ]
    # The first is cold; the last few may share the device with a decode.
    return periods[1:-4]


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean without the highest tenth."""
    return statistics.fmean(sorted(values)[: max(1, len(values) - len(values) // 10)])


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
    }
