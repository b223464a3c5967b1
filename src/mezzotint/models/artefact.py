"""Compiled models on disk: what a folder of graphs holds, read from its JSON files, and whether to trust it.

Two kinds are read. A *set*, written by `mezzotint compile`, has a `mezzotint.json` and one folder for each
size; each of those is laid out as optimum-neuron lays a pipeline out, so that it could be served by that,
too. An *adopted* folder is one such layout alone, as `optimum-cli export neuron` writes it; its shapes are
read from the `neuron` table of each component's `config.json`. Either has a `manifest.json` over every file,
and is verified before any graph is deserialised: a graph is a TorchScript archive, and reading one runs its
code.

No torch here: limits and shapes must be known at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mezzotint.backends.neuron.shapes import COMPONENTS, Configuration, Input, inputs_of, whole
from mezzotint.core import ADDED, PIXELS_PER_LATENT, ModelLimits
from mezzotint.errors import ModelInvalid, ModelNotFound
from mezzotint.models.catalogue import limits_of_size
from mezzotint.models.json_files import read_json, sampler_of
from mezzotint.models.manifest import (
    MANIFEST_NAME,
    check_file_kinds,
    check_manifest,
    read_manifest,
    write_manifest,
)

__all__ = [
    "DESCRIPTION_NAME",
    "FORMAT",
    "GRAPH_NAME",
    "Artefact",
    "Bucket",
    "adopt",
    "described_limits",
    "holds_graphs",
    "read_artefact",
    "verify_artefact",
]

FORMAT = 1
DESCRIPTION_NAME = "mezzotint.json"
GRAPH_NAME = "model.neuron"
ADOPTED_CORES = 2
NOT_DESCRIBED = frozenset({"served", "prompt_tokens", *ADDED})


@dataclass(frozen=True)
class Bucket:
    """The graphs of one size, in pixels, and each component's configuration."""

    folder: Path
    width: int
    height: int
    configurations: Mapping[str, Configuration] = field(repr=False)

    def inputs(self, component: str) -> tuple[Input, ...]:
        """What the component's graph takes."""
        return inputs_of(component, self.configurations[component])


@dataclass(frozen=True)
class Artefact:
    """A folder of compiled graphs.

    target: `cpu` (for the stand-in), `inf2` or `trn1`.
    batch: rows of the UNet's graphs, on one core.
    cores: NeuronCores that a replica spreads its rows over.
    toolchain: what compiled it, by package.
    """

    path: Path
    model: str
    revision: str
    target: str
    batch: int
    cores: int
    toolchain: Mapping[str, str]
    limits: ModelLimits
    buckets: tuple[Bucket, ...]


def holds_graphs(path: Path) -> bool:
    """Whether the folder is an artefact, of either kind."""
    return (path / DESCRIPTION_NAME).is_file() or (path / "unet" / GRAPH_NAME).is_file()


def verify_artefact(path: Path) -> None:
    """Hold every file to the manifest. Reads no graph.

    Raises:
        ModelInvalid: there is no manifest, or a file is missing, extra, changed or of a kind that is never
        read.
    """
    check_file_kinds(path)
    if read_manifest(path) is None:
        raise ModelInvalid(
            f"{path.name} has no {MANIFEST_NAME}, so its graphs are not trusted; if you know where they are "
            f"from, accept them as they are now: mezzotint compile --adopt {path.name}"
        )
    check_manifest(path)


def read_artefact(path: Path) -> Artefact:
    """What the folder says of itself, checked for sense; its files are `verify_artefact`'s business.

    Raises:
        ModelInvalid: a file is missing, or tells of what is not served.
    """
    return _read_set(path) if (path / DESCRIPTION_NAME).is_file() else _read_adopted(path)


def _read_set(path: Path) -> Artefact:
    told = read_json(path / DESCRIPTION_NAME)
    if told.get("format") != FORMAT:
        raise ModelInvalid(
            f"{DESCRIPTION_NAME}: format {told.get('format')!r}, and this version reads {FORMAT}; "
            "compile the model anew"
        )
    try:
        buckets = tuple(_read_bucket(path / str(folder)) for folder in told["buckets"])
        limits = ModelLimits(**_known_limits(told["limits"]))
        return Artefact(
            path=path,
            model=str(told["model"]),
            revision=str(told["revision"]),
            target=str(told["target"]),
            batch=_same_batch(buckets),
            cores=whole(told["cores"]),
            toolchain={str(name): str(version) for name, version in told["toolchain"].items()},
            limits=_served(limits, buckets),
            buckets=buckets,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelInvalid(f"{DESCRIPTION_NAME} is not a description of graphs: {error}") from None


def _read_adopted(path: Path) -> Artefact:
    bucket = _read_bucket(path)
    neuron = bucket.configurations["unet"]["neuron"]
    return Artefact(
        path=path,
        model=path.name,
        revision="adopted",
        target="neuron",
        batch=_same_batch((bucket,)),
        cores=ADOPTED_CORES,
        toolchain={
            str(neuron.get("compiler_type", "neuronx-cc")): str(neuron.get("compiler_version", "unknown"))
        },
        limits=_served(limits_of_size(bucket.width, bucket.height, sampler_of(path)), (bucket,)),
        buckets=(bucket,),
    )


def _read_bucket(folder: Path) -> Bucket:
    configurations = {}
    for component in COMPONENTS:
        if not (folder / component / GRAPH_NAME).is_file():
            raise ModelInvalid(f"the artefact lacks {_shown(folder / component / GRAPH_NAME)}")
        configurations[component] = read_json(folder / component / "config.json")
        inputs_of(component, configurations[component])
    neuron = configurations["unet"]["neuron"]
    width, height = (int(neuron[f"static_{side}"]) * PIXELS_PER_LATENT for side in ("width", "height"))
    bucket = Bucket(folder, width, height, configurations)
    _check_sizes(bucket)
    return bucket


def _check_sizes(bucket: Bucket) -> None:
    """That the components of a size were compiled for each other."""
    latent = (bucket.height // PIXELS_PER_LATENT, bucket.width // PIXELS_PER_LATENT)
    window = bucket.inputs("unet")[2].shape[1]
    found = {
        "vae_decoder": (bucket.inputs("vae_decoder")[0].shape[2:], latent),
        "vae_encoder": (bucket.inputs("vae_encoder")[0].shape[2:], (bucket.height, bucket.width)),
        "text_encoder": (bucket.inputs("text_encoder")[0].shape[1:], (window,)),
        "text_encoder_2": (bucket.inputs("text_encoder_2")[0].shape[1:], (window,)),
    }
    for component, (shape, expected) in found.items():
        if shape != expected:
            raise ModelInvalid(
                f"{_shown(bucket.folder / component)} was compiled for {_by(shape)}, and the UNet beside it "
                f"needs {_by(expected)}"
            )


def adopt(folder: str) -> Path:
    """Accept a folder that `optimum-cli export neuron` wrote, as it is now: write the manifest it lacks.

    Raises:
        ModelNotFound: there is no such folder of graphs.
        ModelInvalid: it is not laid out as one, holds a file of a kind that is never read, or has a manifest.
    """
    path = Path(folder).expanduser()
    if not holds_graphs(path):
        raise ModelNotFound(f"{folder} is no folder of compiled graphs: it has no unet/{GRAPH_NAME}")
    if (path / MANIFEST_NAME).exists():
        raise ModelInvalid(f"{folder} has its {MANIFEST_NAME}; to check it: mezzotint models check {folder}")
    read_artefact(path)
    return write_manifest(path)


def described_limits(limits: ModelLimits) -> dict[str, Any]:
    """The limits as `mezzotint.json` holds them: without what the graphs tell, and LoRAs."""
    return {name: value for name, value in asdict(limits).items() if name not in NOT_DESCRIBED}


def _known_limits(told: Mapping[str, Any]) -> dict[str, Any]:
    known = {each.name for each in fields(ModelLimits)} - NOT_DESCRIBED
    return {name: value for name, value in told.items() if name in known}


def _served(limits: ModelLimits, buckets: tuple[Bucket, ...]) -> ModelLimits:
    """The limits of a model of which these sizes alone are compiled; its own default, if it is among them."""
    sizes = tuple((bucket.width, bucket.height) for bucket in buckets)
    default = (limits.default_width, limits.default_height)
    width, height = default if default in sizes else sizes[0]
    return replace(
        limits,
        default_width=width,
        default_height=height,
        min_size=min(map(min, sizes)),
        max_size=max(map(max, sizes)),
        max_pixels=max(map(math.prod, sizes)),
        served=sizes,
    )


def _same_batch(buckets: tuple[Bucket, ...]) -> int:
    batches = {bucket.inputs("unet")[0].shape[0] for bucket in buckets}
    if len(batches) != 1:
        raise ModelInvalid("the artefact's sizes are compiled for different batches, or there is none")
    return batches.pop()


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _shown(path: Path) -> str:
    return "/".join(path.parts[-3:])
