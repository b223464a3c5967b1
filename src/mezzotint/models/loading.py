"""A model's name to a backend: found, held to its manifest, read, and put on a device.

Nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mezzotint.threads import default_threads, prepare_libraries

# Here, for through this module both the command line and a replica come to torch.
prepare_libraries()

import diffusers
import torch
import transformers

import mezzotint
from mezzotint.backends.base import Backend, BackendInfo
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.parts import PipelineParts
from mezzotint.backends.tuned import keeps_plain_weights
from mezzotint.errors import SettingInvalid
from mezzotint.models.added import Added, find_added
from mezzotint.models.artefact import holds_graphs
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry
from mezzotint.models.locations import find_model, limits_of, verify
from mezzotint.models.manifest import MANIFEST_NAME, fingerprint
from mezzotint.models.reading import load_parts, read_preview_vae
from mezzotint.models.reading_controlnets import read_controlnets
from mezzotint.models.reading_ip_adapters import read_image_encoder, read_ip_adapter
from mezzotint.models.reading_loras import read_embedding, read_lora
from mezzotint.tuning import Tuning

__all__ = ["DTYPES", "load_backend", "revision_of", "versions"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_BATCH, CUDA_BATCH = 8, 16
NEURON = "neuron"


def load_backend(
    model: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    tuning: Tuning | None = None,
    threads: int | None = None,
    stand_in: bool = False,
    loras: Sequence[str] = (),
    controlnets: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    image_encoder: str = "",
) -> Backend:
    """A backend that draws with `model`: a name of the catalogue, a diffusers folder, a `.safetensors` file;
    on `neuron`, a folder of compiled graphs.

    device: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1` or `neuron`.
    dtype: `auto` (fp32 on a CPU, bf16 on CUDA), `fp32`, `bf16` or `fp16`.
    tuning: what speed is bought with; not for `neuron`, whose graphs are compiled already.
    threads: for the CPU; by default `threads.default_threads`.
    stand_in: with `neuron`, this CPU in the chip's place, for graphs that were compiled for it.
    loras: files that requests may name, PATH or NAME=PATH, beside those in the model's own folder.
    controlnets: the same, files or folders. embeddings: files of textual inversions that prompts may name.
    ip_adapters: files that requests may name. image_encoder: the folder of what they read; empty is the
        model's own.

    Raises:
        ModelNotFound: there is no such model on this machine.
        ModelInvalid: its files are altered, corrupt, of a refused kind, or no SDXL.
        SettingInvalid: no such device or dtype here, or it cannot do what `tuning` asks.
    """
    _set_threads(threads)
    _silence_known_noise()
    tuning = tuning or Tuning()
    if device == NEURON:
        given = {
            "loras": loras,
            "controlnets": controlnets,
            "embeddings": embeddings,
            "ip_adapters": ip_adapters,
        }
        return _load_graphs(model, given, dtype=dtype, tuning=tuning, stand_in=stand_in)
    if stand_in:
        raise SettingInvalid(f"--stand-in is for --device {NEURON}, not {device}", param="stand_in")
    chosen_device = _choose_device(device)
    chosen_dtype = _choose_dtype(dtype, chosen_device)
    path = find_model(model)
    if holds_graphs(path):
        raise SettingInvalid(f"{model} holds compiled graphs; they take --device {NEURON}", param="device")
    entry = CATALOGUE.get(model)
    verified = verify(path, required=entry is not None)
    parts = load_parts(path, entry, dtype=DTYPES[chosen_dtype], device=chosen_device)
    # What keeps weights in another form was asked for; the model's own LoRAs come unasked.
    takes_loras = loras or keeps_plain_weights(tuning)
    added = find_added(
        path, loras if takes_loras else None, controlnets, embeddings, ip_adapters, image_encoder
    )
    parts = _complete(parts, added, tuning.preview_vae, dtype=DTYPES[chosen_dtype], device=chosen_device)
    info = BackendInfo(
        model=entry.name if entry else path.stem if path.is_file() else path.name,
        revision=revision_of(path, entry, verified),
        backend="diffusers",
        device=_describe_device(chosen_device),
        dtype=chosen_dtype,
        limits=added.on(limits_of(model)),
        max_batch=CUDA_BATCH if chosen_device.type == "cuda" else CPU_BATCH,
        versions={**versions(), **_approximations(tuning)},
    )
    return DiffusersBackend(parts, info, tuning)


def _complete(
    parts: PipelineParts, added: Added, preview_vae: str, *, dtype: torch.dtype, device: torch.device
) -> PipelineParts:
    """The model's parts with what is served beside them, and with a decoder for previews if one is named."""
    if preview_vae:
        folder = Path(preview_vae).expanduser()
        parts = replace(parts, preview_vae=read_preview_vae(folder, dtype=dtype, device=device))
    if added.image_encoder:
        encoder = read_image_encoder(added.image_encoder, dtype=dtype, device=device)
        adapters = {
            each.served.name: read_ip_adapter(each, parts.unet, encoder) for each in added.ip_adapters
        }
        parts = replace(parts, image_encoder=encoder, ip_adapters=adapters)
    return replace(
        parts,
        loras={each.served.name: read_lora(each.path, parts) for each in added.loras},
        controlnets=read_controlnets(added.controlnets, parts.unet, dtype=dtype, device=device),
        embeddings={each.served.name: read_embedding(each.path, parts) for each in added.embeddings},
    )


def _approximations(tuning: Tuning) -> dict[str, str]:
    """What draws other pictures than the dtype says, for the receipt."""
    if tuning.quantisation == "none":
        return {}
    try:
        return {"quantisation": tuning.quantisation, "torchao": version("torchao")}
    except PackageNotFoundError:
        # The backend says so, with what to install.
        return {}


def _load_graphs(
    model: str, given: Mapping[str, Sequence[str]], *, dtype: str, tuning: Tuning, stand_in: bool
) -> Backend:
    """given: what is to be served beside the model, of which there must be nothing."""
    from mezzotint.models.graphs import load_graphs

    for name, places in given.items():
        if places:
            raise SettingInvalid(f"{name} are for modules; graphs are compiled already", param=name)
    if dtype not in ("auto", "fp32"):
        raise SettingInvalid(
            "dtype: graphs take and give fp32; what they compute in was compiled in", param="dtype"
        )
    for name, value in asdict(tuning).items():
        if value != getattr(Tuning(), name):
            raise SettingInvalid(f"{name} is for modules; graphs are compiled already", param=name)
    path = find_model(model)
    if not holds_graphs(path):
        raise SettingInvalid(
            f"--device {NEURON} draws with compiled graphs, and {model} has none; make some with: "
            f"mezzotint compile --model {model} --output FOLDER",
            param="model",
        )
    return load_graphs(path, stand_in=stand_in, versions=versions())


def versions() -> dict[str, str]:
    """What the picture depends on, for its receipt."""
    return {
        "mezzotint": mezzotint.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def revision_of(path: Path, entry: CatalogueEntry | None, verified: bool) -> str:
    """The pinned commit, or else what the manifest's own hash begins with, or else that nothing is known but
    what a few samples of the files tell."""
    if entry is not None and entry.source is not None:
        return entry.source.revision
    if not verified:
        return f"unverified-{fingerprint(path)}"
    return hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()[:16]


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise SettingInvalid(
            f"device must be auto, cpu, cuda, cuda:<number> or {NEURON}, not {name!r}", param="device"
        )
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SettingInvalid(f"there is no CUDA device {name!r} on this machine", param="device")
    return torch.device(name)


def _choose_dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise SettingInvalid(f"dtype must be auto, {', '.join(DTYPES)}, not {name!r}", param="dtype")
    if name == "fp16" and device.type == "cpu":
        raise SettingInvalid("dtype fp16 is not for a CPU; take fp32 or bf16", param="dtype")
    return name


def _set_threads(threads: int | None) -> None:
    if threads is None:
        threads = default_threads()
    if not 1 <= threads <= 1024:
        raise SettingInvalid(f"threads must be 1…1024, not {threads}", param="threads")
    torch.set_num_threads(threads)


def _silence_known_noise() -> None:
    """Two warnings that diffusers' schedulers provoke in other libraries, and that mean nothing to anyone."""
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.machine()})"
