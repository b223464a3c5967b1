"""The page as a process: serve it until a signal, or until whoever started it has gone."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading

import uvicorn

from mezzotint.ui.app import build_app, end_pages
from mezzotint.ui.settings import UiSettings

__all__ = ["PageServer", "run_page"]

STOP_SECONDS = 3


def run_page(settings: UiSettings, listener: socket.socket, *, until_stdin_ends: bool = False) -> None:
    """Serve on `listener`, which is closed at the end. Prints the address once it answers."""
    # uvicorn closes in order, and then passes the signal on to this.
    signal.signal(signal.SIGTERM, _exit)
    try:
        asyncio.run(_serve(settings, listener, until_stdin_ends=until_stdin_ends))
    except KeyboardInterrupt:
        pass  # uvicorn has closed in order, and passes the signal on.
    finally:
        listener.close()


async def _serve(settings: UiSettings, listener: socket.socket, *, until_stdin_ends: bool) -> None:
    # Built on the loop that it will run on: Gradio would make one of its own.
    config = uvicorn.Config(
        build_app(settings),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=STOP_SECONDS,
        server_header=False,
    )
    server = PageServer(config, f"page:  {_address(listener)}")
    if until_stdin_ends:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    await server.serve([listener])


def _exit(*_: object) -> None:
    raise SystemExit(0)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_with_stdin(server: uvicorn.Server) -> None:
    # It ends with the process that holds its other end, however that one ends.
    sys.stdin.buffer.read()
    server.should_exit = True


class PageServer(uvicorn.Server):
    """Says `ready` once it answers. At its end it ends what open pages listen to."""

    def __init__(self, config: uvicorn.Config, ready: str = "") -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready:
            print(self._ready, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end_pages(self.config.app)
        await super().shutdown(sockets)
