"""How an engine stands: for whoever watches it, and for whoever chooses among engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mezzotint.engine.rows import BatchKey

__all__ = ["EngineStatus", "Outlook"]


@dataclass(frozen=True)
class EngineStatus:
    """A look at the engine. Seconds are summed over its life, apart from `backlog_s`."""

    queued: int
    running: int
    decoding: int
    backlog_s: float
    passes: int
    pass_s: float
    busy_s: float


@dataclass(frozen=True)
class Outlook:
    """What the engine has before it, for whoever chooses among engines.

    backlogs: seconds of work, decoding included, by tenant, of those that have something here.
    costs: what one evaluation of an image adds to the backlog, by batch key; those that were run, the
        latest last, the model's default first.
    decode_s_a_pixel: what decoding adds, once a picture.
    pass_age_s: how long the loop's turn has lasted so far; 0 when it waits for work.
    """

    queued: int
    max_queue: int
    max_backlog_s: float
    backlogs: Mapping[str, float]
    costs: Mapping[BatchKey, float]
    decode_s_a_pixel: float
    pass_age_s: float
