"""Promise 12: a model that draws nothing usable never answers 200, and its replica is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.chaos.client import Answer, Client, outcomes, pixels_of
from tests.chaos.cluster import Cluster
from tests.chaos.figures import Figures
from tests.chaos.processes import processes_of, wait_for_replicas
from tests.servers import Server

# The first is the picture of the warm-up.
GOOD_PICTURES = 10
# In a row; then nothing more is sent to the replica until it has been examined.
QUARANTINED_AFTER = 3
TOGETHER = 4


@pytest.mark.chaos
@pytest.mark.parametrize("sickness", ["blank_after", "nan_after"])
async def test_a_sick_replica_is_replaced_and_none_of_its_pictures_leaves(
    start_service: Callable[..., Server], figures: Figures, sickness: str
) -> None:
    server = start_service("--model", f"fake:pass_seconds=0.05,{sickness}={GOOD_PICTURES}")
    sick = {process.pid for process in processes_of(server, "engine")}
    answers: list[Answer] = []
    async with Client.to(server.address) as client:
        with Cluster.of(server) as cluster:
            while sum(answer.status == 500 for answer in answers) < QUARANTINED_AFTER:
                answers += await asyncio.gather(*(client.imagine(steps=2) for _ in range(TOGETHER)))
                assert len(answers) < 10 * GOOD_PICTURES
            replaced_s = await asyncio.to_thread(wait_for_replicas, server, "engine", 1, sick)
            await asyncio.to_thread(cluster.wait_for, "engine", 1)
        healed = await client.imagine(steps=2)
    blank = sum(bool(pixels_of(a.body).std() == 0) for a in answers if a.status == 200)
    figures.add(
        12,
        f"useless pictures answered with 200, {sickness}",
        blank,
        "0",
        outcomes=outcomes(answers),
        replaced_s=replaced_s,
        healed=healed.outcome,
    )
    assert blank == 0
    assert outcomes(answers).keys() == {"200", "500 generation_failed"}
    assert healed.status == 200
