"""Everything that the dashboard shows, over and over on a real server: pictures, refusals, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx

__all__ = ["under_load"]

GENERATIONS = "/v1/images/generations"
STEPS = 20
# More than the server of these tests lets wait.
RIVALS = 10
ROUND_SECONDS = 120.0


@contextmanager
def under_load(address: str, key: str) -> Iterator[None]:
    """Within, one round follows the other."""
    enough = threading.Event()

    def rounds() -> None:
        with httpx.Client(base_url=address, timeout=ROUND_SECONDS, headers={"x-api-key": key}) as client:
            alone_s = _seconds_alone(client)
            while not enough.is_set():
                _round(client, alone_s)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rounds)
        try:
            yield
        finally:
            enough.set()
            running.result()


def _seconds_alone(client: httpx.Client) -> float:
    began = time.monotonic()
    client.get("/imagine", params={"prompt": "an apple", "steps": str(STEPS)}).raise_for_status()
    return time.monotonic() - began


def _round(client: httpx.Client, alone_s: float) -> None:
    with ThreadPoolExecutor(RIVALS + 1) as pool:
        # Taken in because there is time enough for it, and then it has to share the passes.
        asked = [pool.submit(_draw, client, deadline_s=1.5 * alone_s + 0.1)]
        asked += [pool.submit(_draw, client) for _ in range(RIVALS)]
        for each in asked:
            each.result()
    client.get("/imagine", params={"prompt": "an apple", "steps": "2"})
    client.get("/imagine", params={"prompt": "an apple", "steps": "0"})
    client.post("/sdapi/v1/txt2img", json={"prompt": "an apple", "steps": 2})
    client.get("/v1/images/jobs")
    client.get("/v1/models", headers={"x-api-key": "wrong"})
    with suppress(httpx.TimeoutException):
        client.get("/imagine", params={"prompt": "an apple", "steps": "100"}, timeout=0.3)


def _draw(client: httpx.Client, **fields: float) -> None:
    client.post(GENERATIONS, json={"prompt": "an apple", "num_inference_steps": STEPS, **fields})
