"""What stands behind the edge in its tests: a server that does as the path says, and notes what it got."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from mezzotint.serve.proxy import LOST_HEADER

__all__ = ["Seen", "Upstream"]

CHUNK = b"event: progress\ndata: {}\n\n"


@dataclass
class Seen:
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)


class Upstream:
    """HTTP/1.1 on a free port, in a thread. A context manager.

    `?fail=N` is lost the first N times, `?refuse=N` gives 503 of its own, `?drop=N` closes the connection as
    often; `?stream` sends one event, and the second only when `release` is set. All else is answered by name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.release = threading.Event()
        self.port = 0
        self._failed: dict[str, int] = {}

    def __enter__(self) -> Upstream:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopping.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        method, target, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        await reader.readexactly(int(headers.get("content-length", 0)))
        if target != "/-/healthz":
            self.seen.append(Seen(method, target, headers))
        if "stream" in target:
            await self._stream(writer)
        elif self._still(target, "fail="):
            await self._answer(writer, f"503 Service Unavailable\r\n{LOST_HEADER}: gateway", b'{"error": {}}')
        elif self._still(target, "refuse="):
            await self._answer(writer, "503 Service Unavailable", b'{"error": {}}')
        elif self._still(target, "drop="):
            return False
        else:
            await self._answer(writer, "200 OK", self.name.encode())
        return True

    def _still(self, target: str, word: str) -> bool:
        if word not in target:
            return False
        times = self._failed[target] = self._failed.get(target, 0) + 1
        return times <= int(target.partition(word)[2])

    async def _answer(self, writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number in range(2):
            writer.write(f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n")
            await writer.drain()
            while number == 0 and not self.release.is_set():
                await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
