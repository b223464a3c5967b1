"""`mezzotint serve` for real: Ray Serve in processes of its own, spoken to over HTTP."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import psutil
import pytest

from mezzotint.cli.top import Scrape, read
from mezzotint.imaging.metadata import read_receipt
from mezzotint.models.manifest import write_manifest
from tests.servers import START_SECONDS

PASS_SECONDS = 0.1
LIMIT_SECONDS = 120.0


@pytest.fixture
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=LIMIT_SECONDS) as client:
        yield client


def imagine(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.get("/imagine", params={"prompt": "a cat", "steps": 1, **fields})


def test_when_it_says_ready_it_draws(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json()["model"] == "fake"
    assert [client.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert imagine(client).status_code == 200


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_pictures_and_headers_come_through_the_proxy(client: httpx.Client, format: str) -> None:
    response = imagine(client, format=format, seed=3)
    assert response.headers["content-type"] == f"image/{format}"
    assert read_receipt(response.content).seed == 3
    assert response.headers["x-mezzotint-seed"] == "3"
    assert float(response.headers["x-mezzotint-compute-ms"]) >= PASS_SECONDS * 1000
    assert response.headers["x-request-id"]
    known = client.get(response.url, headers={"If-None-Match": response.headers["etag"]})
    assert known.status_code == 304


@pytest.mark.parametrize(
    ("method", "path", "status", "param"),
    [
        ("GET", "/imagine", 400, "prompt"),
        ("GET", "/imagine?prompt=a&stepz=3", 400, "stepz"),
        ("GET", "/imagine?prompt=a&steps=0", 400, "steps"),
        ("GET", "/imagine?prompt=a&seed=1&seed=2", 400, "seed"),
        ("POST", "/imagine", 405, None),
        ("GET", "/nothing", 404, None),
    ],
)
def test_errors_come_through_the_proxy_in_their_shape(
    client: httpx.Client, method: str, path: str, status: int, param: str | None
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert response.json()["error"]["param"] == param
    assert response.headers["x-request-id"]


def test_requests_at_once_get_each_its_own_picture(client: httpx.Client) -> None:
    in_turn = [imagine(client, seed=seed, steps=2).content for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda seed: imagine(client, seed=seed, steps=2).content, range(4)))
    assert at_once == in_turn


@pytest.mark.parametrize(
    "header",
    [
        b"x-request-timeout-seconds: 0.01",
        b"X-Request-Timeout-Seconds: 0",
        b"x-request-timeout-seconds: nan",
        b"serve_multiplexed_model_id: other",
        b"serve-multiplexed-model-id: \xff",
        b"x-session-id: \xff",
        b"x-request-id: \xff",
        b"x-request-id: " + b"a" * 5_000,
    ],
)
def test_a_header_for_ray_serve_itself_changes_nothing(server: Any, header: bytes) -> None:
    url = urlsplit(server.address)
    with socket.create_connection((url.hostname, url.port), timeout=LIMIT_SECONDS) as connection:
        request = f"GET /imagine?prompt=a&steps=1 HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n"
        connection.sendall(request.encode() + header + b"\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_the_pictures_of_one_request_are_drawn_together(client: httpx.Client) -> None:
    response = client.post("/v1/images/generations", json={"prompt": "a", "n": 3, "num_inference_steps": 1})
    assert response.status_code == 200
    assert len(response.json()["data"]) == 3


def wait_for_metrics(address: str, told: Callable[[Scrape], bool]) -> Scrape:
    """An engine that takes more than a second to answer is left out of them, and told of at a later look."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not told(look := read(httpx.get(f"{address}/metrics", timeout=LIMIT_SECONDS).text)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return look


def is_drawing(look: Scrape) -> bool:
    return look.total("mezzotint_images_in_engine", state="running") == 1


def leave_in_the_middle(address: str, steps: int, header: str = "") -> None:
    """Ask for a long picture, and hang up once it is being drawn."""
    url = urlsplit(address)
    query = urlencode({"prompt": "left", "steps": steps})
    with socket.create_connection((url.hostname, url.port), timeout=LIMIT_SECONDS) as connection:
        request = f"GET /imagine?{query} HTTP/1.1\r\nHost: {url.netloc}\r\n{header}\r\n"
        connection.sendall(request.encode())
        wait_for_metrics(address, is_drawing)


def test_a_client_that_leaves_frees_its_place(server: Any) -> None:
    def cancelled(look: Scrape) -> float:
        return look.total("mezzotint_cancelled_total", phase="running")

    before = cancelled(
        wait_for_metrics(server.address, lambda look: "mezzotint_passes_total" in look.samples)
    )
    for count, header in enumerate(("", "", "x-request-disconnect-disabled: ?1\r\n"), start=1):
        leave_in_the_middle(server.address, steps=150, header=header)

        # One that lived on would be drawn to its end, and never count as cancelled.
        def is_free(look: Scrape, count: int = count) -> bool:
            return cancelled(look) == before + count and look.total("mezzotint_images_in_engine") == 0

        wait_for_metrics(server.address, is_free)


def test_ray_listens_on_this_machine_alone_and_asks_for_a_token(server: Any) -> None:
    names = {helper.name() for helper in server.helpers}
    assert {"gcs_server", "raylet"} <= names
    for helper in server.helpers:
        if helper.name() in ("gcs_server", "raylet"):
            assert helper.environ()["RAY_AUTH_MODE"] == "token"
            listening = [c for c in helper.net_connections() if c.status == psutil.CONN_LISTEN]
            assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} <= {"127.0.0.1"}


def test_sigterm_lets_the_running_request_end_and_leaves_no_process(
    start_server: Callable[..., Any],
) -> None:
    server = start_server("--model", f"fake:pass_seconds={PASS_SECONDS}")
    address = server.wait_until_ready()
    # The first request pays for connections that the next one finds ready.
    assert httpx.get(f"{address}/imagine?prompt=first&steps=1", timeout=LIMIT_SECONDS).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        url = f"{address}/imagine?prompt=last&steps=150"
        last = pool.submit(httpx.get, url, timeout=LIMIT_SECONDS)
        wait_for_metrics(address, is_drawing)
        assert not last.done()
        server.process.send_signal(signal.SIGTERM)
        assert last.result().status_code == 200
        assert read_receipt(last.result().content).prompt == "last"
    assert server.wait_until_ended() == 0
    assert server.left_behind() == []
    assert "Traceback" not in server.err.read_text()


def test_a_second_sigterm_drops_the_running_request_and_leaves_no_process(
    start_server: Callable[..., Any],
) -> None:
    server = start_server("--model", f"fake:pass_seconds={PASS_SECONDS}")
    address = server.wait_until_ready()
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(httpx.get, f"{address}/imagine?prompt=last&steps=150", timeout=LIMIT_SECONDS)
        wait_for_metrics(address, is_drawing)
        # Two that come at the same time are one.
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert server.wait_until_ended() == 0
        with pytest.raises(httpx.TransportError):
            last.result()
    assert server.left_behind() == []
    assert "asked twice to stop" in server.err.read_text()
    assert server.err.read_text().splitlines()[-1] == "stopped"


@pytest.mark.parametrize("part", ["mezzotint", "gcs_server", "raylet", "ray::ServeController"])
def test_sigterm_during_the_start_ends_it_in_order(part: str, start_server: Callable[..., Any]) -> None:
    server = start_server("--model", "fake:")
    deadline = time.monotonic() + LIMIT_SECONDS

    def has_come() -> bool:
        # The first of the three: Ray is being imported.
        if part == "mezzotint":
            return "starting" in server.err.read_text()
        return any(child.name() == part for child in server.process.children(recursive=True))

    while not has_come():
        assert time.monotonic() < deadline
        assert server.process.poll() is None
        time.sleep(0.02)
    server.helpers = server.process.children(recursive=True)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_until_ended() == 0
    assert server.left_behind() == []
    assert server.out.read_text() == ""
    assert server.err.read_text().splitlines()[1:] == ["stopped"]


def test_a_model_that_cannot_be_loaded_is_one_line_and_leaves_no_process(
    start_server: Callable[..., Any], tmp_path: Path, tiny_sdxl: Path
) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(tiny_sdxl, altered)
    write_manifest(altered)
    weights = next((altered / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    server = start_server("--model", str(altered))
    # It ends after most of a start.
    assert server.process.wait(START_SECONDS) == 2
    told = [line for line in server.err.read_text().splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert weights.name in told[0]
    assert "Traceback" not in server.err.read_text()
