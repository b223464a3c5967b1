"""Pictures in a folder or an S3 bucket, under names that cannot be guessed."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from mezzotint.errors import ImageNotFound, SettingInvalid, StoreUnavailable
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.models.bucket import S3_SCHEME, bucket_error_text, open_bucket
from mezzotint.models.locations import data_home

__all__ = ["ImageStore", "open_images"]

logger = logging.getLogger(__name__)

SETTING = "MEZZOTINT_IMAGE_STORE"
ACCEPTED = "a folder that can be written, or s3://bucket/prefix"
# For one picture, with its retries.
ANSWER_SECONDS = 15.0
RETRY_SECONDS = 2.0
FAILURES = (BaseError, OSError, TimeoutError)

_Doing = Literal["write", "read", "delete", "list"]
NAME = re.compile(rf"([0-9a-f]{{8}})-[0-9a-f]{{32}}\.({'|'.join(CONTENT_TYPES)})")


class ImageStore:
    """Opened by `open_images`. Every method raises `StoreUnavailable` when folder or bucket does not answer.

    A name is `<when it expires>-<128 random bits>.<format>`, so that whoever holds it needs nothing else, and
    cleaning up needs no list but the store's own.

    failures: how often it did not answer.
    """

    def __init__(self, store: ObjectStore, ttl_s: float, now: Callable[[], float]) -> None:
        self.failures = 0
        # A folder that is full or read-only may still be read.
        self._failing: set[_Doing] = set()
        self._store = store
        self._ttl_s = ttl_s
        self._now = now

    async def put(self, data: bytes, format: str, ttl_s: float | None = None) -> str:
        """Keep a picture (png, jpeg, webp) for `ttl_s`, by default the store's own; its name."""
        expires = int(self._now() + (self._ttl_s if ttl_s is None else ttl_s)) + 1
        name = f"{expires:08x}-{secrets.token_hex(16)}.{format}"
        if NAME.fullmatch(name) is None:
            raise ValueError(f"no format of a picture: {format}")
        with self._as_ours("write"):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._store.put_async(name, data)
        return name

    async def get(self, name: str) -> tuple[bytes, str]:
        """The bytes, and their content type.

        Raises:
            ImageNotFound: no such picture, or it has expired, or this is no name of a picture.
        """
        found = NAME.fullmatch(name)
        if found is None or self._has_expired(found):
            raise _not_found()
        with self._as_ours("read"):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self._store.get_async(name)
                    return bytes(await answer.bytes_async()), CONTENT_TYPES[found[2]]
            except FileNotFoundError:
                raise _not_found() from None

    async def delete(self, names: Iterable[str]) -> None:
        """Forget pictures before they expire; those that there are."""
        with self._as_ours("delete"):
            await self._delete([name for name in names if NAME.fullmatch(name)])

    async def sweep(self) -> int:
        """Delete what has expired; how many."""
        deleted = 0
        with self._as_ours("list"):
            async for page in self._store.list(chunk_size=1000):
                found = [match for each in page if (match := NAME.fullmatch(each["path"]))]
                expired = [match[0] for match in found if self._has_expired(match)]
                if expired:
                    await self._delete(expired)
                deleted += len(expired)
                # A bucket lists by name, and a name begins with when it expires.
                if len(expired) < len(found) and isinstance(self._store, S3Store):
                    break
        return deleted

    async def _delete(self, names: list[str]) -> None:
        for name in names:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._store.delete_async(name)
            except FileNotFoundError:
                # Another gateway was quicker.
                continue

    def _has_expired(self, found: re.Match[str]) -> bool:
        return int(found[1], 16) <= self._now()

    @contextmanager
    def _as_ours(self, doing: _Doing) -> Iterator[None]:
        try:
            yield
            self._failing.discard(doing)
        except FAILURES as error:
            self.failures += 1
            if doing not in self._failing:
                # A picture's name lets whoever has it see the picture.
                logger.error("the picture store does not answer: %s", NAME.sub("…", _reason(error)))
            self._failing.add(doing)
            raise StoreUnavailable(
                "the picture store does not answer just now", retry_after_s=RETRY_SECONDS
            ) from None


def _not_found() -> ImageNotFound:
    return ImageNotFound("no such picture, or it has expired")


@asynccontextmanager
async def open_images(url: str, ttl_s: float, now: Callable[[], float]) -> AsyncIterator[ImageStore]:
    """The store at `url`, a folder or s3://bucket/prefix; empty for a folder below `MEZZOTINT_HOME`.

    Credentials, region and endpoint of S3 come from the AWS_* variables of the environment.

    Raises:
        SettingInvalid: it cannot be written to.
    """
    try:
        store = _make_store(url)
        async with asyncio.timeout(ANSWER_SECONDS):
            probe = f"probe-{secrets.token_hex(8)}"
            await store.put_async(probe, b"can be written")
            await store.delete_async(probe)
    except (*FAILURES, ValueError) as error:
        raise SettingInvalid(
            f"{SETTING} takes {ACCEPTED}; not {url or data_home()!s}: {_reason(error)}", param=SETTING
        ) from None
    yield ImageStore(store, ttl_s, now)


def _make_store(url: str) -> ObjectStore:
    if url.startswith(S3_SCHEME):
        return open_bucket(
            url,
            {"connect_timeout": timedelta(seconds=3), "timeout": timedelta(seconds=10)},
            {"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )
    if "://" in url:
        raise ValueError("no such kind of store")
    try:
        folder = Path(url).expanduser() if url else data_home() / "images"
    except RuntimeError:
        raise ValueError("there is no user of that name") from None
    # Pictures are their owners' own: for this user alone.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LocalStore(folder)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return bucket_error_text(error)
