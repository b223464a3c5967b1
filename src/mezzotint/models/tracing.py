"""One module of a model, traced into a graph of fixed shapes: for a NeuronCore, or for a CPU in its place.

`torch_neuronx` is imported only when a chip's graph is wanted; it comes with AWS's image. Its flags and its
calls are written to its documented behaviour and were not run (docs/neuron.md).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mezzotint.backends.neuron.shapes import Input, inputs_of
from mezzotint.backends.parts import PipelineParts
from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.errors import ModelInvalid, SettingInvalid

__all__ = [
    "Shape",
    "check_target",
    "configuration_of",
    "flags_of",
    "installed",
    "toolchain_of",
    "trace",
]

TARGETS = ("inf2", "trn1", "cpu")
PACKAGES = {"cpu": ("torch",), "inf2": ("torch", "torch-neuronx", "neuronx-cc")}
# Matrix products in bf16, everything else in fp32, as optimum-neuron compiles SDXL.
CAST_FLAGS = ("--auto-cast", "matmult", "--auto-cast-type", "bf16")
KIND_FLAGS = {
    "text_encoder": ("--model-type=transformer", "--enable-fast-loading-neuron-binaries"),
    "text_encoder_2": ("--model-type=transformer", "--enable-fast-loading-neuron-binaries"),
    "unet": ("--model-type=unet-inference",),
    "vae_encoder": ("--model-type=unet-inference", "--enable-fast-loading-neuron-binaries"),
    "vae_decoder": ("--model-type=unet-inference", "--enable-fast-loading-neuron-binaries"),
}


@dataclass(frozen=True)
class Shape:
    """What a graph is compiled for: a picture's size in pixels, and rows of the UNet."""

    width: int
    height: int
    batch: int


def check_target(target: str) -> None:
    """Refuse a target that is none, or that this machine cannot compile for.

    Raises:
        SettingInvalid: and what is needed.
    """
    if target not in TARGETS:
        raise SettingInvalid(f"--target takes {', '.join(TARGETS)}; not {target!r}", param="target")
    if target == "cpu":
        return
    missing = [name for name in ("torch-neuronx", "neuronx-cc") if installed(name) is None]
    if missing:
        raise SettingInvalid(
            f"--target {target} needs {' and '.join(missing)}, which AWS's Neuron image has "
            "(docs/neuron.md); --target cpu needs nothing more",
            param="target",
        )


def toolchain_of(target: str) -> dict[str, str]:
    """The versions of what compiles for `target`, of those that are installed, without local suffixes."""
    names = PACKAGES["cpu" if target == "cpu" else "inf2"]
    return {name: found.partition("+")[0] for name in names if (found := installed(name)) is not None}


def installed(name: str) -> str | None:
    """The version of a package; `None` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def flags_of(component: str, target: str) -> tuple[str, ...]:
    """What the compiler is told; nothing, for a CPU."""
    return () if target == "cpu" else (*KIND_FLAGS[component], *CAST_FLAGS, "--target", target)


def configuration_of(component: str, parts: PipelineParts, shape: Shape, target: str) -> dict[str, Any]:
    """The component's `config.json`, with optimum-neuron's `neuron` table."""
    toolchain = toolchain_of(target)
    compiler = "torch" if target == "cpu" else "neuronx-cc"
    config = _module(component, parts).config
    # diffusers' configurations are mappings, transformers' are objects.
    plain = dict(config) if isinstance(config, Mapping) else config.to_dict()
    return {
        **{key: value for key, value in plain.items() if key != "_name_or_path"},
        "neuron": {
            "compiler_type": compiler,
            "compiler_version": toolchain.get(compiler, "unknown"),
            "inline_weights_to_neff": True,
            **_static_shape(component, parts, shape),
            "dynamic_batch_size": False,
            "tensor_parallel_size": 1,
            "auto_cast": None if target == "cpu" else "matmul",
            "auto_cast_type": None if target == "cpu" else "bf16",
            "int_dtype": "int64",
            "float_dtype": "fp32",
            "output_hidden_states": component.startswith("text_encoder"),
        },
    }


def _static_shape(component: str, parts: PipelineParts, shape: Shape) -> dict[str, int]:
    window = int(parts.tokenizers[0].model_max_length)
    if component.startswith("text_encoder"):
        # Prompts are encoded and pictures decoded one by one, as requests come and end.
        return {"static_batch_size": 1, "static_sequence_length": window}
    channels = {
        "unet": parts.unet.config.in_channels,
        "vae_encoder": parts.vae.config.in_channels,
        "vae_decoder": parts.vae.config.latent_channels,
    }
    scale = 1 if component == "vae_encoder" else PIXELS_PER_LATENT
    picture = {
        "static_batch_size": shape.batch if component == "unet" else 1,
        "static_num_channels": int(channels[component]),
        "static_height": shape.height // scale,
        "static_width": shape.width // scale,
    }
    return {**picture, "static_sequence_length": window} if component == "unet" else picture


def trace(
    component: str, parts: PipelineParts, configuration: Mapping[str, Any], target: str, path: Path
) -> None:
    """Trace one component for the shapes of its configuration, into a TorchScript archive at `path`.

    Raises:
        ModelInvalid: the model cannot be traced, or reads what the graphs have no input for.
    """
    if parts.unet.config.time_cond_proj_dim is not None:
        raise ModelInvalid(
            "a model that reads its guidance scale is not compiled: the graphs have no input for it"
        )
    module = _WRAPPERS[component](_module(component, parts)).eval()
    examples = tuple(_example(each) for each in inputs_of(component, configuration))
    with torch.no_grad(), warnings.catch_warnings():
        # Shapes are meant to be constants here, and torch tells of a successor that Neuron does not read.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        # torch's tracer looks at every attribute of a module, transformers' retired ones too.
        warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
        if target == "cpu":
            graph = torch.jit.trace(module, examples, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        else:
            graph = _trace_for_neuron(module, examples, flags_of(component, target))
        torch.jit.save(graph, str(path))


def _trace_for_neuron(module: nn.Module, examples: tuple[torch.Tensor, ...], flags: tuple[str, ...]) -> Any:
    try:
        torch_neuronx = importlib.import_module("torch_neuronx")
    except ImportError as error:
        # The packages of these names on PyPI are placeholders.
        raise SettingInvalid(
            f"torch-neuronx is installed and cannot be imported: {error}", param="target"
        ) from None
    # Without a chip the compiler alone is at work, so a plain CPU machine can compile.
    return torch_neuronx.trace(
        module, examples, compiler_args=list(flags), cpu_backend=True, inline_weights_to_neff=True
    )


def _example(expected: Input) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if expected.dtype == "int64":
        return torch.zeros(expected.shape, dtype=torch.int64)
    if expected.name == "timestep":
        # Each its own: of equal ones a compiler might make a constant, or one for all.
        return torch.linspace(999.0, 1.0, expected.shape[0])
    return torch.randn(expected.shape, generator=generator)


def _module(component: str, parts: PipelineParts) -> Any:
    modules = {
        "text_encoder": parts.text_encoders[0],
        "text_encoder_2": parts.text_encoders[1],
        "unet": parts.unet,
    }
    return modules.get(component, parts.vae)


class _Component(nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


class _TextEncoder(_Component):
    def forward(self, input_ids: torch.Tensor) -> tuple[Any, ...]:
        output = self.module(input_ids, output_hidden_states=True)
        return tuple(output.to_tuple())


class _UNet(_Component):
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        output = self.module(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )
        return (output[0],)


class _VaeEncoder(_Component):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.module.encode(sample).latent_dist.parameters,)


class _VaeDecoder(_Component):
    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.module.decode(latent_sample, return_dict=False)[0],)


_WRAPPERS: Mapping[str, Callable[[Any], _Component]] = {
    "text_encoder": _TextEncoder,
    "text_encoder_2": _TextEncoder,
    "unet": _UNet,
    "vae_encoder": _VaeEncoder,
    "vae_decoder": _VaeDecoder,
}
