"""What loads a graph: Neuron's runtime, or whatever stands in for it.

`torch_neuronx` is imported here and nowhere else at run time, when the first graph is loaded: it fixes the
visible cores and wants the chip. Written to its documented behaviour; not run on a chip (docs/neuron.md).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mezzotint.backends.neuron.shapes import Input
from mezzotint.errors import SettingInvalid

__all__ = ["Graph", "NeuronRuntime", "Runtime", "read_graph"]

Graph = Callable[..., Any]
"""Called with tensors by position; gives a tensor, or a tuple or mapping of such."""


class Runtime(Protocol):
    """`name` and `device` go into receipts and capabilities."""

    name: str
    device: str

    def load(self, component: str, path: Path, inputs: Sequence[Input], core: int) -> Graph:
        """The graph at `path`, which the caller has verified, on one core, counted from this process's first.

        Raises:
            SettingInvalid: there is no such core, or what loads graphs is not installed.
        """
        ...


@dataclass
class NeuronRuntime:
    """The chip."""

    name: str = "neuron"
    device: str = "neuron"

    def load(self, component: str, path: Path, inputs: Sequence[Input], core: int) -> Graph:
        placement = _placement()
        # Directly onto its core: a graph that is moved later is loaded twice.
        with placement.neuron_cores_context(start_nc=core, nc_count=1):
            return read_graph(path)


def _placement() -> Any:
    try:
        importlib.import_module("torch_neuronx")
        return importlib.import_module("torch_neuronx.experimental")
    except ImportError as error:
        raise SettingInvalid(
            f"--device neuron needs torch-neuronx ({error}); it comes with AWS's Neuron image "
            "(docs/neuron.md), or run an artefact compiled for cpu with --stand-in",
            param="device",
        ) from None


def read_graph(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript archive. Runs the code in it: only after its manifest matched."""
    with warnings.catch_warnings():
        # torch tells of a successor that Neuron's compiler does not write.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        graph: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return graph.eval()
