"""Have optimum-neuron's own exporter write a folder, with stand-ins for what only AWS's image has.

Runs in an environment of its own (`make contract`): `python export.py MODEL FOLDER`. The compiler is torch's
own tracer, so the graphs are a CPU's; everything around them, names, shapes and configurations, is the
exporter's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before the stand-ins: these look for torch_xla, and would take it for the real one.
import accelerate  # noqa: F401
import diffusers  # noqa: F401
import torch
import transformers  # noqa: F401

WIDTH, HEIGHT, BATCH = 64, 32, 4
ABSENT = (
    "torch_neuronx",
    "neuronxcc",
    "libneuronxla",
    "neuronx_distributed",
    "torch_xla",
    "neuronx_distributed_inference",
)
VERSIONS = {"torch_neuronx": "2.8.0.2.10.16998", "neuronx_cc": "2.21.33363.0", "torch_xla": "2.8.0"}
VERSIONS |= {"neuronxcc": "2.21.33363.0", "libneuronxla": "2.2.12677.0", "neuronx_distributed": "0.15.22404"}


class Anything(type):
    """A class that has every attribute, and is called with whatever."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


def _anything(name: str) -> Any:
    return Anything(name, (), {"__init__": lambda self, *_, **__: None, "__module__": "absent"})


class Absent(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = Absent(spec.name)
        module.__version__ = VERSIONS.get(spec.name, "0")  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "torch_neuronx":
            vars(module).update(
                trace=trace, async_load=leave, lazy_load=leave, dynamic_batch=lambda graph: graph
            )


def trace(module: Any, examples: Any, **_: Any) -> Any:
    return torch.jit.trace(module, examples, strict=False, check_trace=False)


def leave(*_: Any, **__: Any) -> None:
    pass


def pretend_they_are_installed() -> None:
    folder = Path(tempfile.mkdtemp())
    for name, version in VERSIONS.items():
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, Finder())


def main(arguments: Sequence[str]) -> None:
    model, output = arguments
    pretend_they_are_installed()
    from optimum.exporters.neuron.__main__ import main_export

    shapes = {"batch_size": BATCH, "width": WIDTH, "height": HEIGHT}
    main_export(
        model_name_or_path=model,
        output=output,
        task="text-to-image",
        library_name="diffusers",
        compiler_kwargs={"auto_cast": "matmul", "auto_cast_type": "bf16"},
        text_encoder={"batch_size": BATCH},
        unet_or_transformer=dict(shapes),
        vae_encoder=dict(shapes),
        vae_decoder=dict(shapes),
        do_validation=False,
        disable_neuron_cache=True,
        output_hidden_states=True,
        dynamic_batch_size=False,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
