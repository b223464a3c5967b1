"""Promises 1 and 3: a process that is killed while it draws costs no client its picture."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.client import Answer, Client, outcomes, pixels_of
from tests.chaos.cluster import Cluster
from tests.chaos.figures import Figures
from tests.chaos.processes import processes_of
from tests.chaos.service import DEADLINE_SECONDS, MODEL
from tests.servers import Server

IN_FLIGHT = 100
RUNS = 20
# What is in flight must have room on one engine alone.
STEPS = 3
WITHOUT_RETRY = Path(__file__).parent / "without_retry"


async def draw_all(client: Client, count: int, steps: int, lose: Callable[[], None] | None) -> list[Answer]:
    """Ask for `count` pictures at once; `lose` is called when the first of them has come."""
    tasks = [asyncio.create_task(client.imagine(seed=seed, steps=steps)) for seed in range(count)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if lose is not None:
        await asyncio.to_thread(lose)
    return list(await asyncio.gather(*tasks))


def kill_oldest(server: Server, role: str) -> None:
    processes_of(server, role)[0].kill()


async def run_kills(
    server: Server, cluster: Cluster, client: Client, runs: int, steps: int = STEPS
) -> tuple[dict[str, int], dict[str, Any]]:
    """Lose an engine replica `runs` times; the outcomes, and what else was seen, such as the largest
    difference of a channel, of 255, from the same picture in a run that was left alone."""
    undisturbed = await draw_all(client, IN_FLIGHT, steps, None)
    assert outcomes(undisturbed) == {"200": IN_FLIGHT}
    expected = [pixels_of(answer.body).astype(int) for answer in undisturbed]
    answers: list[Answer] = []
    back_s, differences = [], []
    for _ in range(runs):
        found = await draw_all(client, IN_FLIGHT, steps, lambda: kill_oldest(server, "engine"))
        differences += [
            int(abs(pixels_of(answer.body) - wanted).max())
            for answer, wanted in zip(found, expected, strict=True)
            if answer.status == 200
        ]
        answers += found
        back_s.append(round(await asyncio.to_thread(cluster.wait_for, "engine", 2), 1))
    seconds = [answer.seconds for answer in answers]
    return outcomes(answers), {
        "slowest_s": max(seconds),
        "undisturbed_s": max(a.seconds for a in undisturbed),
        "largest_difference": max(differences),
        "back_s": back_s,
    }


def errors_of(found: dict[str, int]) -> int:
    return sum(count for outcome, count in found.items() if outcome != "200")


async def test_a_replica_killed_while_it_draws_costs_nobody_a_picture(
    service: Server, cluster: Cluster, client: Client, figures: Figures
) -> None:
    found, seen = await run_kills(service, cluster, client, runs=1)
    figures.add(1, "errors, one kill -9, fake backend", errors_of(found), "0", outcomes=found, **seen)
    assert found == {"200": IN_FLIGHT}
    assert seen["largest_difference"] == 0
    assert seen["slowest_s"] < DEADLINE_SECONDS


@pytest.mark.chaos
async def test_twenty_replicas_killed_cost_nobody_a_picture(
    start_service: Callable[..., Server], figures: Figures
) -> None:
    server = start_service("--model", "demo", "--replicas", "2", deadline_s=DEADLINE_SECONDS)
    async with Client.to(server.address) as client:
        with Cluster.of(server) as cluster:
            found, seen = await run_kills(server, cluster, client, RUNS, steps=4)
    figures.add(1, f"errors, {RUNS} × kill -9, demo model", errors_of(found), "0", outcomes=found, **seen)
    assert errors_of(found) == 0
    # Whose neighbours are others in its passes may differ by one level.
    assert seen["largest_difference"] <= 1
    assert seen["slowest_s"] < DEADLINE_SECONDS


@pytest.mark.chaos
async def test_without_the_retry_the_killed_replicas_requests_fail(
    start_service: Callable[..., Server], figures: Figures
) -> None:
    path = os.pathsep.join(filter(None, (str(WITHOUT_RETRY), os.environ.get("PYTHONPATH"))))
    # Read by each Python that starts, the gateway's among them; nothing in the product turns the retry off.
    server = start_service("--model", MODEL, "--replicas", "2", PYTHONPATH=path)
    async with Client.to(server.address) as client:
        with Cluster.of(server) as cluster:
            found, seen = await run_kills(server, cluster, client, runs=5)
    share = errors_of(found) / (5 * IN_FLIGHT)
    figures.add(1, "share of errors without the retry", share, "> 0.1", outcomes=found, **seen)
    assert share > 0.1


@pytest.mark.chaos
async def test_a_killed_controller_costs_nobody_a_picture(
    service: Server, client: Client, figures: Figures
) -> None:
    found: list[Answer] = []
    for _ in range(5):
        found += await draw_all(client, IN_FLIGHT, STEPS, lambda: kill_oldest(service, "controller"))
    figures.add(3, "errors, 5 × kill -9 of the controller", errors_of(outcomes(found)), "0")
    assert outcomes(found) == {"200": len(found)}


@pytest.mark.chaos
async def test_a_killed_gateway_costs_nobody_who_tries_again_a_picture(
    service: Server, cluster: Cluster, client: Client, figures: Figures
) -> None:
    """As an edge in front does, and the official SDKs by themselves."""
    first: list[Answer] = []

    async def ask(seed: int) -> Answer:
        answer = await client.imagine(seed=seed, steps=STEPS)
        first.append(answer)
        for _ in range(2):
            if answer.status == 200 or answer.headers.get("x-should-retry") == "false":
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "0")))
            answer = await client.imagine(seed=seed, steps=STEPS)
        return answer

    found: list[Answer] = []
    for _ in range(5):
        tasks = [asyncio.create_task(ask(seed)) for seed in range(IN_FLIGHT)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        kill_oldest(service, "gateway")
        found += await asyncio.gather(*tasks)
        await asyncio.to_thread(cluster.wait_for, "gateway", 2)
    figures.add(
        2,
        "errors, 5 × kill -9 of a gateway, clients that try again",
        errors_of(outcomes(found)),
        "0",
        without_trying_again=outcomes(first),
    )
    assert outcomes(found) == {"200": len(found)}
