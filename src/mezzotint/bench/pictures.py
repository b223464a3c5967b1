"""`mezzotint bench png`: our PNG writer against Pillow at its defaults, in turn, over pictures of each kind.

The pictures: `flat` has discs of one colour each; `smooth` is a gradient without any grain; `demo` is sixteen
pictures of the demo model side by side; `noisy` and `very noisy` are the gradient with normal noise of 4 and
30 of 255.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from PIL import Image as PilImage

from mezzotint.bench.engine import Result, at_most
from mezzotint.core import GenerationRequest, Pixels
from mezzotint.engine.engine import Engine
from mezzotint.imaging.png import encode_png

__all__ = ["draw_demo", "measure_png", "synthetic"]

SIDE = 1024
TILES = 4
TIME_BAR, SIZE_BAR = 0.25, 1.10
PROMPTS = ("a red apple on a blue table", "a green triangle", "a yellow star at night", "a house by the sea")


def synthetic(side: int = SIDE) -> dict[str, Pixels]:
    """The pictures that need no model, side × side."""
    y, x = np.mgrid[0:side, 0:side] * (6 / side)
    gradient = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    noise = np.random.default_rng(0).normal(0, 1, gradient.shape)
    return {
        "flat": _discs(side),
        "smooth": gradient.astype(np.uint8),
        "noisy": _bytes(gradient + 4 * noise),
        "very noisy": _bytes(gradient + 30 * noise),
    }


def _bytes(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)


def _discs(side: int) -> Pixels:
    """Discs of one colour each, with soft edges."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:side, 0:side]
    pixels = np.full((side, side, 3), (235.0, 230.0, 215.0))
    for _ in range(25):
        distance = np.hypot(x - random.integers(side), y - random.integers(side))
        cover = np.clip(random.integers(side // 50, side // 5) - distance, 0, 1)[..., None]
        pixels = pixels * (1 - cover) + cover * random.integers(0, 256, 3)
    return _bytes(pixels)


def draw_demo(engine: Engine) -> Pixels:
    """Sixteen of the model's pictures, 1024 × 1024 in all."""
    side = SIDE // TILES
    tiles = [
        engine.generate(
            GenerationRequest(PROMPTS[seed % len(PROMPTS)], width=side, height=side, steps=8, seed=seed)
        ).pixels
        for seed in range(TILES * TILES)
    ]
    return np.vstack([np.hstack(tiles[row * TILES : (row + 1) * TILES]) for row in range(TILES)])


def measure_png(pictures: dict[str, Pixels], trials: int) -> list[Result]:
    """Ratios ours ÷ Pillow's of time (the median of `trials`, one of each in turn) and of size."""
    results = []
    for name, pixels in pictures.items():
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(trials):
            our_seconds, our_file = _timed(encode_png, pixels)
            their_seconds, their_file = _timed(_by_pillow, pixels)
            ours.append(our_seconds)
            theirs.append(their_seconds)
        times = {"ours_s": median(ours), "pillow_s": median(theirs)}
        ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
        sizes = {"our_bytes": len(our_file), "pillow_bytes": len(their_file)}
        results.append(at_most("png", f"{name}: time ÷ Pillow's", ratio, TIME_BAR, **times))
        size = len(our_file) / len(their_file)
        results.append(at_most("png", f"{name}: size ÷ Pillow's", size, SIZE_BAR, **sizes))
    return results


def _timed(encode: Callable[[Pixels], bytes], pixels: Pixels) -> tuple[float, bytes]:
    began = time.perf_counter()
    file = encode(pixels)
    return time.perf_counter() - began, file


def _by_pillow(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
