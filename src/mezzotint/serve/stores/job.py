"""A job as it is kept: pictures that somebody wants and does not wait for. Plain data and the rules of its
life; no database here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from mezzotint.core import Priority

__all__ = [
    "FINAL",
    "STATES",
    "TRANSITIONS",
    "UNFINISHED",
    "UPLOADS",
    "Job",
    "JobEvent",
    "JobImage",
    "JobState",
    "NewJob",
]

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)

# Running goes back to queued when its owner gives it back: no engine had room.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        "queued": frozenset({"running", "failed", "cancelled"}),
        "running": frozenset({"queued", "done", "failed", "cancelled"}),
        "done": frozenset(),
        "failed": frozenset(),
        "cancelled": frozenset(),
    }
)
# Of a request, the list of the pictures in the image store that it starts from.
UPLOADS = "uploads"
FINAL: frozenset[JobState] = frozenset(state for state, following in TRANSITIONS.items() if not following)
# An index finds those of a state; those that are of none of several it finds only by reading all.
UNFINISHED: tuple[JobState, ...] = tuple(state for state in STATES if state not in FINAL)


@dataclass(frozen=True)
class NewJob:
    """What is asked for.

    caller: the key's id.
    request: whatever the runner needs to draw it, as JSON; below `UPLOADS` the names of its pictures.
    n: how many pictures.
    deadline_s: seconds from now; a job that is not finished by then fails. `None` for no limit.
    idempotency_key: the client's own name for this job; empty for none.
    fingerprint: a hash of the client's body. The same key with another fingerprint is a conflict.
    """

    caller: str
    request: Mapping[str, Any]
    n: int = 1
    priority: Priority = "normal"
    deadline_s: float | None = None
    idempotency_key: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class JobImage:
    """A finished picture: its number from 0, its name in the image store, how to draw it again."""

    index: int
    name: str
    receipt: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """A job as it is now. Times are seconds since 1970 by the database's clock.

    sequence: increases from job to job: the order of listing, and the cursor of its pages.
    started: when it was claimed last. finished: when it came to a final state.
    error: a failed job's error, as `{"message", "type", "param", "code"}`.
    cancel_requested: its owner is to stop drawing and finish it as cancelled.
    owner: the runner that holds it; empty unless it is running.
    lost: how often its owner, or the replica that drew it, vanished.
    """

    id: str
    sequence: int
    caller: str
    state: JobState
    request: Mapping[str, Any]
    n: int
    priority: Priority
    created: float
    started: float | None
    finished: float | None
    deadline: float | None
    error: Mapping[str, Any] | None
    cancel_requested: bool
    owner: str
    lost: int
    images: tuple[JobImage, ...] = ()


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. Ids increase over all jobs, in the order in which events are seen.

    kind: a state, when the job came to it; or what the runner calls it ("progress", "image", …).
    """

    id: int
    job_id: str
    kind: str
    data: Mapping[str, Any]
    created: float
