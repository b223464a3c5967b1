"""Passes that were handed to the device, and what became of them.

A CPU has done a pass when it was called. A GPU is given the next pass shortly before it is done with the one
before, so that it never waits for the host; and not earlier, so that whoever comes meanwhile is still in it.
Whether a row's numbers were finite is looked at a pass later, or at its decoding, whichever comes first.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

from mezzotint.backends.streams import Fetched, Streams

__all__ = ["Pass", "PassQueue"]

# What the engine does between two passes, above the time that handing one over takes.
MARGIN_SECONDS = 0.001
SPARE = 1.5
# Of the latest of one kind the quickest counts: to be early costs a newcomer a moment, to be late idles the
# GPU.
REMEMBERED = 8
MAX_KINDS = 256


class Watched(Protocol):
    """A row of a pass. `finite` turns False once its numbers are known not to be."""

    finite: bool


class Pass:
    """One pass in the device's queue."""

    def __init__(self, rows: Sequence[Watched], finite: Fetched) -> None:
        self._rows, self._finite = rows, finite

    def passed(self) -> bool:
        """Whether the device is done with it."""
        return self._finite.arrived()

    def look(self) -> None:
        """Wait until it is over and tell its rows. From any thread, any number of times."""
        rows = self._rows
        if rows:
            for row, finite in zip(rows, self._finite.wait().tolist(), strict=True):
                if not finite:
                    row.finite = False
            # A row knows its pass; a pass that is over need not keep its rows.
            self._rows = ()

    def device_seconds(self) -> float:
        """How long the device took, once it is over."""
        return self._finite.device_seconds()


class PassQueue:
    """Hands passes over, one at a time, and decides when the host may go on. For one thread."""

    def __init__(
        self,
        streams: Streams,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._streams, self._clock, self._sleep = streams, clock, sleep
        self._began_at, self._begun = 0.0, None
        self._previous: tuple[Hashable, Pass] | None = None
        self._took: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._handing: deque[float] = deque(maxlen=REMEMBERED)

    def begin(self) -> None:
        """What follows is handed to the device as one pass."""
        self._began_at, self._begun = self._clock(), self._streams.begin()

    def end(self, kind: Hashable, rows: Sequence[Watched], finite: torch.Tensor) -> Pass:
        """The pass is handed over. Returns when the next should be; the one before this is over by then.

        kind: passes of one kind take about as long as each other.
        finite: for each row, on the device.
        """
        this = Pass(rows, self._streams.fetch(finite, self._begun))
        if not self._streams.queues:
            this.look()
            return this
        self._handing.append(self._clock() - self._began_at)
        runs_since = self._finish_previous()
        self._previous = (kind, this)
        took = self._took.get(kind)
        if took is None:
            # Nothing is known of its kind, and whoever calls may be measuring it.
            self._finish_previous()
        else:
            lead = MARGIN_SECONDS + SPARE * max(self._handing)
            self._sleep(max(0.0, runs_since + min(took) - lead - self._clock()))
        return this

    def forget(self) -> None:
        """Let go of the pass that was handed over last."""
        self._previous = None

    def _finish_previous(self) -> float:
        """Look at the pass before; since when the device has been at the newest, or a little earlier."""
        if self._previous is None:
            return self._began_at
        kind, before = self._previous
        self._previous = None
        waited = not before.passed()
        before.look()
        took = self._took.setdefault(kind, deque(maxlen=REMEMBERED))
        self._took.move_to_end(kind)
        took.append(before.device_seconds())
        if len(self._took) > MAX_KINDS:
            self._took.popitem(last=False)
        return self._clock() if waited else self._began_at
