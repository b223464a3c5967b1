"""How decodes make way for the passes beside them: in each pass they work a share of what it takes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ["DecodePace", "Passes"]

# Of the seconds of a pass, what a decode may work beside it. All in the pass wait so much longer at most, and
# for the piece that goes beyond; a decode that takes as long as a pass is spread over five.
SHARE = 0.2
# A pass that takes so many seconds longer than expected is not at its kernels: it compiles, for one.
LATE_SECONDS = 1.0


class Passes:
    """The pass under way, and how long decodes have worked beside it. Thread-safe."""

    def __init__(self, changed: threading.Condition) -> None:
        """changed: told of each pass; its lock guards what is here."""
        self._changed = changed
        self._number = 0
        self._seconds = math.inf
        self._worked = 0.0

    def begin(self, seconds: float) -> None:
        """A pass of about so many seconds is under way; the one before, if there was one, is over."""
        with self._changed:
            self._number += 1
            self._seconds, self._worked = seconds, 0.0
            self._changed.notify_all()

    def stop(self) -> None:
        """None is: whoever decodes has the device to itself."""
        self.begin(math.inf)

    @property
    def are_under_way(self) -> bool:
        return self._seconds < math.inf

    def make_way(self, worked: float, decodes: int) -> None:
        """A decode has worked so many seconds more, and goes on when this returns: at once or, when decodes
        have had their share of the pass, with the next. To a pass that is late none makes way any more.
        decodes: how many pictures are to be decoded."""
        with self._changed:
            self._worked += worked
            # Each has a share, so they do not pile up.
            if self._worked >= SHARE * decodes * self._seconds:
                number = self._number
                if not self._changed.wait_for(lambda: self._number != number, self._seconds + LATE_SECONDS):
                    self._seconds = math.inf


class DecodePace:
    """Of one decode: what a backend calls between its pieces (`mezzotint.backends.base.MakeWay`)."""

    def __init__(
        self, passes: Passes, decodes: Callable[[], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """decodes: how many pictures are to be decoded, this one among them; it may raise to have this one
        given up."""
        self._passes, self._decodes, self._clock = passes, decodes, clock
        self._resumed = clock()
        # Seconds in which it made way.
        self.rested = 0.0

    def __call__(self, finish: Callable[[], None]) -> None:
        decodes = self._decodes()
        if self._passes.are_under_way:
            # What a GPU has only been handed has not been worked yet.
            finish()
            ended = self._clock()
            self._passes.make_way(ended - self._resumed, decodes)
            self.rested += self._clock() - ended
        self._resumed = self._clock()
