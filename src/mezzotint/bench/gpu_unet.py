"""Bare passes of the UNet: beside the largest matrix product, and beside the engine's loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from mezzotint.backends.parts import PipelineParts
from mezzotint.bench.engine import Result, at_least, figure, pass_periods
from mezzotint.bench.gpu import GpuBench
from mezzotint.bench.reference import unet_inputs
from mezzotint.engine.rows import BatchKey

__all__ = ["bare_pass", "loop", "matrix", "unet"]


def matrix(bench: GpuBench) -> list[Result]:
    """TFLOP/s of square matrix products: the rate that all shares are of."""
    results = [
        figure("matrix", f"TFLOP/s of {side}³", bench.rate_of_product(side)) for side in bench.preset.matrix
    ]
    bench.rate = max(result.value for result in results)
    return [*results, figure("matrix", "TFLOP/s, the best", bench.rate)]


def unet(bench: GpuBench) -> list[Result]:
    """The tuned UNet alone: TFLOP/s by size and width, guided, and its share of the matrix product."""
    results = []
    compute = bench.backend.compute
    for size in reversed(bench.preset.sizes):
        for width in bench.preset.widths:
            if not bench.has_time(f"unet at {size}², width {width}"):
                continue
            seconds = bench.seconds_of(bare_pass(bench, compute, bench.parts, 2 * width, size))
            rate = 2 * width * bench.tflop_of_row(size) / seconds
            name = f"{size}², width {width}: "
            results.append(figure("unet", name + "TFLOP/s", rate, seconds=seconds))
            results.append(figure("unet", name + "share of the matrix product", rate / bench.matrix_rate))
    return results


def loop(bench: GpuBench) -> list[Result]:
    """Bare passes of the same tuned UNet ÷ the engine's loop, at the same width, in turn."""
    results = []
    compute = bench.backend.compute
    # Beyond the knee the engine makes no passes.
    knee = bench.engine.cost.knee(BatchKey(bench.size, bench.size, True))
    for width in [each for each in bench.preset.widths[:3] if each <= knee]:
        if not bench.has_time(f"loop at width {width}"):
            continue
        run = bare_pass(bench, compute, bench.parts, 2 * width, bench.size)
        bare, ours = [], []
        mix = bench.mix(bench.size, steps=(bench.preset.loop_steps,))
        for _ in range(bench.preset.rounds):
            bare.append(bench.seconds_of(run))
            periods = pass_periods(bench.engine, bench.recorder, bench.requests(mix, width))
            ours += [period for _, period in periods]
        if not ours:
            bench.left_out.append(f"loop at width {width}: too few passes were shared")
            continue
        ratio = statistics.median(bare) / statistics.median(ours)
        name = f"bare UNet ÷ engine loop, {bench.size}², width {width}"
        results.append(at_least("loop", name, ratio, 0.97, bare=bare, engine=ours))
    return results


def bare_pass(
    bench: GpuBench, compute: Callable[..., Any], parts: PipelineParts, rows: int, size: int
) -> Callable[[], object]:
    """What makes one pass of so many rows, by what `compute` gives; its inputs stay as they are."""
    with torch.inference_mode():
        args, kwargs = unet_inputs(parts.unet, parts.text_encoders[1], rows, size, size)
    # They were made on another stream than the one that reads them.
    bench.synchronise()
    return lambda: compute(*args, **kwargs)
