"""A pass of the UNet as one launch: recorded once for its shapes, replayed with new numbers.

SDXL's UNet is some thousands of kernels; at small widths a host takes longer to launch them than a GPU to run
them. A graph is recorded of a call that has come often enough to be ready (compiled, its kernels chosen), and
all graphs share one pool of memory, which is safe because what a replay leaves is copied before the next.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "GraphedCalls", "Recorder"]

logger = logging.getLogger(__name__)

# Two sizes, each with 1 to 32 rows: 16 images, of which any number are guided. Longer prompts are shapes of
# their own; the latest stay.
MAX_GRAPHS = 64
# Calls of one kind before it is recorded: the first compiles and chooses kernels, the second finds all ready.
CALLS_BEFORE = 2
MAX_COUNTED = 256
# For as long as the process lives, for torch goes on asking them.
LOST: list[Any] = []

Call = Callable[..., Any]
_Inputs = tuple[torch.Tensor | None, ...]


class Recorder(Protocol):
    def record(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Record `call`; what replays it, and the tensor in which each replay leaves its result.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records on the calling thread's stream. Other threads may go on using the GPU meanwhile."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with _uncollected():
            # Not by `torch.cuda.graph`: it first waits for the whole device and gives its spare memory back.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = call()
                graph.capture_end()
            except BaseException:
                self._give_up(graph)
                raise
        return graph.replay, result

    def _give_up(self, graph: Any) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # It has ended badly. The pool is lost, for it takes itself to be still in use; and when memory is
            # wanted for a recording, torch asks this one whether it is its own.
            self._pool = None
            LOST.append(graph)
            # Up to torch 2.11 the default generator takes itself to be still recorded, and no graph, which
            # each begin with it, can be replayed until a recording has ended well.
            other = torch.cuda.CUDAGraph()
            other.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
            torch.ones(1, device="cuda")
            other.capture_end()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, Python's collector gives nothing back: pinned memory that it did would be recorded too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass(frozen=True, eq=False)
class _Recorded:
    inputs: _Inputs
    replay: Callable[[], None]
    result: torch.Tensor


class GraphedCalls:
    """Stands in a UNet's place. Tensors in; what is no tensor must be the same in every call.

    For one thread and stream. Holds the `max_graphs` kinds of call that were used last; a kind is the shapes
    and dtypes of all inputs.
    """

    def __init__(
        self,
        call: Call,
        recorder: Recorder,
        *,
        max_graphs: int = MAX_GRAPHS,
        calls_before: int = CALLS_BEFORE,
    ) -> None:
        self._call, self._recorder = call, recorder
        self._max_graphs, self._calls_before = max_graphs, calls_before
        self._graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._counts: OrderedDict[Hashable, int] = OrderedDict()
        self._impossible: set[Hashable] = set()
        self.recorded = self.replayed = 0

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None,
        added_cond_kwargs: Mapping[str, torch.Tensor],
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """As diffusers' UNet with `return_dict=False`; the result is the caller's own."""
        names = tuple(sorted(added_cond_kwargs))
        inputs: _Inputs = (sample, timestep, encoder_hidden_states, timestep_cond)
        inputs += tuple(added_cond_kwargs[name] for name in names)
        kind = tuple(None if each is None else (tuple(each.shape), each.dtype) for each in inputs)
        graph = self._graphs.get(kind)
        if graph is None and self._is_due(kind):
            graph = self._record(kind, inputs, names)
        if graph is None:
            return (self._run(inputs, names),)
        self._graphs.move_to_end(kind)
        for held, given in zip(graph.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        graph.replay()
        self.replayed += 1
        # The next replay, of this graph or another, writes where this result is.
        return (graph.result.clone(),)

    def _is_due(self, kind: Hashable) -> bool:
        seen = self._counts.pop(kind, 0)
        if seen >= self._calls_before:
            return kind not in self._impossible
        self._counts[kind] = seen + 1
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        return False

    def _record(self, kind: Hashable, inputs: _Inputs, names: tuple[str, ...]) -> _Recorded | None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        held = tuple(None if each is None else each.clone() for each in inputs)
        try:
            replay, result = self._recorder.record(lambda: self._run(held, names))
        except RuntimeError as error:
            # Passes of this kind are launched kernel by kernel, as without graphs.
            logger.warning("a pass cannot be recorded: %s", error)
            if len(self._impossible) < MAX_COUNTED:
                self._impossible.add(kind)
            return None
        self.recorded += 1
        graph = self._graphs[kind] = _Recorded(held, replay, result)
        return graph

    def _run(self, inputs: _Inputs, names: tuple[str, ...]) -> torch.Tensor:
        sample, timestep, hidden, condition, *added = inputs
        result: torch.Tensor = self._call(
            sample,
            timestep,
            encoder_hidden_states=hidden,
            timestep_cond=condition,
            added_cond_kwargs=dict(zip(names, added, strict=True)),
            return_dict=False,
        )[0]
        return result
