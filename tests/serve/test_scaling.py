"""Engine replicas come with the backlog and go with it, on a real Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.chaos.processes import processes_of
from tests.servers import Server, is_running

LIMIT_SECONDS = 120.0
PASS_SECONDS = 0.1
# Four of them are there for as long as another process takes to start.
STEPS = 70


def engines_of(server: Server) -> int:
    return len(processes_of(server, "engine"))


def wait_for_engines(server: Server, count: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while engines_of(server) != count:
        assert time.monotonic() < deadline, f"{engines_of(server)} replicas, not {count}"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_backlog_adds_a_replica_and_its_end_takes_it_away(start_server: Callable[..., Server]) -> None:
    scaling = {"MAX_REPLICAS": 2, "TARGET_BACKLOG_S": 5, "SCALE_UP_S": 0, "SCALE_DOWN_S": 1}
    server = start_server(
        "--model",
        f"fake:pass_seconds={PASS_SECONDS},max_batch=1",
        environment={f"MEZZOTINT_{name}": str(value) for name, value in scaling.items()},
    )
    address = server.wait_until_ready()
    assert engines_of(server) == 1

    def draw(seed: int) -> int:
        fields = {"prompt": "a", "steps": STEPS, "seed": seed}
        return httpx.get(f"{address}/imagine", params=fields, timeout=LIMIT_SECONDS).status_code

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(draw, range(4))
        wait_for_engines(server, 2)
        # The replica that goes takes nobody's picture with it.
        assert set(answers) == {200}
    wait_for_engines(server, 1)
    assert is_running(server.process)
