"""What a pass costs: measured seconds by batch key and width, and the knee where wider stops paying.

Warm-up measures the default shape at a few widths; every pass that is served after that refines its own
entry. A key that was never run borrows the nearest measured one, on the assumption that a pass costs by the
pixels in it: two images of 128×128 cost about what one of 128×256 does.
"""

from __future__ import annotations

from bisect import bisect_left

from mezzotint.engine.scheduler import BatchKey

__all__ = ["StepCost"]

# A pass is as wide as nine tenths of the best throughput needs: the last tenth costs the most waiting.
KNEE_SHARE = 0.9
# Weight of the newest observation: steady against one slow pass, moved by a dozen.
SMOOTHING = 0.1
UNMEASURED_SECONDS = 0.05


class StepCost:
    """Seconds of one pass. `max_width` bounds the images in it.

    Not thread-safe: the engine guards it with its own lock.
    """

    def __init__(self, max_width: int) -> None:
        self.max_width = max_width
        self._measured: dict[BatchKey, dict[int, float]] = {}
        self._knees: dict[BatchKey, int] = {}

    def observe(self, key: BatchKey, width: int, seconds: float) -> None:
        """A pass of `width` images took `seconds`."""
        entry = self._measured.setdefault(key, {})
        before = entry.get(width)
        entry[width] = seconds if before is None else before + SMOOTHING * (seconds - before)
        self._knees.clear()

    def seconds(self, key: BatchKey, width: float) -> float:
        """The expected seconds of a pass of `width` images."""
        entry = self._measured.get(key)
        if entry:
            return _interpolate(entry, width)
        if not self._measured:
            return UNMEASURED_SECONDS * width
        nearest = min(self._measured, key=lambda other: abs(other.area - key.area))
        return _interpolate(self._measured[nearest], width * key.area / nearest.area)

    def knee(self, key: BatchKey) -> int:
        """The narrowest width within a tenth of the best throughput, 1…max_width."""
        if not self._measured:
            return self.max_width
        if key not in self._knees:
            rate = {w: w / max(self.seconds(key, w), 1e-9) for w in range(1, self.max_width + 1)}
            best = max(rate.values())
            self._knees[key] = min(w for w, r in rate.items() if r >= KNEE_SHARE * best)
        return self._knees[key]

    def table(self) -> dict[BatchKey, dict[int, float]]:
        """A copy of what was measured: seconds by key and width."""
        return {key: dict(sorted(entry.items())) for key, entry in self._measured.items()}


def _interpolate(entry: dict[int, float], width: float) -> float:
    """Linear between the measured widths, in proportion beyond the widest, flat below the narrowest.

    Flat below, because half an image still pays the whole overhead of a pass; in proportion beyond, because
    a device that is not known to gain from width is taken to be saturated.
    """
    widths = sorted(entry)
    if width <= widths[0]:
        return entry[widths[0]]
    if width >= widths[-1]:
        return entry[widths[-1]] * width / widths[-1]
    right = bisect_left(widths, width)
    low, high = widths[right - 1], widths[right]
    share = (width - low) / (high - low)
    return entry[low] + share * (entry[high] - entry[low])
