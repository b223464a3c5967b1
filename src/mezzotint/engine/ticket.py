"""What a caller holds of a submitted request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mezzotint.core import Cancelled, Done, Event, Failed, Image, ResolvedRequest
from mezzotint.engine.events import EventStream
from mezzotint.errors import RequestCancelled

__all__ = ["Ticket"]


@dataclass(eq=False)
class Ticket:
    """A submitted request: its events, its result, and the way to cancel it."""

    request_id: str
    request: ResolvedRequest
    _cancel: Callable[[str], None]
    stream: EventStream = field(default_factory=EventStream)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    warnings: tuple[str, ...] = ()

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
            TimeoutError: no event for `timeout` seconds; the request goes on.
        """
        while True:
            match self.stream.get(timeout):
                case Done(image=image):
                    return image
                case Failed(error=error):
                    raise error
                case Cancelled():
                    raise RequestCancelled("the request was cancelled")
