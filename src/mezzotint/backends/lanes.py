"""Where a backend's work is queued: on a CPU nowhere, on a GPU on two streams. Knows no requests.

Steps have a stream of high priority, decoding one of low: a decode fills what steps leave free and is held
up whenever they have work, kernel by kernel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

__all__ = ["CudaLanes", "HostLanes", "Lanes", "Mark", "lanes_of"]


class Mark(Protocol):
    """A place in the steps' queue, and flags that are known once the device has come to it."""

    def passed(self) -> bool:
        """Whether the device has come there."""
        ...

    def wait(self) -> list[bool]:
        """Wait until it has; the flags. From any thread, any number of times."""
        ...

    def device_seconds(self) -> float:
        """How long the device took from `Lanes.begin` to here, once it has passed."""
        ...


class Lanes(Protocol):
    """`queues`: whether work goes on behind the caller's back."""

    queues: bool

    def steps(self) -> AbstractContextManager[Any]:
        """Within, this thread's work goes to the steps' queue."""
        ...

    def decodes(self) -> AbstractContextManager[Any]:
        """Within, this thread's work goes to the decodes' queue."""
        ...

    def begin(self) -> Any:
        """The place where a pass begins, for `mark`."""
        ...

    def mark(self, begun: Any, flags: torch.Tensor) -> Mark:
        """The place where a pass ends that began at `begun`, and its flags (bool, 1-dimensional)."""
        ...

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` on the CPU, by one copy behind this thread's queue; waits for that queue alone."""
        ...


class HostLanes:
    """A CPU does what it is told before it returns."""

    queues = False

    def steps(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def decodes(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def begin(self) -> Any:
        return None

    def mark(self, begun: Any, flags: torch.Tensor) -> Mark:
        return _HostMark(flags)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()


class _HostMark:
    def __init__(self, flags: torch.Tensor) -> None:
        self._flags = flags

    def passed(self) -> bool:
        return True

    def wait(self) -> list[bool]:
        flags: list[bool] = self._flags.tolist()
        return flags

    def device_seconds(self) -> float:
        raise NotImplementedError("a CPU's passes are timed by whoever calls them")


class CudaLanes:
    """Two streams of one GPU."""

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

    def mark(self, begun: Any, flags: torch.Tensor) -> Mark:
        return _CudaMark(begun, flags, self._steps)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        # A thread that waits for an event it made leaves the other stream and the interpreter alone.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record()
        copied.synchronize()
        return host


class _CudaMark:
    def __init__(self, begun: Any, flags: torch.Tensor, stream: Any) -> None:
        self._begun = begun
        self._flags = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        self._flags.copy_(flags, non_blocking=True)
        self._event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def passed(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[bool]:
        self._event.synchronize()
        flags: list[bool] = self._flags.tolist()
        return flags

    def device_seconds(self) -> float:
        return float(self._begun.elapsed_time(self._event)) / 1000


def lanes_of(device: torch.device) -> Lanes:
    return CudaLanes(device) if device.type == "cuda" else HostLanes()
