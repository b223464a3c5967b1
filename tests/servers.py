"""A real `mezzotint serve` in a process of its own, on a free port, taken down by its own handle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

__all__ = ["Server", "is_running"]

# Starting Ray takes 8 to 15 s on two cores that have other work.
START_SECONDS = 120.0
STOP_SECONDS = 60.0


class Server:
    """The process, and what it has told so far. A context manager: ready within, gone after."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        page: bool = False,
    ) -> None:
        """page: with the page people draw with, on a free port too."""
        if page:
            environment = {**(environment or {}), "MEZZOTINT_UI_PORT": "0"}
        else:
            arguments = (*arguments, "--no-ui")
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        command = [sys.executable, "-m", "mezzotint", "serve", "--port", "0"]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = psutil.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**own, **(environment or {})},
                # A signal to the tests' own process group must not be what ends it.
                start_new_session=True,
            )
        self.helpers: list[psutil.Process] = []
        self.address = ""

    def __enter__(self) -> Server:
        try:
            self.address = self.wait_until_ready()
        except BaseException:
            self.clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up()

    def wait_until_ready(self) -> str:
        """The address it announced."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"^ready: (http://\S+)$", self.out.read_text(), re.MULTILINE)
            if found is not None:
                self.helpers = self.process.children(recursive=True)
                return found[1]
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.poll()}: {self.err.read_text()}")
            time.sleep(0.1)
        raise AssertionError(f"not ready within {START_SECONDS} s: {self.err.read_text()}")

    def wait_for_page(self) -> str:
        """The page's address, once it has announced it."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"^page: +(http://\S+)$", self.out.read_text(), re.MULTILINE)
            if found is not None:
                self.helpers = self.process.children(recursive=True)
                return found[1]
            time.sleep(0.1)
        raise AssertionError(f"no page within {START_SECONDS} s: {self.err.read_text()}")

    def wait_until_ended(self) -> int:
        """Its exit code."""
        return int(self.process.wait(STOP_SECONDS))

    def left_behind(self) -> list[psutil.Process]:
        return [helper for helper in self.helpers if is_running(helper)]

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.helpers = self.process.children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for helper in self.left_behind():
            helper.kill()


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
