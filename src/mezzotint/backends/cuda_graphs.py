"""A pass of a module as one launch: recorded once for its shapes, replayed with new numbers.

SDXL's UNet is some thousands of kernels; at small widths a host takes longer to launch them than a GPU to run
them. A graph is recorded of a call that has come often enough to be ready (compiled, its kernels chosen), and
all graphs share one pool of memory, which is safe because what a replay leaves is copied before the next.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "GraphedCalls", "Recorder"]

logger = logging.getLogger(__name__)

# Two sizes, each with 1 to 32 rows: 16 images, of which any number are guided. Longer prompts, and rows that
# ControlNets hold, are shapes of their own; the latest stay.
MAX_GRAPHS = 64
# What one graph may hold of inputs and results. A call with more of them, such as large pictures' residuals,
# computes for longer than it takes to launch.
MAX_BYTES = 64 * 2**20
# Calls of one kind before it is recorded: the first compiles and chooses kernels, the second finds all ready.
CALLS_BEFORE = 2
MAX_COUNTED = 256
# A recording fails when another thread waits for the device meanwhile, as one that compiles does. So it is
# tried again, after so many calls and so often.
CALLS_BETWEEN = 50
MAX_FAILURES = 3
# For as long as the process lives, for torch goes on asking them.
LOST: list[Any] = []

Call = Callable[..., Any]


class Recorder(Protocol):
    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record `call`; what replays it, and the tensors in which each replay leaves its result.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records on the calling thread's stream. Other threads may go on using the GPU meanwhile."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
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
    inputs: tuple[torch.Tensor, ...]
    replay: Callable[[], None]
    result: Any


class GraphedCalls:
    """Stands in a module's place: a UNet's, a ControlNet's. What it is given and gives are tensors, and lists
    and mappings of such.

    For one thread and stream. Holds the `max_graphs` kinds of call that were used last; a kind is where the
    inputs stand, the shapes and dtypes of the tensors, and what is no tensor.
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
        # By thread too: kernels are chosen, and their handles made, for each anew.
        self._counts: OrderedDict[tuple[int, Hashable], int] = OrderedDict()
        # How often recording a kind has failed; the most where one holds too much.
        self._failures: OrderedDict[Hashable, int] = OrderedDict()
        self.recorded = self.replayed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module; the result is the caller's own."""
        kind, inputs = _taken_apart((args, kwargs))
        graph = self._graphs.get(kind)
        if graph is None and self._is_due(kind):
            graph = self._record(kind, args, kwargs)
        if graph is None:
            result = self._call(*args, **kwargs)
            if _bytes(inputs) + _bytes(_taken_apart(result)[1]) > MAX_BYTES:
                self._note_failures(kind, MAX_FAILURES)
            return result
        self._graphs.move_to_end(kind)
        for held, given in zip(graph.inputs, inputs, strict=True):
            held.copy_(given)
        graph.replay()
        self.replayed += 1
        # The next replay, of this graph or another, writes where this result is.
        return _copied(graph.result)

    def _is_due(self, kind: Hashable) -> bool:
        if self._failures.get(kind, 0) >= MAX_FAILURES:
            self._failures.move_to_end(kind)
            return False
        key = (threading.get_ident(), kind)
        seen = self._counts.pop(key, 0)
        if seen >= self._calls_before:
            return True
        self._count(key, seen + 1)
        return False

    def _count(self, key: tuple[int, Hashable], seen: int) -> None:
        self._counts[key] = seen
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)

    def _record(self, kind: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Recorded | None:
        held_args, held_kwargs = _copied(args), _copied(kwargs)
        try:
            replay, result = self._recorder.record(lambda: self._call(*held_args, **held_kwargs))
        except RuntimeError as error:
            # Passes of this kind are launched kernel by kernel, as without graphs.
            logger.warning("a pass could not be recorded: %s", error)
            self._note_failures(kind, self._failures.get(kind, 0) + 1)
            self._count((threading.get_ident(), kind), self._calls_before - CALLS_BETWEEN)
            return None
        self.recorded += 1
        self._failures.pop(kind, None)
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        _, held = _taken_apart((held_args, held_kwargs))
        graph = self._graphs[kind] = _Recorded(held, replay, result)
        return graph

    def _note_failures(self, kind: Hashable, count: int) -> None:
        self._failures[kind] = count
        self._failures.move_to_end(kind)
        if len(self._failures) > MAX_COUNTED:
            self._failures.popitem(last=False)


def _bytes(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(each.nbytes for each in tensors)


def _taken_apart(value: Any) -> tuple[Hashable, tuple[torch.Tensor, ...]]:
    """Of what kind it is, and its tensors in their order."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype), (value,)
    if isinstance(value, Mapping):
        names = tuple(sorted(value))
        kind, tensors = _taken_apart([value[name] for name in names])
        return (names, kind), tensors
    if isinstance(value, list | tuple):
        parts = [_taken_apart(each) for each in value]
        return tuple(kind for kind, _ in parts), tuple(each for _, tensors in parts for each in tensors)
    return value, ()


def _copied(value: Any) -> Any:
    """The same with tensors of its own."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value
