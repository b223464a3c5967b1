"""What happens to jobs, for all who listen on this gateway: one look at the database a tick, however many."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from contextvars import Context

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.stores.job import FINAL, JobEvent
from mezzotint.serve.stores.jobs import JobStore

__all__ = ["Feed"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
PAGE = 1000

_Listener = asyncio.Queue[JobEvent]


class Feed:
    """A context manager. Asks nothing while nobody listens."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._listeners: dict[str, set[_Listener]] = {}
        # Every event up to here is known to have been visible to whoever looks back. None: nobody polls.
        self._cursor: int | None = None
        self._starting = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Feed:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling

    async def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[JobEvent]:
        """The job's events with a higher id than `after`, from the past on: each once, in order, to the last.

        All of them where no event has come as far as `after`: it was never told, or the database lost it.
        Ends without one where the job ended so long ago that its events are forgotten.

        Raises:
            JobNotFound: there is no such job any more.
            StoreUnavailable: the past cannot be read. What comes after it is waited for.
        """
        if after and after > await self._store.events.last_id():
            # What comes would count as heard for ever.
            after = 0
        await self._start()
        listener: _Listener = asyncio.Queue()
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            # Listening has begun before this looks back: nothing falls between, and what comes twice is known
            # by its id.
            async with aclosing(self._all(job_id, after, listener)) as events:
                async for event in events:
                    yield event
                    if event.kind in FINAL:
                        return
        finally:
            self._leave(job_id, listener)

    async def _all(self, job_id: str, after: int, listener: _Listener) -> AsyncGenerator[JobEvent]:
        async for event in self._past(job_id, after):
            after = event.id
            yield event
        if (await self._store.get(job_id)).state in FINAL:
            # It ended before this look or during it; the second look back has the end, or nobody has.
            async for event in self._past(job_id, after):
                yield event
            return
        while True:
            event = await listener.get()
            if event.id > after:
                after = event.id
                yield event

    async def _past(self, job_id: str, after: int) -> AsyncGenerator[JobEvent]:
        while events := await self._store.events.after(after, (job_id,), PAGE):
            for event in events:
                yield event
            after = events[-1].id

    async def _start(self) -> None:
        async with self._starting:
            if self._cursor is None:
                self._cursor = await self._store.events.last_id()
                # For all who listen: what it logs is not of the request that happened to come first.
                self._polling = asyncio.create_task(self._poll(self._cursor), context=Context())

    def _leave(self, job_id: str, listener: _Listener) -> None:
        self._listeners[job_id].discard(listener)
        if not self._listeners[job_id]:
            del self._listeners[job_id]

    async def _poll(self, cursor: int) -> None:
        while self._listeners:
            try:
                # The database itself logs that it does not answer, once.
                with suppress(StoreUnavailable):
                    cursor = await self._pass_on(cursor)
            except Exception:
                # Whoever listens would wait for ever.
                logger.exception("the news of jobs go on after an internal error")
            await asyncio.sleep(POLL_SECONDS)
        self._cursor = None

    async def _pass_on(self, cursor: int) -> int:
        """Tell the listeners what is new; the cursor from there."""
        # Asked before the listeners are counted: who comes later looks back on all of these.
        newest = await self._store.events.last_id()
        while cursor < newest:
            events = await self._store.events.after(cursor, tuple(self._listeners), PAGE)
            for event in events:
                for listener in self._listeners.get(event.job_id, ()):
                    listener.put_nowait(event)
            cursor = newest if len(events) < PAGE else min(newest, events[-1].id)
        return cursor
