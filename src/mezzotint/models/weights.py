"""Safetensors files to modules and tensors, by diffusers and transformers.

Nothing else is read, and nothing here uses the network. Whatever the libraries raise comes as `ModelInvalid`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open

from mezzotint.errors import MezzotintError, ModelInvalid
from mezzotint.models.json_files import read_json

__all__ = ["check_header", "options_for", "quiet", "read_module", "read_tensors", "reading"]

# Of a name, what says that the file is one of several.
SHARD = re.compile(r"-\d{5}-of-\d{5}")


def read_module(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    """One module of a diffusers folder, every weight of it from the folder's safetensors.

    Where they are there under a variant's names alone, as `model.fp16.safetensors`, those. The modules of a
    model need not all be of one variant.
    """
    read_json(path / name / "config.json")
    files = sorted((path / name).glob("*.safetensors"))
    if not files:
        raise ModelInvalid(f"the model lacks {name}'s weights: no safetensors file in {name}/")
    for file in files:
        check_header(file)
    with reading(name):
        module, report = kind.from_pretrained(
            path / name,
            variant=_variant([file.name for file in files]),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options_for(kind, dtype),
        )
    problems = [*report["missing_keys"], *report["mismatched_keys"]]
    if issubclass(kind, diffusers.ModelMixin):
        # Old text encoders carry a table of positions that is no weight; the others may carry nothing more.
        problems += report["unexpected_keys"]
    if problems:
        first = problems[0] if isinstance(problems[0], str) else problems[0][0]
        raise ModelInvalid(f"{name}: its weights do not fit its configuration, {first} first of all")
    return module


def options_for(kind: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The dtype by the name that the library knows, and weights by the names that it gives them.

    Neuron's image has the older diffusers and transformers (docs/neuron.md); there, CLIP's text model has its
    weights one level deeper than the newer writes them.
    """
    if kind.__module__.partition(".")[0] == "diffusers":
        old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42)
        return {"torch_dtype" if old else "dtype": dtype}
    if kind is transformers.CLIPTextModel and int(transformers.__version__.split(".")[0]) < 5:
        return {
            "dtype": dtype,
            "key_mapping": {r"^(embeddings|encoder|final_layer_norm)\.": r"text_model.\1."},
        }
    return {"dtype": dtype}


def _variant(files: Sequence[str]) -> str | None:
    """The infix of the files' names, None if there are some without."""
    names = [SHARD.sub("", file) for file in files]
    if any(name.count(".") == 1 for name in names):
        return None
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    return min(variants, default=None)


def read_tensors(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of a file whose header was checked."""
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).to(dtype) for name in tensors.keys()}  # noqa: SIM118


def check_header(file: Path) -> None:
    """Refuse a file that is truncated or no safetensors, before anything else reads it."""
    name = f"{file.parent.name}/{file.name}"
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError:
        raise ModelInvalid(f"{name} is truncated or no safetensors file") from None
    except OSError:
        raise ModelInvalid(f"{name} cannot be read") from None


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever the libraries raise over files that passed the checks, as one line of ours."""
    try:
        yield
    except MezzotintError:
        raise
    except Exception as error:
        # What is wrong may be in the first line, and which part of the file in a later one.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelInvalid(f"{what} cannot be loaded: {reason[:200]}") from error


@contextmanager
def quiet() -> Iterator[None]:
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
