"""Work that goes on beside other work, and never outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["in_background", "is_cancelled"]


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Within, `work` runs in a task of its own. On the way out it is cancelled, and has ended.

    What it raises is nobody's: it logs, or tells, what must be known.
    """
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_cancelled() -> bool:
    """Whether the running task was told to end. A `CancelledError` without that is not its own: what it
    waited for was cancelled, by whomever."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
