"""How the shared server of these runs is set, in figures that the runs reckon with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.chaos.cluster import new_token
from tests.servers import Server

__all__ = [
    "ARGUMENTS",
    "DEADLINE_SECONDS",
    "MODEL",
    "OWN_BACKLOG_SECONDS",
    "PASS_SECONDS",
    "SETTINGS",
    "capacity",
    "launch",
]

REPLICAS, PASS_SECONDS, WIDTH = 2, 0.1, 4
MODEL = f"fake:pass_seconds={PASS_SECONDS},max_batch={WIDTH}"
ARGUMENTS = ("--model", MODEL, "--replicas", str(REPLICAS))
BACKLOG_SECONDS = 16.0
# One tenant alone may fill half of an engine's backlog.
OWN_BACKLOG_SECONDS = BACKLOG_SECONDS / 2
DEADLINE_SECONDS = 120.0
SETTINGS = {"gateways": 2, "max_backlog_s": BACKLOG_SECONDS, "deadline_s": DEADLINE_SECONDS}


def capacity(steps: int) -> float:
    """Pictures of so many steps that both engines draw in a second."""
    return REPLICAS * WIDTH / (PASS_SECONDS * steps)


def launch(folder: Path, *arguments: str, **settings: Any) -> Server:
    """A server that is starting. A setting whose name is in capitals is a variable of the environment."""
    environment = {
        name if name.isupper() else f"MEZZOTINT_{name.upper()}": str(value)
        for name, value in {"home": folder / "home", **new_token(), **settings}.items()
    }
    return Server(folder, *arguments, environment=environment)
