"""Where a backend's work is queued: on a CPU nowhere, on a GPU on two streams. Knows no requests.

Steps have a stream of high priority, decoding one of low: a decode fills what steps leave free and is held
up whenever they have work, kernel by kernel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

__all__ = ["CudaStreams", "Fetched", "HostStreams", "Streams", "streams_of"]


class Fetched(Protocol):
    """A tensor on its way to the CPU, behind all that its queue held when it was asked for."""

    def arrived(self) -> bool:
        """Whether it is there, and the device has come to that place in its queue."""
        ...

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there. From any thread, any number of times."""
        ...

    def device_seconds(self) -> float:
        """How long the device took from the `Streams.begin` it was fetched with, once it has arrived."""
        ...


class Streams(Protocol):
    """`queues`: whether work goes on behind the caller's back."""

    queues: bool

    def steps(self) -> AbstractContextManager[Any]:
        """Within, this thread's work goes to the steps' queue."""
        ...

    def decodes(self) -> AbstractContextManager[Any]:
        """Within, this thread's work goes to the decodes' queue."""
        ...

    def begin(self) -> Any:
        """The place in the steps' queue where a pass begins, to time by."""
        ...

    def fetch(self, tensor: torch.Tensor, begun: Any = None) -> Fetched:
        """Bring `tensor` to the CPU by one copy, in this thread's queue. Waits for nothing."""
        ...

    def finish(self) -> None:
        """Wait until all is done that this thread's queue holds."""
        ...


class HostStreams:
    """A CPU does what it is told before it returns."""

    queues = False

    def steps(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def decodes(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def begin(self) -> Any:
        return None

    def fetch(self, tensor: torch.Tensor, begun: Any = None) -> Fetched:
        return _OnHost(tensor)

    def finish(self) -> None:
        pass


class _OnHost:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def arrived(self) -> bool:
        return True

    def wait(self) -> torch.Tensor:
        return self._tensor

    def device_seconds(self) -> float:
        raise NotImplementedError("a CPU's passes are timed by whoever calls them")


class CudaStreams:
    """Two CUDA streams of one GPU."""

    queues = True

    def __init__(self, device: torch.device) -> None:
        lowest, highest = 0, -1
        self._steps = torch.cuda.Stream(device, priority=highest)  # type: ignore[no-untyped-call]
        self._decodes = torch.cuda.Stream(device, priority=lowest)  # type: ignore[no-untyped-call]
        for stream in (self._steps, self._decodes):
            # The weights were put there by the default stream.
            stream.wait_stream(torch.cuda.current_stream(device))

    def steps(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._steps)

    def decodes(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._decodes)

    def begin(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._steps)
        return event

    def fetch(self, tensor: torch.Tensor, begun: Any = None) -> Fetched:
        return _FromCuda(tensor, begun)

    def finish(self) -> None:
        event = _blocking_event()
        event.record()
        event.synchronize()


class _FromCuda:
    def __init__(self, tensor: torch.Tensor, begun: Any) -> None:
        self._begun = begun
        self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._tensor.copy_(tensor, non_blocking=True)
        self._event = _blocking_event(enable_timing=begun is not None)
        self._event.record()

    def arrived(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> torch.Tensor:
        self._event.synchronize()
        return self._tensor

    def device_seconds(self) -> float:
        return float(self._begun.elapsed_time(self._event)) / 1000


def _blocking_event(*, enable_timing: bool = False) -> Any:
    """Who waits for it leaves the processor and the interpreter to others."""
    return torch.cuda.Event(enable_timing=enable_timing, blocking=True)  # type: ignore[no-untyped-call]


def streams_of(device: torch.device) -> Streams:
    return CudaStreams(device) if device.type == "cuda" else HostStreams()
