"""API keys: made, found, listed and revoked. A key itself is shown once; the database holds its SHA-256.

`mk-<id>-<secret>`: the id is public and names the key everywhere; the secret has 256 random bits, which is
why a plain hash of it is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mezzotint.core import PRIORITIES, Priority
from mezzotint.errors import InvalidRequest
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.stores.database import Database
from mezzotint.serve.stores.tables import keys, usage

__all__ = ["HOUR_SECONDS", "Key", "KeyStore", "NewKey", "read_key"]

PREFIX = "mk"
ID_CHARACTERS = "abcdefghijkmnpqrstuvwxyz23456789"
ID_LENGTH = 8
SECRET_BYTES = 32
# What a header may hold; anything longer is no key.
MAX_KEY_LENGTH = 80
MAX_NAME_LENGTH = 100
HOUR_SECONDS = 3_600


@dataclass(frozen=True)
class NewKey:
    """What a key is to allow, as in `Caller`; `expires_s` from now, `None` for never."""

    name: str
    expires_s: float | None = None
    requests_per_minute: int | None = None
    concurrent_images: int | None = None
    compute_s_per_day: float | None = None
    models: tuple[str, ...] | None = None
    max_priority: Priority = "normal"
    is_admin: bool = False


@dataclass(frozen=True)
class Key:
    """A key without its secret. Times are seconds since 1970; `used` is of the last 24 hours."""

    caller: Caller
    created: float
    expires: float | None
    revoked: float | None
    digest: str = ""
    used_images: int = 0
    used_compute_s: float = 0.0
    rejected: int = 0

    def is_valid(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def matches(self, text: str) -> bool:
        """Whether `text` is this key, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(self.digest, _digest(text))


def read_key(text: str) -> str | None:
    """The id in a key; `None` when this is no key."""
    # Basic authentication may bring any character, and PostgreSQL takes no NUL even to compare.
    if len(text) > MAX_KEY_LENGTH or not (text.isascii() and text.isprintable()):
        return None
    prefix, _, rest = text.partition("-")
    id, _, secret = rest.partition("-")
    return id if prefix == PREFIX and len(id) == ID_LENGTH and secret else None


class KeyStore:
    """Every method raises `StoreUnavailable` when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewKey) -> tuple[Key, str]:
        """The key as it is kept, and the key itself, which nobody can find out later.

        Raises:
            InvalidRequest: names the field.
        """
        _check(new)
        id = "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH))
        text = f"{PREFIX}-{id}-{secrets.token_urlsafe(SECRET_BYTES)}"
        now = self._database.now()
        row = {
            "id": id,
            "name": new.name,
            "digest": _digest(text),
            "created": now,
            "expires": None if new.expires_s is None else now + new.expires_s,
            "requests_per_minute": new.requests_per_minute,
            "concurrent_images": new.concurrent_images,
            "compute_s_per_day": new.compute_s_per_day,
            "models": None if new.models is None else list(new.models),
            "max_priority": new.max_priority,
            "is_admin": new.is_admin,
        }

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(keys).values(row))

        await self._database.write(work)
        return _as_key({**row, "revoked": None}), text

    async def find(self, id: str) -> Key | None:
        return (await self.find_all([id])).get(id)

    async def find_all(self, ids: Collection[str]) -> dict[str, Key]:
        """Those of them that there are, by their ids."""

        async def work(connection: AsyncConnection) -> Sequence[RowMapping]:
            return (await connection.execute(select(keys).where(keys.c.id.in_(ids)))).mappings().all()

        return {row["id"]: _as_key(row) for row in await self._database.read(work)}

    async def list(self) -> list[Key]:
        """Every key, the oldest first, with what it has used."""
        since = int(self._database.now() // HOUR_SECONDS) - 23
        used = (
            select(
                usage.c.key_id,
                func.sum(usage.c.images).label("used_images"),
                func.sum(usage.c.compute_s).label("used_compute_s"),
                func.sum(usage.c.rejected).label("rejected"),
            )
            .where(usage.c.hour >= since)
            .group_by(usage.c.key_id)
            .subquery()
        )
        statement = (
            select(keys, used.c.used_images, used.c.used_compute_s, used.c.rejected)
            .outerjoin(used, used.c.key_id == keys.c.id)
            .order_by(keys.c.created, keys.c.id)
        )

        async def work(connection: AsyncConnection) -> list[Key]:
            return [_as_key(row) for row in (await connection.execute(statement)).mappings()]

        return await self._database.read(work)

    async def revoke(self, id: str) -> bool:
        """From now on nobody may use the key. False: there is none of this id."""
        now = func.coalesce(keys.c.revoked, self._database.now())

        async def work(connection: AsyncConnection) -> bool:
            done = await connection.execute(update(keys).where(keys.c.id == id).values(revoked=now))
            return done.rowcount > 0

        return await self._database.write(work)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check(new: NewKey) -> None:
    if not new.name.strip() or len(new.name) > MAX_NAME_LENGTH or not new.name.isprintable():
        raise InvalidRequest(f"name takes 1 to {MAX_NAME_LENGTH} printable characters", param="name")
    for name in ("expires_s", "requests_per_minute", "concurrent_images", "compute_s_per_day"):
        value = getattr(new, name)
        # NaN is not above 0 either.
        if value is not None and not 0 < value <= 2**31 - 1:
            raise InvalidRequest(f"{name} takes a number above 0, up to {2**31 - 1}", param=name)
    if new.max_priority not in PRIORITIES:
        raise InvalidRequest(f"max_priority takes {', '.join(PRIORITIES)}", param="max_priority")


def _as_key(row: RowMapping | dict[str, Any]) -> Key:
    models = row["models"]
    caller = Caller(
        id=row["id"],
        name=row["name"],
        requests_per_minute=row["requests_per_minute"],
        concurrent_images=row["concurrent_images"],
        compute_s_per_day=row["compute_s_per_day"],
        models=None if models is None else tuple(models),
        max_priority=row["max_priority"],
        is_admin=row["is_admin"],
    )
    return Key(
        caller,
        created=row["created"],
        expires=row["expires"],
        revoked=row["revoked"],
        digest=row["digest"],
        used_images=row.get("used_images") or 0,
        used_compute_s=row.get("used_compute_s") or 0.0,
        rejected=row.get("rejected") or 0,
    )
