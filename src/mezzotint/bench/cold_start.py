"""A process that starts cold, builds, warms up as a replica does and draws one image, and prints its seconds
by phase as JSON. Its weights are random and made on the device: reading a model's files comes on top.

python -m mezzotint.bench.cold_start SCOPE CACHE_FOLDER DEVICE full|tiny
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import cast

from mezzotint.threads import prepare_libraries
from mezzotint.tuning import Compile


def main(scope: str, cache: str, device: str, preset: str) -> None:
    began = time.perf_counter()
    prepare_libraries()
    import torch

    from mezzotint.backends.diffusers import DiffusersBackend
    from mezzotint.bench.gpu import FULL, QUICK, GpuBench
    from mezzotint.engine.engine import Engine

    phases = {"import": time.perf_counter() - began}

    def over(phase: str) -> None:
        phases[phase] = time.perf_counter() - began - sum(phases.values())

    bench = GpuBench(FULL if preset == "full" else QUICK, torch.device(device))
    tuning = replace(bench.preset.tuning, compile=cast("Compile", scope), compile_cache=cache)
    backend = DiffusersBackend(bench.build(), bench.info, tuning)
    over("build")
    # Of a tiny model nobody wants the figures, and a CPU compiles each width for half a minute.
    with Engine(backend, max_batch=None if preset == "full" else 1) as engine:
        engine.warm_up()
        over("warm_up")
        mix = bench.mix(bench.size, steps=(bench.preset.steps,))
        engine.generate(bench.requests(mix, 1)[0])
        over("first_image")
    print(json.dumps(phases))


if __name__ == "__main__":
    main(*sys.argv[1:])
