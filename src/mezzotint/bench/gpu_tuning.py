"""What each way to tune the UNet is worth, one by one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.parts import PipelineParts
from mezzotint.bench.engine import Result, at_least, figure
from mezzotint.bench.gpu import GpuBench, reason_of
from mezzotint.bench.gpu_unet import bare_pass
from mezzotint.tuning import Quantisation, Tuning

__all__ = ["quantisation", "switches"]


def switches(bench: GpuBench) -> list[Result]:
    """Seconds of a pass without a switch ÷ with it, all others as they are by themselves; in turn, for a
    small pass and a large one."""
    base = Tuning()
    # What is changed, and whether that puts the switch on.
    changes: list[tuple[str, Tuning, bool]] = [
        ("cuda_graphs", replace(base, cuda_graphs="off"), False),
        ("channels_last", replace(base, channels_last="off"), False),
        ("fused_projections", replace(base, fused_projections="off"), False),
        ("attention flash", replace(base, attention="flash"), True),
        ("attention cudnn", replace(base, attention="cudnn"), True),
        ("attention efficient", replace(base, attention="efficient"), True),
    ]
    if bench.preset.tuning.compile != "none":
        changes.append(("compile", replace(base, compile=bench.preset.tuning.compile), True))
    results: list[Result] = []
    with _tuned(bench, base) as (parts, compute):
        for name, tuning, puts_on in changes:
            if not bench.has_time(f"switches, {name}", bench.preset.set_up_seconds / 6):
                continue
            try:
                with _tuned(bench, tuning) as (changed_parts, changed):
                    for size, width in ((bench.preset.sizes[0], 1), (bench.size, bench.preset.widths[2])):
                        runs = [
                            bare_pass(bench, compute, parts, 2 * width, size),
                            bare_pass(bench, changed, changed_parts, 2 * width, size),
                        ]
                        pairs = [
                            [bench.seconds_of(run, budget=0.5) for run in (runs if puts_on else runs[::-1])]
                            for _ in range(bench.preset.rounds)
                        ]
                        ratio = statistics.median(without / with_it for without, with_it in pairs)
                        label = f"{name}, {size}², width {width}: without ÷ with"
                        results.append(figure("switches", label, ratio, pairs=pairs))
            except Exception as error:
                bench.left_out.append(f"switches, {name}: {reason_of(error)}")
    return results


def quantisation(bench: GpuBench) -> list[Result]:
    """Seconds of a pass in the plain dtype ÷ quantised, both tuned alike, in turn."""
    results = []
    width = bench.preset.widths[2]
    plain = bare_pass(bench, bench.backend.compute, bench.parts, 2 * width, bench.size)
    kinds: tuple[Quantisation, ...] = ("fp8", "int8")
    for kind in kinds:
        if not bench.has_time(f"quantisation {kind}", bench.preset.set_up_seconds):
            continue
        tuning = Tuning(compile=bench.preset.tuning.compile, quantisation=kind)
        try:
            with _tuned(bench, tuning) as (parts, compute):
                run = bare_pass(bench, compute, parts, 2 * width, bench.size)
                pairs = [(bench.seconds_of(plain), bench.seconds_of(run)) for _ in range(bench.preset.rounds)]
        except Exception as error:
            bench.left_out.append(f"quantisation {kind}: {reason_of(error)}")
            continue
        ratio = statistics.median(one / other for one, other in pairs)
        name = f"plain ÷ {kind}, seconds of a pass of width {width} at {bench.size}²"
        results.append(
            at_least("quantisation", name, ratio, 1.25, pairs=pairs)
            if kind == "fp8"
            else figure("quantisation", name, ratio, pairs=pairs)
        )
    return results


@contextmanager
def _tuned(bench: GpuBench, tuning: Tuning) -> Iterator[tuple[PipelineParts, Callable[..., Any]]]:
    """One more model, and what to call for a pass of it; given back afterwards."""
    parts = bench.build()
    backend = DiffusersBackend(parts, bench.info, tuning)
    try:
        yield parts, backend.compute
    finally:
        backend.close()
        del parts, backend
        bench.empty_cache()
