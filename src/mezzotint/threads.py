"""torch's threads on a CPU: how many, and how they wait for each other, which is settled before torch and its
kin are imported; and which libraries' loggers are silenced while they load. Knows the machine, the
environment and logging alone.
"""

from __future__ import annotations

import logging
import os

__all__ = ["default_threads", "prepare_libraries"]

# Chosen by measurement: docs/decisions/0006.
SPINS = 10_000

# diffusers imports torchao where it is installed, and all three then tell of what other machines would need.
CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def prepare_libraries() -> None:
    """Before torch, diffusers or transformers are first imported."""
    prepare_threads()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def prepare_threads() -> None:
    """Before torch is first imported; afterwards it changes nothing. A policy that the caller has set stays.

    Threads that always sleep between two operations made a lone pass twice as slow on two idle cores; threads
    that spin for as long as they like make it many times slower when a decode or another process wants the
    same cores. So they spin for a moment and then sleep (docs/decisions/0006).
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def default_threads() -> int:
    """The physical cores that this process may use, or fewer where OMP_NUM_THREADS says so.

    Ray sets that from the CPUs that a replica has of its node or its container, of which neither the affinity
    nor the machine tells.
    """
    # The page's image has none, and draws nothing.
    import psutil

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Two threads on one core's two halves only get in each other's way in matrix products.
    threads = min(psutil.cpu_count(logical=False) or available, available)
    # A list has a number for each level of nesting.
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(threads, int(said)) if said.isdecimal() and int(said) > 0 else threads
