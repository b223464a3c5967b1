"""Puts a `Tuning` into effect on the modules of one model. Knows no requests.

The order matters: projections are fused before they are quantised, quantised before they are compiled, and
CUDA graphs record what all of that left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetUnionModel
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.backends.channels_last import keep_channels_last
from mezzotint.backends.cuda_graphs import CudaRecorder, GraphedCalls
from mezzotint.backends.image_prompts import reading_images
from mezzotint.backends.unions import UnionKind, keep_rows_apart
from mezzotint.backends.wide_heads import slice_wide_heads
from mezzotint.errors import SettingInvalid
from mezzotint.tuning import Switch, Tuning

__all__ = [
    "compute_with",
    "is_on",
    "keeps_plain_weights",
    "prepare_compiling",
    "tune_controlnets",
    "tune_unet",
    "tune_vae",
    "with_plain_weights",
]

# The oldest GPUs that multiply fp8 (Ada, Hopper) and int8 (Ampere) as torchao does.
CAPABILITY = {"fp8": (8, 9), "int8": (8, 0)}
# Dynamo keeps what it has compiled of one function, for all models of the process, up to so many shapes and
# kinds; past its own limit of eight a pass would fail.
RECOMPILE_LIMIT = 256
# Both kernels take sides of this many numbers and their multiples.
QUANTISED_MULTIPLE = 16
# A row of zeros, such as a negative prompt that is not there, would be divided by its largest number.
LEAST_SCALED = 1e-6

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def is_on(switch: Switch, device: torch.device) -> bool:
    """What a switch means on `device`."""
    return switch == "on" or (switch == "auto" and device.type == "cuda")


# What keeps weights in another form than files have them in, and how not to.
PLAIN = {"fused_projections": "off", "quantisation": "none"}


def keeps_plain_weights(tuning: Tuning) -> bool:
    """Whether the weights may stay as files have them, so that they can change between passes."""
    return all(getattr(tuning, name) in (plain, "auto") for name, plain in PLAIN.items())


def with_plain_weights(tuning: Tuning) -> Tuning:
    """The tuning of a model with LoRAs, which change its weights between passes.

    Raises:
        SettingInvalid: it asks for what keeps weights in another form.
    """
    for name, plain in PLAIN.items():
        if getattr(tuning, name) not in (plain, "auto"):
            raise SettingInvalid(f"{name} must be {plain} with LoRAs", param=name)
    return replace(tuning, fused_projections="off")


def tune_vae(vae: Any, tuning: Tuning, device: torch.device) -> None:
    """Lay the VAE out, and its attention by slices unless a kernel is asked for, in place."""
    _lay_out(vae, tuning, device)
    if tuning.attention == "auto" and device.type == "cuda":
        slice_wide_heads(vae)
    if tuning.compile != "none":
        for half in (vae.encoder, vae.decoder):
            half.register_forward_pre_hook(lambda *_: prepare_compiling())


def tune_controlnets(
    nets: Mapping[str, Any], tuning: Tuning, device: torch.device
) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Lay ControlNets out and part them, in place: of each what reads a picture, once, and what to call for a
    pass of the rest, whose `controlnet_cond` is what was read.

    nets: as of `PipelineParts`; a module of several names is tuned once.

    Their blocks are neither quantised nor compiled: they are there for some of the rows and evaluations.
    """
    tuned: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {}
    parted = {}
    for name, net in nets.items():
        module = net.module if isinstance(net, UnionKind) else net
        if module not in tuned:
            tuned[module] = _tune_controlnet(module, tuning, device)
        read, compute = tuned[module]
        parted[name] = (read, net.called(compute, device) if isinstance(net, UnionKind) else compute)
    return parted


def _tune_controlnet(
    net: Any, tuning: Tuning, device: torch.device
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if isinstance(net, ControlNetUnionModel):
        keep_rows_apart(net)
    _lay_out(net, tuning, device)
    # It depends on nothing but the picture, and diffusers computes it anew in each evaluation.
    read, net.controlnet_cond_embedding = net.controlnet_cond_embedding, torch.nn.Identity()
    compute = compute_with(net, tuning, device)
    if tuning.compile != "none":
        compute = _prepared(compute)
    if is_on(tuning.cuda_graphs, device):
        compute = GraphedCalls(compute, CudaRecorder())
    return read, compute


def tune_unet(
    unet: Any, tuning: Tuning, device: torch.device, *, reads_images: bool = False
) -> Callable[..., Any]:
    """Lay out, fuse, quantise and compile the UNet, in place; what to call for a pass of it.

    reads_images: it may be given `images` too (`image_prompts.reading_images`).

    Raises:
        SettingInvalid: this device or installation cannot do what is asked.
    """
    if tuning.cuda_graphs == "on" and device.type != "cuda":
        raise SettingInvalid("cuda_graphs must be auto or off on a CPU, not on", param="cuda_graphs")
    _lay_out(unet, tuning, device)
    if is_on(tuning.fused_projections, device):
        _fuse_projections(unet)
    if tuning.quantisation != "none":
        _quantise(unet, tuning, device)
    compute = compute_with(unet, tuning, device)
    if tuning.compile != "none":
        _compile(unet, tuning.compile, tuning.compile_cache)
        compute = _prepared(compute)
    if reads_images:
        compute = reading_images(compute, unet)
    return GraphedCalls(compute, CudaRecorder()) if is_on(tuning.cuda_graphs, device) else compute


def _lay_out(module: Any, tuning: Tuning, device: torch.device) -> None:
    """In the order that tensor cores read; and where things are compiled, its group norms made for it."""
    if is_on(tuning.channels_last, device):
        module.to(memory_format=torch.channels_last)
        if tuning.compile != "none":
            keep_channels_last(module)


def compute_with(unet: Callable[..., Any], tuning: Tuning, device: torch.device) -> Callable[..., Any]:
    """`unet`, with the attention kernel that is asked for tried first.

    diffusers' own `set_attention_backend` reaches none of SDXL's attention processors (0.42), which call
    torch directly; so the order of torch's kernels is set around them.

    Raises:
        SettingInvalid: a kernel that a CPU does not have.
    """
    if tuning.attention == "auto":
        return unet
    if device.type != "cuda" and tuning.attention != "math":
        raise SettingInvalid(f"attention {tuning.attention} is for CUDA; a CPU takes auto or math")
    first = _KERNELS[tuning.attention]
    # The others stay, for shapes that the first one does not take.
    order = [first, *(kernel for kernel in _KERNELS.values() if kernel != first)]
    # "math" alone is a way to compare with, so nothing may take its place.
    kernels = [first] if tuning.attention == "math" else order

    def compute(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernels, set_priority=True):
            return unet(*args, **kwargs)

    return compute


def _fuse_projections(unet: Any) -> None:
    """Make one product of each attention's query, key and value; of cross attention, of key and value.

    As diffusers' `fuse_qkv_projections`, but the parts are dropped: kept, they are a seventh of the UNet's
    memory for nothing.
    """
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, Attention):
                module.fuse_projections(fuse=True)
                unused = ("to_k", "to_v") if module.is_cross_attention else ("to_q", "to_k", "to_v")
                for name in unused:
                    delattr(module, name)
    unet.set_attn_processor(FusedAttnProcessor2_0())
    unet.eval().requires_grad_(False)


def _quantise(unet: Any, tuning: Tuning, device: torch.device) -> None:
    kind = tuning.quantisation
    if find_spec("torchao") is None:
        raise SettingInvalid(
            f"quantisation {kind} needs torchao: pip install 'mezzotint[quantisation]'", param="quantisation"
        )
    if device.type == "cuda":
        needed, found = CAPABILITY[kind], torch.cuda.get_device_capability(device)
        if found < needed:
            raise SettingInvalid(
                f"quantisation {kind} needs a GPU of compute capability {needed[0]}.{needed[1]} or newer; "
                f"{torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}",
                param="quantisation",
            )
        if kind == "int8" and tuning.compile == "none":
            # torchao prints each input to see whether it is compiling, and the printing waits for the GPU.
            raise SettingInvalid("quantisation int8 needs compile blocks or unet on a GPU", param="compile")
    elif kind == "fp8":
        raise SettingInvalid("quantisation fp8 needs a GPU; a CPU takes none or int8", param="quantisation")
    if kind == "fp8" and unet.dtype != torch.bfloat16:
        raise SettingInvalid("quantisation fp8 needs dtype bf16", param="dtype")
    from torchao.quantization import quantize_

    quantize_(unet, quantisation_of(kind), filter_fn=_is_quantised)


def quantisation_of(kind: str) -> Any:
    """torchao's configuration of "int8" or "fp8"."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
    )

    # Left alone, torchao changes inductor's settings for the whole process.
    if kind == "int8":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), activation_value_lb=LEAST_SCALED, set_inductor_config=False
    )


def _is_quantised(module: Any, name: str) -> bool:
    """The products of the transformers, which are most of the work; what makes embeddings stays exact."""
    return (
        isinstance(module, torch.nn.Linear)
        and ".transformer_blocks." in name
        and module.in_features % QUANTISED_MULTIPLE == 0
        and module.out_features % QUANTISED_MULTIPLE == 0
    )


def _compile(unet: Any, scope: str, cache: str) -> None:
    if cache:
        _keep_in(Path(cache))
    # The repeated transformer blocks are most of the work; compiling one serves them all. For any size from
    # the first on: the first one's own would be compiled for nothing.
    if scope == "blocks" and getattr(unet, "_repeated_blocks", None):
        unet.compile_repeated_blocks(fullgraph=True, dynamic=True)
    else:
        unet.compile()


def prepare_compiling() -> None:
    """For this thread, which compiles as it calls: each has settings of its own (since torch 2.12)."""
    dynamo = torch._dynamo.config
    if dynamo.recompile_limit < RECOMPILE_LIMIT:
        dynamo.recompile_limit = RECOMPILE_LIMIT
    # A module's own numbers are constants, not inputs.
    dynamo.specialize_float = True
    # What is compiled for a square is for other shapes too.
    torch.fx.experimental._config.use_duck_shape = False


def _prepared(call: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*args: Any, **kwargs: Any) -> Any:
        prepare_compiling()
        return call(*args, **kwargs)

    return compute


def _keep_in(folder: Path) -> None:
    """Have torch keep what it compiles in `folder`. For the whole process, as torch has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingInvalid(
            f"compile_cache must be a folder that can be written to, not {folder}: {error.strerror}",
            param="compile_cache",
        ) from None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
