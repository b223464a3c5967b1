"""The requests that are being drawn, by key: for a surface that shows and stops them from another call.

Such a call comes to any gateway, and to an idle one sooner than to the one that draws: so all are asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from mezzotint.core import Queued
from mezzotint.serve.access.admission import Admission
from mezzotint.serve.background import is_cancelled
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.peers import Peers, answers
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.several import watch_all
from mezzotint.serve.wire import Drawn, RunStatus, Step

__all__ = ["Run", "Runs"]


class Run:
    """One request's pictures. `steps` by picture, each of `total`; `preview` is the last file that came."""

    def __init__(self, requests: Sequence[PreparedRequest]) -> None:
        self._requests = requests
        self._since = time.monotonic()
        self._drawing: asyncio.Task[None] | None = None
        self._admission: Admission | None = None
        self.began = datetime.now(UTC)
        self.total = max(prepared.request.steps_taken for prepared in requests)
        self.steps = [0] * len(requests)
        self.drawn: dict[int, Drawn] = {}
        self.preview: bytes | None = None
        self.interrupted = False

    async def draw(self, gateway: Gateway, admission: Admission) -> list[Drawn]:
        """The pictures in order; after an interruption, those that were finished, none if it came before.

        Raises:
            MezzotintError: why the first of them failed.
        """
        self._admission = admission
        self._drawing = asyncio.create_task(watch_all(gateway, self._requests, self._take))
        if self.interrupted:
            self._drawing.cancel()
        try:
            await self._drawing
        except asyncio.CancelledError:
            # Interrupted, and not left alone by the client.
            if not self.interrupted or is_cancelled():
                raise
        return [self.drawn[number] for number in sorted(self.drawn)]

    def interrupt(self) -> None:
        self.interrupted = True
        if self._drawing is not None:
            self._drawing.cancel()

    async def _take(self, number: int, event: Queued | Step | Drawn) -> None:
        if isinstance(event, Step):
            self.steps[number] = event.step
            self.preview = event.preview or self.preview
        elif isinstance(event, Drawn):
            self.steps[number] = self.total
            self.drawn[number] = event
            if self._admission is not None:
                self._admission.drawn = len(self.drawn)

    @property
    def progress(self) -> float:
        """0…1."""
        return min(1.0, sum(self.steps) / (self.total * len(self.steps)))

    @property
    def eta_s(self) -> float:
        """Seconds that are left if it goes on as it went; 0 where nothing is known yet."""
        elapsed = time.monotonic() - self._since
        return elapsed / self.progress - elapsed if self.progress else 0.0

    def status(self, *, preview: bool) -> RunStatus:
        going = [step for number, step in enumerate(self.steps) if number not in self.drawn]
        return RunStatus(
            began=self.began,
            progress=self.progress,
            eta_s=self.eta_s,
            step=max(going, default=0),
            total=self.total,
            images=len(self.steps),
            drawn=len(self.drawn),
            interrupted=self.interrupted,
            preview=self.preview if preview else None,
        )


class Runs:
    """The running requests of each key: this gateway's in the order they came, and those of its peers."""

    def __init__(self, peers: Peers) -> None:
        self._of: dict[str, list[Run]] = {}
        self._peers = peers

    @contextmanager
    def entered(self, caller_id: str, run: Run) -> Iterator[Run]:
        """Within, the run is told of."""
        runs = self._of.setdefault(caller_id, [])
        runs.append(run)
        try:
            yield run
        finally:
            runs.remove(run)
            if not runs:
                del self._of[caller_id]

    async def latest(self, caller_id: str, *, preview: bool) -> RunStatus | None:
        """The key's run that began last, on whichever gateway."""
        ask = partial(self._peers.runs, caller_id, preview=preview)
        found = list(await answers(ask, "the runs"))
        # Asked last, so that it is as new as theirs.
        own = self.latest_here(caller_id, preview=preview)
        if own is not None:
            found.append(own)
        return max(found, key=lambda run: run.began, default=None)

    async def interrupt(self, caller_id: str) -> None:
        """Interrupt the key's runs on every gateway."""
        self.interrupt_here(caller_id)
        await self._peers.interrupt(caller_id)

    def latest_here(self, caller_id: str, *, preview: bool) -> RunStatus | None:
        """The same of this gateway alone, for the others that ask."""
        runs = self._of.get(caller_id)
        return runs[-1].status(preview=preview) if runs else None

    def interrupt_here(self, caller_id: str) -> None:
        for run in self._of.get(caller_id, []):
            run.interrupt()
