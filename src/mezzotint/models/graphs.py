"""A folder of compiled graphs to a backend: verified, read, placed on cores.

The order is the point: the manifest first, then what the folder says of itself, then whether this machine's
versions are those that it was compiled with; only then is the first graph deserialised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.neuron.graphs import GraphTextEncoder, GraphUNet, GraphVae, Placed
from mezzotint.backends.neuron.runtime import NeuronRuntime, Runtime
from mezzotint.backends.neuron.standin import StandIn
from mezzotint.backends.parts import PipelineParts
from mezzotint.core import PIXELS_PER_LATENT
from mezzotint.cores import prepare_cores
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.artefact import GRAPH_NAME, Artefact, Bucket, read_artefact, verify_artefact
from mezzotint.models.json_files import VOCABULARY, read_json
from mezzotint.models.manifest import MANIFEST_NAME, read_manifest
from mezzotint.models.reading import check_is_sdxl, read_tokenizer
from mezzotint.models.tracing import installed
from mezzotint.models.weights import quiet

__all__ = ["load_graphs"]

# The compiler's absence is no fault where graphs are only run.
NEEDED_TO_COMPILE_ALONE = frozenset({"neuronx-cc"})


def load_graphs(
    path: Path, *, stand_in: bool | StandIn = False, versions: Mapping[str, str] | None = None
) -> DiffusersBackend:
    """The backend of an artefact, of either kind.

    stand_in: run it on this CPU in the chip's place; a `StandIn` of one's own counts, delays or fails.

    Raises:
        ModelInvalid: a file is missing, extra or altered, other versions compiled it, or it is no SDXL's.
        SettingInvalid: this machine has not what runs it, or other cores.
    """
    verify_artefact(path)
    artefact = read_artefact(path)
    runtime = _choose_runtime(artefact, stand_in)
    # Before anything that may start Neuron's runtime is imported.
    cores = min(artefact.cores, prepare_cores(artefact.cores) or artefact.cores)
    parts = _Loader(artefact, runtime, cores).load()
    check_is_sdxl(parts)
    info = BackendInfo(
        model=artefact.model,
        revision=artefact.revision,
        backend=runtime.name,
        device=runtime.device,
        dtype=_dtype(artefact.buckets[0]),
        limits=artefact.limits,
        max_batch=_max_batch(artefact, cores),
        versions={
            **artefact.toolchain,
            **(versions or {}),
            "artefact": hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()[:16],
        },
    )
    return DiffusersBackend(parts, info)


def _max_batch(artefact: Artefact, cores: int) -> int:
    """Images in a step: the batch, whose guided rows fill two cores.

    A model that is not guided by default has one row an image, so its images fill every core.
    """
    guided = artefact.limits.default_guidance_scale > 1.0
    return artefact.batch if guided else artefact.batch * cores


def _dtype(bucket: Bucket) -> str:
    """What the graphs compute in; their inputs and outputs are fp32."""
    neuron = bucket.configurations["unet"]["neuron"]
    return str(neuron.get("auto_cast_type", "bf16")) if neuron.get("auto_cast") else "fp32"


def _choose_runtime(artefact: Artefact, stand_in: bool | StandIn) -> Runtime:
    """What runs the artefact, if this machine's versions are those it was compiled with."""
    for_cpu = artefact.target == "cpu"
    if for_cpu != bool(stand_in):
        hint = (
            "run it with --stand-in" if for_cpu else "a CPU cannot stand in for it; compile with --target cpu"
        )
        raise SettingInvalid(
            f"{artefact.path.name} was compiled for {artefact.target}: {hint}", param="stand_in"
        )
    for name, compiled_by in artefact.toolchain.items():
        found = installed(name)
        if found is None and name in NEEDED_TO_COMPILE_ALONE:
            continue
        if found is None or found.partition("+")[0] != compiled_by.partition("+")[0]:
            raise ModelInvalid(
                f"{artefact.path.name} was compiled by {name} {compiled_by}, and here is {found or 'none'}; "
                "compile it anew, or serve it where it was compiled"
            )
    if isinstance(stand_in, StandIn):
        return stand_in
    return StandIn() if stand_in else NeuronRuntime()


class _Loader:
    """Loads each graph once a core, however many sizes share it."""

    def __init__(self, artefact: Artefact, runtime: Runtime, cores: int) -> None:
        self._artefact = artefact
        self._runtime = runtime
        self._cores = range(cores)
        self._hashes = read_manifest(artefact.path) or {}
        self._placed: dict[tuple[str, str], Placed] = {}

    def load(self) -> PipelineParts:
        first = self._artefact.buckets[0]
        # A lone piece of the UNet goes to the first core; what is decoded meanwhile, to the last.
        last = self._cores[-1:]
        with quiet():
            tokenizers = (
                read_tokenizer(first.folder, "tokenizer"),
                read_tokenizer(first.folder, "tokenizer_2"),
            )
        _check_windows(first, [tokenizer.model_max_length for tokenizer in tokenizers])
        return PipelineParts(
            unet=GraphUNet(
                self._by_size("unet", self._cores, PIXELS_PER_LATENT), first.configurations["unet"]
            ),
            vae=GraphVae(
                self._by_size("vae_encoder", last, 1),
                self._by_size("vae_decoder", last, PIXELS_PER_LATENT),
                first.configurations["vae_decoder"],
            ),
            tokenizers=tokenizers,
            text_encoders=(
                self._text_encoder("text_encoder", last),
                self._text_encoder("text_encoder_2", last),
            ),
            scheduler_config=read_json(first.folder / "scheduler/scheduler_config.json"),
            force_zeros_for_empty_prompt=bool(
                read_json(first.folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
            ),
            sizes=self._artefact.limits.served,
            # So many tokens were the UNet and the text encoders compiled for.
            max_windows=1,
            knows_tokens_alone=(self._artefact.path / VOCABULARY).is_file(),
        )

    def _text_encoder(self, component: str, cores: Sequence[int]) -> GraphTextEncoder:
        first = self._artefact.buckets[0]
        return GraphTextEncoder(self._place(first, component, cores), first.configurations[component])

    def _by_size(self, component: str, cores: Sequence[int], scale: int) -> dict[tuple[int, int], Placed]:
        return {
            (bucket.height // scale, bucket.width // scale): self._place(bucket, component, cores)
            for bucket in self._artefact.buckets
        }

    def _place(self, bucket: Bucket, component: str, cores: Sequence[int]) -> Placed:
        path = bucket.folder / component / GRAPH_NAME
        sha256 = str(self._hashes[path.relative_to(self._artefact.path).as_posix()]["sha256"])
        if (component, sha256) not in self._placed:
            inputs = bucket.inputs(component)
            graphs = [self._runtime.load(component, path, inputs, core) for core in cores]
            self._placed[component, sha256] = Placed(graphs, inputs)
        return self._placed[component, sha256]


def _check_windows(bucket: Bucket, windows: list[int]) -> None:
    for component, window in zip(("text_encoder", "text_encoder_2"), windows, strict=True):
        compiled = bucket.inputs(component)[0].shape[1]
        if window != compiled:
            raise ModelInvalid(
                f"{component} was compiled for {compiled} tokens, and its tokenizer gives {window}"
            )
