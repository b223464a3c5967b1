"""What a pass costs: seconds by batch key and batch (the images in it), and the knee where
larger ones stop paying.

Warm-up measures one shape at a few batches, and those it is asked for. The first curve, read by the pixels in
a pass, is the guess for every other: two images of 128×128 cost about what one of 128×256 does. Each pass
that is served corrects the guess for its own key and batch, and for the batches near it, so what is never run
is never thought free or hopeless.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping

from mezzotint.engine.rows import BatchKey

__all__ = ["StepCost"]

# A pass is as large as so much of the best throughput needs. The last of it costs the most waiting; but what
# a device could draw and does not is missing when it is nearly full (docs/decisions/0002).
KNEE_SHARE = 0.95
# Weight of the newest observation: steady against one slow pass, moved by a dozen.
SMOOTHING = 0.1
# One pass counts for no more than this many times what was expected: it may have been the machine's fault.
SURPRISE = 2.0
# What was learnt of a batch that is larger than those that run fades with each of their passes, so that it is
# tried again: what it once cost, it need not cost for ever.
FADING = 0.001
# Keys whose corrections are kept; the one that was run longest ago goes first.
MAX_KEYS = 256
# Expectations that are kept until the next observation.
MAX_KNOWN = 16_384
# Before anything is measured: half of a lone image's pass is overhead that company shares.
ASSUMED = {1.0: 0.05, 8.0: 0.225}


class StepCost:
    """Seconds of one pass. `max_batch` bounds the images in it. The engine guards it with its own lock."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._curve: dict[float, float] = dict(ASSUMED)
        self._area: float | None = None
        # For each key and batch, observed ÷ guessed seconds; None after the first pass, which is cold.
        self._factors: OrderedDict[BatchKey, dict[int, float | None]] = OrderedDict()
        # What follows from the factors, until the next observation: the scheduler asks for every request.
        self._known: dict[tuple[BatchKey, float], float] = {}
        self._knees: dict[BatchKey, int] = {}
        # Of decoding one image; 0 until one was.
        self.decode_seconds_a_pixel = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether `calibrate` was called; until then the seconds are assumed."""
        return self._area is not None

    def calibrate(self, key: BatchKey, seconds: Mapping[int, float]) -> None:
        """The curve all guesses come from: median seconds of a pass of `key` by batch."""
        self._curve = {float(batch): value for batch, value in seconds.items()}
        self._area = key.area
        self._factors.clear()
        self._forget()

    def learn(self, key: BatchKey, seconds: Mapping[int, float]) -> None:
        """Median seconds of a pass of `key` by batch, measured like the curve; this key's alone."""
        factors: dict[int, float | None] = {
            batch: value / self._guess(key, batch) for batch, value in seconds.items()
        }
        self._remember(key).update(factors)
        self._forget()

    def observe(self, key: BatchKey, batch: int, seconds: float) -> None:
        """A pass of `batch` images took `seconds`."""
        factors = self._remember(key)
        if batch not in factors:
            factors[batch] = None
            return
        before = factors[batch]
        expected = self.seconds(key, batch) / self._guess(key, batch)
        now = min(seconds / self._guess(key, batch), SURPRISE * expected)
        factors[batch] = latest = now if before is None else before + SMOOTHING * (now - before)
        for larger, factor in factors.items():
            if larger > batch and factor is not None and factor > latest:
                factors[larger] = factor + FADING * (latest - factor)
        self._forget()

    def observe_decode(self, key: BatchKey, seconds: float) -> None:
        """Decoding one image took `seconds`."""
        before, now = self.decode_seconds_a_pixel, seconds / (key.width * key.height)
        # The first pays for memory that later ones find ready, but nothing better is known.
        now = min(now, SURPRISE * before) if before else now
        self.decode_seconds_a_pixel = before + (SMOOTHING if before else 1.0) * (now - before)

    def decode_seconds(self, key: BatchKey) -> float:
        """The expected seconds of decoding one image; 0 until one was."""
        return self.decode_seconds_a_pixel * key.width * key.height

    def seconds(self, key: BatchKey, batch: float) -> float:
        """The expected seconds of a pass of `batch` images; it may lie between two numbers of them."""
        key = key.cost_key
        seconds = self._known.get((key, batch))
        if seconds is None:
            if len(self._known) == MAX_KNOWN:
                self._forget()
            seconds = self._known[key, batch] = self._expect(key, batch)
        return seconds

    def _expect(self, key: BatchKey, batch: float) -> float:
        known = {float(b): f for b, f in self._factors.get(key, {}).items() if f is not None}
        if not known:
            return self._guess(key, batch)
        # Beyond what was run, the last correction holds; between, they blend.
        near = min(max(batch, min(known)), max(known))
        return self._guess(key, batch) * _interpolate(known, near)

    def knee(self, key: BatchKey) -> int:
        """The smallest batch within a twentieth of the best throughput, 1…max_batch."""
        key = key.cost_key
        knee = self._knees.get(key)
        if knee is None:
            # Between two observations there may come requests of any number of shapes.
            if len(self._knees) == MAX_KEYS:
                self._forget()
            rate = {b: b / max(self.seconds(key, b), 1e-9) for b in range(1, self.max_batch + 1)}
            best = max(rate.values())
            knee = min(b for b, r in rate.items() if r >= KNEE_SHARE * best)
            self._knees[key] = knee
        return knee

    def known(self) -> list[BatchKey]:
        """The keys that were run, the latest last."""
        return list(self._factors)

    def _remember(self, key: BatchKey) -> dict[int, float | None]:
        """What was observed of `key`, which is now the latest."""
        key = key.cost_key
        factors = self._factors.setdefault(key, {})
        self._factors.move_to_end(key)
        if len(self._factors) > MAX_KEYS:
            self._factors.popitem(last=False)
        return factors

    def _forget(self) -> None:
        self._known.clear()
        self._knees.clear()

    def _guess(self, key: BatchKey, batch: float) -> float:
        area = key.area if self._area is None else self._area
        return _interpolate(self._curve, batch * key.area / area)


def _interpolate(curve: Mapping[float, float], batch: float) -> float:
    """Linear between the measured batches, in proportion beyond the largest, flat below the smallest.

    Flat below, because half an image still pays the whole overhead of a pass; in proportion beyond, because
    a device that is not known to gain from company is taken to be saturated.
    """
    batches = sorted(curve)
    if batch <= batches[0]:
        return curve[batches[0]]
    if batch >= batches[-1]:
        return curve[batches[-1]] * batch / batches[-1]
    right = bisect_left(batches, batch)
    low, high = batches[right - 1], batches[right]
    share = (batch - low) / (high - low)
    return curve[low] + share * (curve[high] - curve[low])
