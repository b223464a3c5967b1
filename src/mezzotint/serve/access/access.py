"""Who sends a request, and whether there is room for it."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mezzotint.config import Settings
from mezzotint.errors import MezzotintError, StoreUnavailable, Unauthenticated
from mezzotint.serve.access.admission import Admission
from mezzotint.serve.access.cache import KeyCache
from mezzotint.serve.access.caller import ANYONE, Caller
from mezzotint.serve.access.limits import LEASE_SECONDS, Lease, Limits, check_possible, has_limits
from mezzotint.serve.access.usage import UsageLog
from mezzotint.serve.background import in_background
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.keys import Key, KeyStore, read_key

__all__ = ["Access", "is_loopback", "open_access", "requires_keys"]

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
RENEW_SECONDS = LEASE_SECONDS / 3
# One sentence for every way in which a key can be wrong.
REFUSAL = "a valid API key is needed: send it as Authorization: Bearer KEY"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def requires_keys(settings: Settings) -> bool:
    if settings.auth == "auto":
        return not is_loopback(settings.host)
    return settings.auth == "on"


class Access:
    """Keys and limits, the same on every gateway. Opened by `open_access`."""

    def __init__(self, database: Database, *, requires_keys: bool) -> None:
        self.requires_keys = requires_keys
        self._keys = KeyCache(KeyStore(database))
        self._limits = Limits(database)
        self._usage = UsageLog(database)
        self._held: set[str] = set()
        self._to_release: set[str] = set()
        self._now = database.now

    async def authenticate(self, authorization: str | None, api_key: str | None = None) -> Caller:
        """The caller, by `Authorization` (Bearer, or Basic with the key as password) or by `x-api-key`.

        Raises:
            Unauthenticated: no key, or one that is wrong, revoked or expired.
            StoreUnavailable: the key is not known here yet, and the database does not answer, or too many
                such keys are being looked for.
        """
        if not self.requires_keys:
            return ANYONE
        text = api_key if authorization is None else _credentials(authorization)
        id = None if text is None else read_key(text)
        if text is None or id is None:
            raise Unauthenticated(REFUSAL)
        key = await self._keys.find(id)
        if key is None or not key.matches(text):
            raise Unauthenticated(REFUSAL)
        return self._valid(key)

    async def find(self, id: str) -> Caller:
        """The caller of a key's id, for work that goes on without its request: a job's.

        Raises:
            Unauthenticated: the key was revoked, has expired, or is gone.
            StoreUnavailable: as `authenticate`.
        """
        if not self.requires_keys or id == ANYONE.id:
            return ANYONE
        key = await self._keys.find(id)
        if key is None:
            raise Unauthenticated(REFUSAL)
        return self._valid(key)

    def _valid(self, key: Key) -> Caller:
        if not key.is_valid(self._now()):
            raise Unauthenticated(REFUSAL)
        return key.caller

    @asynccontextmanager
    async def admit(self, caller: Caller, *, images: int, compute_s: float) -> AsyncIterator[Admission]:
        """Within, `images` of the caller's concurrency are taken, and `compute_s` of its quota are used.

        The share of what was not drawn is given back however the body ends, unless it is the caller who left,
        or whose deadline passed.

        Raises:
            RateLimited: the key's rate, concurrency or quota is used up; `retry_after_s` says until when.
            PermissionDenied: it is more than the key may ever use at once.
        """
        lease = await self._take(caller, images, compute_s)
        admission, share = Admission(images), 1.0
        try:
            yield admission
        except BaseException as error:
            share = admission.share_after(error)
            raise
        finally:
            self._usage.add(
                caller.id,
                requests=1,
                images=round(images * share),
                rejected=0 if share or admission.goes_on else 1,
            )
            if lease is not None and caller.compute_s_per_day is not None:
                # All of it was charged with the lease. Given back to a later hour than that, the rest would
                # outlast the charge.
                self._usage.add(caller.id, hour=lease.hour, compute_s=compute_s * share - compute_s)
            else:
                self._usage.add(caller.id, compute_s=compute_s * share)
            if lease is not None:
                await self._release(lease)

    async def _take(self, caller: Caller, images: int, compute_s: float) -> Lease | None:
        """The lease; `None` for a key without limits, and when nobody can say whether they are kept."""
        if not has_limits(caller):
            return None
        try:
            check_possible(caller, images, compute_s)
            lease = await self._taken(caller, images, compute_s)
        except StoreUnavailable:
            logger.warning("limits are not held while the database does not answer; key %s", caller.id)
            return None
        except MezzotintError:
            self._usage.add(caller.id, requests=1, rejected=1)
            raise
        if caller.concurrent_images is not None:
            self._held.add(lease.id)
        return lease

    async def _taken(self, caller: Caller, images: int, compute_s: float) -> Lease:
        """A lease. Of a caller that leaves meanwhile, what is taken all the same is given back."""
        taking = asyncio.ensure_future(self._limits.take(caller, images, compute_s))

        def give_back(taken: asyncio.Future[Lease]) -> None:
            if taken.cancelled() or taken.exception() is not None:
                return
            lease = taken.result()
            self._to_release.add(lease.id)
            if caller.compute_s_per_day is not None:
                self._usage.add(caller.id, hour=lease.hour, compute_s=-compute_s)

        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(give_back)
            raise

    async def _release(self, lease: Lease) -> None:
        if lease.id not in self._held:
            return
        self._held.discard(lease.id)
        self._to_release.add(lease.id)
        await self._release_all()

    async def _release_all(self) -> None:
        releasing = set(self._to_release)
        try:
            await self._limits.release(releasing)
        except StoreUnavailable:
            # Later, or when they expire.
            return
        self._to_release -= releasing

    async def watch_keys(self) -> None:
        """Hear of what becomes of known keys, until cancelled."""
        await self._keys.watch()

    async def run(self) -> None:
        """Write usage and keep leases, until cancelled."""
        renew_at = time.monotonic() + RENEW_SECONDS
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                # By the clock and before all else: where the database is slow, a turn takes long.
                began = time.monotonic()
                if began >= renew_at and self._held:
                    await self._limits.renew(set(self._held))
                    renew_at = began + RENEW_SECONDS
                await self._usage.flush()
                if self._to_release:
                    await self._release_all()
            except StoreUnavailable:
                continue
            except Exception:
                logger.exception("usage could not be written")

    async def close(self) -> None:
        """Write what is not written yet, and give back what is held."""
        self._to_release |= self._held
        self._held.clear()
        try:
            if self._to_release:
                await self._release_all()
            await self._usage.flush()
        except StoreUnavailable:
            logger.warning("the last second's usage was not written: the database does not answer")


@asynccontextmanager
async def open_access(database: Database, *, requires_keys: bool) -> AsyncIterator[Access]:
    """Within, usage is written and leases are kept."""
    access = Access(database, requires_keys=requires_keys)
    try:
        async with in_background(access.run()), in_background(access.watch_keys()):
            yield access
    finally:
        await access.close()


def _credentials(authorization: str) -> str | None:
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:
        return None
    # A1111's clients ask for USER:PASSWORD; whichever half the key was put in.
    user, _, password = decoded.partition(":")
    return password or user
