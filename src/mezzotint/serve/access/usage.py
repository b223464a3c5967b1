"""What keys have used, gathered in memory and written every second or so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from operator import itemgetter

from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.serve.access.limits import add_usage
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.keys import HOUR_SECONDS

__all__ = ["UsageLog"]

# Each holds a connection of the database until it answers.
MAX_UNSETTLED = 2


@dataclass
class Used:
    requests: int = 0
    images: int = 0
    compute_s: float = 0.0
    rejected: int = 0

    def add(self, other: Used) -> None:
        self.requests += other.requests
        self.images += other.images
        self.compute_s += other.compute_s
        self.rejected += other.rejected


class UsageLog:
    """What is added is written by the next `flush`; what that cannot write, by a later one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # By key and hour.
        self._used: dict[tuple[str, int], Used] = {}
        self._unsettled = 0

    def add(
        self,
        key_id: str,
        *,
        hour: int | None = None,
        requests: int = 0,
        images: int = 0,
        compute_s: float = 0.0,
        rejected: int = 0,
    ) -> None:
        """hour: since 1970, by default this one."""
        hour = int(self._database.now() // HOUR_SECONDS) if hour is None else hour
        self._used.setdefault((key_id, hour), Used()).add(Used(requests, images, compute_s, rejected))

    async def flush(self) -> None:
        """
        Raises:
            StoreUnavailable: the database does not answer.
        """
        if not self._used or self._unsettled >= MAX_UNSETTLED:
            return
        writing, self._used = self._used, {}

        async def work(connection: AsyncConnection) -> None:
            # In one order, so that two gateways never wait for each other.
            for (key_id, hour), used in sorted(writing.items(), key=itemgetter(0)):
                await add_usage(self._database, connection, key_id, hour, **asdict(used))

        def settled(done: bool) -> None:
            self._unsettled -= 1
            # What is written all the same, though nobody waits for it, must not be written twice.
            for key_and_hour, used in () if done else writing.items():
                self._used.setdefault(key_and_hour, Used()).add(used)

        self._unsettled += 1
        await self._database.write(work, settled=settled)
