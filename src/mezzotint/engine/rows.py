"""What the scheduler knows of a request: its state, what its passes depend on, how many are left. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol

from mezzotint.core import Lora, Priority, ResolvedRequest

__all__ = [
    "CONTROL_SHARE",
    "TRANSITIONS",
    "WEIGHTS",
    "BatchKey",
    "Cost",
    "Row",
    "Stage",
    "State",
    "batch_key",
    "evaluation_seconds",
    "measured_as",
    "pass_seconds",
    "stages_of",
    "tells_of",
    "within",
]

# A priority's share of the engine against normal.
WEIGHTS: Mapping[Priority, float] = MappingProxyType({"low": 0.25, "normal": 1.0, "high": 4.0})


class State(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
        State.RUNNING: frozenset({State.DECODING, State.FAILED, State.CANCELLED}),
        # Back to the queue goes what has another stage.
        State.DECODING: frozenset({State.QUEUED, State.DONE, State.FAILED, State.CANCELLED}),
        State.DONE: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)


# What a ControlNet adds to a row's work, as far as it was not measured: 3.02 TFLOP beside the UNet's 6.76 at
# 1024² and the same share at 512² and 2048², by torch's flop counter over SDXL's public configuration.
CONTROL_SHARE = 0.45


@dataclass(frozen=True)
class BatchKey:
    """What an image's passes depend on. Sizes in pixels. What they cost depends on all but `loras`.

    controls: of each ControlNet that its rows go through as well, in which share of the evaluations.
    """

    width: int
    height: int
    guided: bool
    loras: tuple[Lora, ...] = ()
    controls: tuple[float, ...] = ()

    @property
    def unet_rows(self) -> int:
        """Rows of the UNet's batch that one image takes."""
        return 2 if self.guided else 1

    @property
    def load(self) -> float:
        """The work of one image, in rows of the UNet."""
        return self.unet_rows * (1 + CONTROL_SHARE * sum(self.controls)) if self.controls else self.unet_rows

    @property
    def area(self) -> float:
        """Pixels of one image's rows, with as many more as ControlNets add work."""
        return self.width * self.height * self.load

    @property
    def cost_key(self) -> BatchKey:
        """The key that costs as much, without LoRAs: they are in the weights while they are worn."""
        return replace(self, loras=()) if self.loras else self

    @property
    def shape(self) -> BatchKey:
        """What requests must have in common to share a pass: that without guidance and controls."""
        return replace(self, guided=False, controls=())


def batch_key(request: ResolvedRequest) -> BatchKey:
    """The key of a request's passes."""
    controls = tuple(sorted(each.end - each.start for each in request.controls))
    return BatchKey(request.width, request.height, request.guided, request.loras, controls)


@dataclass(frozen=True)
class Stage:
    """A picture's passes from one set of latents to its decoding: of which kind, and how many."""

    key: BatchKey
    evaluations: int


def stages_of(request: ResolvedRequest) -> tuple[Stage, ...]:
    """What the scheduler is told of a request's stages."""
    return tuple(Stage(batch_key(stage), stage.evaluations) for stage in request.stages)


def measured_as(keys: Sequence[BatchKey]) -> tuple[BatchKey, float]:
    """The key and the batch that a pass of images of these keys, all of one shape, costs as much as.

    Guided and others together cost what as many rows of guided ones do; an odd row counts as two. Those with
    and without ControlNets cost what as much work of the costliest kind does: of a batch between two.
    """
    first = keys[0]
    if not any(key.controls for key in keys):
        rows = sum(key.unet_rows for key in keys)
        return (first, rows) if rows == len(keys) else (replace(first, guided=True), (rows + 1) // 2)
    if all(key.cost_key == first.cost_key for key in keys):
        return first, len(keys)
    costliest = max((key.controls for key in keys), key=sum)
    most = replace(first, guided=any(key.guided for key in keys), controls=costliest)
    return most, sum(key.load for key in keys) / most.load


def tells_of(key: BatchKey, batch: float, keys: Sequence[BatchKey]) -> bool:
    """Whether a pass of `keys` may update the cost of (`key`, `batch`): it has exactly as many rows as
    that many images of that kind. With ControlNets all its images are of that kind, and every ControlNet is
    active in all evaluations."""
    if key.controls:
        return all(each.cost_key == key.cost_key for each in keys) and min(key.controls) == 1
    return batch * key.unet_rows == sum(each.unet_rows for each in keys)


class Cost(Protocol):
    """What the scheduler asks of `cost.StepCost`."""

    def seconds(self, key: BatchKey, batch: float) -> float: ...

    def knee(self, key: BatchKey) -> int: ...

    def decode_seconds(self, key: BatchKey) -> float: ...


@dataclass(eq=False)
class Row:
    """A request that has not ended.

    key, remaining: of the stage it is at, the latter its evaluations that are left.
    later: the stages after it.
    evaluations_left: until the picture.
    """

    id: str
    stages: tuple[Stage, ...]
    arrived: float
    deadline: float | None
    order: int
    tenant: str
    weight: float
    state: State = State.QUEUED
    # In a row: passes it was left out of, and passes it was in.
    passed_over: int = 0
    unbroken: int = 0
    key: BatchKey = field(init=False)
    remaining: int = field(init=False)
    later: tuple[Stage, ...] = field(init=False)
    evaluations_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.evaluations_left = sum(stage.evaluations for stage in self.stages)
        self._enter(self.stages)

    def step(self) -> None:
        """One evaluation further."""
        self.remaining -= 1
        self.evaluations_left -= 1
        self.passed_over = 0
        self.unbroken += 1

    def pass_over(self) -> None:
        """Left out of a pass that it might have been in."""
        self.passed_over += 1
        self.unbroken = 0

    def go_on(self) -> None:
        """To the next stage."""
        self._enter(self.later)

    def _enter(self, stages: tuple[Stage, ...]) -> None:
        self.key, self.remaining, self.later = stages[0].key, stages[0].evaluations, stages[1:]

    @property
    def left(self) -> tuple[Stage, ...]:
        """The stages that it has before it; of the one it is at, what remains."""
        return (Stage(self.key, self.remaining), *self.later)

    @property
    def active(self) -> bool:
        """It wants passes."""
        return self.state in (State.QUEUED, State.RUNNING)


def pass_seconds(cost: Cost, rows: Sequence[Row]) -> float:
    """What a pass of these rows, all of one shape, takes."""
    return cost.seconds(*measured_as([row.key for row in rows]))


def evaluation_seconds(cost: Cost, key: BatchKey) -> float:
    """What one evaluation of one image adds to the work: its share of a pass at the key's knee."""
    knee = cost.knee(key)
    return cost.seconds(key, knee) / knee


def within(room: int, rows: list[Row]) -> list[Row]:
    """As many of the first as there is room for, in rows of the UNet's batch."""
    ends = accumulate(row.key.unet_rows for row in rows)
    return [row for row, end in zip(rows, ends, strict=True) if end <= room]
