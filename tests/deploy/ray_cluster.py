"""A Ray cluster on this machine, each node started by the command that KubeRay would make of its group.

The nodes share this machine's loopback address, so ports that would be each pod's are free ones here; the
rest is the manifest's: resources, environment, token authentication.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import httpx
import psutil

from tests.deploy.manifests import Manifest, ray_groups, ray_service
from tests.ports import free_port
from tests.servers import is_running

__all__ = ["RayCluster", "ray_start"]

START_SECONDS = 120.0
STOP_SECONDS = 5.0
BIN = Path(sys.executable).parent


def ray_start(group: Manifest, *, head: bool, own: dict[str, str]) -> list[str]:
    """The arguments of `ray start` for a group's pod, as KubeRay puts them together; `own` goes before them.

    As its operator: `--name=value` for each of rayStartParams and for what it adds, by a shell, which takes
    the manifest's quotes off.
    """
    parameters = {"block": "true", **group["rayStartParams"], **own}
    flags = [
        f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(parameters.items())
    ]
    return ["ray", "start", *(["--head"] if head else []), *shlex.split(" ".join(flags))]


class RayCluster:
    """A context manager: the nodes of a manifest within, no process of theirs after."""

    def __init__(self, manifests: list[Manifest], folder: Path) -> None:
        self._manifests = manifests
        self._folder = folder
        self._stack = ExitStack()
        self._nodes: list[psutil.Popen] = []
        self._dashboard = free_port()
        self.token = secrets.token_hex(32)

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self._dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """A pod's, with its writable folders here."""
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEZZOTINT_"))
        }
        for each in self._manifests:
            if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("environment"):
                own |= each["data"]
        return own | {
            "HOME": str(self._folder / "home"),
            "MEZZOTINT_HOME": str(self._folder / "data"),
            # As KubeRay sets them for authOptions.mode: token.
            "RAY_AUTH_MODE": ray_service(self._manifests)["spec"]["rayClusterConfig"]["authOptions"]["mode"],
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def __enter__(self) -> RayCluster:
        (self._folder / "home").mkdir()
        try:
            groups = ray_groups(self._manifests)
            gcs = free_port()
            head = {
                "port": str(gcs),
                "dashboard-host": "127.0.0.1",
                "dashboard-port": str(self._dashboard),
                "ray-client-server-port": str(free_port()),
                # Ray's own sockets have room for no longer name.
                "temp-dir": self._stack.enter_context(
                    TemporaryDirectory(prefix="mzr-", dir="/tmp", ignore_cleanup_errors=True)
                ),
            }
            self.temporary = Path(head["temp-dir"])
            self._start("head", groups["head"], head)
            self.wait(lambda: httpx.get(f"{self.dashboard}/api/gcs_healthz").status_code == 200, "the head")
            for name in ("gateways", "engines"):
                self._start(name, groups[name], {"address": f"127.0.0.1:{gcs}"})
                # In turn: two that start on one machine at once take each other's ports.
                log = self._folder / f"{name}.log"
                self.wait(lambda log=log: "runtime started" in log.read_text(), name)  # type: ignore[misc]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, name: str, group: Manifest, own: dict[str, str]) -> None:
        addresses = {
            "node-ip-address": "127.0.0.1",
            "metrics-export-port": str(free_port()),
            "dashboard-agent-listen-port": str(free_port()),
        }
        command = ray_start(group, head=name == "head", own={**addresses, **own})
        with (self._folder / f"{name}.log").open("wb") as log:
            node = psutil.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
            )
        self._nodes.append(node)

    def wait(self, done: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Until `done`, which may fail by the network."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if done():
                    return
            assert all(is_running(node) for node in self._nodes), self.logs()
            time.sleep(0.2)
        told = self.serve("status").stdout
        raise AssertionError(f"no {what} within {seconds} s: {told}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-2_000:] for path in sorted(self._folder.glob("*.log"))
        )

    def serve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ray Serve's own command, as an operator has it."""
        command = [str(BIN / "serve"), *arguments, "--address", self.dashboard]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=START_SECONDS
        )

    def processes(self, named: str) -> list[psutil.Process]:
        """What runs on its nodes with `named` in its command."""
        found = []
        for node in self._nodes:
            for process in node.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if is_running(process) and any(named in part for part in process.cmdline()):
                        found.append(process)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        everything = []
        for node in reversed(self._nodes):
            with suppress(psutil.NoSuchProcess):
                everything += [*node.children(recursive=True), node]
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(everything, STOP_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, STOP_SECONDS)
        self._stack.close()
