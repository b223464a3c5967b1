"""A model's files to a backend: checked first, then read, then checked to be a Stable Diffusion XL.

Only safetensors are read, each module by the class that this file names (never one that a file names), and
nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
import transformers
from safetensors import SafetensorError, safe_open

import mezzotint
from mezzotint.backends.base import Backend, BackendInfo
from mezzotint.backends.diffusers import DiffusersBackend, PipelineParts
from mezzotint.errors import MezzotintError, ModelInvalid, ModelNotFound, SettingInvalid
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry
from mezzotint.models.locations import find_model, limits_of, read_json, verify
from mezzotint.models.manifest import MANIFEST_NAME

__all__ = ["load_backend", "load_parts"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_WIDTH, CUDA_WIDTH = 8, 16


def load_backend(
    model: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    threads: int | None = None,
) -> Backend:
    """A backend that draws with `model`: a name of the catalogue, a diffusers folder, a `.safetensors` file.

    device: `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:1`.
    dtype: `auto` (fp32 on a CPU, bf16 on CUDA), `fp32`, `bf16` or `fp16`.
    threads: for the CPU; by default the physical cores this process may use.

    Raises:
        ModelNotFound: there is no such model on this machine.
        ModelInvalid: its files are altered, corrupt, of a refused kind, or no SDXL.
        SettingInvalid: no such device or dtype here.
    """
    if model.partition(":")[0] == "fake":
        from mezzotint.backends.fake import FakeBackend

        return FakeBackend.from_name(model)
    chosen_device = _choose_device(device)
    chosen_dtype = _choose_dtype(dtype, chosen_device)
    _set_threads(threads)
    _silence_known_noise()
    path = find_model(model)
    entry = CATALOGUE.get(model)
    verified = verify(path, required=entry is not None)
    parts = load_parts(path, entry, dtype=DTYPES[chosen_dtype], device=chosen_device)
    info = BackendInfo(
        model=entry.name if entry else path.stem if path.is_file() else path.name,
        revision=_revision(path, entry, verified),
        backend="diffusers",
        device=_describe_device(chosen_device),
        dtype=chosen_dtype,
        limits=limits_of(model),
        max_width=CUDA_WIDTH if chosen_device.type == "cuda" else CPU_WIDTH,
        versions={
            "mezzotint": mezzotint.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    )
    return DiffusersBackend(parts, info, compile=compile)


def load_parts(
    path: Path, entry: CatalogueEntry | None = None, *, dtype: torch.dtype, device: torch.device
) -> PipelineParts:
    """The modules of the model at `path`, of which the caller has checked the files.

    Raises:
        ModelInvalid: they cannot be read, or are not those of an SDXL.
        ModelNotFound: another model that this one builds on is missing.
    """
    with _quiet():
        if path.is_file():
            parts = _read_single_file(path, dtype)
        elif entry is not None and entry.base is not None:
            parts = _read_on_base(path, entry, dtype)
        else:
            overrides = entry.scheduler_overrides if entry else {}
            parts = _read_folder(path, dtype, entry.variant if entry else None, overrides)
    _check_is_sdxl(parts)
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        module.eval().requires_grad_(False).to(device)
        if device.type == "cuda" and module in (parts.unet, parts.vae):
            # Tensor cores read convolutions in this order; otherwise each is preceded by a transposition.
            module.to(memory_format=torch.channels_last)
    return parts


def _read_folder(
    path: Path, dtype: torch.dtype, variant: str | None, overrides: Mapping[str, object], *, unet: Any = None
) -> PipelineParts:
    variant = variant or _find_variant(path)
    if unet is None:
        unet = _read_module(diffusers.UNet2DConditionModel, path, "unet", dtype, variant)
    return PipelineParts(
        unet=unet,
        vae=_read_module(diffusers.AutoencoderKL, path, "vae", dtype, variant),
        tokenizers=(_read_tokenizer(path, "tokenizer"), _read_tokenizer(path, "tokenizer_2")),
        text_encoders=(
            _read_module(transformers.CLIPTextModel, path, "text_encoder", dtype, variant),
            _read_module(transformers.CLIPTextModelWithProjection, path, "text_encoder_2", dtype, variant),
        ),
        scheduler_config={**read_json(path / "scheduler/scheduler_config.json"), **overrides},
        force_zeros_for_empty_prompt=bool(
            read_json(path / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
    )


def _read_on_base(path: Path, entry: CatalogueEntry, dtype: torch.dtype) -> PipelineParts:
    """A UNet of its own in the place of its base's."""
    base = CATALOGUE[str(entry.base)]
    base_path = find_model(base.name)
    verify(base_path, required=True)
    file = path / str(entry.unet_file)
    _check_header(file)
    config = read_json(base_path / "unet/config.json")
    with _reading(file.name):
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(config)
        weights = _read_tensors(file, dtype)
        unet.load_state_dict(weights, strict=True, assign=True)
    return _read_folder(base_path, dtype, base.variant, entry.scheduler_overrides, unet=unet)


def _read_single_file(path: Path, dtype: torch.dtype) -> PipelineParts:
    """Weights from one file in the original layout; configuration and tokenizers from a pulled `sdxl`."""
    _check_header(path)
    try:
        base = find_model("sdxl")
    except ModelNotFound:
        raise ModelNotFound(
            "a single file holds weights alone; its tokenizers and configuration are read from the sdxl "
            "model, which is not on this machine: mezzotint models pull sdxl"
        ) from None
    verify(base, required=True)
    with _reading(path.name):
        pipeline = diffusers.StableDiffusionXLPipeline.from_single_file(
            str(path), config=str(base), local_files_only=True, dtype=dtype
        )
    return PipelineParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
        text_encoders=(pipeline.text_encoder, pipeline.text_encoder_2),
        scheduler_config=read_json(base / "scheduler/scheduler_config.json"),
        force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )


def _read_module(kind: Any, path: Path, name: str, dtype: torch.dtype, variant: str | None) -> Any:
    """One module of a diffusers folder, every weight of it from the folder's safetensors."""
    read_json(path / name / "config.json")
    files = sorted((path / name).glob("*.safetensors"))
    if not files:
        raise ModelInvalid(f"the model lacks {name}'s weights: no safetensors file in {name}/")
    for file in files:
        _check_header(file)
    with _reading(name):
        module, report = kind.from_pretrained(
            path / name,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
        )
    problems = [*report["missing_keys"], *report["mismatched_keys"]]
    if issubclass(kind, diffusers.ModelMixin):
        # Old text encoders carry a table of positions that is no weight; the others may carry nothing more.
        problems += report["unexpected_keys"]
    if problems:
        first = problems[0] if isinstance(problems[0], str) else problems[0][0]
        raise ModelInvalid(f"{name}: its weights do not fit its configuration, {first} first of all")
    return module


def _read_tokenizer(path: Path, name: str) -> Any:
    read_json(path / name / "tokenizer_config.json")
    with _reading(name):
        return transformers.CLIPTokenizer.from_pretrained(path / name, local_files_only=True)


def _read_tensors(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).to(dtype) for name in tensors.keys()}  # noqa: SIM118


def _check_header(file: Path) -> None:
    """Refuse a file that is truncated or no safetensors, before anything else reads it."""
    name = f"{file.parent.name}/{file.name}"
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError:
        raise ModelInvalid(f"{name} is truncated or no safetensors file") from None
    except OSError:
        raise ModelInvalid(f"{name} cannot be read") from None


def _check_is_sdxl(parts: PipelineParts) -> None:
    unet, vae = parts.unet.config, parts.vae.config
    widths = sum(encoder.config.hidden_size for encoder in parts.text_encoders)
    pooled = parts.text_encoders[1].config.projection_dim
    lengths = [tokenizer.model_max_length for tokenizer in parts.tokenizers]
    requirements = (
        (unet.addition_embed_type == "text_time", "its UNet reads no picture size"),
        (
            unet.in_channels == vae.latent_channels,
            "its UNet reads more than latents (inpainting is not served)",
        ),
        (len(vae.block_out_channels) == 4, "its VAE does not turn a latent into 8×8 pixels"),
        (unet.cross_attention_dim == widths, "its text encoders do not fit its UNet"),
        (
            unet.projection_class_embeddings_input_dim == pooled + 6 * unet.addition_time_embed_dim,
            "its second text encoder does not fit its UNet",
        ),
        (lengths[0] == lengths[1], "its two tokenizers have different windows"),
    )
    for holds, problem in requirements:
        if not holds:
            raise ModelInvalid(f"this is not a Stable Diffusion XL model: {problem}")


def _find_variant(path: Path) -> str | None:
    """The infix of a folder that holds its weights under a variant's names alone."""
    names = [file.name for file in (path / "unet").glob("*.safetensors")]
    if any(name.count(".") == 1 for name in names):
        return None
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    return sorted(variants)[0] if variants else None


def _revision(path: Path, entry: CatalogueEntry | None, verified: bool) -> str:
    """The pinned commit, or else what the manifest's own hash begins with, or else that nothing is known."""
    if entry is not None and entry.source is not None:
        return entry.source.revision
    if not verified:
        return "unverified"
    return hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()[:16]


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise SettingInvalid(f"device must be auto, cpu, cuda or cuda:<number>, not {name!r}", param="device")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingInvalid(f"there is no CUDA device {name!r} on this machine", param="device")
    return torch.device(name)


def _choose_dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise SettingInvalid(f"dtype must be auto, {', '.join(DTYPES)}, not {name!r}", param="dtype")
    if name == "fp16" and device.type == "cpu":
        raise SettingInvalid("fp16 is not for a CPU; take fp32 or bf16", param="dtype")
    return name


def _set_threads(threads: int | None) -> None:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is None:
        # Two threads on one core's two halves only get in each other's way in matrix products.
        threads = min(psutil.cpu_count(logical=False) or available, available)
    if not 1 <= threads <= 1024:
        raise SettingInvalid(f"threads must be 1…1024, not {threads}", param="threads")
    torch.set_num_threads(threads)


def _silence_known_noise() -> None:
    """Two warnings that diffusers' schedulers provoke in other libraries, and that mean nothing to anyone."""
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()})"


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever the libraries raise over files that passed the checks, as one line of ours."""
    try:
        yield
    except MezzotintError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelInvalid(f"{what} cannot be loaded: {reason[:200]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log lines from the libraries while they read; errors still come as errors."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
