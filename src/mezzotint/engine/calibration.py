"""Measuring what a pass costs, before the first request is served."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from mezzotint.backends.base import Backend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.cost import StepCost
from mezzotint.engine.rows import batch_key
from mezzotint.errors import MezzotintError
from mezzotint.resolving import resolve

__all__ = ["PASSES", "WARM_UP_PROMPT", "calibrate", "measure_passes"]

logger = logging.getLogger(__name__)

# Measuring may take about this long; a slow device measures only the small batches.
CALIBRATION_SECONDS = 10.0
PASSES = 5
WARM_UP_PROMPT = "a mezzotint"


def calibrate(
    backend: Backend,
    cost: StepCost,
    sizes: Sequence[tuple[int, int]],
    lock: AbstractContextManager[Any],
) -> None:
    """Tell `cost` what passes of the default size cost, and of each of `sizes` (width, height).

    Must run on the loop's thread. lock: guards `cost`; it is not held while the backend computes.

    Raises:
        MezzotintError: the model cannot take a step even for one image.
    """
    limits = backend.info.limits
    asked = GenerationRequest(WARM_UP_PROMPT, seed=0, steps=min(PASSES, limits.max_steps))
    default = resolve(asked, limits)
    seconds = dict(measure_passes(backend, default, cost.max_batch))
    with lock:
        cost.calibrate(batch_key(default), seconds)
    for width, height in sizes:
        request = resolve(replace(asked, width=width, height=height), limits)
        if batch_key(request) != batch_key(default):
            seconds = dict(measure_passes(backend, request, cost.max_batch))
            with lock:
                cost.learn(batch_key(request), seconds)


def measure_passes(backend: Backend, request: ResolvedRequest, max_batch: int) -> Iterator[tuple[int, float]]:
    """Yields (batch, median seconds of a pass) for batches of 1, 2, 4 … `max_batch`, all images `request`.

    Each batch runs all of the request's evaluations. Must run on the loop's thread. Ends before the first
    batch that the device has no room for, or that would take too long; what the first passes of a batch take
    longer than the rest (compiling, say) is not counted, for a larger one need not take it again.

    Raises:
        MezzotintError: the model cannot take a step even for one image.
    """
    ids = [f"calibration-{i}" for i in range(max_batch)]
    spent = 0.0
    batch = 1
    try:
        while batch <= max_batch:
            try:
                for request_id in ids[:batch]:
                    backend.release(request_id)
                    backend.start(request_id, request)
                seconds = _median_pass(backend, ids[:batch], request.evaluations)
            except MezzotintError as error:
                if batch == 1:
                    raise
                logger.warning("passes of %d images fail and are not made: %s", batch, error)
                return
            yield batch, seconds
            spent += seconds * request.evaluations
            # The next batch takes about twice as long; stop rather than run over.
            if spent + 2 * seconds * request.evaluations > CALIBRATION_SECONDS:
                return
            batch *= 2
    finally:
        for request_id in ids:
            backend.release(request_id)


def _median_pass(backend: Backend, ids: list[str], passes: int) -> float:
    seconds = []
    for _ in range(passes):
        began = time.perf_counter()
        for error in backend.step(ids).values():
            raise error
        seconds.append(time.perf_counter() - began)
    # The first passes of a batch pay for what the later ones find ready: memory, kernels, a GPU's recording.
    return statistics.median_low(seconds[len(seconds) // 2 :])
