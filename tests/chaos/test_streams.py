"""Three hundred listeners at once: each hears of its own picture in time, and the event loop stays free."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.client import Client
from tests.chaos.figures import Figures, percentile
from tests.servers import Server

LISTENERS = 300
STEPS = 12
# From the first listener to the last: as they come in, not as a test can throw them in.
COMING_SECONDS = 10.0
LAG_SECONDS = 0.05
FIRST_EVENT_SECONDS = 5.0
SAMPLE_SECONDS = 0.05


async def listen(session: aiohttp.ClientSession, address: str, seed: int) -> tuple[float, float, str]:
    """Seconds until the first and the last event, and the last one's name."""
    began, first, name = time.perf_counter(), 0.0, ""
    params = {"prompt": "a cat", "steps": str(STEPS), "seed": str(seed)}
    async with session.get(
        f"{address}/imagine", params=params, headers={"Accept": "text/event-stream"}
    ) as response:
        async for line in response.content:
            if line.startswith(b"event: "):
                first = first or time.perf_counter() - began
                name = line.decode().removeprefix("event: ").strip()
    return first, time.perf_counter() - began, name


async def sample(client: Client, until: asyncio.Event) -> list[float]:
    """Seconds of `/healthz`, which waits for nothing but the loop, beside what else goes on."""
    seconds = []
    while not until.is_set():
        answer = await client.ask("GET", "/healthz")
        assert answer.status == 200
        seconds.append(answer.seconds)
        await asyncio.sleep(SAMPLE_SECONDS)
    return seconds


async def lag_buckets(client: Client) -> Counter[float]:
    """How often both gateways' loops were at most so late, in seconds, since they began."""
    answer = await client.ask("GET", "/metrics")
    found: Counter[float] = Counter()
    for family in text_string_to_metric_families(answer.body.decode()):
        for each in family.samples:
            if each.name == "mezzotint_event_loop_lag_seconds_bucket":
                found[float(each.labels["le"])] += int(each.value)
    return found


def lag_percentile(before: Counter[float], after: Counter[float], share: float) -> float:
    """The smallest bound in seconds that so great a share of the lags did not exceed."""
    counts = {bound: after[bound] - before[bound] for bound in sorted(after)}
    return min(bound for bound, count in counts.items() if count >= share * counts[math.inf])


@pytest.mark.chaos
async def test_three_hundred_listeners_do_not_wait_for_each_other(
    start_service: Callable[..., Server], figures: Figures
) -> None:
    server = start_service(
        "--model", "fake:pass_seconds=0.2,max_batch=8", "--replicas", "2", gateways=2, max_queue=400
    )
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    # A line is an event, and the last one holds the picture.
    async with (
        Client.to(server.address) as client,
        aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as session,
    ):
        await listen(session, server.address, 0)
        over, before = asyncio.Event(), await lag_buckets(client)
        sampling = asyncio.create_task(sample(client, over))
        listeners = []
        for seed in range(LISTENERS):
            listeners.append(asyncio.create_task(listen(session, server.address, seed)))
            await asyncio.sleep(COMING_SECONDS / LISTENERS)
        heard = await asyncio.gather(*listeners)
        over.set()
        health, after = await sampling, await lag_buckets(client)
    lag_s = lag_percentile(before, after, 0.99)
    firsts = [first for first, _, _ in heard]
    figures.add(
        0,
        f"p99 of the gateways' loop lag in s, {LISTENERS} listeners",
        lag_s,
        f"≤ {LAG_SECONDS}",
        lag_p50_s=lag_percentile(before, after, 0.5),
        health_p50_s=percentile(health, 0.5),
        health_p99_s=percentile(health, 0.99),
        first_event_p50_s=percentile(firsts, 0.5),
        first_event_p99_s=percentile(firsts, 0.99),
        last_event_max_s=max(last for _, last, _ in heard),
        # All listened at once from the last one's coming to the first one's end.
        first_end_s=min(last for _, last, _ in heard),
    )
    assert {name for _, _, name in heard} == {"done"}
    assert percentile(firsts, 0.99) < FIRST_EVENT_SECONDS
    assert lag_s <= LAG_SECONDS
