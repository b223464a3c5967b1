"""A key's rate, concurrency and quota, held together by all gateways: one transaction for each admission.

Locking the key's row puts its admissions one after another; then there is time to look, and to say when to
come back. Images being drawn are leases that end by themselves, so a killed gateway gives its own back.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.errors import PermissionDenied, RateLimited
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.keys import HOUR_SECONDS
from mezzotint.serve.stores.tables import leases, rates, usage

__all__ = ["LEASE_SECONDS", "Lease", "Limits", "add_usage", "check_possible", "has_limits"]

MINUTE_SECONDS = 60.0
LEASE_SECONDS = 30.0
# Any 24 hours lie within 25 whole ones.
QUOTA_HOURS = 25
# By how much the clocks of two gateways may differ.
SKEW_SECONDS = 0.1
# Told to a client whose pictures should be done by now.
SOON_SECONDS = 1.0


def has_limits(caller: Caller) -> bool:
    limits = (caller.requests_per_minute, caller.concurrent_images, caller.compute_s_per_day)
    return any(limit is not None for limit in limits)


def check_possible(caller: Caller, images: int, compute_s: float) -> None:
    """Refuse what no waiting would let in.

    Raises:
        PermissionDenied: more images or seconds at once than the key may ever use.
    """
    if caller.concurrent_images is not None and images > caller.concurrent_images:
        raise PermissionDenied(
            f"this key draws at most {caller.concurrent_images} images at a time, not {images}", param="n"
        )
    if caller.compute_s_per_day is not None and compute_s > caller.compute_s_per_day:
        # Rounded up, so that what is too much never reads as just enough.
        takes_s = math.ceil(compute_s * 10) / 10
        raise PermissionDenied(
            f"this takes {takes_s:,.1f} s of an engine; this key has {caller.compute_s_per_day:,.1f} s a day"
        )


@dataclass(frozen=True)
class Lease:
    """hour: whose quota was charged, in hours since 1970."""

    id: str
    hour: int


class Limits:
    """Every method raises `StoreUnavailable` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, caller: Caller, images: int, compute_s: float) -> Lease:
        """Admit one request. The quota is charged, and not given back by `release`.

        Raises:
            RateLimited: the rate, concurrency or quota is used up; nothing was taken of any.
        """
        now = self._database.now()
        lease = Lease(secrets.token_hex(16), int(now // HOUR_SECONDS))

        async def work(connection: AsyncConnection) -> Lease:
            paid_until = await self._lock(connection, caller)
            if caller.requests_per_minute is not None:
                paid_until = _pay(caller.requests_per_minute, paid_until, now)
                statement = update(rates).where(rates.c.key_id == caller.id)
                await connection.execute(statement.values(paid_until=paid_until))
            if caller.concurrent_images is not None:
                await _check_concurrency(connection, caller.id, caller.concurrent_images - images, now)
                row = {"id": lease.id, "key_id": caller.id, "images": images}
                row |= {"expected_end": now + compute_s, "expires": now + LEASE_SECONDS}
                await connection.execute(insert(leases).values(row))
            if caller.compute_s_per_day is not None:
                await _check_quota(connection, caller.id, caller.compute_s_per_day - compute_s, now)
                await add_usage(self._database, connection, caller.id, lease.hour, compute_s=compute_s)
            return lease

        return await self._database.write(work)

    async def _lock(self, connection: AsyncConnection, caller: Caller) -> float:
        new = self._database.insert(rates).values(key_id=caller.id, paid_until=0.0)
        # An update that changes nothing: it locks the row, and a conflict alone returns nothing.
        locked = new.on_conflict_do_update(index_elements=["key_id"], set_={"paid_until": rates.c.paid_until})
        return float(await connection.scalar(locked.returning(rates.c.paid_until)) or 0.0)

    async def renew(self, ids: set[str]) -> None:
        expires = self._database.now() + LEASE_SECONDS

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(update(leases).where(leases.c.id.in_(ids)).values(expires=expires))

        await self._database.write(work)

    async def release(self, ids: set[str]) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(leases).where(leases.c.id.in_(ids)))

        await self._database.write(work)


def _pay(per_minute: int, paid_until: float, now: float) -> float:
    """A full bucket of a minute's requests, refilled evenly, as one number: until when all are paid for.

    The generic cell rate algorithm (ITU-T I.371).
    """
    interval = MINUTE_SECONDS / per_minute
    paid = max(paid_until, now) + interval
    early = paid - now - MINUTE_SECONDS
    if early > SKEW_SECONDS:
        raise RateLimited(f"this key sends at most {per_minute} requests a minute", retry_after_s=early)
    return paid


async def _check_concurrency(connection: AsyncConnection, key_id: str, room: int, now: float) -> None:
    """Refuse when more than `room` images are being drawn already."""
    held = select(func.coalesce(func.sum(leases.c.images), 0), func.min(leases.c.expected_end)).where(
        leases.c.key_id == key_id, leases.c.expires > now
    )
    drawing, first_end = (await connection.execute(held)).one()
    if drawing > room:
        raise RateLimited(
            f"this key has {drawing} images being drawn, and no room for more at a time",
            retry_after_s=max(SOON_SECONDS, first_end - now),
        )


async def _check_quota(connection: AsyncConnection, key_id: str, room: float, now: float) -> None:
    """Refuse when more than `room` seconds were used in 24 hours."""
    hour = int(now // HOUR_SECONDS)
    statement = select(usage.c.hour, usage.c.compute_s).where(
        usage.c.key_id == key_id, usage.c.hour > hour - QUOTA_HOURS
    )
    rows = (await connection.execute(statement.order_by(usage.c.hour))).all()
    used = sum(row.compute_s for row in rows)
    if used <= room:
        return
    for row in rows:
        used -= row.compute_s
        if used <= room:
            freed_at = (row.hour + QUOTA_HOURS) * HOUR_SECONDS
            raise RateLimited("this key has used up its seconds of a day", retry_after_s=freed_at - now)


async def add_usage(
    database: Database,
    connection: AsyncConnection,
    key_id: str,
    hour: int,
    *,
    requests: int = 0,
    images: int = 0,
    compute_s: float = 0.0,
    rejected: int = 0,
) -> None:
    """Add to what the key has used in an hour."""
    added = {"requests": requests, "images": images, "compute_s": compute_s, "rejected": rejected}
    row = database.insert(usage).values(key_id=key_id, hour=hour, **added)
    sums = {name: usage.c[name] + row.excluded[name] for name in added}
    await connection.execute(row.on_conflict_do_update(index_elements=["key_id", "hour"], set_=sums))
