"""What is noted of one HTTP request while it is answered, for its log line, its metrics and its span.

Whoever learns something notes it on `current()`; the middleware that opened the record tells it at the end.
Of a prompt it holds the length and a keyed hash, never the text.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from mezzotint.errors import MezzotintError

__all__ = ["Record", "current", "is_plain_id", "open_record"]

PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# Of this process: the hash says that two of its requests had the same prompt, and nothing to anyone else.
_HASH_KEY = secrets.token_bytes(32)


def is_plain_id(text: str) -> bool:
    """Whether a client's own request id can stand in a log and a header as it is."""
    return PLAIN_ID.fullmatch(text) is not None


@dataclass
class Record:
    """key: the public id of the caller's key. error: why there is no picture. Seconds are of the engine.

    seed: the first picture's, once it is settled.
    """

    request_id: str = ""
    key: str = ""
    error: MezzotintError | None = None
    seed: int | None = None
    images: int = 0
    queue_s: float | None = None
    compute_s: float | None = None
    prompt_characters: int | None = None
    prompt_hash: str = ""
    retries: int = 0

    def note_prompt(self, prompt: str) -> None:
        self.prompt_characters = len(prompt)
        digest = hashlib.blake2b(prompt.encode(errors="replace"), key=_HASH_KEY, digest_size=8)
        self.prompt_hash = digest.hexdigest()

    def note_seed(self, seed: int) -> None:
        """Of several pictures, the first one's is kept."""
        if self.seed is None:
            self.seed = seed

    def note_drawn(self, queue_s: float, compute_s: float) -> None:
        """One more picture. Of several, the longest times are kept."""
        self.images += 1
        self.queue_s = max(queue_s, self.queue_s or 0.0)
        self.compute_s = max(compute_s, self.compute_s or 0.0)


_current: ContextVar[Record | None] = ContextVar("mezzotint_record", default=None)


def current() -> Record:
    """The record of the request that this task answers; one that nobody reads where there is none."""
    return _current.get() or Record()


@contextmanager
def open_record(record: Record) -> Iterator[Record]:
    """Within, and in the tasks that are made within, `current()` is `record`."""
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)
