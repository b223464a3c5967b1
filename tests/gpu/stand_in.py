"""A GPU where there is none: tensors on "cuda:0" whose numbers are the CPU's and whose rules are CUDA's.

What the CPU would forgive raises here, at the call that did it:

- tensors of two devices in one operation (a single number of the CPU's may meet any);
- memory that one stream reads or writes without having waited for the stream that wrote or reads it;
- memory given back while a stream other than its own may still be using it: the allocator would hand it out
  again too early;
- a look at a number, or a copy that is not from or to pinned memory, where `torch.cuda.set_sync_debug_mode`
  or a recording forbids that the host waits;
- a replay, or random numbers of the default generator, after a recording that ended badly and before one that
  ended well.

What cannot raise is spoiled, so that a picture shows it: pinned memory holds rubbish until the host has
waited for the copy into it; a recording computes nothing; and whenever a recorded graph is replayed, what
others of its pool have left is overwritten.

It times nothing, compiles nothing and knows no kernel of CUDA's. Who comes before whom is told by vector
clocks (Mattern, 1989), with the whole host for one clock: threads of the host are taken to know what any of
them has waited for.
"""

from __future__ import annotations

import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["StandIn"]

DEVICE = torch.device("cuda:0")
WAITS = "the host would wait for the device here"
# What ends with a look at a status or a size.
LOOKING = ("linalg_solve", "linalg_inv", "linalg_cholesky", "nonzero", "masked_select", "unique", "equal")
RUBBISH = 0xA5
# CUDA's operations that a CPU lacks, by others.
LACKING = {torch.ops.aten.mm.dtype: lambda one, other, kind: one.to(kind) @ other.to(kind)}

Clock = dict[int, int]


def _join(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


def _spoil(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    elif tensor.numel():
        tensor.view(torch.uint8).fill_(RUBBISH) if tensor.is_contiguous() else tensor.fill_(1)


class Memory:
    """One allocation: the stream it is of, and who touched it last."""

    def __init__(self, gpu: StandIn, stream: int, pool: object = None) -> None:
        self._gpu, self.stream, self.pool = gpu, stream, pool
        self.written: tuple[int, int] = (stream, 0)
        self.read: Clock = {}

    def touch(self, stream: Stream, *, writes: bool, what: str) -> None:
        """The stream's newest work reads or writes it."""
        before = dict([self.written])
        if writes:
            _join(before, self.read)
        for other, tick in before.items():
            if tick > stream.clock.get(other, 0):
                verb = "writes" if writes else "reads"
                raise RuntimeError(f"race: {what} on stream {stream.number} {verb} what stream {other} uses")
        if writes:
            self.written, self.read = (stream.number, stream.tick), {}
        else:
            self.read[stream.number] = stream.tick

    def __del__(self) -> None:
        used = dict(self.read)
        _join(used, dict([self.written]))
        known: Clock = {}
        with suppress(Exception):
            known = self._gpu.known_to(self.stream)
        for other, tick in used.items():
            if other != self.stream and tick > known.get(other, 0):
                self._gpu.faults.append(
                    f"memory of stream {self.stream} was given back while stream {other} may use it"
                )


class OnGpu(torch.Tensor):
    """A tensor of the device. `host` has its numbers."""

    host: torch.Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, gpu: StandIn, host: torch.Tensor, memory: Memory) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        return made

    def __init__(self, gpu: StandIn, host: torch.Tensor, memory: Memory) -> None:
        self.gpu, self.host, self.memory = gpu, host, memory

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.clone()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        gpu = next(each.gpu for each in _leaves((args, kwargs)) if isinstance(each, OnGpu))
        return gpu.launch(function, args, kwargs)


class Stream:
    def __init__(self, gpu: StandIn) -> None:
        self._gpu = gpu
        self.number = len(gpu.streams)
        gpu.streams.append(self)
        self.tick = 0
        # Up to which work of each stream this one's next work comes after.
        self.clock: Clock = {}

    def advance(self) -> None:
        """New work is put in; the host's own knowledge comes before it."""
        _join(self.clock, self._gpu.host_clock)
        self.tick += 1
        self.clock[self.number] = self.tick

    def wait_stream(self, other: Stream) -> None:
        _join(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        _join(self.clock, event.clock)

    def synchronize(self) -> None:
        self._gpu.host_waits_for(self.clock)


class Event:
    """Passed once the host has waited for it, or at the second question."""

    def __init__(self, gpu: StandIn, enable_timing: bool = False, blocking: bool = False) -> None:
        self._gpu, self._timed = gpu, enable_timing
        self.clock: Clock = {}
        self._at = 0.0
        self._asked = False
        self._passed = True

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._gpu.current
        stream.advance()
        self.clock, self._at = dict(stream.clock), time.perf_counter()
        self._asked = self._passed = False

    def query(self) -> bool:
        if not self._passed and self._asked:
            self.synchronize()
        self._asked = True
        return self._passed

    def synchronize(self) -> None:
        self._gpu.host_waits_for(self.clock)
        self._passed = True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds between two events that have passed, neither of which CUDA lets be anything else."""
        if not (self._timed and end._timed):
            raise RuntimeError("both events must be made with enable_timing")
        known = self._gpu.host_clock
        for event in (self, end):
            if any(tick > known.get(stream, 0) for stream, tick in event.clock.items()):
                raise RuntimeError("an event that has not passed has no time")
        return (end._at - self._at) * 1000


@dataclass
class Launch:
    """One recorded operation and where it leaves its results; none where these are but views."""

    function: Any
    args: Any
    kwargs: Any
    results: list[torch.Tensor]


class Graph:
    def __init__(self, gpu: StandIn) -> None:
        self._gpu = gpu
        self.launches: list[Launch] = []
        self.pool: Any = None
        self.broken = False
        # What it reads from outside and what it makes.
        self.reads: set[Memory] = set()
        self.makes: set[Memory] = set()

    def capture_begin(self, *, pool: Pool, capture_error_mode: str) -> None:
        self._gpu.record(self, pool)

    def capture_end(self) -> None:
        self._gpu.end_record(self)

    def replay(self) -> None:
        gpu = self._gpu
        gpu.draws_random_numbers()
        stream = gpu.current
        stream.advance()
        for memory in self.reads:
            memory.touch(stream, writes=False, what="a graph")
        for memory in self.makes:
            memory.touch(stream, writes=True, what="a graph")
        for other in self.pool.graphs:
            if other is not self:
                other.spoil()
        for launch in self.launches:
            found = _tensors(launch.function(*launch.args, **launch.kwargs))
            for held, each in zip(launch.results, found, strict=True):
                if held is not each:
                    held.copy_(each)

    def spoil(self) -> None:
        for launch in self.launches:
            for result in launch.results:
                _spoil(result)


@dataclass
class Pool:
    recording: bool = False
    graphs: weakref.WeakSet[Graph] = field(default_factory=weakref.WeakSet)


class _Local(threading.local):
    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.graph: Graph | None = None
        self.entered = False


class StandIn:
    """One GPU. `modes` makes a thread see it; so does `torch.cuda.stream`, once it is `installed`."""

    def __init__(self) -> None:
        self._local = _Local()
        self._memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
        self._pinned: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # Copies into pinned memory that the host has not waited for: after which tick of which stream.
        self._arriving: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        self._lock = threading.RLock()
        self._sync_debug = "default"
        # Of the default generator: torch up to 2.11 sets it back at a recording's good end alone.
        self._is_recorded = False
        self.host_clock: Clock = {}
        self.streams: list[Stream] = []
        self.faults: list[str] = []
        self._default = Stream(self)

    # Streams and the host

    @property
    def current(self) -> Stream:
        return self._local.streams[-1] if self._local.streams else self._default

    def known_to(self, stream: int) -> Clock:
        clock = dict(self.streams[stream].clock)
        _join(clock, self.host_clock)
        return clock

    def host_waits_for(self, clock: Clock) -> None:
        with self._lock, torch.inference_mode():
            _join(self.host_clock, clock)
            still = []
            for stream, tick, target, source in self._arriving:
                if tick <= self.host_clock.get(stream, 0):
                    target.copy_(source)
                else:
                    still.append((stream, tick, target, source))
            self._arriving = still

    def synchronize(self, device: Any = None) -> None:
        self._may_wait("torch.cuda.synchronize", debugged=False)
        for stream in self.streams:
            self.host_waits_for(stream.clock)

    def _may_wait(self, what: str, *, debugged: bool = True) -> None:
        if self._local.graph is not None:
            self._local.graph.broken = True
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if debugged and self._sync_debug == "error":
            raise RuntimeError(f"{WAITS}: {what}")

    def _waits(self, what: str) -> None:
        self._may_wait(what)
        self.host_waits_for(self.current.clock)

    # Operations

    def launch(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """`function`, of torch's dispatcher, on the current stream."""
        with self._lock:
            name = str(function).partition(".")[2]
            given = _tensors((args, kwargs))
            if name.startswith(("rand", "normal", "uniform")) and kwargs.get("generator") is None:
                self.draws_random_numbers()
            if name.startswith("_has_compatible_shallow_copy_type"):
                return False
            if name.startswith(("copy_", "_to_copy", "to.")):
                return self._copy(name, function, args, kwargs)
            device = kwargs.get("device")
            if device is not None:
                if torch.device(device).type == "cpu" and not any(isinstance(each, OnGpu) for each in given):
                    return function(*args, **kwargs)
                kwargs = {**kwargs, "device": "cpu"}
            strangers = [each for each in given if not isinstance(each, OnGpu)]
            if "index" in name and any(each.ndim for each in strangers):
                raise RuntimeError(f"{name}: indices of the CPU's are brought over by a copy that waits")
            if any(each.ndim for each in strangers):
                raise RuntimeError(f"{name}: tensors of cuda:0 and of the CPU in one operation")
            masks = "index" in name and any(each.dtype == torch.bool for each in given[1:])
            if masks or any(each in name for each in LOOKING):
                self._waits(name)
            if name.startswith(("_local_scalar_dense", "is_nonzero")):
                self._waits(name)
                return function(*_hosts(args), **_hosts(kwargs))
            return self._run(name, LACKING.get(function, function), args, kwargs)

    def _copy(self, name: str, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if name.startswith("copy_"):
            target, source = args[:2]
            early = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            if isinstance(target, OnGpu) == isinstance(source, OnGpu):
                return self._run(name, function, args, kwargs)
            if isinstance(target, OnGpu):
                self._comes(name, source, early)
                self._touched(name, [], [target])
                target.host.copy_(source)
                return target
            self._goes(name, source, target, early and target in self._pinned)
            return target
        named = [argument.name for argument in function._schema.arguments]
        wanted = {**dict(zip(named, args, strict=False)), **kwargs}
        source = wanted.pop("self")
        early = bool(wanted.pop("non_blocking", False))
        other = wanted.pop("other", None)
        if other is not None:
            wanted |= {"device": other.device, "dtype": other.dtype}
        device = wanted.pop("device", None)
        kept = ("dtype", "memory_format", "copy")
        wanted = {key: wanted[key] for key in kept if wanted.get(key) is not None}
        goes_to_gpu = isinstance(source, OnGpu) if device is None else torch.device(device).type == "cuda"
        if isinstance(source, OnGpu) and goes_to_gpu:
            return self._run(name, _convert, (source,), wanted)
        if isinstance(source, OnGpu):
            made = torch.empty_like(source.host, dtype=wanted.get("dtype"))
            # Into ordinary memory: the host waits, whatever was asked for.
            self._goes(name, source, made, early=False)
            return made
        if not goes_to_gpu:
            return function(*args, **kwargs)
        self._comes(name, source, early)
        return self._made(source.to(**{**wanted, "copy": True}), self._touched(name, [], []))

    def _comes(self, name: str, source: torch.Tensor, early: bool) -> None:
        if not (early and source in self._pinned):
            self._may_wait(f"{name} from memory that is not pinned" if early else name)

    def _goes(self, name: str, source: OnGpu, target: torch.Tensor, early: bool) -> None:
        stream = self._touched(name, [source], [])
        if not early:
            self._waits(name)
            target.copy_(source.host)
            return
        if self._local.graph is not None:
            raise NotImplementedError("a recorded copy to the host")
        _spoil(target)
        self._arriving.append((stream.number, stream.tick, target, source.host.clone()))

    def _run(self, name: str, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        schema = getattr(function, "_schema", None)
        changed = []
        for number, argument in enumerate(schema.arguments if schema else ()):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, OnGpu):
                changed.append(value)
        changed += args[: getattr(function, "changes", 0)]
        given = [each for each in _tensors((args, kwargs)) if isinstance(each, OnGpu)]
        inputs = {id(each.host): each for each in given}
        known = {each.host.untyped_storage().data_ptr() for each in given}
        graph = self._local.graph
        if graph is not None and any(each.memory.pool is not graph for each in changed):
            raise NotImplementedError(f"{name} changes what was there before the recording")
        stream = self._touched(name, given, changed)
        host_args, host_kwargs = _hosts(args), _hosts(kwargs)
        result = function(*host_args, **host_kwargs)

        def wrap(each: Any) -> Any:
            if not isinstance(each, torch.Tensor):
                return each
            return inputs[id(each)] if id(each) in inputs else self._made(each, stream)

        if graph is not None:
            found = _tensors(result)
            fresh = [each for each in found if each.untyped_storage().data_ptr() not in known]
            if fresh or changed:
                graph.launches.append(Launch(function, host_args, host_kwargs, found))
                for each in found:
                    _spoil(each)
        return _mapped(wrap, result)

    def _touched(self, name: str, read: Sequence[OnGpu], written: Sequence[OnGpu]) -> Stream:
        stream = self.current
        stream.advance()
        graph = self._local.graph
        for tensor in read:
            if graph is not None and tensor.memory.pool is not graph:
                graph.reads.add(tensor.memory)
            tensor.memory.touch(stream, writes=False, what=name)
        for tensor in written:
            tensor.memory.touch(stream, writes=True, what=name)
        return stream

    def _made(self, host: torch.Tensor, stream: Stream) -> OnGpu:
        place = host.untyped_storage().data_ptr()
        memory = self._memories.get(place) if host.numel() else None
        graph = self._local.graph
        if memory is None:
            memory = Memory(self, stream.number, graph)
            memory.written = (stream.number, stream.tick)
            if graph is not None:
                graph.makes.add(memory)
            if host.numel():
                self._memories[place] = memory
        return OnGpu(self, host, memory)

    # What torch is asked for by name

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned[tensor] = True
        return tensor

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Within, this thread can make tensors on the device and bring them there."""
        if self._local.entered:
            yield
            return
        self._local.entered = True
        try:
            with _Calls(self), _Operations(self):
                yield
        finally:
            self._local.entered = False

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        self._local.streams.append(stream)
        try:
            with self.modes():
                yield
        finally:
            self._local.streams.pop()

    def record(self, graph: Graph, pool: Pool) -> None:
        if self.current is self._default:
            raise RuntimeError("the default stream cannot be recorded")
        if pool.recording:
            raise RuntimeError("the pool is being recorded to already")
        pool.recording, graph.pool = True, pool
        pool.graphs.add(graph)
        self._local.graph = graph
        self._is_recorded = True

    def end_record(self, graph: Graph) -> None:
        self._local.graph = None
        if graph.broken:
            raise RuntimeError("the recording was invalidated")
        graph.pool.recording = self._is_recorded = False

    def draws_random_numbers(self) -> None:
        """Each replay begins with the default generator, whether it draws from it or not."""
        if self._is_recorded and self._local.graph is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def _set_sync_debug_mode(self, mode: str) -> None:
        self._sync_debug = mode

    @contextmanager
    def installed(self) -> Iterator[StandIn]:
        """Within, torch.cuda means this one, and threads that are started see it."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "_lazy_init": lambda: None,
                "device_count": lambda: 1,
                "get_device_name": lambda device=None: "stand-in",
                "get_device_capability": lambda device=None: (9, 0),
                "Stream": lambda device=None, priority=0: Stream(self),
                "Event": lambda **options: Event(self, **options),
                "stream": self._on,
                "current_stream": lambda device=None: self.current,
                "synchronize": self.synchronize,
                "empty_cache": lambda: None,
                "reset_peak_memory_stats": lambda device=None: None,
                "max_memory_reserved": lambda device=None: 0,
                "mem_get_info": lambda device=None: (1, 2),
                "get_rng_state": lambda device=None: torch.get_rng_state(),
                "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
                "CUDAGraph": lambda: Graph(self),
                "graph_pool_handle": Pool,
                "set_sync_debug_mode": self._set_sync_debug_mode,
            }.items():
                patch.setattr(torch.cuda, name, value)
            patch.setattr(torch, "Generator", _Generator)
            run = threading.Thread.run

            def run_with_it(thread: threading.Thread) -> None:
                with self.modes():
                    run(thread)

            patch.setattr(threading.Thread, "run", run_with_it)
            # A module that is moved gets new parameters: new numbers in old ones would be unseen here.
            future = torch.__future__
            before = future.get_overwrite_module_params_on_conversion()
            future.set_overwrite_module_params_on_conversion(True)
            try:
                yield self
            finally:
                future.set_overwrite_module_params_on_conversion(before)


class _Generator(torch.Generator):
    """A device's generator draws what the CPU's does."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made: _Generator = super().__new__(cls, "cpu")
        return made


@dataclass(frozen=True)
class _OfHosts:
    """What the dispatcher has no operation for, under the name of one."""

    name: str
    function: Callable[..., Any]
    changes: int = 0

    def __str__(self) -> str:
        return f"aten.{self.name}"

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _Calls(TorchFunctionMode):
    """Pinning, which no dispatcher sees, and devices without a number."""

    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.pin_memory:
            return self._gpu.pin(args[0].clone())
        if function in _GUARDED and isinstance(args[0], OnGpu):
            return _GUARDED[function](self._gpu, *args, **kwargs)
        if function in _MADE_FROM_NUMBERS and _numbered(kwargs.get("device")) == DEVICE:
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        if function is torch.Tensor.cuda:
            return args[0].to(DEVICE, **kwargs)
        args = tuple(_numbered(each) for each in args)
        if "device" in kwargs:
            kwargs["device"] = _numbered(kwargs["device"])
        pinned = kwargs.pop("pin_memory", False)
        result = function(*args, **kwargs)
        return self._gpu.pin(result) if pinned else result


def _get(gpu: StandIn, tensor: OnGpu, index: Any) -> Any:
    return gpu.launch(_OfHosts("index.get", lambda host, index: host[index]), (tensor, index), {})


def _put(gpu: StandIn, tensor: OnGpu, index: Any, value: Any) -> None:
    gpu.launch(_OfHosts("index.put", operator.setitem, changes=1), (tensor, index, value), {})


def _expand(gpu: StandIn, tensor: OnGpu, *sizes: Any) -> Any:
    return gpu.launch(_OfHosts("expand", torch.Tensor.expand), (tensor, *sizes), {})


def _look(convert: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    return lambda gpu, tensor: convert(tensor.cpu())


# What would ask for a real device's guard on its way to the dispatcher.
_GUARDED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _get,
    torch.Tensor.__setitem__: _put,
    # Of a parameter, where nothing is recorded for gradients.
    torch.Tensor.expand: _expand,
    torch.Tensor.copy_: lambda gpu, *args, **kwargs: torch.ops.aten.copy_(*args, **kwargs),
    torch.Tensor.contiguous: lambda gpu, *args, **kwargs: torch.ops.aten.contiguous(*args, **kwargs),
    torch.Tensor.item: _look(torch.Tensor.item),
    torch.Tensor.tolist: _look(torch.Tensor.tolist),
    torch.Tensor.__float__: _look(float),
    torch.Tensor.__int__: _look(int),
    torch.Tensor.__index__: _look(int),
}
_MADE_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray)


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(map(_is_of_gpu, _leaves((args, kwargs)))):
            return self._gpu.launch(function, args, kwargs)
        return function(*args, **kwargs)


def _is_of_gpu(value: Any) -> bool:
    return isinstance(value, OnGpu) or (isinstance(value, torch.device) and value.type == "cuda")


def _numbered(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return DEVICE
    return DEVICE if isinstance(value, str) and value == "cuda" else value


def _convert(tensor: torch.Tensor, **wanted: Any) -> torch.Tensor:
    return tensor.to(**wanted) if wanted else tensor


def _leaves(values: Any) -> Iterator[Any]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, tuple | list | dict):
            yield from _leaves(value)
        else:
            yield value


def _tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in _leaves((values,)) if isinstance(each, torch.Tensor)]


def _mapped(change: Callable[[Any], Any], values: Any) -> Any:
    if isinstance(values, tuple | list):
        return type(values)(_mapped(change, each) for each in values)
    if isinstance(values, dict):
        return {key: _mapped(change, each) for key, each in values.items()}
    return change(values)


def _hosts(values: Any) -> Any:
    return _mapped(lambda each: each.host if isinstance(each, OnGpu) else each, values)
