"""The rendered manifest's configuration on a real Ray, started as its pods are, behind a real Envoy."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import PIL.Image
import pytest
import yaml

from mezzotint.imaging.metadata import read_receipt
from tests.deploy.envoy import Edge
from tests.deploy.manifests import KUBERNETES, ROOT, ray_service
from tests.deploy.ray_cluster import RayCluster
from tests.deploy.upstream import Upstream
from tests.ports import free_port

GATEWAY = "ServeReplica:mezzotint:gateway"
READY_SECONDS = 180.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """The local overlay's, as rendered."""
    manifests = [
        each for each in yaml.safe_load_all((KUBERNETES / "rendered/local.yaml").read_text()) if each
    ]
    with RayCluster(manifests, tmp_path_factory.mktemp("ray")) as running:
        text = ray_service(manifests)["spec"]["serveConfigV2"]
        # A pod has its address to itself; here it is this machine's, on a free port.
        port = free_port()
        for old, new in (("host: 0.0.0.0", "host: 127.0.0.1"), ("port: 8000", f"port: {port}")):
            assert text.count(old) == 1
            text = text.replace(old, new)
        config = tmp_path_factory.mktemp("config") / "serve-config.yaml"
        config.write_text(text)
        done = running.serve("deploy", str(config))
        assert done.returncode == 0, done.stderr + running.logs()
        running.place = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
        yield running


@pytest.fixture(scope="module")
def edge(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with (
        Upstream("page") as page,
        Edge(tmp_path_factory.mktemp("edge"), serve=cluster.place, page=page.place) as running,  # type: ignore[attr-defined]
    ):
        cluster.wait(
            lambda: httpx.get(f"{running.address}/readyz", timeout=10).status_code == 200,
            "readiness",
            READY_SECONDS,
        )
        yield running


@pytest.fixture
def client(edge: Edge) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=edge.address, timeout=120.0) as client:
        yield client


def test_a_picture_comes_by_the_new_and_the_old_address(client: httpx.Client) -> None:
    for path in ("/imagine", "/serve/imagine"):
        response = client.get(path, params={"prompt": "a red apple", "seed": 3, "steps": 4})
        assert response.status_code == 200, response.text
        assert read_receipt(response.content).seed == 3
        with PIL.Image.open(io.BytesIO(response.content)) as picture:
            assert picture.size == (128, 128)


def test_actors_are_where_their_groups_are(cluster: RayCluster, edge: Edge) -> None:
    """One engine and two gateways, and the head with nothing but Ray's own."""
    head, gateways, engines = cluster._nodes
    named = {
        node.pid: " ".join(part for process in node.children(recursive=True) for part in process.cmdline())
        for node in (head, gateways, engines)
    }
    assert "ServeReplica" not in named[head.pid]
    assert "ServeReplica:mezzotint:gateway" in named[gateways.pid]
    assert "ServeReplica:mezzotint:engine" not in named[gateways.pid]
    assert "ServeReplica:mezzotint:engine" in named[engines.pid]
    assert len(cluster.processes(GATEWAY)) == 2


def test_a_requests_line_is_where_the_runbook_looks_for_it(cluster: RayCluster, client: httpx.Client) -> None:
    (pattern,) = re.findall(r"cat /tmp/ray/(\S+)'", (ROOT / "docs/deploy/runbook.md").read_text())
    response = client.get("/imagine", params={"prompt": "a cat", "steps": 2, "size": "none"})
    assert response.status_code == 400
    told = response.headers["x-request-id"]

    def is_there() -> bool:
        return any(
            told in line and '"status": 4' in line
            for file in cluster.temporary.glob(pattern)
            for line in file.read_text(errors="replace").splitlines()
        )

    cluster.wait(is_there, "line of the request", 90.0)


def test_hostile_headers_change_nothing(client: httpx.Client) -> None:
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1", "x_session_id": "1"}
    response = client.get("/imagine", params={"prompt": "a cat", "steps": 2}, headers=headers)
    assert response.status_code == 200


def test_progress_comes_step_by_step(client: httpx.Client) -> None:
    """Were the answer gathered up on the way, all of it would come at once."""
    request = {"params": {"prompt": "a cat", "steps": 40}, "headers": {"accept": "text/event-stream"}}
    # A reader that was held up finds together what came one by one; three in a row are not.
    for _ in range(3):
        times: list[float] = []
        steps: list[int] = []
        with client.stream("GET", "/imagine", **request) as response:  # type: ignore[arg-type]
            for line in response.iter_lines():
                if line.startswith("data: ") and "step" in json.loads(line[6:]):
                    steps.append(json.loads(line[6:])["step"])
                    times.append(time.monotonic())
        assert steps == sorted(steps)
        if len(set(steps)) > 5 and len({round(at, 2) for at in times}) > 5:
            break
    else:
        raise AssertionError(f"steps {steps} came at {times}")


def test_the_dashboard_is_not_reached_through_the_edge_and_asks_for_the_token_itself(
    cluster: RayCluster, client: httpx.Client
) -> None:
    assert client.get("/dashboard").status_code == 404
    assert client.get("/api/jobs/").status_code == 404
    assert urlsplit(cluster.dashboard).hostname == "127.0.0.1"
    jobs = f"{cluster.dashboard}/api/jobs/"
    assert httpx.get(jobs, timeout=60).status_code in (401, 403)
    told = {"Authorization": f"Bearer {cluster.token}"}
    assert httpx.get(jobs, headers=told, timeout=60).status_code == 200


def test_a_killed_gateways_requests_are_answered_by_the_other(
    cluster: RayCluster, client: httpx.Client
) -> None:
    def draw(seed: int) -> int:
        return client.get("/imagine", params={"prompt": "a cat", "steps": 8, "seed": seed}).status_code

    victim = cluster.processes(GATEWAY)[0]
    with ThreadPoolExecutor(8) as pool:
        before = pool.submit(draw, 0)
        asked = [pool.submit(draw, seed) for seed in range(1, 25)]
        before.result()
        victim.kill()
        statuses = [each.result() for each in asked]
    assert statuses == [200] * 24
    assert not victim.is_running()
