"""What `mezzotint bench gpu` measures: each part claims what its first line says."""

from __future__ import annotations

from collections.abc import Callable

from mezzotint.bench.engine import Result
from mezzotint.bench.gpu import GpuBench
from mezzotint.bench.gpu_compile import compile_
from mezzotint.bench.gpu_controls import controls
from mezzotint.bench.gpu_decode import decode
from mezzotint.bench.gpu_load import load
from mezzotint.bench.gpu_memory import memory
from mezzotint.bench.gpu_throughput import throughput
from mezzotint.bench.gpu_tuning import quantisation, switches
from mezzotint.bench.gpu_unet import loop, matrix, unet

__all__ = ["PARTS"]

PARTS: dict[str, Callable[[GpuBench], list[Result]]] = {
    "matrix": matrix,
    "unet": unet,
    "throughput": throughput,
    "switches": switches,
    "quantisation": quantisation,
    "loop": loop,
    "decode": decode,
    "compile": compile_,
    "load": load,
    "controls": controls,
    "memory": memory,
}
