"""The other gateways of the service, for what one gateway alone cannot tell or do. Ray is not known here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.wire import RunStatus

__all__ = ["NoPeers", "Peers", "answers"]

logger = logging.getLogger(__name__)

# Longer than one silent process is waited for (`routing.ANSWER_SECONDS`), or the answers of the others would
# be lost with its own.
GATHER_SECONDS = 2.0

T = TypeVar("T")


class Peers(Protocol):
    """The other gateways, as far as they answer at once; the rest are left out."""

    def metrics(self) -> Awaitable[Sequence[Families]]:
        """What each of them has counted."""
        ...

    def runs(self, caller_id: str, *, preview: bool) -> Awaitable[Sequence[RunStatus]]:
        """The latest run of the key on each of them that has one.

        preview: whether the last file that came is wanted too, which is most of the answer.
        """
        ...

    def interrupt(self, caller_id: str) -> Awaitable[object]:
        """Interrupt the key's runs on each of them."""
        ...


class NoPeers(Peers):
    """Of a gateway that is the only one."""

    async def metrics(self) -> Sequence[Families]:
        return []

    async def runs(self, caller_id: str, *, preview: bool) -> Sequence[RunStatus]:
        return []

    async def interrupt(self, caller_id: str) -> None:
        return None


async def answers(ask: Callable[[], Awaitable[Sequence[T]]], what: str) -> Sequence[T]:
    """What other processes answer; nothing when they do not.

    what: is missing then, for the log.
    """
    try:
        async with asyncio.timeout(GATHER_SECONDS):
            return await ask()
    except TimeoutError:
        return []
    except Exception:
        # What there is, is worth more than nothing; why the rest is missing is in the log.
        logger.exception("%s of other processes are missing", what)
        return []
