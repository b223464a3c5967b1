"""The end of a server on one machine: requests that run are let end, Ray's processes are gone.

With a Ray that others use too, the application alone is taken away.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

import psutil

__all__ = ["WATCH_SECONDS", "abandon", "stop_everything"]

logger = logging.getLogger(__name__)

# What Ray's processes may take to end by themselves.
EXIT_SECONDS = 10.0
WATCH_SECONDS = 0.1
CORE_PROCESSES = ("gcs_server", "raylet")


def abandon(signals: SimpleQueue[int], *, own_ray: bool) -> None:
    """Leave nothing of a start that still goes on in its thread: nobody has been told of it yet."""
    if not own_ray:
        deleting = threading.Thread(target=_delete_application, daemon=True)
        deleting.start()
        heard = signals.qsize()
        # Not taken out: the thread that starts looks whether there are any.
        while deleting.is_alive() and signals.qsize() == heard:
            deleting.join(WATCH_SECONDS)
        return
    # What threads say now of processes that vanish under them tells nobody anything.
    logging.disable()
    threading.excepthook = lambda _: None
    _kill(psutil.Process().children(recursive=True))


def stop_everything(signals: SimpleQueue[int], *, own_ray: bool) -> None:
    """Let running requests end, then every process of Ray; all at once when its core is gone or not up."""
    children = psutil.Process().children(recursive=True) if own_ray else []
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _close(children, signals)
    _kill(children)


def _close(children: list[psutil.Process], signals: SimpleQueue[int]) -> None:
    core = [process for process in children if process.name() in CORE_PROCESSES]
    closing = threading.Thread(target=_close_in_order, daemon=True)
    closing.start()
    # A signal to the whole process group ends Ray's core too, and then no call to it returns.
    while closing.is_alive() and all(_is_running(process) for process in core):
        if not signals.empty():
            logger.warning("asked twice to stop: running requests are dropped")
            return
        closing.join(WATCH_SECONDS)
    if not closing.is_alive():
        _wait_for_end(children)


def _kill(children: list[psutil.Process]) -> None:
    # Children of this process by their own handles: never another's that bears the same name.
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_for_end(children)


def _wait_for_end(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    while any(_is_running(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(WATCH_SECONDS)


def _is_running(process: psutil.Process) -> bool:
    # A zombie has ended; whether its parent takes note of it is not ours to wait for.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _close_in_order() -> None:
    import ray

    try:
        _delete_application()
    finally:
        ray.shutdown()


def _delete_application() -> None:
    """Waits for the requests that are running, up to the replicas' own limit."""
    import ray

    if ray.is_initialized() and "mezzotint.serve.app" in sys.modules:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        from mezzotint.serve.app import APP_NAME

        try:
            serve.delete(APP_NAME)
        except RayServeException:
            pass  # Stopped before Serve was there.
        except Exception:
            logger.exception("Ray Serve did not close in order")
