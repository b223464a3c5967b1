"""Promise 6: more than there is room for is refused at once, and what is admitted keeps its word."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.chaos.client import Answer, Client, arrivals, outcomes
from tests.chaos.figures import Figures, percentile
from tests.chaos.processes import memory_mb
from tests.chaos.service import OWN_BACKLOG_SECONDS, PASS_SECONDS, capacity
from tests.servers import Server

STEPS = 40
CAPACITY = capacity(STEPS)
FACTOR = 10
REFUSED_SECONDS = 0.1
# Without a bound, memory would grow with every request that waits; Python's own heap breathes.
GROWTH_MB = 40.0


async def overload(client: Client, factor: float, seconds: float) -> list[Answer]:
    def send(number: int) -> asyncio.Task[Answer]:
        return asyncio.create_task(client.imagine(steps=STEPS, width=64, height=64, seed=number))

    return await arrivals(send, factor * CAPACITY, seconds)


def measure(answers: list[Answer]) -> dict[str, Any]:
    refused = [each for each in answers if each.status == 429]
    admitted = [each.seconds for each in answers if each.status == 200]
    hints = [float(each.headers["retry-after-ms"]) / 1000 for each in refused]
    return {
        "outcomes": outcomes(answers),
        "refused_p50_s": percentile([each.seconds for each in refused], 0.5),
        "refused_p99_s": percentile([each.seconds for each in refused], 0.99),
        "admitted_p50_s": percentile(admitted, 0.5),
        "admitted_p99_s": percentile(admitted, 0.99),
        "retry_after_p50_s": percentile(hints, 0.5),
        "retry_after_max_s": max(hints, default=0.0),
    }


async def check_overload(server: Server, figures: Figures, seconds: float) -> None:
    async with Client.to(server.address) as client:
        # What the first requests leave behind for good is not growth.
        await overload(client, 2, 3.0)
        before = memory_mb(server)
        began = time.monotonic()
        found = measure(await overload(client, FACTOR, seconds))
        after = memory_mb(server)
    grown = {role: round(after[role] - before[role], 1) for role in after}
    figures.add(
        6,
        f"p99 of refusals in s, {FACTOR}× overload for {seconds:g} s",
        found["refused_p99_s"],
        f"≤ {REFUSED_SECONDS}",
        **found,
        offered_per_s=FACTOR * CAPACITY,
        took_s=time.monotonic() - began,
        memory_mb=after,
        grown_mb=grown,
    )
    assert set(found["outcomes"]) == {"200", "429 queue_full"}
    # Half of what there is room for would be a refusal too many.
    assert found["outcomes"]["200"] > 0.5 * CAPACITY * seconds
    # Its share of a backlog that is bounded, and its own picture.
    assert found["admitted_p99_s"] < 2 * (OWN_BACKLOG_SECONDS + PASS_SECONDS * STEPS)
    # Ten times too many cannot all be told a time soon; nobody is told more than two minutes.
    assert 0 < found["retry_after_max_s"] <= 120
    assert max(grown.values()) < GROWTH_MB


async def test_ten_times_the_load_is_refused_at_once(service: Server, figures: Figures) -> None:
    await check_overload(service, figures, 6.0)


@pytest.mark.chaos
async def test_ten_times_the_load_for_minutes_is_refused_at_once(service: Server, figures: Figures) -> None:
    await check_overload(service, figures, 300.0)


@pytest.mark.chaos
async def test_who_comes_back_when_told_is_taken(service: Server, figures: Figures) -> None:
    """Retry-After is true: of those who come back then, most are taken, though others come all the time."""
    async with Client.to(service.address) as client:
        returned: list[Answer] = []

        async def ask(number: int) -> Answer:
            first = await client.imagine(steps=STEPS, width=64, height=64, seed=number)
            if first.status != 429:
                return first
            await asyncio.sleep(float(first.headers["retry-after-ms"]) / 1000)
            second = await client.imagine(steps=STEPS, width=64, height=64, seed=number)
            returned.append(second)
            return second

        # A burst that the backlog cannot hold, and nobody after it.
        burst = int(1.5 * CAPACITY * OWN_BACKLOG_SECONDS)
        await asyncio.gather(*(ask(number) for number in range(burst)))
    taken = sum(each.status == 200 for each in returned) / max(1, len(returned))
    figures.add(6, "share taken who came back after Retry-After", taken, "≥ 0.5", returned=len(returned))
    assert returned
    assert taken >= 0.5
