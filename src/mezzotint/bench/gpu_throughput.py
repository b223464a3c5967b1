"""A backlog of like pictures: ours, and the three ways of diffusers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from mezzotint.bench.engine import Result, at_least, figure
from mezzotint.bench.gpu import GpuBench
from mezzotint.bench.load import backlog
from mezzotint.bench.servers import MAX_BATCH, blocking_server, engine_server, request_batch_server

__all__ = ["throughput"]


def throughput(bench: GpuBench) -> list[Result]:
    """Images a second of guided pictures of one size and step count, VAE included; all sides in turn."""
    mix = bench.mix(bench.size, steps=(bench.preset.steps,))
    servers: dict[str, Callable[[], Any]] = {
        "ours": lambda: engine_server(bench.engine),
        "diffusers serially": lambda: blocking_server(bench.eager.draw),
        "diffusers serially, compiled": lambda: blocking_server(bench.compiled.draw),
        f"request batches of {MAX_BATCH}": lambda: request_batch_server(bench.compiled.draw),
    }
    rates: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        # Open to the end: cuDNN plans for each thread anew, and ours have long done so.
        serving = {name: stack.enter_context(server()) for name, server in servers.items()}
        for name, serve in serving.items():
            # The first of each pays for what the later ones find ready.
            backlog(serve, bench.requests(mix, 1 if "serially" in name else MAX_BATCH))
        first = len(bench.recorder.passes)
        for number in range(bench.preset.rounds):
            for name, serve in serving.items():
                count = max(2, bench.preset.backlog // 8) if "serially" in name else bench.preset.backlog
                if bench.has_time(f"throughput, round {number + 1} of {name}"):
                    rates[name].append(count / backlog(serve, bench.requests(mix, count)))
    found = {name: statistics.median(values) for name, values in rates.items() if values}
    results = [
        figure("throughput", f"{name}, images a second", rate, samples=rates[name])
        for name, rate in found.items()
    ]
    if ours := found.pop("ours", None):
        results += [figure("throughput", f"ours ÷ {name}", ours / rate) for name, rate in found.items()]
        work = bench.tflop_of_image(bench.size, bench.preset.steps)
        share = ours * work / bench.matrix_rate
        name = "ours, share of the matrix product, VAE included"
        results.append(at_least("throughput", name, share, 0.65, tflop_of_image=work))
        widths = [len(each.request_ids) for each in bench.recorder.passes[first:]]
        results.append(figure("throughput", "ours, images in a pass, mean", statistics.fmean(widths)))
    return results
