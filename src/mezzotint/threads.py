"""How torch's threads wait for each other on a CPU. Knows the environment alone; torch reads it once."""

from __future__ import annotations

import os

__all__ = ["prepare_threads"]


def prepare_threads() -> None:
    """Before torch is first imported; afterwards it changes nothing. A policy that the caller has set stays.

    The threads otherwise wait for each other by spinning, and when a decode or another process wants the same
    cores, a pass takes ten times as long as with threads that sleep.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
