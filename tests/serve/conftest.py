"""A real `mezzotint serve`: one for a file of tests, or one of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers import Server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own, with arguments and environment; ended with the test."""
    servers: list[Server] = []

    def start(*arguments: str, environment: Mapping[str, str] | None = None) -> Server:
        servers.append(Server(tmp_path, *arguments, environment=environment))
        return servers[-1]

    yield start
    for server in servers:
        server.clean_up()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose passes take 0.1 s and hold one image each."""
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, "--model", "fake:pass_seconds=0.1,max_batch=1") as server:
        yield server
