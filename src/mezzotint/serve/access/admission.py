"""What a key was let in for, and how much of it is used when that ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mezzotint.errors import DeadlineExceeded, RequestCancelled

__all__ = ["Admission"]

# The caller's own ends: that it leaves, asks to stop, or wanted it sooner.
CALLERS_OWN = (asyncio.CancelledError, GeneratorExit, RequestCancelled, DeadlineExceeded)


@dataclass
class Admission:
    """Whoever draws the images notes here how many are `drawn`.

    goes_on: it ends here through no act of the caller's, and another draws the rest and charges for it.
    """

    images: int
    drawn: int = 0
    goes_on: bool = False

    def share_after(self, error: BaseException) -> float:
        """0…1 of it is used, when `error` ended it."""
        if isinstance(error, CALLERS_OWN) and not self.goes_on:
            return 1.0
        return self.drawn / self.images if self.images else 0.0
