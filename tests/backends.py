"""A real backend with the fake one's counters, times and faults, for tests of what stands on either."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mezzotint.backends.base import Backend, BackendInfo, MakeWay, PendingPreview, go_straight_on
from mezzotint.backends.fake import Fault
from mezzotint.core import Latents, Pixels, ResolvedRequest, Upscaler
from mezzotint.errors import MezzotintError

__all__ = ["Instrumented"]


class Instrumented:
    """`backend`, slowed down and made to fail as `FakeBackend` is. Closing it leaves `backend` open."""

    def __init__(
        self,
        backend: Backend,
        *,
        pass_seconds: float = 0.0,
        decode_seconds: float = 0.0,
        max_batch: int | None = None,
        fault: Fault | None = None,
    ) -> None:
        self._backend = backend
        self._pass_seconds, self._decode_seconds = pass_seconds, decode_seconds
        self._fault = fault
        self._rows: dict[str, tuple[ResolvedRequest, int]] = {}
        self.passes = 0
        self.info: BackendInfo = replace(backend.info, max_batch=max_batch or backend.info.max_batch)

    @property
    def counters(self) -> Mapping[str, int]:
        return self._backend.counters

    @property
    def held(self) -> int:
        """How many requests hold state here."""
        return len(self._rows)

    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        self._raise_fault("start", request, 0)
        warnings = self._backend.start(request_id, request)
        self._rows[request_id] = (request, 0)
        return warnings

    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        self.passes += 1
        time.sleep(self._pass_seconds)
        failed = dict(self._backend.step(request_ids))
        for request_id in request_ids:
            request, done = self._rows[request_id]
            self._rows[request_id] = (request, done + 1)
            error = self._fault("step", request, done + 1) if self._fault else None
            if error is not None:
                failed[request_id] = error
        return failed

    def preview(self, request_id: str) -> PendingPreview:
        return self._backend.preview(request_id)

    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        time.sleep(self._decode_seconds)
        self._raise_fault("decode", *self._rows[request_id])
        return self._backend.decode(request_id, make_way)

    def latents(self, request_id: str, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        return self._backend.latents(request_id, size, upscaler)

    def release(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        self._backend.release(request_id)

    def close(self) -> None:
        for request_id in list(self._rows):
            self.release(request_id)

    def _raise_fault(self, where: str, request: ResolvedRequest, done: int) -> None:
        error = self._fault(where, request, done) if self._fault else None
        if error is not None:
            raise error
