"""What crosses between gateway and replica. Plain data: an error too, never a pickled exception.

The final event of a request is `Drawn` or `Refused`; before it come the engine's own `Queued` and `Progress`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mezzotint.core import Progress, Queued
from mezzotint.errors import MezzotintError

__all__ = ["Drawn", "Refused", "WireEvent"]


@dataclass(frozen=True)
class Drawn:
    """The encoded picture. `queue_s` until its first step, `compute_s` from there to the pixels."""

    data: bytes
    format: str
    receipt: dict[str, Any]
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Refused:
    """A `MezzotintError` as data."""

    code: str
    message: str
    param: str | None
    retry_after_s: float | None

    @classmethod
    def from_error(cls, error: MezzotintError) -> Refused:
        return cls(error.code, error.message, error.param, error.retry_after_s)

    def to_error(self) -> MezzotintError:
        """The error of the tree with this code; one of a replica's later version is an internal error."""
        kinds = {kind.code: kind for kind in MezzotintError.__subclasses__()}
        kind = kinds.get(self.code, MezzotintError)
        return kind(self.message, param=self.param, retry_after_s=self.retry_after_s)


WireEvent = Queued | Progress | Drawn | Refused
