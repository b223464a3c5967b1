"""The page's own server in a thread of the test's process, on a free port, in front of any service."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from mezzotint.ui.app import build_app
from mezzotint.ui.running import PageServer
from mezzotint.ui.settings import UiSettings

__all__ = ["page_server"]

START_SECONDS = 120.0


class _Server(PageServer):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the test run's.
        yield


@contextmanager
def page_server(api: str, key: str = "", port: int = 0) -> Iterator[str]:
    """The address of a page that draws with the service at `api`."""
    listener = socket.create_server(("127.0.0.1", port))
    started, ready = list[_Server](), threading.Event()

    async def serve() -> None:
        # Built on its own loop: Gradio makes one, and leaves it open, where there is none.
        app = build_app(UiSettings(api=api, key=key))
        started.append(_Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2), ready))
        await started[0].serve([listener])

    # Building a page sets it for the process; another's uploads are elsewhere.
    uploads = os.environ.get("GRADIO_TEMP_DIR")
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        assert ready.wait(START_SECONDS), f"not ready within {START_SECONDS} s"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for server in started:
            server.should_exit = True
        thread.join(START_SECONDS)
        listener.close()
        if uploads is not None:
            os.environ["GRADIO_TEMP_DIR"] = uploads
        assert not thread.is_alive(), "the page's server did not stop"
