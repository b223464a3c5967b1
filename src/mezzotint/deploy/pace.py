"""How long things may take, named once. Seconds everywhere."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Pace"]

# Of what: the longest it may take. AWS's own figures, generously: a cluster takes 10 to 15 minutes, RDS 10,
# a first engine the node's start, the image's pull and the model's load.
LIMITS = {
    "read": 60,
    "change": 120,
    "init": 600,
    "plan": 900,
    "infra": 3_600,
    "addons": 1_800,
    "manifests": 300,
    "ready": 2_700,
    "page": 600,
    "reachable": 600,
    "picture": 600,
    "edge_gone": 900,
    "load_balancers_gone": 300,
    "services_gone": 900,
    "namespace_gone": 900,
    "nodes_gone": 1_800,
    "database_gone": 1_800,
    "leftovers_gone": 600,
    "listing": 300,
}


@dataclass(frozen=True)
class Pace:
    """every_s: between two looks while something is waited for. retry_s: before the second try of a call,
    doubled before each further one. progress_s: between two lines that say what is waited for. grace_s: how
    long a tool that was asked to stop may take, terraform to release its lock. times: all limits, times this.
    """

    every_s: float = 10.0
    retry_s: float = 2.0
    progress_s: float = 30.0
    grace_s: float = 300.0
    times: float = 1.0

    def limit(self, of: str) -> float:
        return LIMITS[of] * self.times
