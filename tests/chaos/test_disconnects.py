"""Promise 9: a client that leaves frees its place within a step, at whatever phase it leaves."""

from __future__ import annotations

import asyncio
import random
import time
from statistics import median
from urllib.parse import urlencode, urlsplit

import pytest

from tests.chaos.client import Client
from tests.chaos.cluster import Cluster
from tests.chaos.figures import SLACK, Figures
from tests.chaos.service import PASS_SECONDS
from tests.servers import Server

STEPS = 24
TOGETHER = 25
# Between the client's leaving and the engine's next pass: the way through proxy and gateway, and this
# machine's other work. Left alone, a wave's pictures would be drawn for five and a half seconds more.
FREED_SECONDS = min(3.0 * SLACK, 5.0)
HALF_FREED_SECONDS = 2.0
# A header that tells Ray Serve's proxy not to mind the client's leaving.
HOSTILE = "x-request-disconnect-disabled: ?1\r\n"


async def leave(address: str, after_s: float, *, stream: bool, hostile: bool) -> None:
    """Ask for a picture of many seconds, and close the connection `after_s` later."""
    url = urlsplit(address)
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    query = urlencode({"prompt": "left", "steps": STEPS})
    accept = "Accept: text/event-stream\r\n" if stream else ""
    head = f"GET /imagine?{query} HTTP/1.1\r\nHost: {url.netloc}\r\n{accept}{HOSTILE if hostile else ''}\r\n"
    writer.write(head.encode())
    await writer.drain()
    await asyncio.sleep(after_s)
    writer.transport.abort() if random.random() < 0.5 else writer.close()


async def run_disconnects(server: Server, cluster: Cluster, count: int) -> list[float]:
    """Seconds from the last leaving of each wave until no engine holds an image."""
    rng, freed = random.Random(0), []
    for _ in range(count // TOGETHER):
        # From before the request has been read to the middle of the steps.
        await asyncio.gather(
            *(
                leave(
                    server.address,
                    rng.choice((0.0, rng.uniform(0.0, 0.2), rng.uniform(0.2, 2.0))),
                    stream=rng.random() < 0.5,
                    hostile=rng.random() < 0.5,
                )
                for _ in range(TOGETHER)
            )
        )
        freed.append(await asyncio.to_thread(cluster.wait_until_idle, 10 * FREED_SECONDS))
    return freed


async def check_disconnects(server: Server, cluster: Cluster, figures: Figures, count: int) -> None:
    async with Client.to(server.address) as client:
        assert (await client.imagine(steps=1)).status == 200
        # The first look opens the operator's own way to the engines, which is not what is timed here.
        await asyncio.to_thread(cluster.wait_until_idle, 10 * FREED_SECONDS)
        began = time.monotonic()
        freed = await run_disconnects(server, cluster, count)
        figures.add(
            9,
            f"seconds until the engines are idle, {count} disconnects, slowest wave",
            max(freed),
            f"< {FREED_SECONDS:g}",
            median_s=median(freed),
            pass_s=PASS_SECONDS,
            picture_s=STEPS * PASS_SECONDS,
            took_s=time.monotonic() - began,
        )
        assert median(freed) < HALF_FREED_SECONDS
        assert max(freed) < FREED_SECONDS
        assert (await client.imagine(steps=1)).status == 200


async def test_a_hundred_clients_that_leave_occupy_nothing(
    service: Server, cluster: Cluster, figures: Figures
) -> None:
    await check_disconnects(service, cluster, figures, 100)


@pytest.mark.chaos
async def test_a_thousand_clients_that_leave_occupy_nothing(
    service: Server, cluster: Cluster, figures: Figures
) -> None:
    await check_disconnects(service, cluster, figures, 1_000)
