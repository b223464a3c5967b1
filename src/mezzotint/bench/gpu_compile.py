"""How soon a new process draws, compiled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from mezzotint.bench.engine import Result, at_most, figure
from mezzotint.bench.gpu import GpuBench

__all__ = ["compile_"]


def compile_(bench: GpuBench) -> list[Result]:
    """Seconds from a new process to its first image: compiled by blocks and whole, cold; from the cache."""
    results = []
    # What compiles beside a process that was ended may write for a moment longer.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        runs = [(f"{scope}, cold", scope) for scope in bench.preset.compiled]
        # The first once more, with the cache that it has left.
        runs.insert(1, (f"{runs[0][1]}, warm cache", runs[0][1]))
        for name, scope in runs:
            if not bench.has_time(f"compile of {name}", bench.preset.set_up_seconds):
                continue
            found = _cold_start(bench, scope, f"{folder}/{scope}")
            if found is None:
                bench.left_out.append(f"compile of {name}: not done within its budget")
                continue
            label = f"{name}: seconds to the first image"
            whole = found["whole"]
            results.append(
                at_most("compile", label, whole, 60.0, phases=found)
                if "warm" in name
                else figure("compile", label, whole, phases=found)
            )
    return results


def _cold_start(bench: GpuBench, scope: str, cache: str) -> dict[str, float] | None:
    """Seconds by phase of a process that draws one image; None when it did not end in time."""
    command = [sys.executable, "-m", "mezzotint.bench.cold_start", scope, cache, str(bench.device)]
    command.append("full" if bench.preset.architecture.name.startswith("sdxl,") else "tiny")
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=max(1.0, min(bench.left, 3600)))
        except BaseException as error:
            # The compiler has processes of its own, which would go on for a minute.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    if process.returncode:
        last = next(reversed(err.strip().splitlines()), "nothing said")
        raise RuntimeError(f"the process that starts cold ended with {process.returncode}: {last}")
    phases: dict[str, float] = json.loads(out.splitlines()[-1])
    return {**phases, "whole": time.perf_counter() - began}
