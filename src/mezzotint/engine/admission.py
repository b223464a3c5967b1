"""Whether a backlog has room for one more request. Pure; a gateway asks it of what engines have reported."""

from __future__ import annotations

__all__ = ["seconds_until_room"]

MIN_RETRY_AFTER_SECONDS = 1.0


def seconds_until_room(
    work_s: float, *, own_s: float, backlog_s: float, queued: int, max_queue: int, max_backlog_s: float
) -> float | None:
    """None when there is room for `work_s` seconds of work, else the seconds until there will be, from 1.

    A tenant's backlog (`own_s` of `backlog_s`) may be as long as the room that is left (the dynamic threshold
    of Choudhury and Hahne, 1998): one that floods gets half, n that flood an nth part each, and there is
    always room for one that has nothing here yet. An idle engine takes any request, of several pictures too:
    those of its own that are here already are part of `work_s`, and of nothing else.
    """
    left = max_backlog_s - backlog_s
    if queued >= max_queue:
        wait = backlog_s / queued
    elif backlog_s and work_s > left:
        wait = work_s - left
    elif own_s and own_s + work_s > left:
        # As the backlog drains, own shrinks and left grows.
        wait = (own_s + work_s - left) / 2
    else:
        return None
    return max(wait, MIN_RETRY_AFTER_SECONDS)
