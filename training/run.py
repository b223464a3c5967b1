"""The whole recipe: ``python -m training.run --config cpu``.

Stages: vae → latents → unet → export → loras → controlnet → evaluate → lines. Each leaves its result in
``training/out/<preset>/`` and is skipped when that is complete; the trainings also resume in the middle.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from training import controlnet, evaluate, export, lines, lora, unet, vae
from training.config import PRESETS, Config


def stages(config: Config, into: Path) -> dict[str, Callable[[], object]]:
    """What to do, in order, by name."""
    # What begins with a finished model keeps its autoencoder.
    first: dict[str, Callable[[], object]] = {} if config.known else {"vae": lambda: vae.train(config)}
    return {
        **first,
        "latents": lambda: unet.cache_latents(config),
        "unet": lambda: unet.train(config),
        "export": lambda: export.export(config, into),
        "loras": lambda: lora.train_all(config, into),
        "controlnet": lambda: controlnet.train(config, into),
        "evaluate": lambda: evaluate.evaluate(into, config.out),
        "lines": lambda: lines.evaluate(into, config.out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--into", type=Path, default=export.MODEL, help="where the model folder goes")
    parser.add_argument("--again", action="store_true", help="run finished stages again")
    arguments = parser.parse_args()
    config = PRESETS[arguments.config]
    config.out.mkdir(parents=True, exist_ok=True)
    for name, work in stages(config, arguments.into).items():
        mark = config.out / f"{name}.done"
        if mark.exists() and not arguments.again:
            print(f"{name}: done before", flush=True)
            continue
        start = time.monotonic()
        work()
        seconds = time.monotonic() - start
        mark.write_text(f"{seconds:.0f}\n")
        print(f"{name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
