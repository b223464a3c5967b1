"""A process that starts cold, builds, compiles and draws one image, and prints its seconds by phase as JSON.

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
    from mezzotint.resolving import resolve

    imported = time.perf_counter()
    bench = GpuBench(FULL if preset == "full" else QUICK, torch.device(device))
    tuning = replace(bench.preset.tuning, compile=cast("Compile", scope), compile_cache=cache)
    backend = DiffusersBackend(bench.build(), bench.info, tuning)
    built = time.perf_counter()
    mix = bench.mix(bench.size, steps=(bench.preset.steps,))
    request = resolve(bench.requests(mix, 1)[0], bench.info.limits)
    backend.start("first", request)
    for _ in range(request.evaluations):
        for error in backend.step(["first"]).values():
            raise error
    backend.decode("first")
    drawn = time.perf_counter()
    print(json.dumps({"import": imported - began, "build": built - imported, "first_image": drawn - built}))


if __name__ == "__main__":
    main(*sys.argv[1:])
