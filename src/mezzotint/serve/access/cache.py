"""What this gateway knows of keys, never older than a revocation may take."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.stores.keys import Key, KeyStore

__all__ = ["KeyCache"]

logger = logging.getLogger(__name__)

# A revocation holds everywhere within a second: this, and the time of a look.
FRESH_SECONDS = 0.5
# What a request waits for a database that is slow, when the key is known from before.
PATIENCE_SECONDS = 1.0
# How long a key goes on while the database does not answer. Nobody can revoke one then.
STALE_SECONDS = 900.0
# What strangers' keys may take of the database's connections, which are for known keys, limits and jobs.
UNKNOWN_AT_ONCE = 4


@dataclass(frozen=True)
class Known:
    key: Key
    asked_at: float

    def is_younger_than(self, seconds: float) -> bool:
        return time.monotonic() - self.asked_at < seconds


class KeyCache:
    """Keys by their ids. Of several requests with one key, one asks the database."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._known: dict[str, Known] = {}
        self._asking: dict[str, asyncio.Task[Key | None]] = {}
        self._unknown = asyncio.Semaphore(UNKNOWN_AT_ONCE)

    async def find(self, id: str) -> Key | None:
        """The key; `None` when there is none.

        Raises:
            StoreUnavailable: it is not known here, and the database does not answer.
        """
        known = self._known.get(id)
        if known is not None and known.is_younger_than(FRESH_SECONDS):
            return known.key
        asking = self._asking.get(id) or self._ask(id)
        if known is None or not known.is_younger_than(STALE_SECONDS):
            return await asyncio.shield(asking)
        done, _ = await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        if not done or isinstance(asking.exception(), StoreUnavailable):
            return known.key
        return asking.result()

    def _ask(self, id: str) -> asyncio.Task[Key | None]:
        asking = asyncio.create_task(self._look_up(id))
        self._asking[id] = asking
        asking.add_done_callback(lambda done: self._heard(id, done))
        return asking

    async def _look_up(self, id: str) -> Key | None:
        async with nullcontext() if id in self._known else self._unknown:
            asked_at = time.monotonic()
            key = await self._store.find(id)
        if key is None:
            self._known.pop(id, None)
        else:
            self._known[id] = Known(key, asked_at)
        return key

    def _heard(self, id: str, asking: asyncio.Task[Key | None]) -> None:
        self._asking.pop(id, None)
        if not asking.cancelled():
            # Looked at, for whoever asked may have left.
            asking.exception()
