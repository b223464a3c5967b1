"""`mezzotint bench service`: what a picture costs over HTTP and Ray, beside the same engine in this process.

Both sides have their own copy of the model on the same cores and take turns, one idle while the other draws.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from mezzotint.bench.engine import Result, at_least, at_most
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed

__all__ = ["measure_service", "served"]

STOP_SECONDS = 60.0
REQUEST_SECONDS = 120.0
# Long enough for a picture of half a second on two cores.
STEPS = 20
TOGETHER = 8


@contextmanager
def served(model: str) -> Iterator[str]:
    """Within, `mezzotint serve` runs on a free port of loopback; its address.

    Raises:
        GenerationFailed: it did not start.
    """
    command = [sys.executable, "-m", "mezzotint", "serve"]
    command += ["--model", model, "--port", "0", "--no-ui"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.match(r"ready: (http://\S+)", line):
                yield found[1]
                break
        else:
            raise GenerationFailed(f"mezzotint serve ended with {process.wait(STOP_SECONDS)}")
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(STOP_SECONDS)


def measure_service(engine: Engine, address: str, trials: int) -> list[Result]:
    """End-to-end seconds over the engine's own, one picture at a time; then pictures a second of eight."""
    bare, whole, bare_rate, whole_rate = [], [], [], []
    for number in range(trials + 1):
        bare.append(_seconds(partial(engine.generate, _request(number))))
        whole.append(_seconds(partial(_fetch, address, _request(number))))
    for number in range(max(2, trials // 6)):
        first = 1_000 + number * TOGETHER
        bare_rate.append(TOGETHER / _seconds(partial(_together, engine.generate, first)))
        whole_rate.append(TOGETHER / _seconds(partial(_together, partial(_fetch, address), first)))
    # The first of each pays for what the later ones find ready.
    ratio = statistics.median(w / b for w, b in zip(whole[1:], bare[1:], strict=True))
    rates = statistics.median(w / b for w, b in zip(whole_rate, bare_rate, strict=True))
    return [
        at_most(
            "service", "end to end ÷ bare engine, alone", ratio, 1.03, service=whole[1:], engine=bare[1:]
        ),
        at_least(
            "service",
            f"pictures a second, {TOGETHER} at once, service ÷ bare engine",
            rates,
            1 / 1.03,
            service=whole_rate,
            engine=bare_rate,
        ),
    ]


def _request(number: int) -> GenerationRequest:
    return GenerationRequest(f"a fox number {number}", steps=STEPS, guidance_scale=5.0, seed=number)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _together(draw: Callable[[GenerationRequest], object], first: int) -> None:
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(draw, [_request(first + i) for i in range(TOGETHER)]))


def _fetch(address: str, request: GenerationRequest) -> bytes:
    fields = {
        "prompt": request.prompt,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
    }
    url = f"{address}/imagine?{urllib.parse.urlencode(fields)}"
    with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
        data: bytes = answer.read()
    return data
