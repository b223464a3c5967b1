"""Several pictures drawn at once, for whoever asked for n of them in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from mezzotint.core import Queued
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.wire import Drawn, Step

__all__ = ["Listener", "together", "watch", "watch_all"]

T = TypeVar("T")
Listener = Callable[[int, Queued | Step | Drawn], Awaitable[None]]


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run all of it at once; what each gave. The first failure cancels the rest, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if any(task.cancelled() for task in tasks):
        # A group goes on without it. Told as a cancellation of this work, it would be nobody's to answer.
        raise RuntimeError("what was waited for was cancelled, and not by whoever waits")
    return [task.result() for task in tasks]


async def watch_all(gateway: Gateway, requests: Sequence[PreparedRequest], tell: Listener) -> None:
    """Draw the pictures of one request, telling every event with its picture's number.

    Cancelling it cancels all.

    Raises:
        MezzotintError: why the first of them failed; the others were cancelled.
    """
    admitted = enumerate(gateway.admit(requests))
    await together(*(watch(gateway, number, prepared, tell) for number, prepared in admitted))


async def watch(gateway: Gateway, number: int, prepared: PreparedRequest, tell: Listener) -> None:
    """Draw one, telling its events.

    Raises:
        MezzotintError: why there is no picture.
    """
    async with aclosing(gateway.stream(prepared)) as events:
        async for event in events:
            await tell(number, event)
