"""What this gateway knows of keys, never older than a revocation may take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.stores.keys import Key, KeyStore

__all__ = ["KeyCache"]

logger = logging.getLogger(__name__)

# A revocation holds everywhere within a second: this, and the time of a look.
FRESH_SECONDS = 0.5
# How long before the database's last answer a key must have been looked at to go on without one.
CONFIRMED_SECONDS = 1.0
# What a request waits for a database that is slow, when the key is known from before.
PATIENCE_SECONDS = 1.0
# How long a key goes on while the database does not answer. Nobody can revoke one then.
STALE_SECONDS = 900.0
# Those used last, which one query looks at again and again.
MAX_KNOWN = 1_000
# What strangers' keys may take of the database's connections, which are for known keys, limits and jobs.
UNKNOWN_AT_ONCE = 4
# Unknown keys that wait for that, and how long.
MAX_UNKNOWN = 64
UNKNOWN_SECONDS = 5.0
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Known:
    key: Key
    asked_at: float

    def is_younger_than(self, seconds: float) -> bool:
        return time.monotonic() - self.asked_at < seconds


@dataclass
class Asking:
    """A look for a key that is not known, for all who want it now. Before it has begun, it ends with them."""

    waiting: int = 0
    has_begun: bool = False
    task: asyncio.Task[Key | None] = field(init=False)


class KeyCache:
    """Keys by their ids. Of several requests with one key, one asks the database."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        # The one used last is last.
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Key | None]] = {}
        self._asking_unknown: dict[str, Asking] = {}
        self._unknown = asyncio.Semaphore(UNKNOWN_AT_ONCE)
        # When the last question that the database answered was asked.
        self._answered = 0.0

    async def find(self, id: str) -> Key | None:
        """The key; `None` when there is none.

        Raises:
            StoreUnavailable: it is not known here, and the database does not answer; or too many unknown ones
                are being looked for.
        """
        known = self._known.get(id)
        if known is None:
            return await self._find_unknown(id)
        self._known.move_to_end(id)
        if known.is_younger_than(FRESH_SECONDS):
            return known.key
        asking = self._asking.get(id) or self._ask(id)
        if not self._may_go_on(known):
            return await asyncio.shield(asking)
        done, _ = await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        if done and not isinstance(asking.exception(), StoreUnavailable):
            return asking.result()
        # Other keys may have been looked at meanwhile, and this one not.
        return known.key if self._may_go_on(known) else await asyncio.shield(asking)

    def _may_go_on(self, known: Known) -> bool:
        """Whether the key goes on without the database: when it was good until the database went silent."""
        confirmed = known.asked_at >= self._answered - CONFIRMED_SECONDS
        return confirmed and known.is_younger_than(STALE_SECONDS)

    async def watch(self) -> None:
        """Look at all known keys in one query, again and again, until cancelled.

        One that nobody uses here may be revoked, and used again when the database is gone.
        """
        while True:
            await asyncio.sleep(FRESH_SECONDS)
            try:
                await self._look_at_known()
            except StoreUnavailable:
                continue
            except Exception:
                logger.exception("known keys could not be looked at")

    async def _look_at_known(self) -> None:
        ids, asked_at = list(self._known), time.monotonic()
        if not ids:
            return
        found = await self._store.find_all(ids)
        for id in ids:
            if id in self._known:
                self._note(id, found.get(id), asked_at)

    def _note(self, id: str, key: Key | None, asked_at: float) -> None:
        self._answered = max(self._answered, asked_at)
        known = self._known.get(id)
        if known is not None and known.asked_at > asked_at:
            return
        if key is None:
            self._known.pop(id, None)
            return
        self._known[id] = Known(key, asked_at)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _ask(self, id: str) -> asyncio.Task[Key | None]:
        asking = asyncio.create_task(self._look_up(id))
        self._asking[id] = asking
        asking.add_done_callback(lambda done: self._heard(id, done))
        return asking

    async def _look_up(self, id: str) -> Key | None:
        asked_at = time.monotonic()
        key = await self._store.find(id)
        self._note(id, key, asked_at)
        return key

    def _heard(self, id: str, asking: asyncio.Task[Key | None]) -> None:
        self._asking.pop(id, None)
        if not asking.cancelled():
            # Looked at, for whoever asked may have left.
            asking.exception()

    async def _find_unknown(self, id: str) -> Key | None:
        asking = self._asking_unknown.get(id)
        if asking is None:
            if len(self._asking_unknown) >= MAX_UNKNOWN:
                raise _too_many()
            asking = self._asking_unknown[id] = Asking()
            asking.task = asyncio.create_task(self._look_up_unknown(id, asking))
            asking.task.add_done_callback(partial(self._heard_unknown, id, asking))
        asking.waiting += 1
        try:
            return await asyncio.shield(asking.task)
        finally:
            asking.waiting -= 1
            if not asking.waiting and not asking.has_begun:
                self._asking_unknown.pop(id, None)
                asking.task.cancel()

    async def _look_up_unknown(self, id: str, asking: Asking) -> Key | None:
        try:
            async with asyncio.timeout(UNKNOWN_SECONDS):
                await self._unknown.acquire()
        except TimeoutError:
            asking.has_begun = True
            raise _too_many() from None
        # The database does what it was asked, whoever has left; until then the place is taken.
        asking.has_begun = True
        try:
            return await self._look_up(id)
        finally:
            self._unknown.release()

    def _heard_unknown(self, id: str, asking: Asking, done: asyncio.Task[Key | None]) -> None:
        if self._asking_unknown.get(id) is asking:
            del self._asking_unknown[id]
        if not done.cancelled():
            done.exception()


def _too_many() -> StoreUnavailable:
    return StoreUnavailable("too many unknown keys are being looked for", retry_after_s=RETRY_SECONDS)
