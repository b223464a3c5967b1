"""The HTTP application on a real server and a real port, in a thread of the test's own process.

Behind it are an engine with the fake backend, SQLite and a folder. For clients that open connections.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from mezzotint.backends.fake import FakeBackend
from mezzotint.config import Settings
from mezzotint.engine.engine import Engine
from mezzotint.serve.http import build_http
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.services import Services, open_services
from mezzotint.serve.stores.keys import KeyStore, NewKey
from tests.api.inprocess import InProcessReplicas, settings_of

START_SECONDS = 120.0


class Live:
    """`url`, and what is behind it."""

    def __init__(self, settings: Settings, backend: FakeBackend, port: int = 0) -> None:
        self.backend = backend
        self.engine = Engine(backend, max_queue=settings.max_queue)
        self.url = ""
        self.services: Services | None = None
        self._settings, self._port = settings, port
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise AssertionError(f"not ready within {START_SECONDS} s")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    def create_key(self, new: NewKey) -> str:
        """A key's text."""
        assert self.services is not None
        assert self._loop is not None
        creating = KeyStore(self.services.database).create(new)
        return asyncio.run_coroutine_threadsafe(creating, self._loop).result(START_SECONDS)[1]

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        replica = EngineReplica(self._settings, self.engine)
        listener = socket.create_server(("127.0.0.1", self._port))
        try:
            async with open_services(self._settings, InProcessReplicas(replica)) as services:
                self.services = services
                config = uvicorn.Config(
                    build_http(services), log_level="error", lifespan="off", timeout_graceful_shutdown=5
                )
                self._server = _Server(config, self._ready)
                self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                await self._server.serve([listener])
        finally:
            listener.close()
            replica.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the test run's.
        yield


@contextmanager
def live(folder: Path, backend: FakeBackend, *, port: int = 0, **settings: object) -> Iterator[Live]:
    """A server of `backend` with its stores below `folder`, on `port` or a free one."""
    server = Live(settings_of(folder, **settings), backend, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
