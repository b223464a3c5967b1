"""What decodes cost the steps beside them, and what the VAE's attention costs them."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from itertools import product

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from mezzotint.backends.base import Backend, MakeWay, go_straight_on
from mezzotint.bench.engine import Result, at_most, figure, percentile
from mezzotint.bench.gpu import GpuBench
from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.engine.pace import DecodePace, Passes
from mezzotint.resolving import resolve

__all__ = ["decode"]


def decode(bench: GpuBench) -> list[Result]:
    """The VAE with torch's own attention ÷ as served; what decodes beside them do to the p99 of steps."""
    # Which tunes the VAE.
    backend = bench.backend
    # What is beside steps takes all the time there is.
    return [*_attention(bench), *_beside(bench, backend)]


def _beside(bench: GpuBench, backend: Backend) -> list[Result]:
    """What decodes beside them do to the steps' p99, making way as the engine's do and going straight on; and
    the steps to a decode."""
    mix = bench.mix(bench.size, steps=(min(bench.preset.trials + 8, 150),))
    width = bench.preset.widths[1]
    ids = [f"beside-{number}" for number in range(width + 1)]
    requests = [resolve(request, bench.info.limits) for request in bench.requests(mix, width + 1)]
    passes = Passes(threading.Condition())
    ways: dict[str, Callable[[], MakeWay]] = {
        "making way": lambda: DecodePace(passes, lambda: 1),
        "going straight on": lambda: go_straight_on,
    }
    # Alone first: of what a pass takes, decodes have a share.
    steps: dict[str, list[float]] = {name: [] for name in ("alone", *ways)}
    decodes: dict[str, list[float]] = {name: [] for name in ways}
    decoder = ThreadPoolExecutor(1)
    try:
        # The last of them is decoded again and again, in one thread, for cuDNN plans for each anew.
        backend.start(ids[-1], requests[-1])
        backend.step(ids[-1:])
        for _ in range(2):
            decoder.submit(backend.decode, ids[-1]).result()
        for number, name in product(range(bench.preset.rounds), steps):
            for request_id, request in zip(ids[:-1], requests, strict=False):
                backend.release(request_id)
                backend.start(request_id, request)
            if not bench.has_time(f"decode, round {number + 1}, {name}"):
                continue
            with ExitStack() as stack:
                if name in ways:
                    stack.enter_context(_decoding(decoder, backend, ids[-1], ways[name], decodes[name]))
                stack.callback(passes.stop)
                expected = statistics.median(steps["alone"] or [math.inf])
                steps[name] += _steps(backend, ids[:-1], bench.preset.trials, passes, expected)
    finally:
        decoder.shutdown()
        for request_id in ids:
            backend.release(request_id)
    if not all(steps.values()):
        return []
    results = []
    for name in ways:
        ratio = percentile(steps[name], 0.99) / percentile(steps["alone"], 0.99)
        label = f"p99 of steps of width {width}, decodes beside them {name} ÷ without, {bench.size}²"
        details = {"alone": steps["alone"], "beside": steps[name]}
        results.append(
            at_most("decode", label, ratio, 1.3, **details)
            if name == "making way"
            else figure("decode", label, ratio, **details)
        )
        label = f"seconds of a decode {name}, median"
        results.append(figure("decode", label, statistics.median(decodes[name])))
    return results


def _attention(bench: GpuBench) -> list[Result]:
    """The VAE alone with torch's own attention ÷ as it is served, in turn."""
    if not bench.has_time("decode, attention"):
        return []
    served = bench.parts.vae
    plain = deepcopy(served)
    plain.set_attn_processor(AttnProcessor2_0())
    side = bench.size // PIXELS_PER_LATENT
    shape = (1, served.config.latent_channels, side, side)
    latents = torch.randn(shape, device=bench.device, dtype=served.dtype)
    pairs = [
        [bench.seconds_of(partial(vae.decode, latents), budget=0.5) for vae in (plain, served)]
        for _ in range(bench.preset.rounds)
    ]
    ratio = statistics.median(one / other for one, other in pairs)
    label = "seconds of the VAE alone, torch's attention ÷ as served"
    return [figure("decode", label, ratio, seconds=pairs)]


def _steps(backend: Backend, ids: Sequence[str], count: int, passes: Passes, expected: float) -> list[float]:
    """Seconds of each of `count` steps, without the first three. `passes` are told of each, that it takes
    about `expected`."""
    seconds = []
    for _ in range(count):
        passes.begin(expected)
        began = time.perf_counter()
        failed = backend.step(ids)
        seconds.append(time.perf_counter() - began)
        for error in failed.values():
            raise error
    return seconds[3:]


@contextmanager
def _decoding(
    decoder: ThreadPoolExecutor,
    backend: Backend,
    request_id: str,
    way: Callable[[], MakeWay],
    seconds: list[float],
) -> Iterator[None]:
    """Within, `decoder` decodes the same picture again and again; how long each took goes to `seconds`."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            began = time.perf_counter()
            backend.decode(request_id, way())
            seconds.append(time.perf_counter() - began)

    running = decoder.submit(run)
    try:
        yield
    finally:
        over.set()
    running.result()
