"""Names of others' series, held against the ones that export them, as far as those run without a cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.foreign_series import FOREIGN
from tests.ports import free_port

LIMIT_SECONDS = 120.0
ENVOY = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))


def at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(admin: int, listening: int, nobody: int) -> dict[str, Any]:
    """An Envoy that would send everything to a port where nobody listens."""
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "gateways"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": at(nobody)}}
    cluster = {
        "name": "gateways",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "gateways", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {
        "admin": {"address": at(admin)},
        "static_resources": {
            "listeners": [{"name": "edge", "address": at(listening), "filter_chains": [chain]}],
            "clusters": [cluster],
        },
    }


@pytest.fixture
def envoy_series(tmp_path: Path) -> Iterator[str]:
    """What an Envoy tells after one request."""
    if ENVOY is None:
        pytest.skip("Envoy is not installed")
    admin, listening, nobody = free_port(), free_port(), free_port()
    (tmp_path / "envoy.json").write_text(json.dumps(bootstrap(admin, listening, nobody)))
    with (tmp_path / "log").open("wb") as log:
        command = [ENVOY, "-c", tmp_path / "envoy.json", "--disable-hot-restart", "--concurrency", "1"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{listening}/", timeout=5).status_code == 503
                break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield httpx.get(f"http://127.0.0.1:{admin}/stats/prometheus", timeout=LIMIT_SECONDS).text
    finally:
        process.kill()
        process.wait()


def test_envoy_tells_the_series_that_rules_ask_it_for(envoy_series: str) -> None:
    for name in sorted(name for name in FOREIGN if name.startswith("envoy_")):
        found = re.search(rf"^{name}{{([^}}]*)}} ", envoy_series, re.MULTILINE)
        assert found is not None, name
        assert set(re.findall(r'(\w+)="', found[1])) >= FOREIGN[name], found[0]
