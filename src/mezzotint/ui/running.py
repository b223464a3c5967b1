"""The page as a process: serve it until a signal, or until whoever started it has gone."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading

import uvicorn

from mezzotint.ui.app import build_app
from mezzotint.ui.settings import UiSettings

__all__ = ["run_page"]

STOP_SECONDS = 3


def run_page(settings: UiSettings, listener: socket.socket, *, until_stdin_ends: bool = False) -> None:
    """Serve on `listener`, which is closed at the end. Prints the address once it answers."""
    app = build_app(settings)
    config = uvicorn.Config(
        app, log_level="warning", lifespan="on", timeout_graceful_shutdown=STOP_SECONDS, server_header=False
    )
    server = _Announcing(config, _address(listener))
    if until_stdin_ends:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    try:
        asyncio.run(server.serve([listener]))
    except KeyboardInterrupt:
        pass  # uvicorn has closed in order, and passes the signal on.
    finally:
        listener.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_with_stdin(server: uvicorn.Server) -> None:
    # It ends with the process that holds its other end, however that one ends.
    sys.stdin.buffer.read()
    server.should_exit = True


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"page:  {self._address}", flush=True)
