"""What a ControlNet of edges reads: Canny's edges of a picture, as its makers drew them for training."""

from __future__ import annotations

import numpy as np

from mezzotint.core import Pixels

__all__ = ["canny"]

# Of the gradient's size, 0…1,020: above the second begins an edge, above the first it goes on. Those that
# published ControlNets for SDXL were trained with.
LOW, HIGH = 100, 200


def canny(image: Pixels) -> Pixels:
    """White lines a pixel wide on black, where the picture's brightness or colour changes most."""
    # Here, for it takes a while to load and few pictures need it.
    import cv2

    # It takes milliseconds; and a replica has the cores that it was given.
    cv2.setNumThreads(1)
    edges = cv2.Canny(np.ascontiguousarray(image), LOW, HIGH)
    return np.repeat(edges[:, :, None].astype(np.uint8), 3, axis=2)
