"""Whether the Neuron driver, runtime and compiler of a machine fit together, and what to do if not.

`find_versions` looks, `explain` judges. The table is from AWS's release notes and what is known of its images
(docs/neuron.md); a combination that it does not name is told as it is, not called good.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

__all__ = ["NeuronVersions", "explain", "find_versions", "numbers_of"]

State = Literal["ok", "note", "wrong"]
Told = tuple[State, str, str, str]

# Where Ray looks, and nowhere else.
NEURON_LS = Path("/opt/aws/neuron/bin/neuron-ls")
DRIVER_FILE = Path("/sys/module/neuron/version")
PROBE_SECONDS = 10.0
# From this driver on, `nrt_init` of an older runtime fails.
NEW_DRIVER, RUNTIME_FOR_IT = (2, 29), (2, 33)
# The compiler that goes with a torch-neuronx, by SDK: those that this project was written against.
PAIRS = {"2.26.1": ((2, 8, 0, 2, 10), (2, 21))}


@dataclass(frozen=True)
class NeuronVersions:
    """What was found, each as its package writes it; `None` for what is not there."""

    driver: str | None = None
    runtime: str | None = None
    torch: str | None = None
    torch_neuronx: str | None = None
    compiler: str | None = None
    has_neuron_ls: bool = False


def find_versions() -> NeuronVersions | None:
    """What of Neuron is on this machine; `None` where there is nothing of it."""
    found = NeuronVersions(
        driver=_read(DRIVER_FILE),
        runtime=_system_package("aws-neuronx-runtime-lib"),
        torch=_package("torch"),
        torch_neuronx=_package("torch-neuronx"),
        compiler=_package("neuronx-cc"),
        has_neuron_ls=NEURON_LS.is_file(),
    )
    known = (found.driver, found.runtime, found.torch_neuronx, found.compiler)
    return found if any(known) or found.has_neuron_ls else None


def explain(found: NeuronVersions) -> Iterator[Told]:
    """Findings as state, part, what was found, and what to do. Pure."""
    yield _driver(found)
    yield _framework(found)
    yield _compiler(found)
    if found.driver is not None and not found.has_neuron_ls:
        fix = "install aws-neuronx-tools: Ray asks it for the cores of a node"
        yield "note", "Neuron tools", f"no {NEURON_LS}", fix


def _driver(found: NeuronVersions) -> Told:
    part = "Neuron driver"
    if found.driver is None:
        return (
            "note",
            part,
            "no driver is loaded: graphs can be compiled here, not run",
            "use an inf2 or trn1 host",
        )
    told = f"{found.driver}, runtime {found.runtime or 'not found'}"
    if found.runtime is None:
        return "note", part, told, "the runtime comes with the Neuron image: aws-neuronx-runtime-lib"
    if numbers_of(found.driver) >= NEW_DRIVER and numbers_of(found.runtime) < RUNTIME_FOR_IT:
        fix = (
            "this driver wants runtime 2.33 or newer, and nrt_init will fail; SDK 2.26.1 images carry 2.28: "
            "take a host with an older driver (EKS AL2023 AMI v20260625 has 2.28) or a newer image"
        )
        return "wrong", part, told, fix
    return "ok", part, told, ""


def _framework(found: NeuronVersions) -> Told:
    part = "torch-neuronx"
    if found.torch_neuronx is None:
        return "note", part, "not installed", "it comes with the Neuron image (deploy/docker/neuron)"
    told = f"{found.torch_neuronx}, torch {found.torch or 'not found'}"
    # A torch-neuronx bears the version of the torch that it is built for.
    if found.torch is None or numbers_of(found.torch)[:2] != numbers_of(found.torch_neuronx)[:2]:
        wanted = ".".join(map(str, numbers_of(found.torch_neuronx)[:2]))
        return "wrong", part, told, f"it is built for torch {wanted}; install that"
    return "ok", part, told, ""


def _compiler(found: NeuronVersions) -> Told:
    part = "neuronx-cc"
    if found.compiler is None:
        return "note", part, "not installed", "only needed to compile"
    for sdk, (framework, compiler) in PAIRS.items():
        fits = (
            _starts(found.torch_neuronx, framework),
            _starts(found.compiler, compiler),
        )
        if any(fits) and not all(fits) and found.torch_neuronx is not None:
            told = f"{found.compiler} beside torch-neuronx {found.torch_neuronx}"
            fix = f"they are of different SDKs; {sdk} has {_dotted(compiler)} with {_dotted(framework)}"
            return "wrong", part, told, fix
    return "ok", part, found.compiler, ""


def _starts(found: str | None, beginning: Sequence[int]) -> bool:
    return found is not None and numbers_of(found)[: len(beginning)] == tuple(beginning)


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))


def numbers_of(found: str) -> tuple[int, ...]:
    """`2.8.0.2.10.16998+a9b5f4b` as (2, 8, 0, 2, 10, 16998); without a number, nothing."""
    match = re.match(r"\d+(\.\d+)*", found)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _package(name: str) -> str | None:
    try:
        found = version(name)
    except PackageNotFoundError:
        return None
    # On PyPI these names are placeholders without content.
    return found if name == "torch" or numbers_of(found) > (1,) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _system_package(name: str) -> str | None:
    """The version of a Debian or RPM package, where such a manager is there and knows it."""
    commands = (["dpkg-query", "-W", "-f=${Version}", name], ["rpm", "-q", "--qf", "%{VERSION}", name])
    for command in commands:
        if shutil.which(command[0]) is None:
            continue
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip()
    return None
