"""Pictures of all kinds that arrive by chance: ours, and request batches."""

from __future__ import annotations

from dataclasses import replace

import torch

from mezzotint.bench.engine import Result, at_most, summary
from mezzotint.bench.gpu import GpuBench
from mezzotint.bench.gpu_unet import bare_pass
from mezzotint.bench.load import Server, backlog, poisson, replay
from mezzotint.bench.servers import MAX_BATCH, engine_server, request_batch_server
from mezzotint.engine.rows import BatchKey

__all__ = ["load"]

LOAD = 0.7
# The third pass of a kind is recorded, and from there on only replayed.
MEETINGS = 3


def load(bench: GpuBench) -> list[Result]:
    """Latency of mixed steps and guidance, Poisson arrivals at 70 % of our capacity, ÷ request batches."""
    results = []
    bars = dict(zip(reversed(bench.preset.sizes), (1 / 1.5, 1 / 3), strict=True))
    # Open to the end, as in `throughput`.
    with request_batch_server(bench.compiled.draw) as others, engine_server(bench.engine) as own:
        _meet_all_kinds(bench, others)
        share_of_time = bench.left / len(bench.preset.sizes)
        for size in reversed(bench.preset.sizes):
            results += _load_at(bench, size, share_of_time, bars[size], own, others)
    return results


def _meet_all_kinds(bench: GpuBench, others: Server) -> None:
    """Both sides see every number of rows that may come, at each size, before time is taken: what is new is
    planned, compiled and recorded, each of them for longer than a pass takes.
    """
    for size in bench.preset.sizes:
        if not bench.has_time(f"meeting all kinds at {size}²"):
            return
        for guidance in (0.0, 5.0):
            request = replace(bench.requests(bench.mix(size), 1)[0], steps=2, guidance_scale=guidance)
            bench.engine.generate(request)
            # A batch of more than half of all that come is not met.
            for count in range(1, min(MAX_BATCH, bench.preset.arrivals // 2) + 1):
                backlog(others, [request] * count)
        knee = bench.engine.cost.knee(BatchKey(size, size, True))
        for rows in range(1, 2 * knee + 1):
            run = bare_pass(bench, bench.backend.compute, bench.parts, rows, size)
            with torch.inference_mode():
                for _ in range(MEETINGS):
                    run()
    bench.synchronise()


def _load_at(
    bench: GpuBench, size: int, seconds: float, bar: float, own: Server, others: Server
) -> list[Result]:
    began = bench.left
    requests = bench.requests(bench.mix(size), bench.preset.backlog)
    capacity = len(requests) / backlog(own, requests)
    rate = LOAD * capacity
    # Our side ends soon after the last arrival, the other when it has caught up: thrice that, say.
    affordable = int((seconds - (began - bench.left)) / 4 * rate)
    count = min(bench.preset.arrivals, affordable)
    if count < min(6, bench.preset.arrivals):
        bench.left_out.append(f"load at {size}²: out of time")
        return []
    trace = poisson(bench.mix(size), rate, count, bench.rng)
    ours, batches = summary(replay(own, trace)), summary(replay(others, trace))
    details = {"capacity": capacity, "arrivals": count, "ours": ours, "request batches": batches}
    return [
        at_most(
            "load",
            f"{size}², {LOAD:.0%} load, {statistic} ÷ request batches",
            ours[statistic] / batches[statistic],
            bar,
            **details,
        )
        for statistic in ("mean", "p99")
    ]
