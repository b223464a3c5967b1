"""A deployment with the model of `world` in the tools' place: in this process, or as programs on a PATH."""

from __future__ import annotations

import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mezzotint.deploy.config import DeployConfig
from mezzotint.deploy.deployment import Answers, Deployment
from mezzotint.deploy.down import take_down
from mezzotint.deploy.folder import Folder
from mezzotint.deploy.pace import LIMITS, Pace
from mezzotint.deploy.processes import Ended
from mezzotint.deploy.redaction import Redaction
from mezzotint.deploy.runner import Runner
from mezzotint.deploy.up import bring_up
from tests.deploy.world import ACCOUNT, CLUSTER, REGION, World

__all__ = ["DIGEST", "Service", "Site", "make_source", "serving"]

DIGEST = "sha256:" + "0" * 64
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
VARIABLES = {
    "infra": "region account_id cluster_name accelerator engine_instance_types keep_data lb_scheme lb_cidrs "
    "certificate_arn model_uri zone_count",
    "addons": "region account_id cluster_name vpc_id accelerator interruption_queue monitoring",
}
REQUIRED = ("region", "vpc_id", "interruption_queue")
OVERLAY = """resources: [../../base]
images:
  - {name: mezzotint/neuron, newName: registry.invalid/mezzotint/neuron, newTag: change-me}
  - {name: mezzotint/ui, newName: registry.invalid/mezzotint/ui, newTag: change-me}
  - {name: envoyproxy/envoy, newTag: v1}
"""
SITE = """# What differs from one site to the next.
CLUSTER_NAME=mezzotint
REGION=us-west-2
NODE_ROLE=x
MODEL_URI=demo
IMAGE_STORE=s3://x/images
VALKEY_ADDRESS=rediss://valkey.invalid:6379
LB_SCHEME=internal
LB_CIDRS=10.0.0.0/8
CERTIFICATE_ARN=
"""


def make_source(checkout: Path) -> Path:
    """A checkout whose `deploy` has the least that the command reads."""
    deploy = checkout / "deploy"
    for root, names in VARIABLES.items():
        folder = deploy / "terraform" / root
        folder.mkdir(parents=True)
        default = {name: "" if name in REQUIRED else " default = null " for name in names.split()}
        text = "".join(f'variable "{name}" {{{value}}}\n' for name, value in default.items())
        (folder / "variables.tf").write_text(text)
    overlay = deploy / "kubernetes/overlays/inf2"
    overlay.mkdir(parents=True)
    (overlay / "kustomization.yaml").write_text(OVERLAY)
    (overlay / "site.env").write_text(SITE)
    return deploy


@dataclass(frozen=True)
class ShortOf(Pace):
    """Runs out of what is `short` at the 20th look, however slow the machine, and of nothing else."""

    short: frozenset[str] = frozenset()
    looks: Iterator[int] = field(default_factory=lambda: count(1))

    def limit(self, of: str) -> float:
        # Asked once a look.
        if of in self.short and next(self.looks) % 20 == 0:
            return 0.0
        return LIMITS[of] / 6


class InProcess:
    """The tools, without a process for each call."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.without: set[str] = set()

    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None,
        limit_s: float,
        log: Path | None,
        progress: Callable[[str], None],
    ) -> Ended:
        if argv[0] in self.without:
            raise FileNotFoundError(argv[0])
        code, out, err = self.world.answer(argv[0], list(argv[1:]), stdin or "")
        if log is not None:
            log.write_text(out + err)
            return Ended(code, out + err)
        return Ended(code, out, err)


class Site:
    """A home, a checkout and an account, and `up` and `down` there. What was said is in `said`."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.source = make_source(folder / "checkout")
        self.world = World(folder / "world.json")
        self.world.start()
        self.launch = InProcess(self.world)
        self.said: list[str] = []
        self.url = url
        images = {f"mezzotint/{name}": f"{REGISTRY}/mezzotint/{name}@{DIGEST}" for name in ("neuron", "ui")}
        self.config: dict[str, Any] = {"region": REGION, "overlay": "inf2", "images": images, "url": url}
        # What the next run waits for although it will not come.
        self.short: set[str] = set()

    @property
    def folder(self) -> Path:
        return self.home / ".mezzotint/deploy" / CLUSTER

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    @property
    def calls(self) -> list[str]:
        return [" ".join(json.loads(line)) for line in self.world.calls.read_text().splitlines()]

    def called(self, *words: str) -> list[str]:
        return [call for call in self.calls if all(word in call for word in words)]

    @contextmanager
    def deployment(self, *, dry_run: bool = False, **config: Any) -> Iterator[Deployment]:
        pace = ShortOf(every_s=0, retry_s=0, progress_s=0, short=frozenset(self.short))
        asked = DeployConfig(**{**self.config, **config})
        kept = Folder(self.folder)
        redaction = Redaction()
        say = lambda line: self.said.append(redaction(line))  # noqa: E731
        with Folder.for_trial(self.folder) if dry_run else kept.locked() as trial:
            folder = trial or kept
            log = folder.logs / "deploy.log"
            runner = Runner(self.launch, pace, redaction, say, log=log, dry_run=dry_run)
            yield Deployment(asked, self.source, folder, runner, pace, say, self.answers)

    answers = Answers(yes=True)

    def up(self, *, until: str | None = None, dry_run: bool = False, **config: Any) -> None:
        with self.deployment(dry_run=dry_run, **config) as d:
            bring_up(d, until)

    def down(
        self,
        *,
        delete_data: bool = False,
        skip_kubernetes: bool = False,
        dry_run: bool = False,
        **config: Any,
    ) -> None:
        with self.deployment(dry_run=dry_run, **config) as d:
            take_down(d, delete_data=delete_data, skip_kubernetes=skip_kubernetes)

    def fail(self, words: str, how: str, at: int = 1) -> None:
        """The `at`th call with all these words fails like this, once."""
        self.world.change(failures=[*self.world.read()["failures"], [words, at, how]])

    def files(self) -> dict[str, str]:
        """Everything that is written below the home."""
        return {
            str(path.relative_to(self.home)): path.read_text(errors="replace")
            for path in self.home.rglob("*")
            if path.is_file()
        }

    def command(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """The real command, with the tools as programs."""
        tools = self.home.parent / "bin"
        tools.mkdir(exist_ok=True)
        for tool in ("terraform", "aws", "kubectl"):
            path = tools / tool
            script = Path(__file__).with_name("world.py")
            # -S -E: neither site packages nor this interpreter's settings.
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{script}" {tool} "$@"\n')
            path.chmod(0o755)
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "WORLD": str(self.world.path),
            **variables,
        }
        run = "from mezzotint.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", run, "deploy", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x7f" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Service:
    """What a client sees of the service; `wrong` makes one thing of it so. Any key will do."""

    def __init__(self) -> None:
        self.wrong = ""
        self.keys: set[str] = set()
        self.not_ready = 0
        self.url = ""

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path)
        if self.wrong == "no HTTP":
            handler.wfile.write(b"SSH-2.0\r\n")
            handler.close_connection = True
            return None
        if path.path == "/readyz":
            self.not_ready -= 1
            return self.send(handler, 503 if self.not_ready >= 0 else 200, "text/plain", b"")
        if path.path in ("/dashboard", "/api/jobs/") and self.wrong == path.path:
            return self.send(handler, 200, "text/html", b"Ray")
        if path.path not in ("/imagine", "/serve/imagine", "/v1/capabilities"):
            return self.send(handler, 404, "application/json", b"{}")
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if not key and self.wrong != "open":
            return self.send(handler, 401, "application/json", b"{}")
        self.keys.add(key)
        if path.path == "/v1/capabilities":
            return self.send(handler, 200, "application/json", b'{"sizes": {"default": "64x32"}}')
        return self.draw(handler, parse_qs(path.query))

    def draw(self, handler: http.server.BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        if self.wrong == "failing":
            return self.send(handler, 500, "application/json", b'{"error": {"message": "no usable picture"}}')
        width, height = map(int, query.get("size", ["64x32"])[0].split("x"))
        if handler.headers.get("Accept") == "text/event-stream":
            last = "error" if self.wrong == "event" else "done"
            events = ["queued", *([] if self.wrong == "no progress" else ["progress"]), last]
            text = "".join(f"event: {name}\ndata: {{}}\n\n" for name in events)
            return self.send(handler, 200, "text/event-stream", text.encode())
        if self.wrong == "size":
            width = 8
        data = b"GIF89a" if self.wrong == "format" else png(width, height)
        return self.send(handler, 200, "image/png", data)

    def send(self, handler: http.server.BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def serving() -> Iterator[Service]:
    """The service on a free port."""
    service = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
