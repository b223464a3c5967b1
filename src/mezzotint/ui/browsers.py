"""Which drawings a browser knows, and the news of them: whoever opens the page finds what they had drawn.

A browser keeps its own list and shows it whenever it opens the page. Here the lists are held while the
process runs, so that two tabs of one browser tell the same, and news is asked for once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mezzotint.ui.drawing import Drawing
from mezzotint.ui.service import Refused, Service, Unreachable

__all__ = ["Browser", "Browsers", "Changes"]

logger = logging.getLogger(__name__)

BROWSER_ID = re.compile(r"[0-9a-f]{32}")
MAX_BROWSERS = 2_000
# What a browser's storage keeps: some 60 kB of the 5 MB it has.
MAX_DRAWINGS = 200
MAX_REMOVED = 1_000
# How often a waiting job's place is asked for: its stream tells nothing until an engine has it.
PLACE_SECONDS = 1.0
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 5.0
# How long the news of a drawing is followed after the last page has gone.
UNWATCHED_SECONDS = 60.0


class Changes:
    """Something to wait for. Each call of `tell` wakes everyone who waits at that moment."""

    def __init__(self) -> None:
        self.count = 0
        self._told = asyncio.Event()

    def tell(self) -> None:
        self.count += 1
        self._told.set()
        self._told = asyncio.Event()

    async def wait(self, seen: int, seconds: float) -> None:
        """Until there was one after the `seen`-th, at most so long."""
        if self.count == seen:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), seconds)


class Browser:
    """Its drawings, oldest first, and the tasks that follow those which are not over."""

    def __init__(self, id: str, service: Service) -> None:
        self.id = id
        self.changes = Changes()
        self.drawings: dict[str, Drawing] = {}
        self._asked: dict[str, Drawing] = {}
        self.watched_at = time.monotonic()
        self._removed: OrderedDict[str, None] = OrderedDict()
        self._service = service
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def shown(self) -> list[Drawing]:
        """Its drawings and those that it has just asked for, which are not kept."""
        return [*self.drawings.values(), *self._asked.values()]

    @contextmanager
    def asking(self, drawing: Drawing) -> Iterator[None]:
        """Whoever presses sees at once that they were heard, however long the service takes to answer."""
        self._asked[drawing.id] = drawing
        self.changes.tell()
        try:
            yield
        finally:
            del self._asked[drawing.id]
            self.changes.tell()

    def add(self, drawing: Drawing) -> None:
        self.drawings[drawing.id] = drawing
        self._tidy()
        self._follow(drawing)
        self.changes.tell()

    def merge(self, kept: object) -> None:
        """Add what its storage holds and this does not."""
        for each in kept if isinstance(kept, list) else ():
            drawing = Drawing.of_kept(each)
            if drawing is not None and drawing.id not in self._removed:
                self.drawings.setdefault(drawing.id, drawing)
        self._tidy()

    def remove(self, id: str) -> None:
        """Take it off the list. What is being drawn goes on unless it was cancelled."""
        if self.drawings.pop(id, None) is not None:
            self._removed[id] = None
            while len(self._removed) > MAX_REMOVED:
                self._removed.popitem(last=False)
            self.changes.tell()

    def lose(self, id: str) -> None:
        """The service does not keep it any more."""
        if id in self.drawings:
            self.drawings[id].lose()
            self.changes.tell()

    async def cancel(self, id: str) -> None:
        """Raises: ServiceError: it was not heard."""
        if id in self.drawings:
            self.drawings[id].take_job(await self._service.cancel(id))
            self.changes.tell()

    def kept(self) -> dict[str, Any]:
        """For its storage."""
        return {"id": self.id, "drawings": [drawing.kept() for drawing in self.drawings.values()]}

    def watch(self) -> None:
        """Somebody looks: follow what is not over."""
        self.watched_at = time.monotonic()
        for drawing in self.drawings.values():
            self._follow(drawing)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tidy(self) -> None:
        newest = sorted(self.drawings.values(), key=lambda drawing: drawing.at)[-MAX_DRAWINGS:]
        self.drawings = {drawing.id: drawing for drawing in newest}

    def _follow(self, drawing: Drawing) -> None:
        if not drawing.is_over and drawing.id not in self._tasks:
            task = self._tasks[drawing.id] = asyncio.create_task(self._hear(drawing))
            task.add_done_callback(lambda _: self._tasks.pop(drawing.id, None))

    def _wanted(self, drawing: Drawing) -> bool:
        watched = time.monotonic() - self.watched_at < UNWATCHED_SECONDS
        return watched and drawing.id in self.drawings and not drawing.is_over

    async def _hear(self, drawing: Drawing) -> None:
        asking = asyncio.create_task(self._ask_place(drawing))
        try:
            await self._hear_to_the_end(drawing)
        except Exception:
            logger.exception("the news of drawing %s ended in an internal error", drawing.id)
            # Its stream would only tell the same again.
            drawing.lose()
            self.changes.tell()
        finally:
            asking.cancel()

    async def _hear_to_the_end(self, drawing: Drawing) -> None:
        pause = MIN_RETRY_SECONDS
        while self._wanted(drawing):
            try:
                async for news in self._service.happenings(drawing.id, drawing.heard):
                    drawing.take(news.kind, news.data, news.id)
                    self.changes.tell()
                    pause = MIN_RETRY_SECONDS
                    if not self._wanted(drawing):
                        return
            except Refused as error:
                if error.status == 404:
                    drawing.lose()
                    self.changes.tell()
                    return
            except Unreachable:
                pass  # The banner says so.
            # It asks again where it left off.
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_RETRY_SECONDS)

    async def _ask_place(self, drawing: Drawing) -> None:
        """Where it stands among those that wait, as long as it does."""
        while not drawing.is_over:
            await asyncio.sleep(PLACE_SECONDS)
            if drawing.state != "queued":
                continue
            with suppress(Refused, Unreachable):
                job: Mapping[str, Any] = await self._service.job(drawing.id)
                if drawing.state == "queued" == job.get("state"):
                    drawing.position, drawing.eta_s = job.get("position"), job.get("eta_s")
                    self.changes.tell()


class Browsers:
    """Those that were here lately, by the random id that each keeps."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: OrderedDict[str, Browser] = OrderedDict()

    def of(self, kept: object, known_as: str = "") -> Browser:
        """The browser that shows this from its storage.

        known_as: whose the page was before, empty for nobody's. What was drawn on it while its storage was
        still being read, or for the first time, is then among the browser's.
        """
        stored = kept if isinstance(kept, Mapping) else {}
        id = stored.get("id")
        if not isinstance(id, str) or not BROWSER_ID.fullmatch(id):
            id = known_as or secrets.token_hex(16)
        browser = self._known.get(id) or Browser(id, self._service)
        self._known[id] = browser
        self._known.move_to_end(id)
        if known_as and known_as != id and known_as in self._known:
            browser.merge(self._known.pop(known_as).kept()["drawings"])
        browser.merge(stored.get("drawings"))
        if len(self._known) > MAX_BROWSERS:
            # Its tasks end by themselves when nobody looks; its list is in its own storage.
            self._known.popitem(last=False)
        return browser

    def tell(self, id: str) -> None:
        """Something about what its pages show has changed."""
        if id in self._known:
            self._known[id].changes.tell()

    def tell_all(self) -> None:
        for browser in self._known.values():
            browser.changes.tell()

    async def close(self) -> None:
        for browser in self._known.values():
            await browser.close()
