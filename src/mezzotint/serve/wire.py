"""What crosses between processes. Plain data: an error too, never a pickled exception.

A gateway sends an `Order` to a replica, and asks for a `Report` now and then. The final event of a request is
`Drawn` or `Refused`; before it come `Queued` and `Step`, when the order asks for progress. Other gateways are
asked for a `RunStatus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mezzotint.backends.base import BackendInfo
from mezzotint.core import Queued, ResolvedRequest
from mezzotint.engine.rows import BatchKey
from mezzotint.errors import MezzotintError

__all__ = ["Drawn", "Order", "Refused", "Report", "RunStatus", "Step", "WireEvent"]


@dataclass(frozen=True)
class Order:
    """One picture, wanted as a file.

    format: png, jpeg or webp.
    compression: 0…100; a JPEG's or WebP's quality, a PNG's effort. `None` is the format's default.
    progress: whether events before the last are wanted.
    request_id: names the request in every log and trace, and in the answer.
    trace: W3C trace context headers, for the spans of the replica.
    replica: the one that is to draw it, while it is there; any other does if it is not, or the name is empty.
    avoid: those that are not to draw it.
    group: pictures of the same one were let in as one; without it, the picture stands for itself.
    """

    request: ResolvedRequest
    format: str = "png"
    compression: int | None = None
    progress: bool = False
    request_id: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)
    replica: str = ""
    avoid: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Step:
    """`step` of `total` denoising steps are done. `preview` is a file of the order's format and size."""

    step: int
    total: int
    preview: bytes | None = None


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


@dataclass(frozen=True)
class Report:
    """How a replica stands, for the gateways that choose among them.

    replica: its name, unique among the replicas that ever were.
    healthy: whether it wants work.
    backlogs: seconds of work, decoding included, by tenant, of those that have something there.
    costs: seconds that one evaluation of an image adds, by batch key, of those that it has run.
    decode_s_a_pixel: seconds that decoding adds, once a picture.
    """

    replica: str
    info: BackendInfo
    healthy: bool
    queued: int
    max_queue: int
    max_backlog_s: float
    backlogs: Mapping[str, float]
    costs: Mapping[BatchKey, float]
    # A replica of an earlier version, which an upgrade leaves beside later gateways, tells none.
    decode_s_a_pixel: float = 0.0


@dataclass(frozen=True)
class RunStatus:
    """How far one request's pictures are, for a gateway that is asked and does not draw them.

    progress: 0…1.
    eta_s: seconds that are left if it goes on as it went; 0 where nothing is known yet.
    step: of `total`; how many has the picture that is farthest, of those that are not drawn yet.
    images, drawn: how many are wanted, and how many of them are there.
    preview: the last file that came, if it was asked for.
    """

    began: datetime
    progress: float
    eta_s: float
    step: int
    total: int
    images: int
    drawn: int
    interrupted: bool
    preview: bytes | None = None


WireEvent = Queued | Step | Drawn | Refused
