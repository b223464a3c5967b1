"""What a caller holds of a submitted request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from mezzotint.core import Cancelled, Done, Event, Failed, Image, ResolvedRequest
from mezzotint.engine.events import EventStream
from mezzotint.errors import RequestCancelled

__all__ = ["Ticket"]


@dataclass(eq=False)
class Ticket:
    """A submitted request: its events, its result, and the way to cancel it.

    Times are of `time.monotonic`: when it was submitted, started, had its first and its last evaluation, and
    when its decoding began; the latter two are of the stage it is at. `evaluated` counts its UNet
    evaluations. Those of one `group` are let in as one. `stages`: those still to draw, the current one first.
    """

    request_id: str
    request: ResolvedRequest
    _cancel: Callable[[str], None]
    group: str = ""
    stream: EventStream = field(default_factory=EventStream)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_step: float | None = None
    last_step: float | None = None
    decoding: float | None = None
    evaluated: int = 0
    warnings: tuple[str, ...] = ()
    stages: tuple[ResolvedRequest, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = self.request.stages

    @property
    def phase(self) -> Literal["queued", "running", "decoding"]:
        """How far it came."""
        if self.started is None:
            return "queued"
        return "running" if self.last_step is None else "decoding"

    @property
    def deadline(self) -> float | None:
        """On `time.monotonic`'s clock."""
        deadline_s = self.request.deadline_s
        return None if deadline_s is None else self.submitted + deadline_s

    def events(self) -> Iterator[Event]:
        """Each event as it comes; ends after `Done`, `Failed` or `Cancelled`."""
        return iter(self.stream)

    def cancel(self) -> None:
        """Stop at the next step. Nothing happens to a request that has ended."""
        self._cancel(self.request_id)

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the picture.

        Raises:
            MezzotintError: why there is none.
            TimeoutError: no picture within `timeout` seconds; the request goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            match self.stream.get(None if end is None else max(0.0, end - time.monotonic())):
                case Done(image=image):
                    return image
                case Failed(error=error):
                    raise error
                case Cancelled():
                    raise RequestCancelled("the request was cancelled")
