"""`mezzotint compile`: a model to a set of compiled graphs, a component at a time.

Each graph is kept under `$MEZZOTINT_HOME/compiled`, by the hash of all that it follows from: the model's
files, the shapes, the compiler's versions and flags. So a run that was broken off goes on where it stopped,
and the same graph is never compiled twice. The set is put together from those, and is there as a whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mezzotint
from mezzotint.backends.neuron.shapes import COMPONENTS
from mezzotint.backends.parts import PipelineParts
from mezzotint.core import GenerationRequest, ModelLimits
from mezzotint.errors import ModelInvalid, OutputUnwritable, SettingInvalid, os_error_text
from mezzotint.models.artefact import DESCRIPTION_NAME, FORMAT, GRAPH_NAME, described_limits, holds_graphs
from mezzotint.models.artefact_store import is_remote, upload
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry
from mezzotint.models.json_files import VOCABULARY
from mezzotint.models.loading import revision_of
from mezzotint.models.locations import base_of, compiled_home, find_model, limits_of, verify
from mezzotint.models.manifest import check_manifest, files_hash, write_manifest
from mezzotint.models.reading import load_parts
from mezzotint.models.tracing import (
    Shape,
    check_target,
    configuration_of,
    flags_of,
    toolchain_of,
    trace,
)
from mezzotint.resolving import resolve

__all__ = ["Job", "Order", "compile_model"]

MAX_BATCH = 64
MAX_CORES = 32
# What a model says that it knows, and draws of it: prompts are read by the one, the gate judges by both.
KNOWN = (VOCABULARY, "glyphs.png")

Tell = Callable[[str, str], None]
"""Told a component's name, with its size if it has one, and `compiling`, `kept` or `done`."""


@dataclass(frozen=True)
class Order:
    """What to compile.

    sizes: width and height in pixels, the first one the default where the model's own is not among them.
    batch: pictures in a step; rows of the UNet's graph.
    cores: NeuronCores to a replica.
    """

    model: str
    target: str
    sizes: tuple[tuple[int, int], ...]
    batch: int = 1
    cores: int = 2


@dataclass(frozen=True)
class Job:
    """One graph to make, and the hash of all it follows from."""

    component: str
    shape: Shape
    configuration: Mapping[str, Any]
    key: str

    @property
    def name(self) -> str:
        if self.component.startswith("text_encoder"):
            return self.component
        return f"{self.component} {self.shape.width}x{self.shape.height}"


def compile_model(order: Order, output: str, tell: Tell = lambda name, state: None) -> str:
    """Compile the model into a folder or an S3 prefix, `output`; returns where it lies.

    Raises:
        SettingInvalid: a value is not accepted, or this machine lacks the compiler.
        ModelNotFound, ModelInvalid: there is no such model, or it cannot be compiled.
        InvalidRequest: a size that the model does not draw.
        OutputUnwritable: there is something else where the set is to lie.
    """
    limits = _check(order)
    path = find_model(order.model)
    if holds_graphs(path):
        raise ModelInvalid(f"{order.model} holds compiled graphs already; name the model that they are from")
    entry = CATALOGUE.get(order.model)
    _check_output(output)
    verified = verify(path, required=entry is not None)
    source = _source_hash(path, entry)
    parts = load_parts(path, entry, dtype=torch.float32, device=torch.device("cpu"))
    jobs = _plan(order, parts, source)
    for job in {job.key: job for each in jobs.values() for job in each}.values():
        _make(job, parts, order.target, tell)
    description = {
        "format": FORMAT,
        "model": order.model if entry else path.stem,
        "revision": revision_of(path, entry, verified),
        "source_sha256": source,
        "limits": described_limits(limits),
        **_described(order, jobs),
    }
    with _staging(output) as staging:
        for folder, each in jobs.items():
            _lay_out(staging / folder, each, parts, base_of(path, entry) or path)
        for name in KNOWN:
            if (path / name).is_file():
                shutil.copyfile(path / name, staging / name)
        (staging / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        write_manifest(staging)
        return _publish(staging, output)


def _described(order: Order, jobs: Iterable[str]) -> dict[str, Any]:
    """How the graphs were made, as `mezzotint.json` holds it. `jobs`: the sizes' folders."""
    return {
        "target": order.target,
        "cores": order.cores,
        "batch": order.batch,
        "toolchain": toolchain_of(order.target),
        "flags": {component: list(flags_of(component, order.target)) for component in COMPONENTS},
        "buckets": list(jobs),
        "mezzotint": mezzotint.__version__,
    }


def _check(order: Order) -> ModelLimits:
    check_target(order.target)
    for name, value, most in (("batch", order.batch, MAX_BATCH), ("cores", order.cores, MAX_CORES)):
        if not 1 <= value <= most:
            raise SettingInvalid(f"--{name} takes 1…{most}; not {value}", param=name)
    if not order.sizes or len(set(order.sizes)) != len(order.sizes):
        raise SettingInvalid(
            "--size takes one or more different sizes, such as 1024x1024,832x1216", param="size"
        )
    limits = limits_of(order.model)
    for width, height in order.sizes:
        resolve(GenerationRequest("a size", width=width, height=height), limits)
    return limits


def _source_hash(path: Path, entry: CatalogueEntry | None) -> str:
    """Of the contents of every file that the graphs follow from."""
    base = base_of(path, entry)
    hashes = [files_hash(each) for each in (path, base) if each is not None]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _plan(order: Order, parts: PipelineParts, source: str) -> dict[str, list[Job]]:
    """The graphs of each size's folder. Text encoders know no size: theirs are the same in all."""
    jobs: dict[str, list[Job]] = {}
    for width, height in order.sizes:
        shape = Shape(width, height, order.batch)
        jobs[f"{width}x{height}"] = [_job(each, parts, shape, order.target, source) for each in COMPONENTS]
    return jobs


def _job(component: str, parts: PipelineParts, shape: Shape, target: str, source: str) -> Job:
    configuration = configuration_of(component, parts, shape, target)
    follows_from = {
        "format": FORMAT,
        "component": component,
        "source": source,
        "target": target,
        "toolchain": toolchain_of(target),
        "flags": flags_of(component, target),
        "configuration": configuration,
    }
    text = json.dumps(follows_from, sort_keys=True, default=str)
    return Job(component, shape, configuration, hashlib.sha256(text.encode()).hexdigest())


def _make(job: Job, parts: PipelineParts, target: str, tell: Tell) -> None:
    """The job's graph among the kept ones; one that is there and whole stays."""
    kept = compiled_home() / job.key
    if kept.is_dir():
        try:
            check_manifest(kept)
        except ModelInvalid:
            # Cut short, or altered since: never used.
            shutil.rmtree(kept)
        else:
            tell(job.name, "kept")
            return
    tell(job.name, "compiling")
    compiled_home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=compiled_home(), prefix="partial-") as folder:
        partial = Path(folder) / "graph"
        partial.mkdir()
        trace(job.component, parts, job.configuration, target, partial / GRAPH_NAME)
        text = json.dumps(job.configuration, indent=2, default=str)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        write_manifest(partial)
        # Another run may have been quicker; its graph follows from the same.
        if not kept.exists():
            partial.rename(kept)
    tell(job.name, "done")


def _lay_out(folder: Path, jobs: Sequence[Job], parts: PipelineParts, tokenizers: Path) -> None:
    """One size's folder, as optimum-neuron lays a pipeline out."""
    for job in jobs:
        (folder / job.component).mkdir(parents=True)
        for name in (GRAPH_NAME, "config.json"):
            _link(compiled_home() / job.key / name, folder / job.component / name)
    for name in ("tokenizer", "tokenizer_2"):
        # As they are: written anew by one transformers, another may not read them.
        shutil.copytree(tokenizers / name, folder / name, ignore=shutil.ignore_patterns("*.md"))
    (folder / "scheduler").mkdir()
    scheduler = json.dumps(dict(parts.scheduler_config), indent=2, default=str)
    (folder / "scheduler/scheduler_config.json").write_text(scheduler + "\n", encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(_index(parts), indent=2) + "\n", encoding="utf-8")


def _index(parts: PipelineParts) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": parts.force_zeros_for_empty_prompt,
        "scheduler": ["diffusers", str(parts.scheduler_config.get("_class_name", "EulerDiscreteScheduler"))],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name; a copy where the file systems differ."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check_output(output: str) -> None:
    if is_remote(output):
        return
    path = Path(output).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / DESCRIPTION_NAME).is_file()):
        raise OutputUnwritable(f"{output} is there and is no set of compiled graphs; name another folder")


@contextmanager
def _staging(output: str) -> Iterator[Path]:
    """A folder beside the output, so that it can take its place in one move."""
    home = compiled_home() if is_remote(output) else Path(output).expanduser().absolute().parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=home, prefix=".partial-")
    except OSError as error:
        raise OutputUnwritable(f"{output} cannot be written: {os_error_text(error)}") from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, output: str) -> str:
    if is_remote(output):
        upload(staging, output)
        return output
    path = Path(output).expanduser().absolute()
    if path.exists():
        # Checked before: empty, or a set that this one replaces.
        shutil.rmtree(path)
    staging.chmod(0o755)
    staging.rename(path)
    return str(path)
