"""Containers as a cluster runs them, by podman: a user of their own, a read-only root, no capabilities."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

USER = 10001
READY_SECONDS = 300.0
STOP_SECONDS = 60
HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--shm-size=512m",
)
# For a machine without systemd, and a kernel that grants a container less than the defaults ask for.
NESTED_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Container:
    """One that runs from the start of the block to its end."""

    def __init__(self, name: str, image: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        self.name = name
        self._command = [
            "podman",
            "run",
            "--detach",
            f"--name={name}",
            *HARDENED,
            *options,
            image,
            *arguments,
        ]

    def __enter__(self) -> Container:
        self.begun = time.monotonic()
        run(*self._command)
        return self

    def __exit__(self, *_: object) -> None:
        ask("podman", "rm", "--force", "--time=1", "--volumes", self.name)

    def exec(self, *command: str) -> str:
        return output("podman", "exec", self.name, *command)

    def tries(self, *command: str) -> bool:
        return ask("podman", "exec", self.name, *command).returncode == 0

    def wait(self, what: str, holds: Callable[[], bool]) -> float:
        """Seconds from its start until `holds`; ends the check where it ends first."""
        while time.monotonic() < self.begun + READY_SECONDS and self.state()["Running"]:
            if holds():
                return round(time.monotonic() - self.begun, 1)
            time.sleep(0.5)
        told = ask("podman", "logs", self.name)
        print(told.stdout, told.stderr)
        raise SystemExit(f"FAILED: {what}")

    def state(self) -> dict[str, Any]:
        [told] = json.loads(output("podman", "inspect", self.name))
        state: dict[str, Any] = told["State"]
        return state

    def is_healthy(self) -> bool:
        """What the image's own HEALTHCHECK says now."""
        return ask("podman", "healthcheck", "run", self.name).returncode == 0

    def memory_bytes(self) -> int:
        """The memory its processes have for themselves."""
        each = self.exec("sh", "-c", "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | grep ^Pss:").splitlines()
        return sum(int(line.split()[1]) for line in each) * 1024

    def stop(self) -> float:
        """Seconds from SIGTERM to its end."""
        begun = time.monotonic()
        run("podman", "stop", f"--time={STOP_SECONDS}", self.name)
        seconds = round(time.monotonic() - begun, 1)
        code = self.state()["ExitCode"]
        # 137 is SIGKILL: it had not ended when the grace was over.
        expect(f"{self.name} ends by itself on SIGTERM: exit code {code} after {seconds} s", code != 137)
        return seconds

    def check_hardened(self) -> None:
        status = dict(
            line.split(":", 1) for line in self.exec("cat", "/proc/1/status").splitlines() if ":" in line
        )
        expect(f"{self.name} runs as {USER}", status["Uid"].split() == [str(USER)] * 4)
        expect(f"{self.name} has no capability", int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0)
        expect(f"{self.name} can gain no privilege", status["NoNewPrivs"].strip() == "1")
        expect(f"{self.name} cannot write its root", not self.tries("touch", "/opt/mezzotint/x"))
        expect(f"{self.name} can write its data", self.tries("touch", "/var/lib/mezzotint/x"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, key: str = "", body: dict[str, Any] | None = None, accept: str = "*/*") -> bytes:
    headers = {"Accept": accept, **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
        found: bytes = answer.read()
        return found


def answers(url: str, status: int = 200) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == status)
    except urllib.error.HTTPError as error:
        return error.code == status
    except OSError:
        return False


def expect(claim: str, holds: bool) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {claim}")
    print(f"ok: {claim}", flush=True)


def run(*command: str) -> None:
    print(f"+ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
