"""Work that is done is worth waiting for a store that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mezzotint.errors import StoreUnavailable

__all__ = ["insist"]

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
RETRY_SECONDS = 1.0


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """What the store answers, asked again every second for a minute.

    Raises:
        StoreUnavailable: it did not answer in that time.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(RETRY_SECONDS)
