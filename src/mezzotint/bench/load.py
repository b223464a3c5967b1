"""Loads: which requests come when, and what each server under test makes of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from mezzotint.core import GenerationRequest

__all__ = ["Arrival", "Mix", "Server", "backlog", "poisson", "replay"]

Server = Callable[[GenerationRequest], "Future[None]"]
"""Takes a request at once; its future is done when the picture is."""

REPLAY_LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Mix:
    """What requests of a load look like: each choice is drawn evenly and independently."""

    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    width: int
    height: int

    def draw(self, rng: random.Random, number: int) -> GenerationRequest:
        # Each prompt is new, so that no server gains from having seen it before.
        return GenerationRequest(
            f"a fox number {number} {rng.randrange(10**6)}",
            steps=rng.choice(self.steps),
            guidance_scale=rng.choice(self.guidance),
            width=self.width,
            height=self.height,
            seed=number,
        )


@dataclass(frozen=True)
class Arrival:
    """A request that comes `at` seconds after the start."""

    at: float
    request: GenerationRequest


def poisson(mix: Mix, rate: float, count: int, rng: random.Random) -> list[Arrival]:
    """`count` arrivals at `rate` a second, with exponential gaps: an open loop that waits for no answer."""
    at, arrivals = 0.0, []
    for number in range(count):
        at += rng.expovariate(rate)
        arrivals.append(Arrival(at, mix.draw(rng, number)))
    return arrivals


def replay(server: Server, arrivals: Sequence[Arrival]) -> list[float]:
    """Send each request at its time. Returns the latencies in seconds, in order of arrival."""
    began = time.perf_counter()
    finished: dict[int, float] = {}
    lock = threading.Lock()

    def note(index: int, future: Future[None]) -> None:
        with lock:
            finished[index] = time.perf_counter()

    futures = []
    for index, arrival in enumerate(arrivals):
        delay = began + arrival.at - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        future = server(arrival.request)
        future.add_done_callback(lambda f, index=index: note(index, f))  # type: ignore[misc]
        futures.append(future)
    for future in futures:
        future.result(REPLAY_LIMIT_SECONDS)
    # From the time a request was due, not sent: a late sender must not hide waiting.
    return [finished[index] - began - arrival.at for index, arrival in enumerate(arrivals)]


def backlog(server: Server, requests: Sequence[GenerationRequest]) -> float:
    """Seconds to draw `requests`, all there from the start."""
    began = time.perf_counter()
    for future in [server(request) for request in requests]:
        future.result(REPLAY_LIMIT_SECONDS)
    return time.perf_counter() - began
