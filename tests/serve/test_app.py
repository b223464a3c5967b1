"""The application as Ray Serve builds it from a config, on a Ray of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from mezzotint.config import Settings
from mezzotint.errors import SettingInvalid
from tests.ports import free_port

START_SECONDS = 120.0
STOP_SECONDS = 60.0
CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: mezzotint
    route_prefix: /
    import_path: mezzotint.serve.app:build_app
    args: {{model: "fake:pass_seconds=0.01", replicas: 2, deadline_s: 30}}
"""


@contextmanager
def serve_run(config: Path, home: Path) -> Iterator[psutil.Popen]:
    """Within, `serve run` of Ray serves `config`, listening on loopback alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "MEZZOTINT_HOME": str(home),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_OBJECT_STORE_MEMORY": str(100 * 1024 * 1024),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
    }
    # What runs in the background is born deaf to SIGINT, and its children too; this one is to end by it.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from ray.serve.scripts import cli; cli()"
    command = [sys.executable, "-c", script, "run", str(config)]
    with (home / "out.txt").open("wb") as out:
        process = psutil.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True, cwd=home
        )
    helpers: list[psutil.Process] = []
    try:
        yield process
    finally:
        helpers = process.children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
        for helper in helpers:
            with suppress(psutil.NoSuchProcess):
                helper.kill()


@pytest.mark.slow
def test_a_serve_config_that_names_the_builder_serves_with_its_settings(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(port=port))
    with serve_run(config, tmp_path) as process:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            try:
                response = httpx.get(f"http://127.0.0.1:{port}/imagine?prompt=a&steps=2&seed=1", timeout=30)
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == 200:
                break
            time.sleep(0.3)
        else:
            raise AssertionError((tmp_path / "out.txt").read_text())
        assert response.headers["x-mezzotint-seed"] == "1"
        model = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).json()["model"]
        assert model == "fake"


@pytest.mark.filterwarnings("ignore")  # of Ray's own, when it is imported
@pytest.mark.parametrize(
    ("args", "named"),
    [({"modle": "demo"}, "modle"), ({"replicas": "many"}, "replicas"), ({"port": -1}, "port")],
)
def test_an_argument_that_is_not_accepted_is_named(args: dict[str, object], named: str) -> None:
    from mezzotint.serve.app import build_app

    with pytest.raises(SettingInvalid, match=named):
        build_app(args)


@pytest.mark.filterwarnings("ignore")
def test_a_config_can_be_built_where_no_ray_runs() -> None:
    from mezzotint.serve.app import build_app

    assert build_app({"model": "fake", "replicas": "2"}) is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replicas", [1, 2])
def test_one_engine_that_fails_to_start_ends_no_rolling_update(replicas: int) -> None:
    """By Ray Serve's own rule; what it stops at is the least of what is told and three a replica."""
    from ray.serve._private.constants import MAX_PER_REPLICA_RETRY_COUNT

    from mezzotint.serve.app import build_app

    _, engine = build_app({"model": "fake", "replicas": replicas})._bound_deployment.init_args
    told = engine._bound_deployment._deployment_config.max_constructor_retry_count
    assert min(told, replicas * MAX_PER_REPLICA_RETRY_COUNT) == 3


@pytest.mark.filterwarnings("ignore")
def test_ray_keeps_no_secret_of_what_needs_none() -> None:
    """Arguments of deployments are kept where Ray keeps its state."""
    from mezzotint.serve.app import build_app

    named = "file:///etc/mezzotint/database_url"
    gateway = build_app({"model": "fake", "database_url": named, "ui_key": "s3cret"})._bound_deployment
    settings, engine = gateway.init_args
    assert (settings.database_url, settings.ui_key) == (named, "")
    (of_engine,) = engine._bound_deployment.init_args
    assert (of_engine.database_url, of_engine.ui_key) == ("", "")
    assert of_engine.model == "fake"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "gpus", "cores", "expected"),
    [
        (Settings(), 0, 8, {"num_cpus": 8, "num_gpus": 0}),
        (Settings(replicas=2), 0, 8, {"num_cpus": 4, "num_gpus": 0}),
        (Settings(replicas=2, max_replicas=4), 0, 8, {"num_cpus": 2, "num_gpus": 0}),
        (Settings(replicas=2), 2, 8, {"num_cpus": 4, "num_gpus": 1.0}),
        (Settings(replicas=2), 1, 8, {"num_cpus": 4, "num_gpus": 0.5}),
        (Settings(replicas=3), 2, 9, {"num_cpus": 3, "num_gpus": 0.5}),
        (Settings(replicas=6), 4, 12, {"num_cpus": 2, "num_gpus": 0.5}),
        (Settings(device="cpu"), 1, 8, {"num_cpus": 8, "num_gpus": 0}),
        (Settings(threads=3), 0, 8, {"num_cpus": 3, "num_gpus": 0}),
        (
            Settings(device="neuron"),
            0,
            8,
            {"num_cpus": 8, "num_gpus": 0, "resources": {"neuron_cores": 2}},
        ),
        (
            Settings(device="neuron", neuron_cores=4, replicas=2),
            0,
            8,
            {"num_cpus": 4, "num_gpus": 0, "resources": {"neuron_cores": 4}},
        ),
        (Settings(device="neuron", stand_in=True), 0, 8, {"num_cpus": 8, "num_gpus": 0}),
    ],
)
def test_a_replica_reserves_its_share_of_the_machine(
    settings: Settings, gpus: int, cores: int, expected: dict[str, Any]
) -> None:
    from mezzotint.serve.app import replica_resources

    assert replica_resources(settings, gpus, cores) == expected


def test_a_start_needs_no_home() -> None:
    """Of a user whom the system does not know, as in a container, without the variable."""
    code = """
import os, pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
from mezzotint.serve.local import _prepare_environment
_prepare_environment()
print(bool(os.environ["RAY_AUTH_TOKEN"]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ran.stdout == "True\n", ran.stderr


@pytest.mark.parametrize(
    ("variable", "value", "code", "told"),
    [
        ("RAY_ADDRESS", "nowhere", 2, "RAY_ADDRESS nowhere: Invalid address format: nowhere"),
        (
            "RAY_TMPDIR",
            "/proc/nowhere",
            1,
            "Ray did not start: [Errno 2] No such file or directory: '/proc/nowhere'",
        ),
    ],
)
def test_a_ray_that_is_not_there_or_does_not_start_is_told_in_one_line(
    variable: str, value: str, code: int, told: str
) -> None:
    serving = [sys.executable, "-m", "mezzotint", "serve", "--model", "fake", "--no-ui"]
    environment = {name: each for name, each in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [*serving, "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, variable: value},
        check=False,
    )
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (code, f"error: {told}")
    assert "Traceback" not in ran.stderr


def test_a_signal_breaks_off_a_start_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mezzotint.serve import local

    def start(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        Event().wait()

    given_up = []
    monkeypatch.setenv("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    monkeypatch.setattr(local, "_prepare_environment", lambda: None)
    monkeypatch.setattr(local, "_start_ray", start)
    monkeypatch.setattr(local, "abandon", lambda *_, own_ray: given_up.append(own_ray))
    with (
        local.stop_signals() as signals,
        pytest.raises(local.StartInterrupted),
        local.running(Settings(), signals),
    ):
        pytest.fail("went on")
    assert given_up == [True]


def test_why_no_engine_started_is_told_without_what_became_of_the_gateway() -> None:
    from mezzotint.serve import local

    failed = "mezzotint.errors.SettingInvalid: preview_vae must be a folder, and /x is none"
    messages = {
        "engine": f"The deployment failed to start. Traceback:\n  File …\n{failed}",
        "gateway": "Deployment 'gateway' has 1 replicas that have taken more than 30s to initialize.",
    }
    deployments = {name: SimpleNamespace(message=message) for name, message in messages.items()}
    error = local._start_error(SimpleNamespace(deployments=deployments))
    assert isinstance(error, SettingInvalid)
    assert error.message == "preview_vae must be a folder, and /x is none"


def test_a_signal_before_the_application_is_deployed_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    from mezzotint.serve import local

    called: list[str] = []
    signals: SimpleQueue[int] = SimpleQueue()

    def start(**_: object) -> None:
        called.append("start")
        signals.put(signal.SIGTERM)

    serve = SimpleNamespace(start=start, run=lambda *_, **__: called.append("run"))
    application = SimpleNamespace(APP_NAME="mezzotint", application=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    monkeypatch.setitem(sys.modules, "mezzotint.serve.app", application)
    local._deploy(Settings(), signals)
    local._deploy(Settings(), signals)
    assert called == ["start"]
