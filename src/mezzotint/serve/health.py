"""Whether an engine still draws: its loop moves, and what comes out of it is pictures.

Every request that is served is an examination. Only when several in a row came to nothing is one drawn for
the sake of it: a request that is known to be good tells a sick model from requests that no model can draw.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mezzotint.core import GenerationRequest, Image
from mezzotint.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    GenerationFailed,
    MezzotintError,
    QueueFull,
)

if TYPE_CHECKING:
    from mezzotint.engine.engine import Engine

__all__ = ["Health", "check_picture"]

# Requests that came to nothing, one after another, before the engine is examined.
FAILURES_IN_A_ROW = 3
PROBE = GenerationRequest("a mezzotint", seed=0, steps=2, priority="high")
PROBE_SECONDS = 20.0
# What one turn of the loop may take; compiling a new shape is the longest there is.
MAX_PASS_SECONDS = 300.0


def check_picture(image: Image) -> None:
    """Refuse a picture of one colour: no model that works draws that from edge to edge.

    Raises:
        GenerationFailed: the picture shows nothing.
    """
    if image.pixels.min() == image.pixels.max():
        raise GenerationFailed("the model drew nothing: every pixel has the same value")


class Health:
    """Of one engine. Called from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._failures = 0

    def succeeded(self) -> None:
        """A request became a picture."""
        self._failures = 0

    def failed(self) -> None:
        """A request came to nothing, through no fault that was found in it."""
        self._failures += 1

    @property
    def good(self) -> bool:
        """Whether the engine should be sent work, as far as is known without drawing."""
        return self._fault() is None and not self._in_doubt

    @property
    def _in_doubt(self) -> bool:
        return self._failures >= FAILURES_IN_A_ROW

    async def check(self) -> None:
        """Draw a picture if there is doubt.

        Raises:
            RuntimeError: the engine must be replaced, and why.
        """
        fault = self._fault()
        if fault is None and self._in_doubt:
            fault = await self._examine()
        if fault is not None:
            raise RuntimeError(fault)

    def _fault(self) -> str | None:
        if not self._engine.alive:
            return "the engine's loop has ended"
        age = self._engine.outlook().pass_age_s
        return f"the engine hangs: a pass has taken {age:.0f} s" if age > MAX_PASS_SECONDS else None

    async def _examine(self) -> str | None:
        probe = replace(PROBE, deadline_s=PROBE_SECONDS)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                check_picture(await asyncio.to_thread(self._engine.generate, probe))
        except (QueueFull, DeadlineUnreachable, DeadlineExceeded, TimeoutError):
            # Too busy to tell; the doubt stays.
            return None
        except MezzotintError as error:
            return f"the engine draws nothing any more: {error}"
        self._failures = 0
        return None
