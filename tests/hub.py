"""A server on loopback that answers as the Hugging Face Hub does, for the Hub's own client to fetch from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Hub", "serve_hub"]


class Hub:
    """files: by path within every repository. `asked`: the paths that were fetched. `cut`: files that end
    in the middle. `closed`: without a licence accepted, as for a gated repository."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self.asked: list[str] = []
        self.cut: set[str] = set()
        self.closed = False
        self.address = ""


@contextmanager
def serve_hub(files: Mapping[str, Path]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(_Handler):
        shelf = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    shelf: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if self.shelf.closed:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept its licence first"})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            self._send(200, self._listing(parts, with_sizes="blobs" in url.query), {})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            self._send(200, self._tree(), {})
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in self.shelf.files:
            self._send_file("/".join(parts[4:]), parts[3], with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _listing(self, parts: list[str], with_sizes: bool) -> bytes:
        """What `GET /api/models/{owner}/{name}/revision/{commit}` tells."""
        files = [
            {"rfilename": name, **({"size": path.stat().st_size} if with_sizes else {})}
            for name, path in self.shelf.files.items()
        ]
        repository = "/".join(parts[2:4])
        known = {"_id": "0", "id": repository, "modelId": repository, "sha": parts[5], "private": False}
        return json.dumps({**known, "gated": False, "tags": [], "siblings": files}).encode()

    def _tree(self) -> bytes:
        """What `GET /api/models/{owner}/{name}/tree/{commit}` tells, which newer clients ask."""
        files = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
            for name, path in self.shelf.files.items()
        ]
        return json.dumps(files).encode()

    def _send_file(self, name: str, commit: str, with_body: bool) -> None:
        content = self.shelf.files[name].read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        if not with_body:
            self._send(200, b"", {**headers, "Content-Length": str(len(content))})
            return
        self.shelf.asked.append(name)
        if name in self.shelf.cut:
            self._send(200, content[: len(content) // 2], {**headers, "Content-Length": str(len(content))})
            self.close_connection = True
            return
        self._send(200, content, headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests' output is theirs."""
