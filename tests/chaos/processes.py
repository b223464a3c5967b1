"""The processes of a running server, by what Ray names them."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from tests.servers import Server, is_running

__all__ = ["memory_mb", "processes_of", "wait_for_replicas"]

ROLES = {
    "engine": "ServeReplica:mezzotint:engine",
    "gateway": "ServeReplica:mezzotint:gateway",
    "controller": "ServeController",
    "proxy": "ProxyActor",
}
# Ray waits for a dead worker's place, starts another, and the new one loads its model.
REPLACED_SECONDS = 120.0


def processes_of(server: Server, role: str) -> list[psutil.Process]:
    """The processes of a role, the longest running first."""
    found = []
    for process in server.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if is_running(process) and any(ROLES[role] in part for part in process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def wait_for_replicas(server: Server, role: str, count: int, without: set[int]) -> float:
    """Seconds until `count` processes of the role run, none of them of the ids in `without`."""
    began = time.monotonic()
    while time.monotonic() - began < REPLACED_SECONDS:
        ids = {process.pid for process in processes_of(server, role)}
        if len(ids - without) == count:
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"no {count} processes of {role} within {REPLACED_SECONDS} s")


def memory_mb(server: Server) -> dict[str, float]:
    """Memory that is each role's own, in MB: shared pages are counted for nobody."""
    told = {}
    for role in ROLES:
        sizes = []
        for process in processes_of(server, role):
            with suppress(psutil.NoSuchProcess):
                sizes.append(process.memory_full_info().uss / 1e6)
        told[role] = round(sum(sizes), 1)
    return told
