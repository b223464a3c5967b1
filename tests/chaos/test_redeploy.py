"""Promise 4: neither a new version nor SIGTERM drops or cuts an answer that was begun."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.chaos.client import Answer, Client, arrivals, outcomes, pixels_of
from tests.chaos.cluster import Cluster
from tests.chaos.figures import Figures
from tests.chaos.service import MODEL, SETTINGS, capacity
from tests.servers import Server

STEPS = 10
# One engine of two must bear it while the other is being replaced.
LOAD = 0.3
IN_FLIGHT = 20


def truncated(answers: list[Answer]) -> int:
    """Pictures that are not whole."""
    count = 0
    for answer in answers:
        if answer.status == 200:
            try:
                pixels_of(answer.body)
            except OSError:
                count += 1
    return count


@pytest.mark.chaos
async def test_a_rolling_redeploy_drops_and_cuts_nothing(
    start_service: Callable[..., Server], figures: Figures
) -> None:
    server = start_service("--model", MODEL, "--replicas", "2", **SETTINGS)
    async with Client.to(server.address) as client:
        with Cluster.of(server) as cluster:
            redeploying = asyncio.create_task(
                asyncio.to_thread(cluster.redeploy, model=MODEL, replicas=2, max_queue=200)
            )
            answers: list[Answer] = []
            while not redeploying.done():
                answers += await arrivals(
                    lambda number: asyncio.create_task(client.imagine(seed=number, steps=STEPS)),
                    LOAD * capacity(STEPS),
                    5.0,
                    seed=len(answers),
                )
            took_s = await redeploying
    found = outcomes(answers)
    bad = len(answers) - found.get("200", 0) + truncated(answers)
    slowest = max(answer.seconds for answer in answers)
    figures.add(
        4,
        "dropped or cut by a rolling redeploy",
        bad,
        "0",
        outcomes=found,
        redeploy_s=took_s,
        slowest_s=slowest,
    )
    assert bad == 0


@pytest.mark.chaos
async def test_sigterm_under_load_drops_and_cuts_nothing(
    start_service: Callable[..., Server], figures: Figures
) -> None:
    server = start_service("--model", MODEL, "--replicas", "2", **SETTINGS)
    async with Client.to(server.address) as client:
        tasks = [asyncio.create_task(client.imagine(seed=seed, steps=STEPS)) for seed in range(IN_FLIGHT)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        late = asyncio.create_task(
            arrivals(lambda n: asyncio.create_task(client.imagine(seed=n, steps=1)), 10.0, 3.0)
        )
        answers = list(await asyncio.gather(*tasks))
        code = await asyncio.to_thread(server.wait_until_ended)
        exit_s = time.monotonic() - began
        refused = await late
    bad = len(answers) - outcomes(answers).get("200", 0) + truncated(answers)
    figures.add(
        4,
        "dropped or cut by SIGTERM",
        bad,
        "0",
        outcomes=outcomes(answers),
        # Those that came after the signal: nobody has promised them a picture, only a whole answer.
        late=outcomes(refused),
        exit_s=exit_s,
    )
    assert bad == 0
    assert truncated(refused) == 0
    assert code == 0
