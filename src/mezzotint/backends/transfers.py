"""Small things to a GPU without waiting for it.

A copy from ordinary memory makes the host wait until the GPU has come to it; one from pinned memory does not.
Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["WithoutWaiting", "to_device"]

_FACTORIES = (torch.ones, torch.zeros, torch.full, torch.empty)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, of the CPU, on `device`; the host goes on at once. On a CPU the tensor itself."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class WithoutWaiting(TorchFunctionMode):
    """Within, what a diffusers scheduler brings to the GPU is brought without waiting.

    A scheduler draws ancestral noise on the CPU and copies it, and some (UniPC) copy single numbers, solve
    2×2 systems on the device, and read the result's status back. So here: single numbers stay on the CPU,
    where torch reads them for nothing; everything else of the CPU's is copied from pinned memory. The
    arithmetic is the schedulers' own.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.to and args[0].device.type == "cpu":
            return self._to(*args, **kwargs)
        if function is torch.tensor and self._leaves_the_host(kwargs.get("device")):
            target = kwargs.pop("device")
            made = torch.tensor(*args, **kwargs)
            return made if made.ndim == 0 else to_device(made, torch.device(target))
        if function in _FACTORIES and self._leaves_the_host(kwargs.get("device")) and args and args[0] == ():
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        # Converted on the CPU, so that what is copied is as small or as exact as it is wanted.
        converted = tensor if dtype is None else tensor.to(dtype)
        if not self._leaves_the_host(device) or tensor.ndim == 0:
            return converted
        return to_device(converted, device)

    def _leaves_the_host(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self._device.type != "cpu"
