"""How much memory the widest passes take."""

from __future__ import annotations

import psutil
import torch

from mezzotint.bench.engine import Result, figure
from mezzotint.bench.gpu import GpuBench

__all__ = ["memory"]


def memory(bench: GpuBench) -> list[Result]:
    """The most memory of passes as wide as they come and a decoding: on a GPU what torch holds, recordings
    and all, else the process's."""
    bench.forget_references()
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    width = bench.preset.widths[-1]
    requests = bench.requests(bench.mix(bench.size, steps=(4,)), width)
    with bench.started(bench.backend, requests) as ids:
        for _ in range(4):
            bench.backend.step(ids)
        bench.backend.decode(ids[0])
    peak = torch.cuda.max_memory_reserved(bench.device) if on_gpu else psutil.Process().memory_info().rss
    name = f"GiB at {bench.size}², {width} images in a pass"
    results = [figure("memory", name, peak / 2**30)]
    if on_gpu:
        # The driver's share too: recordings, cuDNN, the context.
        free, total = torch.cuda.mem_get_info(bench.device)
        results.append(figure("memory", f"{name}, all that is not free", (total - free) / 2**30))
    return results
