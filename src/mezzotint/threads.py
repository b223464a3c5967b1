"""How torch's threads wait for each other on a CPU, and for whom else. Torch reads its environment once."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

__all__ = ["give_way", "prepare_threads"]

# Chosen by measurement: docs/decisions/0006.
SPINS = 10_000
# Of 19: about a tenth of a core's time while others want all of it.
NICENESS = 10


def prepare_threads() -> None:
    """Before torch is first imported; afterwards it changes nothing. A policy that the caller has set stays.

    Threads that always sleep between two operations made a lone pass twice as slow on two idle cores; threads
    that spin for as long as they like make it many times slower when a decode or another process wants the
    same cores. So they spin for a moment and then sleep (docs/decisions/0006).
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def give_way() -> None:
    """Have this thread, and those it starts from now on, wait for all others that want a core.

    A server that draws on the cores on which its gateways and its page answer would keep whoever asks waiting
    for a turn of the processor; a picture takes as long as it takes.
    """
    # Linux alone has a priority for each thread; elsewhere the number would be another process's.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
