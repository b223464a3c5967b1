"""Findings about this machine: is what Mezzotint stands on here, and new enough.

Each finding is `ok`, a `note` (something is not at its best, or an optional part is missing), or `wrong`
(drawing will not work); those two say what to do. Nothing is changed, and nothing is sent anywhere.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from mezzotint.errors import MezzotintError
from mezzotint.neuron_versions import explain, find_versions, numbers_of

__all__ = ["FLOORS", "SERVE_FLOORS", "Finding", "examine"]

GIBIBYTE = 2**30
# The demo model draws in less; an SDXL model in half precision does not fit in less.
SDXL_MEMORY_GIB = 16
SDXL_DISK_GIB = 8
DEFAULT_PORT = 8000

FLOORS = {
    "torch": (2, 10),
    "diffusers": (0, 42, 1),
    "transformers": (5, 3),
    "accelerate": (1, 15),
    "pillow": (12, 2),
    "safetensors": (0, 5),
}
"""The oldest versions that are tested, and without known holes, of what drawing needs."""

NEURON_FLOORS = {
    **FLOORS,
    "torch": (2, 8),
    "diffusers": (0, 35, 2),
    "transformers": (4, 57),
}
"""The same for AWS's Neuron image, whose compiler holds torch and all that goes with it back
(docs/neuron.md).
"""

SERVE_FLOORS = {"ray": (2, 60), "fastapi": (0, 130), "starlette": (1, 3)}
"""The same for the [serve] extra."""


@dataclass(frozen=True)
class Finding:
    state: Literal["ok", "note", "wrong"]
    part: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order of a table. A part that fails in an unforeseen way is a finding too."""
    findings: list[Finding] = []
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _torch,
        _neuron,
        _processor,
        _memory,
        _disk,
        _demo_model,
        _serving,
        _port,
    )
    for part in parts:
        try:
            findings.extend(part())
        except Exception as error:
            name = part.__name__.strip("_").replace("_", " ")
            findings.append(Finding("wrong", name, f"{type(error).__name__}: {error}", "reinstall mezzotint"))
    return findings


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        yield Finding("ok", "Python", found)
    else:
        yield Finding("wrong", "Python", found, "use Python 3.11 or 3.12")


def _packages() -> Iterator[Finding]:
    neuron = find_versions()
    floors = FLOORS if neuron is None or neuron.torch_neuronx is None else NEURON_FLOORS
    for name, floor in floors.items():
        yield _package(name, floor, missing="wrong", install="pip install -U mezzotint")


def _serving() -> Iterator[Finding]:
    for name, floor in SERVE_FLOORS.items():
        yield _package(name, floor, missing="note", install="to serve: pip install -U 'mezzotint[serve]'")


def _package(
    name: str, floor: tuple[int, ...], *, missing: Literal["note", "wrong"], install: str
) -> Finding:
    at_least = ".".join(map(str, floor))
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(missing, name, "not installed", install)
    if numbers_of(found) < floor:
        return Finding("wrong", name, f"{found}; at least {at_least} is needed", install)
    return Finding("ok", name, found)


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("ok", "torch build", build)
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for i, device in enumerate(devices):
        yield Finding("ok", f"cuda:{i}", f"{device.name}, {device.total_memory / GIBIBYTE:.0f} GiB")
    if not devices and Path("/dev/nvidiactl").exists():
        yield Finding(
            "note",
            "GPU",
            "an NVIDIA driver is loaded, but this torch sees no device",
            "install a CUDA build of torch that fits the driver",
        )
    elif not devices:
        yield Finding("ok", "GPU", "none: the CPU draws")


def _neuron() -> Iterator[Finding]:
    versions = find_versions()
    if versions is not None:
        for state, part, found, fix in explain(versions):
            yield Finding(state, part, found, fix)


def _processor() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    capability = torch.backends.cpu.get_cpu_capability()
    found = f"{cores} cores, {capability}, {torch.get_num_threads()} threads"
    if "AVX2" in capability or "AVX512" in capability or platform.machine() in ("aarch64", "arm64"):
        yield Finding("ok", "CPU", found)
    else:
        yield Finding("note", "CPU", found, "a CPU with AVX2 draws several times faster")


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIBIBYTE:.1f} of {memory.total / GIBIBYTE:.1f} GiB free"
    if memory.available < SDXL_MEMORY_GIB * GIBIBYTE:
        fix = f"the demo model draws; SDXL on the CPU wants {SDXL_MEMORY_GIB} GiB"
        yield Finding("note", "memory", found, fix)
    else:
        yield Finding("ok", "memory", found)


def _disk() -> Iterator[Finding]:
    from mezzotint.models.locations import models_home

    try:
        home = models_home()
        there = next(folder for folder in (home, *home.parents) if folder.exists())
    except (MezzotintError, OSError) as error:
        yield Finding("note", "disk", str(error), "set MEZZOTINT_HOME to a folder; the demo model needs none")
        return
    free = shutil.disk_usage(there).free
    found = f"{free / GIBIBYTE:.1f} GiB free for {home}"
    if free < SDXL_DISK_GIB * GIBIBYTE:
        fix = f"a model of SDXL's size takes {SDXL_DISK_GIB} GiB; MEZZOTINT_HOME names another place"
        yield Finding("note", "disk", found, fix)
    else:
        yield Finding("ok", "disk", found)


def _demo_model() -> Iterator[Finding]:
    from mezzotint.models.locations import check

    try:
        report = check("demo")
    except MezzotintError as error:
        yield Finding("wrong", "demo model", error.message, "reinstall mezzotint")
    else:
        yield Finding("ok", "demo model", f"{report.files} files, as the manifest has them")


def _port() -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            fix = "serve elsewhere: mezzotint serve --port 8001"
            yield Finding("note", f"port {DEFAULT_PORT}", str(error.strerror).lower(), fix)
        else:
            yield Finding("ok", f"port {DEFAULT_PORT}", "free")
