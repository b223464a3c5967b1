"""The time that all gateways agree on, whatever happens to a machine's own clock."""

from __future__ import annotations

import time

__all__ = ["Clock", "steady"]

# Goes on while the machine sleeps, and never jumps.
STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds since some moment, the same for every process of this machine."""
    return time.clock_gettime(STEADY)


class Clock:
    """Seconds since 1970, counted on from `start`, which it was when `steady` said `at`."""

    def __init__(self, start: float, at: float) -> None:
        self._offset = start - at

    def follow(self, other: Clock) -> None:
        """Tell the same from now on."""
        self._offset = other._offset

    def __call__(self) -> float:
        return self._offset + steady()
