"""Ctrl-C, SIGTERM and a terminal that closes, while tools run.

Terraform releases its state's lock only if it is asked to stop once and waited for. So a signal goes to the
running tool, and ends the command after it; between two tools it ends the command at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts"]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    def __init__(self) -> None:
        self._child: int | None = None
        self._shielded = False
        self._pending = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            # What whoever started this wants ignored, as `nohup` does, stays so.
            heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._shielded:
            raise KeyboardInterrupt
        self._pending += 1
        if self._child is not None:
            self._forward()

    def _forward(self) -> None:
        # Its own process group keeps the terminal's Ctrl-C from it: a second one would make terraform quit
        # at once, with its lock left behind. One that is sent twice by a person is passed on twice.
        if self._child is not None:
            try:
                os.kill(self._child, signal.SIGINT)
            except ProcessLookupError:
                self._child = None

    def attach(self, child: int) -> None:
        """Inside `shield`: the process that signals go to."""
        self._child = child
        if self._pending:
            self._forward()

    def detach(self) -> None:
        """Before the process is reaped, and its number another's."""
        self._child = None

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Inside, a signal does not raise; at the end, it has.

        Raises:
            KeyboardInterrupt: one came.
        """
        self._shielded = True
        try:
            yield
        finally:
            self._child, self._shielded = None, False
            if self._pending:
                self._pending = 0
                raise KeyboardInterrupt
