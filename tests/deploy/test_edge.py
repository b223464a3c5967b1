"""The edge: a real Envoy with the very configuration that the cluster gets, before two servers."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mezzotint.serve.proxy import LOST_HEADER
from tests.deploy.envoy import Edge
from tests.deploy.upstream import CHUNK, Upstream

SLOW_CONNECTIONS = 1_000
# request_headers_timeout, and time for one core to close so many; left open they would stay for good.
CLOSED_SECONDS = 60.0
LIMIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def serve() -> Iterator[Upstream]:
    with Upstream("serve") as upstream:
        yield upstream


@pytest.fixture(scope="module")
def edge(serve: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with (
        Upstream("page") as page,
        Edge(tmp_path_factory.mktemp("edge"), serve=serve.place, page=page.place) as running,
    ):
        yield running


@pytest.fixture
def client(edge: Edge, serve: Upstream) -> Iterator[httpx.Client]:
    serve.seen.clear()
    with httpx.Client(base_url=edge.address, timeout=LIMIT_SECONDS) as client:
        yield client


def test_the_new_and_the_old_addresses_lead_to_the_service(client: httpx.Client, serve: Upstream) -> None:
    assert client.get("/imagine?prompt=a%20cat").text == "serve"
    assert client.get("/serve/imagine?prompt=a%20cat").text == "serve"
    assert [seen.target for seen in serve.seen] == ["/imagine?prompt=a%20cat"] * 2


def test_everything_else_is_the_pages(client: httpx.Client) -> None:
    assert client.get("/").text == "page"
    assert client.get("/gradio_api/info").text == "page"


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard",
        "/api/jobs/",
        "/metrics",
        "/-/routes",
        "/serve/metrics",
        "//dashboard",
        "/v1/../dashboard",
        "/x/..%2fdashboard",
    ],
)
def test_nothing_else_of_ray_is_reached(edge: Edge, serve: Upstream, path: str) -> None:
    serve.seen.clear()
    # By a client that sends the path as it is.
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=LIMIT_SECONDS)
    connection.request("GET", path)
    assert connection.getresponse().status in (400, 404)
    connection.close()
    assert serve.seen == []


def test_what_the_edge_says_itself_has_the_shape_of_every_error(client: httpx.Client) -> None:
    response = client.get("/dashboard")
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("separator", ["-", "_"])
def test_headers_that_would_steer_ray_serve_do_not_arrive(
    client: httpx.Client, serve: Upstream, separator: str
) -> None:
    hostile = [
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "serve-multiplexed-model-id",
        "x-session-id",
    ]
    headers = {name.replace("-", separator): "0" for name in hostile}
    client.get("/imagine", headers={**headers, "x-request-id": "mine", "authorization": "Bearer k"})
    (seen,) = serve.seen
    assert not {name.replace("_", "-") for name in seen.headers} & set(hostile)
    assert seen.headers["x-request-id"] == "mine"
    assert seen.headers["authorization"] == "Bearer k"


def test_events_come_as_they_are_sent(client: httpx.Client, serve: Upstream) -> None:
    serve.release.clear()
    with client.stream("GET", "/imagine?stream") as response:
        chunks = response.iter_raw()
        # The server sends no second one before the first has arrived here.
        assert next(chunks) == CHUNK
        serve.release.set()
        assert next(chunks) == CHUNK


@pytest.mark.parametrize("fault", ["fail=2", "drop=2"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_lost_gateways_request_is_sent_again(
    client: httpx.Client, serve: Upstream, fault: str, method: str
) -> None:
    path = f"/imagine?{method}&{fault}" if method == "GET" else f"/v1/images/generations?{fault}"
    response = client.request(method, path, content=b"{}" if method == "POST" else None)
    assert response.status_code == 200
    assert len(serve.seen) == 3


def test_what_a_gateway_gave_up_is_not_sent_again(client: httpx.Client, serve: Upstream) -> None:
    assert client.get("/imagine?refuse=1").status_code == 503
    assert len(serve.seen) == 1


def test_it_is_not_sent_again_for_ever(client: httpx.Client, serve: Upstream) -> None:
    response = client.get("/imagine?fail=99")
    assert response.status_code == 503
    assert LOST_HEADER not in response.headers
    assert len(serve.seen) == 4


def test_a_job_that_is_sent_again_is_the_same_job(client: httpx.Client, serve: Upstream) -> None:
    assert client.post("/v1/images/jobs?fail=1", content=b"{}").status_code == 200
    first, second = (seen.headers["idempotency-key"] for seen in serve.seen)
    assert first == second
    client.post("/v1/images/jobs", content=b"{}")
    assert serve.seen[-1].headers["idempotency-key"] != first
    client.post("/v1/images/jobs", content=b"{}", headers={"Idempotency-Key": "mine"})
    assert serve.seen[-1].headers["idempotency-key"] == "mine"


def test_a_body_over_the_limit_is_refused_by_its_length_alone(edge: Edge, serve: Upstream) -> None:
    serve.seen.clear()
    with socket.create_connection(("127.0.0.1", edge.port), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-length: 64000001\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert serve.seen == []


def test_headers_over_the_limit_are_refused(client: httpx.Client, serve: Upstream) -> None:
    assert client.get("/imagine", headers={"x-long": "x" * 40_000}).status_code == 431
    assert client.get("/imagine", headers={f"x-{number}": "1" for number in range(120)}).status_code == 431
    assert serve.seen == []


def test_no_line_of_the_log_holds_a_prompt_or_a_path(client: httpx.Client, edge: Edge) -> None:
    client.get("/imagine?prompt=secretword")
    client.get("/v1/images/files/secretname.png")
    lines = _lines_when(edge, lambda lines: len([each for each in lines if each["route"] == "service"]) >= 2)
    assert "secret" not in edge.log
    assert {"time", "request_id", "status", "milliseconds"} <= lines[-1].keys()


def _lines_when(edge: Edge, done: object) -> list[dict[str, object]]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        # Envoy writes them a second or so later.
        lines = [json.loads(line) for line in edge.log.splitlines() if line.startswith("{")]
        if done(lines):  # type: ignore[operator]
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)


def test_a_thousand_slow_connections_are_closed_while_others_are_answered(
    edge: Edge, client: httpx.Client
) -> None:
    connections = [
        socket.create_connection(("127.0.0.1", edge.port), timeout=LIMIT_SECONDS)
        for _ in range(SLOW_CONNECTIONS)
    ]
    try:
        for connection in connections:
            connection.sendall(b"GET /imagine HTTP/1.1\r\nhost: x\r\nx-slow: ")
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.get("/imagine").status_code, range(100)))
        assert answers == [200] * 100
        for connection in connections:
            connection.settimeout(max(0.1, began + CLOSED_SECONDS - time.monotonic()))
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    finally:
        for connection in connections:
            connection.close()


def test_the_other_ports_show_metrics_and_health_alone(edge: Edge) -> None:
    with httpx.Client(timeout=LIMIT_SECONDS) as client:
        assert "envoy_http_downstream_rq" in client.get(f"{edge.metrics}/stats/prometheus").text
        assert client.get(f"{edge.health}/ready").status_code == 200
        for path in ("/", "/config_dump", "/quitquitquit", "/stats"):
            assert client.get(edge.metrics + path).status_code == 404
            assert client.get(edge.health + path).status_code == 404
        assert client.get(f"{edge.health}/stats/prometheus").status_code == 404
