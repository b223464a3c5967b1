"""What `mezzotint bench gpu` measures, a function a part. Each claims what its first line says."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import psutil
import torch

from mezzotint.backends.base import Backend, MakeWay, go_straight_on
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.parts import PipelineParts
from mezzotint.bench.engine import (
    Result,
    at_least,
    at_most,
    figure,
    pass_periods,
    percentile,
    summary,
)
from mezzotint.bench.gpu import GpuBench, reason_of
from mezzotint.bench.gpu_controls import controls
from mezzotint.bench.load import Server, backlog, poisson, replay
from mezzotint.bench.reference import unet_inputs
from mezzotint.bench.servers import MAX_BATCH, blocking_server, engine_server, request_batch_server
from mezzotint.engine.pace import DecodePace, Passes
from mezzotint.engine.rows import BatchKey
from mezzotint.resolving import resolve
from mezzotint.tuning import Quantisation, Tuning

__all__ = ["PARTS"]

LOAD = 0.7
# The third pass of a kind is recorded, and from there on only replayed.
MEETINGS = 3


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
            seconds = bench.seconds_of(_pass(bench, compute, bench.parts, 2 * width, size))
            rate = 2 * width * bench.tflop_of_row(size) / seconds
            name = f"{size}², width {width}: "
            results.append(figure("unet", name + "TFLOP/s", rate, seconds=seconds))
            results.append(figure("unet", name + "share of the matrix product", rate / bench.matrix_rate))
    return results


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


def loop(bench: GpuBench) -> list[Result]:
    """Bare passes of the same tuned UNet ÷ the engine's loop, at the same width, in turn."""
    results = []
    compute = bench.backend.compute
    # Beyond the knee the engine makes no passes.
    knee = bench.engine.cost.knee(BatchKey(bench.size, bench.size, True))
    for width in [each for each in bench.preset.widths[:3] if each <= knee]:
        if not bench.has_time(f"loop at width {width}"):
            continue
        run = _pass(bench, compute, bench.parts, 2 * width, bench.size)
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


def decode(bench: GpuBench) -> list[Result]:
    """What decodes beside them do to the steps' p99, making way as the engine's do and going straight on; and
    the steps to a decode."""
    backend = bench.backend
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
                    decode = partial(_decode_once, backend, ids[-1], ways[name])
                    stack.enter_context(_decoding(decoder, decode, decodes[name]))
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


def _decode_once(backend: Backend, request_id: str, way: Callable[[], MakeWay]) -> object:
    return backend.decode(request_id, way())


def compile_(bench: GpuBench) -> list[Result]:
    """Seconds from a new process to its first image: compiled by blocks and whole, cold; from the cache."""
    results = []
    # What compiles beside a process that was ended may write for a moment longer.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        runs = [(f"{scope}, cold", scope) for scope in bench.preset.compiled]
        # The first once more, with the cache that it has left.
        runs.insert(1, (f"{runs[0][1]}, warm cache", runs[0][1]))
        for name, scope in runs:
            if not bench.has_time(f"compile of {name}", bench.preset.set_up_seconds):
                continue
            found = _cold_start(bench, scope, f"{folder}/{scope}")
            if found is None:
                bench.left_out.append(f"compile of {name}: not done within its budget")
                continue
            label = f"{name}: seconds to the first image"
            whole = found["whole"]
            results.append(
                at_most("compile", label, whole, 60.0, phases=found)
                if "warm" in name
                else figure("compile", label, whole, phases=found)
            )
    return results


def memory(bench: GpuBench) -> list[Result]:
    """The most memory of passes as wide as they come and a decoding: on a GPU what torch holds, recordings
    and all, else the process's."""
    bench.forget_references()
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    width = bench.preset.widths[-1]
    with _started(bench, width, steps=4) as ids:
        for _ in range(4):
            bench.backend.step(ids)
        bench.backend.decode(ids[0])
    peak = torch.cuda.max_memory_reserved(bench.device) if on_gpu else psutil.Process().memory_info().rss
    name = f"GiB at {bench.size}², {width} images in a pass"
    results = [figure("memory", name, peak / 2**30)]
    if on_gpu:
        # The driver's share too: recordings, cuDNN, the context.
        free, total = torch.cuda.mem_get_info(bench.device)
        results.append(figure("memory", f"{name}, all that is not free", (total - free) / 2**30))
    return results


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
                            _pass(bench, compute, parts, 2 * width, size),
                            _pass(bench, changed, changed_parts, 2 * width, size),
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
    width = bench.preset.widths[min(2, len(bench.preset.widths) - 1)]
    plain = _pass(bench, bench.backend.compute, bench.parts, 2 * width, bench.size)
    kinds: tuple[Quantisation, ...] = ("fp8", "int8")
    for kind in kinds:
        if not bench.has_time(f"quantisation {kind}", bench.preset.set_up_seconds):
            continue
        tuning = Tuning(compile=bench.preset.tuning.compile, quantisation=kind)
        try:
            with _tuned(bench, tuning) as (parts, compute):
                run = _pass(bench, compute, parts, 2 * width, bench.size)
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


PARTS: dict[str, Callable[[GpuBench], list[Result]]] = {
    "matrix": matrix,
    "unet": unet,
    "throughput": throughput,
    "switches": switches,
    "quantisation": quantisation,
    "loop": loop,
    "decode": decode,
    "compile": compile_,
    "load": load,
    "controls": controls,
    "memory": memory,
}


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


@contextmanager
def _started(bench: GpuBench, count: int, steps: int) -> Iterator[list[str]]:
    """So many requests that the backend has begun, and forgets afterwards."""
    mix = bench.mix(bench.size, steps=(steps,))
    requests = [resolve(each, bench.info.limits) for each in bench.requests(mix, count)]
    ids = [f"started-{number}" for number in range(count)]
    try:
        for request_id, request in zip(ids, requests, strict=True):
            bench.backend.start(request_id, request)
        yield ids
    finally:
        for request_id in ids:
            bench.backend.release(request_id)


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
            run = _pass(bench, bench.backend.compute, bench.parts, rows, size)
            with torch.inference_mode():
                for _ in range(MEETINGS):
                    run()
    bench.synchronise()


def _pass(
    bench: GpuBench, compute: Callable[..., Any], parts: PipelineParts, rows: int, size: int
) -> Callable[[], object]:
    with torch.inference_mode():
        args, kwargs = unet_inputs(parts.unet, parts.text_encoders[1], rows, size, size)
    # They were made on another stream than the one that reads them.
    bench.synchronise()
    return lambda: compute(*args, **kwargs)


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
    decoder: ThreadPoolExecutor, decode: Callable[[], object], seconds: list[float]
) -> Iterator[None]:
    """Within, `decoder` decodes the same picture again and again; how long each took goes to `seconds`."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            began = time.perf_counter()
            decode()
            seconds.append(time.perf_counter() - began)

    running = decoder.submit(run)
    try:
        yield
    finally:
        over.set()
    running.result()


def _cold_start(bench: GpuBench, scope: str, cache: str) -> dict[str, float] | None:
    """Seconds by phase of a process that draws one image; None when it did not end in time."""
    command = [sys.executable, "-m", "mezzotint.bench.cold_start", scope, cache, str(bench.device)]
    command.append("full" if bench.preset.architecture.name.startswith("sdxl,") else "tiny")
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=max(1.0, min(bench.left, 3600)))
        except BaseException as error:
            # The compiler has processes of its own, which would go on for a minute.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    if process.returncode:
        last = next(reversed(err.strip().splitlines()), "nothing said")
        raise RuntimeError(f"the process that starts cold ended with {process.returncode}: {last}")
    phases: dict[str, float] = json.loads(out.splitlines()[-1])
    return {**phases, "whole": time.perf_counter() - began}
