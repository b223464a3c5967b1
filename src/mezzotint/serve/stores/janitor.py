"""Forgets what is past its time. Every gateway has one; several at once do no harm."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.background import in_background
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.images import ImageStore
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.stores.keys import HOUR_SECONDS
from mezzotint.serve.stores.tables import leases, usage

__all__ = ["keep_clean", "sweep"]

logger = logging.getLogger(__name__)

# Between two rounds of one gateway, on average.
PERIOD_SECONDS = 60.0
USAGE_SECONDS = 90 * 24 * 3_600.0


@asynccontextmanager
async def keep_clean(
    database: Database, jobs: JobStore, images: ImageStore, job_ttl_s: float
) -> AsyncIterator[None]:
    """Within, the stores are swept about once a minute."""
    async with in_background(_sweep_for_ever(database, jobs, images, job_ttl_s)):
        yield


async def _sweep_for_ever(database: Database, jobs: JobStore, images: ImageStore, job_ttl_s: float) -> None:
    while True:
        # Gateways that started together need not sweep together.
        await asyncio.sleep(PERIOD_SECONDS * random.uniform(0.5, 1.5))
        await sweep(database, jobs, images, job_ttl_s)


async def sweep(database: Database, jobs: JobStore, images: ImageStore, job_ttl_s: float) -> None:
    """One round. What fails in it is left to the next, and the rest is done."""
    parts: tuple[Callable[[], Awaitable[object]], ...] = (
        database.set_clock,
        jobs.settle,
        jobs.expired.forget_progress,
        lambda: jobs.expired.forget(job_ttl_s, images.delete),
        lambda: jobs.forget_unmade(images.delete),
        lambda: _forget_usage(database),
        images.sweep,
    )
    for part in parts:
        try:
            await part()
        except StoreUnavailable:
            # The store has told of it.
            continue
        except Exception:
            logger.exception("the stores could not be swept in full")


async def _forget_usage(database: Database) -> None:
    now = database.now()

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(delete(leases).where(leases.c.expires < now))
        oldest = int((now - USAGE_SECONDS) // HOUR_SECONDS)
        await connection.execute(delete(usage).where(usage.c.hour < oldest))

    await database.write(work)
