"""Ray Serve for one machine: start it, serve until told to stop, leave nothing behind.

With `RAY_ADDRESS` set, that cluster is used instead; stopping then takes away the application alone.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from mezzotint.config import Settings
from mezzotint.cores import prepare_cores
from mezzotint.errors import GenerationFailed, MezzotintError, ModelLoading, SettingInvalid
from mezzotint.serve.ports import cannot_listen
from mezzotint.serve.proxy import PROXY_CALLBACK
from mezzotint.serve.stopping import WATCH_SECONDS, abandon, stop_everything
from mezzotint.serve.telemetry.forwarding import forward_logs

__all__ = ["StartInterrupted", "check_neuron", "running", "stop_signals"]

MEBIBYTE = 1024 * 1024
# Of each worker; the same as in deploy/kubernetes.
LOG_FILE_BYTES, OLD_LOG_FILES = 32 * MEBIBYTE, 4


class StartInterrupted(Exception):
    """A signal came before everything was up. A thread is left that nobody can end: leave by `os._exit`."""


@contextmanager
def stop_signals() -> Iterator[SimpleQueue[int]]:
    """Within, SIGINT and SIGTERM are put into the queue it gives, and nothing else comes of them.

    An exception would meet the main thread anywhere, also in a callback of an import's or of the garbage
    collector's, from which Python throws it away.
    """
    signals: SimpleQueue[int] = SimpleQueue()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda came, _: signals.put(came))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def running(settings: Settings, signals: SimpleQueue[int]) -> Iterator[None]:
    """Within, the application serves on `settings.host` and `settings.port`; every replica has warmed up.

    Args:
        settings: the server's.
        signals: whoever puts one in ends the start, and later the wait for requests that are running.

    Raises:
        MezzotintError: a replica could not be started, and why.
        StartInterrupted: a signal came first; nothing of what had started is left.
    """
    address = os.environ.get("RAY_ADDRESS")
    # Ray does not start with a range of cores such as 0-1.
    prepare_cores()
    # Ray's own handler of SIGTERM prints a trace and, three seconds on, aborts what then stops in order.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    if not address:
        _prepare_environment()
    up: Future[None] = Future()
    # Not in the main thread: nothing could break it off there.
    threading.Thread(target=_start, args=(settings, address, signals, up), daemon=True).start()
    while signals.empty() and not up.done():
        wait([up], WATCH_SECONDS)
    if not signals.empty():
        abandon(signals, own_ray=not address)
        raise StartInterrupted
    try:
        up.result()
        yield
    finally:
        stop_everything(signals, own_ray=not address)


def _start(settings: Settings, address: str | None, signals: SimpleQueue[int], up: Future[None]) -> None:
    try:
        _start_ray(settings, address)
        _deploy(settings, signals)
    except BaseException as error:
        up.set_exception(error)
    else:
        up.set_result(None)
    # The system ends Ray's processes with the thread that started them (PR_SET_PDEATHSIG), so it must last.
    threading.Event().wait()


def _prepare_environment() -> None:
    """Before Ray is imported, for it reads these once."""
    # With pathlib, a user without a home or without a right to it could not serve.
    has_home_token = os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    # Whoever can talk to Ray can run code as this user, so its ports ask for a token.
    if not has_token and not has_home_token:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray's one-machine mode: it listens on the loopback address alone. The name is from the systems where
    # it is the default.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Ray keeps every line that a worker writes, and by itself all of them for ever.
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(LOG_FILE_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", str(OLD_LOG_FILES))
    # How often a replica tells its backlog to whoever scales; Ray's own ten seconds are a burst's whole life.
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)


def _start_ray(settings: Settings, address: str | None) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
    if address:
        options |= {"address": address}
    else:
        cores = len(os.sched_getaffinity(0))
        replicas = max(settings.replicas, settings.max_replicas or 0)
        options |= {
            "num_cpus": max(cores, replicas * (settings.threads or 1)),
            "object_store_memory": settings.object_store_mb * MEBIBYTE,
            "include_dashboard": False,
        }
    try:
        ray.init(**options)
    except Exception as error:
        # Of any kind: a malformed address is a ValueError, a machine too slow to start on a bare Exception.
        reason = str(error) or type(error).__name__
        if address:
            raise SettingInvalid(f"RAY_ADDRESS {address}: {reason}", param="RAY_ADDRESS") from error
        raise ModelLoading(f"Ray did not start: {reason}") from error
    if not address:
        # For a GPU that is not there, Ray would wait without end.
        if settings.device.startswith("cuda") and not ray.cluster_resources().get("GPU"):
            raise SettingInvalid(f"--device {settings.device}: there is no CUDA device on this machine")
        check_neuron(settings, int(ray.cluster_resources().get("neuron_cores", 0)))
    forward_logs()


def check_neuron(settings: Settings, found: int) -> None:
    """Refuse to wait for NeuronCores that are not here: Ray would, without end. `found`: those it knows of.

    Raises:
        SettingInvalid: there are too few.
    """
    wanted = settings.neuron_cores * settings.replicas
    if settings.device == "neuron" and not settings.stand_in and found < wanted:
        raise SettingInvalid(
            f"--device neuron: {wanted} NeuronCores are wanted and Ray finds {found} here; it asks neuron-ls "
            "(mezzotint doctor), or run an artefact compiled for cpu with --stand-in"
        )


def _deploy(settings: Settings, signals: SimpleQueue[int]) -> None:
    if not signals.empty():
        return
    from ray import serve

    from mezzotint.serve.app import APP_NAME, application

    # Importing Serve has set its logger to tell of every step.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logs = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            logging_config=logs,
        )
    except RuntimeError as error:
        # Somebody was quicker between the look at the port and now.
        if "Failed to bind" not in str(error):
            raise
        raise cannot_listen(settings.host, settings.port, "address already in use") from None
    try:
        # Somebody waits to hear what is wrong, and nothing serves that would have to go on.
        starting = application(settings, start_failures=1)
        if not signals.empty():
            return
        serve.run(starting, name=APP_NAME, route_prefix="/", logging_config=logs)
    except RuntimeError:
        raise _start_error(serve.status().applications[APP_NAME]) from None


def _start_error(status: object) -> MezzotintError:
    """Why a replica did not start, from what Ray kept of its traceback."""
    told = "\n".join(str(deployment.message) for deployment in status.deployments.values())  # type: ignore[attr-defined]
    found = re.findall(r"mezzotint\.errors\.(\w+): ([^\n]+)", told)
    kinds = {kind.__name__: kind for kind in MezzotintError.__subclasses__()}
    if found and found[-1][0] in kinds:
        name, message = found[-1]
        return kinds[name](message)
    lines = [line for line in told.splitlines() if line.strip()]
    return GenerationFailed(f"the engine did not start: {lines[-1].strip() if lines else 'no reason given'}")
