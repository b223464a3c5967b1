"""The replicas' log lines on this process's stderr, as they wrote them.

Ray collects what its workers write; its own way of repeating that puts a name before every line, and then it
is no JSON any more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["forward_logs"]

# How the lines of `logs` begin. Whatever else a worker writes stays in Ray's own files.
OURS = re.compile(r'\{"time": "|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d')


def forward_logs() -> None:
    """After `ray.init(log_to_driver=True)`."""
    # Ray has no public way to take the lines as they are; tests/serve/test_observability.py holds this one.
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("mezzotint_forward_logs", _repeat)


def _repeat(batch: Mapping[str, Any]) -> None:
    if not batch.get("is_err"):
        return
    lines = [line for line in batch["lines"] if OURS.match(line)]
    if lines:
        print("\n".join(lines), file=sys.stderr, flush=True)
