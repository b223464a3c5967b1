"""A CPU in the chip's place, as strict as the chip.

A plain TorchScript module takes any shape that its operations allow; a compiled graph takes the one it was
compiled for. This runs the former and refuses whatever the latter would: another number of inputs, shape,
rank, dtype, device, or a tensor that is not contiguous; cores that are not ascending neighbours, or are not
there. It counts the calls, and can fail as the runtime fails.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mezzotint.backends.neuron.runtime import Graph, read_graph
from mezzotint.backends.neuron.shapes import Input
from mezzotint.cores import VISIBLE_CORES, check_cores, read_cores
from mezzotint.errors import SettingInvalid

__all__ = ["Fault", "StandIn"]

# What this process has where nothing says which cores: an Inferentia2 chip.
CHIP_CORES = 2

Fault = Callable[[str, int], None]
"""Asked before each call with the component and the number of its call, from 1; raises or waits."""


class StandIn:
    """Loads artefacts that were compiled for `cpu`.

    calls: how many there were, by component. refused: what was refused, in words, the latest last.
    """

    name = "neuron-stand-in"
    device = "neuron (stand-in on a CPU)"

    def __init__(self, *, fault: Fault | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.refused: list[str] = []
        self.fault = fault
        self._lock = threading.Lock()

    def load(self, component: str, path: Path, inputs: Sequence[Input], core: int) -> Graph:
        # As the runtime does when it starts: the order in the variable is what it is.
        given = os.environ.get(VISIBLE_CORES, "").strip()
        cores = read_cores(given) if given else tuple(range(CHIP_CORES))
        check_cores(cores)
        if not 0 <= core < len(cores):
            raise SettingInvalid(
                f"the graphs are to be spread over {core + 1} cores; this process has {len(cores)}",
                param=VISIBLE_CORES,
            )
        graph = read_graph(path)

        def call(*tensors: torch.Tensor) -> Any:
            self._check(component, tensors, inputs)
            with self._lock:
                self.calls[component] += 1
                number = self.calls[component]
            if self.fault is not None:
                self.fault(component, number)
            return graph(*tensors)

        return call

    def _check(self, component: str, tensors: Sequence[torch.Tensor], inputs: Sequence[Input]) -> None:
        if len(tensors) != len(inputs):
            self._refuse(component, f"{len(tensors)} inputs; it was compiled for {len(inputs)}")
        for tensor, expected in zip(tensors, inputs, strict=True):
            found, wanted = (
                f"{_shape(tensor.shape)} {tensor.dtype}",
                f"{_shape(expected.shape)} torch.{expected.dtype}",
            )
            if found != wanted:
                self._refuse(component, f"{expected.name} is {found}; it was compiled for {wanted}")
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                self._refuse(component, f"{expected.name} is not contiguous in the host's memory")

    def _refuse(self, component: str, why: str) -> None:
        self.refused.append(f"{component}: {why}")
        raise RuntimeError(f'nrt_execute status=1002 message="Bad Input": {component}: {why}')


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
