"""One process from start to end: its own group, no terminal, no standard input but what it is given, a limit.

The rest of the package knows only `Launch`, so a test can answer in the tools' place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mezzotint.deploy.interrupts import Interrupts

__all__ = ["Ended", "Launch", "Processes"]

LAST_GRACE_S = 5.0
# Between two looks at a process that writes to a file.
LOOK_S = 0.2


@dataclass(frozen=True)
class Ended:
    """code: the exit code, or minus the signal's number. timed_out: it was stopped at its limit."""

    code: int
    out: str
    err: str = ""
    timed_out: bool = False


class Launch(Protocol):
    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None,
        limit_s: float,
        log: Path | None,
        progress: Callable[[str], None],
    ) -> Ended:
        """Run one tool. With a `log`, both its outputs go there, and `out` is what it holds; `progress` is
        called now and then with the last line.

        Raises:
            FileNotFoundError: there is no such tool.
            KeyboardInterrupt: a signal came; the process has ended.
        """


class Processes:
    def __init__(
        self,
        interrupts: Interrupts,
        environment: Mapping[str, str],
        *,
        grace_s: float,
        progress_s: float,
        last_grace_s: float = LAST_GRACE_S,
    ) -> None:
        self._interrupts = interrupts
        self._environment = dict(environment)
        self._grace_s = grace_s
        self._progress_s = progress_s
        self._last_grace_s = last_grace_s

    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None,
        limit_s: float,
        log: Path | None,
        progress: Callable[[str], None],
    ) -> Ended:
        if log is None:
            return self._captured(argv, stdin, limit_s)
        return self._logged(argv, limit_s, log, progress)

    def _captured(self, argv: Sequence[str], stdin: str | None, limit_s: float) -> Ended:
        with self._interrupts.shield():
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=self._environment,
                process_group=0,
                umask=0o077,
            )
            self._interrupts.attach(child.pid)
            timed_out = False
            try:
                out, err = child.communicate(stdin, timeout=limit_s)
            except subprocess.TimeoutExpired:
                timed_out = True
                self._stop(child)
                out, err = child.communicate()
            self._interrupts.detach()
        return Ended(child.returncode, out, err, timed_out)

    def _logged(
        self, argv: Sequence[str], limit_s: float, log: Path, progress: Callable[[str], None]
    ) -> Ended:
        with self._interrupts.shield():
            with open(log, "w", encoding="utf-8", opener=_private) as file:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    process_group=0,
                    umask=0o077,
                )
            self._interrupts.attach(child.pid)
            timed_out = not self._followed(child, limit_s, log, progress)
            if timed_out:
                self._stop(child)
            self._interrupts.detach()
        return Ended(child.returncode, log.read_text(encoding="utf-8", errors="replace"), "", timed_out)

    def _followed(
        self, child: subprocess.Popen[bytes], limit_s: float, log: Path, progress: Callable[[str], None]
    ) -> bool:
        """Whether it ended by itself."""
        now = time.monotonic()
        end, next_line = now + limit_s, now + self._progress_s
        while now < end:
            try:
                child.wait(min(LOOK_S, end - now))
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if now >= next_line:
                    progress(_last_line(log))
                    next_line = now + self._progress_s
            else:
                return True
        return child.poll() is not None

    def _stop(self, child: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
        """As gently as terraform wants it, and in the end for certain."""
        for number, grace_s in (
            (signal.SIGINT, self._grace_s),
            (signal.SIGTERM, self._last_grace_s),
            (signal.SIGKILL, LAST_GRACE_S),
        ):
            child.send_signal(number)
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                continue
            break
        # What it started itself goes with it, or a pipe would stay open.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
