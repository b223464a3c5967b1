"""The one stream of events a request answers with, between the loop's thread and whoever listens.

The loop puts, and never waits: a listener that lags finds the latest `Queued` or `Progress`, not all of them,
so a stream holds at most one of each and the ending, however slow its reader.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from mezzotint.core import Cancelled, Done, Event, Failed, Progress

__all__ = ["EventStream", "is_final"]


def is_final(event: Event) -> bool:
    """Whether nothing follows `event`."""
    return isinstance(event, Done | Failed | Cancelled)


def _instead_of(earlier: Event, event: Event) -> Event:
    """`event`, with the preview that nobody has seen yet where it has none of its own."""
    if isinstance(earlier, Progress) and isinstance(event, Progress) and event.preview is None:
        return replace(event, preview=earlier.preview)
    return event


class EventStream:
    """Thread-safe, for one reader, by `for` or by `async for`."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], None] | None = None

    def put(self, event: Event) -> None:
        with self._changed:
            if self._events and type(self._events[-1]) is type(event):
                event = _instead_of(self._events.pop(), event)
            self._events.append(event)
            self._changed.notify_all()
            wake = self._wake
        if wake is not None:
            wake()

    def get(self, timeout: float | None = None) -> Event:
        """The next event; once the request has ended, that ending, however often it is asked for.

        Raises:
            TimeoutError: no event within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._events), timeout):
                raise TimeoutError(f"no event within {timeout} s")
            return self._take()

    def _take(self) -> Event:
        return self._events[0] if is_final(self._events[0]) else self._events.popleft()

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self.get()
            yield event
            if is_final(event):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            # The reader's loop may close at any time while the engine goes on; then nobody is left to wake.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ready.set)

        self._wake = wake
        while True:
            ready.clear()
            with self._changed:
                event = self._take() if self._events else None
            if event is None:
                await ready.wait()
                continue
            yield event
            if is_final(event):
                return
