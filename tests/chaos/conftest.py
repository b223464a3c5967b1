"""Faults, overload and strangers against a real `mezzotint serve`, each run with one figure.

The numbers are those of the promises in docs/reliability.md:

    test_lost_processes.py    1, 2, 3   kill -9 of an engine replica, a gateway, the controller, under load
    test_redeploy.py          4         SIGTERM and a rolling redeploy under load
    test_overload.py          6         ten times the load there is room for
    test_hostile_requests.py  8, 10, 11 headers that steer Ray Serve, half-open connections, bodies and bombs
    test_disconnects.py       9         a thousand clients that leave, at every phase of their request
    test_sick_model.py        12        a model that draws nothing usable
    test_keys.py              7, 17     a key on every route, its limits on both gateways; one that floods
    test_streams.py                     three hundred listeners at once, and the event loop beside them

Each claim has a short form in the suite and a long one marked `chaos`, which `make chaos` runs and whose
figures it writes to docs/measurements. The backend is the fake one, whose passes take time and no CPU, where
the claim is about the service; the demo model where it is about the pictures.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.client import Client
from tests.chaos.cluster import Cluster
from tests.chaos.figures import FIGURES, Figures
from tests.chaos.service import ARGUMENTS, SETTINGS, launch
from tests.servers import Server


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Takes each run's figure; prints it, and keeps it in the file that CHAOS_FIGURES names."""
    path = os.environ.get(FIGURES)
    return Figures(Path(path) if path else None)


# Of these tests alone: a server that waits takes an eighth of a core from whatever comes after.
@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two gateways before two engines, for the runs that leave a server as it was."""
    with launch(tmp_path_factory.mktemp("service"), *ARGUMENTS, **SETTINGS) as server:
        yield server


@pytest.fixture(scope="package")
def cluster(service: Server) -> Iterator[Cluster]:
    with Cluster.of(service) as cluster:
        yield cluster


@pytest.fixture
async def client(service: Server) -> AsyncIterator[Client]:
    async with Client.to(service.address) as client:
        yield client


@pytest.fixture
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own and waits for it.

    Takes its arguments, and settings by name; a name in capitals is a variable of the environment as it is.
    """
    servers: list[Server] = []

    def start(*arguments: str, **settings: Any) -> Server:
        server = launch(tmp_path_factory.mktemp("service"), *arguments, **settings)
        servers.append(server)
        server.address = server.wait_until_ready()
        return server

    yield start
    for server in servers:
        server.clean_up()
