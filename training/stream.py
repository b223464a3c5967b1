"""An endless stream of training batches, drawn inline or, where a GPU must be fed, by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Stream(IterableDataset[Any]):
    """Calls ``draw`` with a generator of its own for ever; every worker gets a different seed."""

    def __init__(self, draw: Callable[[np.random.Generator], Any], seed: int) -> None:
        self.draw, self.seed = draw, seed

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.draw(rng)


def batches(draw: Callable[[np.random.Generator], Any], seed: int, workers: int) -> Iterator[Any]:
    """Endless batches as ``draw`` makes them; ``workers`` 0 draws in this process."""
    return iter(DataLoader(Stream(draw, seed), batch_size=None, num_workers=workers))
