"""What a benchmark leaves behind: a table to read, JSON to keep, a plot to look at."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from mezzotint.backends.base import BackendInfo
from mezzotint.bench.engine import Result

__all__ = ["describe_machine", "describe_run", "plot_latency", "results_table", "write_json"]


def describe_run(info: BackendInfo) -> dict[str, Any]:
    """Hardware, commit, command and versions: what a figure is worth nothing without."""
    return {
        "command": " ".join(["mezzotint", *sys.argv[1:]]),
        **describe_machine(),
        "model": info.model,
        "revision": info.revision,
        "device": info.device,
        "dtype": info.dtype,
        "versions": dict(info.versions),
    }


def describe_machine() -> dict[str, Any]:
    """The commit, the day, and the hardware; of a virtual machine, what it claims to be."""
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }


def results_table(results: Sequence[Result]) -> Table:
    table = Table("part", "figure", "found", "bar", "", title="mezzotint bench")
    for result in results:
        verdict = "[green]met[/]" if result.met else "[red]missed[/]"
        if not result.bar:
            verdict = ""
        table.add_row(result.part, result.name, f"{result.value:.3f}", result.bar, verdict)
    return table


def write_json(path: Path, run: dict[str, Any], results: Sequence[Result], **more: Any) -> None:
    """`more`: what else is to be told, by name."""
    told = {"run": run, "results": [r.to_dict() for r in results], **more}
    path.write_text(json.dumps(told, indent=1) + "\n")


def plot_latency(path: Path, run: dict[str, Any], results: Sequence[Result]) -> bool:
    """Mean and p99 latency against load, one line a server. False when no load was measured."""
    points = [r.details for r in results if r.part == "load" and "latency" in r.details]
    if not points:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for axis, statistic in zip(axes, ("mean", "p99"), strict=True):
        for server, marker in (("engine", "o"), ("request batches", "s"), ("one at a time", "^")):
            shares = [100 * point["share"] for point in points]
            axis.plot(shares, [p["latency"][server][statistic] for p in points], marker=marker, label=server)
        axis.set_yscale("log")
        axis.set_xlabel("load, % of the engine's capacity")
        axis.set_ylabel(f"{statistic} latency, seconds")
        axis.grid(True, which="both", alpha=0.25)
    axes[0].legend()
    figure.suptitle(
        f"{run['model']} on {run['cores']} cores of {run['cpu']}, {run['dtype']}, commit {run['commit']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
