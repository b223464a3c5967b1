"""Waits on a condition, with a limit, where a test would otherwise sleep for luck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

__all__ = ["WAIT_SECONDS", "until", "wait_until"]

WAIT_SECONDS = 90.0


def wait_until(
    condition: Callable[[], Any],
    what: object = "what was waited for",
    *,
    seconds: float = WAIT_SECONDS,
    every: float = 0.005,
) -> Any:
    """Ask until the answer is true; that answer.

    what: shown when it never is, as it is by then.
    every: seconds between two asks; more, where asking costs the server something.
    """
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(every)
    return answer


async def until(condition: Callable[[], Any], what: object = "what was waited for") -> Any:
    """As `wait_until`, while the loop goes on. The condition may be a coroutine."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        answer = condition()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {WAIT_SECONDS:g} s: {what}"
        await asyncio.sleep(0.01)
