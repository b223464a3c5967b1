"""Clients of a real server: many at once, none of which tries again by itself."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

import aiohttp
import numpy as np
from PIL import Image

__all__ = ["Answer", "Client", "arrivals", "outcomes", "pixels_of"]

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """What came of one request. status: 0 when the connection broke, and `outcome` says how.

    seconds: until the last byte, from when the request was due.
    """

    status: int
    outcome: str
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    @property
    def digest(self) -> str:
        """Of the pixels: two files of one picture may differ in what their receipts say."""
        return hashlib.sha256(pixels_of(self.body).tobytes()).hexdigest()


def pixels_of(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(body)).convert("RGB"))


def outcomes(answers: Iterable[Answer]) -> dict[str, int]:
    """How many answers of each kind: `200`, `429 queue_full`, `0 ServerDisconnectedError`."""
    return dict(Counter(answer.outcome for answer in answers))


class Client:
    """As many connections as there are requests, each closed after its answer.

    A connection that is kept is tried again by the client's library when it breaks, which would hide what
    is looked for here.
    """

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self.address = address

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Client]:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=LIMIT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            yield cls(session, address)

    async def imagine(self, *, headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
        params = {name: str(value) for name, value in {"prompt": "a cat", **fields}.items()}
        return await self.ask("GET", "/imagine", params=params, headers=headers)

    async def ask(self, method: str, path: str, *, due: float | None = None, **options: object) -> Answer:
        began = time.perf_counter() if due is None else due
        try:
            async with self._session.request(method, self.address + path, **options) as response:  # type: ignore[arg-type]
                body = await response.read()
                outcome = str(response.status)
                if response.status >= 400:
                    outcome += f" {_code(body)}"
                return Answer(
                    response.status, outcome, time.perf_counter() - began, dict(response.headers), body
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Answer(0, f"0 {type(error).__name__}", time.perf_counter() - began)


def _code(body: bytes) -> str:
    import json

    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:80])


async def arrivals(
    send: Callable[[int], asyncio.Future[Answer] | asyncio.Task[Answer]],
    rate: float,
    seconds: float,
    seed: int = 0,
) -> list[Answer]:
    """Answers to requests that come at `rate` a second for `seconds`, waiting for nobody (an open loop)."""
    rng, at, began = random.Random(seed), 0.0, time.perf_counter()
    sent: list[asyncio.Future[Answer] | asyncio.Task[Answer]] = []
    while (at := at + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        sent.append(send(len(sent)))
    return list(await asyncio.gather(*sent))
