"""A hand on a running server's Ray, in a process of its own: what runs, and a new version of the application.

One line of JSON in, one out. A process of its own, because Ray holds one cluster a process, and because an
operator's tools would come from outside too.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mezzotint.serve.telemetry.exposition import Families
from tests.chaos.processes import REPLACED_SECONDS
from tests.servers import Server

__all__ = ["Cluster", "new_token"]


def new_token() -> dict[str, str]:
    """Environment that lets server and operator speak to one Ray."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Cluster:
    """The operator's side of the pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def of(cls, server: Server) -> Iterator[Cluster]:
        core = next(helper for helper in server.helpers if helper.name() == "raylet")
        address = re.search(r"--gcs-address=(\S+)", " ".join(core.cmdline()))
        assert address is not None
        environment = {**os.environ, **core.environ(), "RAY_ADDRESS": address[1]}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(REPLACED_SECONDS)
            assert process.stdout is not None
            process.stdout.close()

    def ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the operator's process ended with {self._process.wait(REPLACED_SECONDS)}"
        return json.loads(answer)

    def replicas(self) -> dict[str, dict[str, int]]:
        """Of each deployment, how many replicas are in which state."""
        found: dict[str, dict[str, int]] = self.ask("replicas")
        return found

    def in_engines(self) -> int:
        """Images that wait, run or are decoded, in all engines."""
        return int(self.ask("in_engines"))

    def wait_until_idle(self, limit_s: float) -> float:
        """Seconds until no engine holds an image."""
        began = time.monotonic()
        while self.in_engines():
            assert time.monotonic() - began < limit_s, f"{self.in_engines()} images are still in the engines"
            time.sleep(0.05)
        return time.monotonic() - began

    def redeploy(self, **settings: Any) -> float:
        """Serve with other settings; seconds until the new version alone runs."""
        return float(self.ask("redeploy", settings=settings))

    def wait_for(self, role: str, count: int) -> float:
        """Seconds until `count` replicas of the role run, and none is in another state."""
        began = time.monotonic()
        while time.monotonic() - began < REPLACED_SECONDS:
            if self.replicas()[role] == {"RUNNING": count}:
                return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"no {count} replicas of {role} run: {self.replicas()}")


def _serve_commands() -> None:
    import logging

    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(_carry_out(command)), flush=True)


def _carry_out(command: dict[str, Any]) -> Any:
    from ray import serve

    from mezzotint.serve.app import APP_NAME, build_app

    if command["what"] == "replicas":
        deployments = serve.status().applications[APP_NAME].deployments
        return {name: dict(told.replica_states) for name, told in deployments.items()}
    if command["what"] == "in_engines":
        counted = serve.get_deployment_handle("engine", APP_NAME).broadcast("metrics").results()
        return sum(_in_engine(families) for families in counted)
    began = time.monotonic()
    logs = {"enable_access_log": False, "log_level": "WARNING"}
    serve.run(build_app(command["settings"]), name=APP_NAME, route_prefix="/", logging_config=logs)
    return time.monotonic() - began


def _in_engine(families: Families) -> int:
    """Whatever their state."""
    _, samples = families["mezzotint_images_in_engine"]
    return sum(int(float(line.rpartition(" ")[2])) for line in samples.splitlines())


if __name__ == "__main__":
    _serve_commands()
