"""What a ControlNet adds to a pass, beside what the scheduler takes it for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from diffusers import ControlNetModel

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.bench.engine import Result, figure
from mezzotint.bench.gpu import GpuBench
from mezzotint.core import Control, ServedControlNet
from mezzotint.engine.rows import CONTROL_SHARE
from mezzotint.models.weights import quiet

__all__ = ["controls"]

NAME = "random"
# The first passes of a kind compile, choose kernels and are recorded.
UNCOUNTED = 4
STEPS = 50


def controls(bench: GpuBench) -> list[Result]:
    """Seconds of a pass whose images a ControlNet holds, guided, over those of a pass without, in turn."""
    results = [figure("controls", "what the scheduler takes it for at first", 1 + CONTROL_SHARE)]
    with _backend(bench) as backend:
        for width in bench.preset.widths[:3]:
            if not bench.has_time(f"controls at width {width}"):
                continue
            took: dict[bool, list[float]] = {False: [], True: []}
            for number in range(bench.preset.rounds + 1):
                for held, seconds in took.items():
                    measured = _passes(bench, backend, width, held=held)
                    # What the first round pays for, the others find ready.
                    seconds += measured if number else []
            free, held_s = (statistics.median(took[each]) for each in (False, True))
            name = f"{bench.size}², width {width}: with a ControlNet ÷ without"
            results.append(figure("controls", name, held_s / free, seconds_without=free))
    return results


@contextmanager
def _backend(bench: GpuBench) -> Iterator[DiffusersBackend]:
    """One more model, with a ControlNet of random weights; given back afterwards."""
    parts = bench.build()
    with quiet(), bench.device:
        net = ControlNetModel.from_unet(parts.unet, load_weights_from_unet=False)
    net = net.to(bench.device, bench.preset.dtype).eval().requires_grad_(False)
    info = bench.info
    limits = replace(info.limits, controlnets=(ServedControlNet(NAME, "0" * 64),))
    backend = DiffusersBackend(
        replace(parts, controlnets={NAME: net}), replace(info, limits=limits), bench.preset.tuning
    )
    try:
        yield backend
    finally:
        backend.close()
        del parts, net, backend
        bench.empty_cache()


def _passes(bench: GpuBench, backend: DiffusersBackend, width: int, *, held: bool) -> list[float]:
    """Seconds of each pass of so many images, without the first ones."""
    lines = np.zeros((bench.size, bench.size, 3), np.uint8)
    asked = [
        replace(each, controls=(Control(NAME, lines),) if held else ())
        for each in bench.requests(bench.mix(bench.size, steps=(STEPS,)), width)
    ]
    seconds = []
    with bench.started(backend, asked) as ids:
        for _ in range(UNCOUNTED + min(bench.preset.repetitions, STEPS - UNCOUNTED)):
            began = time.perf_counter()
            for error in backend.step(ids).values():
                raise error
            seconds.append(time.perf_counter() - began)
        bench.synchronise()
    return seconds[UNCOUNTED:]
