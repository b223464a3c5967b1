"""Metrics, logs and top of a service of several processes on a real Ray, and who may ask which of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mezzotint.cli.main import run
from mezzotint.cli.top import Scrape, read
from tests.ports import free_port
from tests.servers import Server
from tests.waiting import wait_until

PROMPT = "a prompt that nobody else may read"
LIMIT_SECONDS = 90.0
QUERY = 'count by (replica) ({__name__=~"mezzotint_.+_total"})'
# Each ask is a request to the server, or reads its whole log.
wait_for = partial(wait_until, every=0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two gateways before two engines, whose passes hold one image each."""
    folder = tmp_path_factory.mktemp("observed")
    environment = {"MEZZOTINT_GATEWAYS": "2", "MEZZOTINT_REPLICAS": "2", "MEZZOTINT_HOME": str(folder)}
    with Server(folder, "--model", "fake:pass_seconds=0.04,max_batch=1", environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def drawn(served: Server) -> int:
    """So many pictures were asked for, with ids r0, r1 and so on."""
    number = 12
    with httpx.Client(base_url=served.address, timeout=60) as client:
        for count in range(number):
            fields = {"prompt": PROMPT, "steps": "3"}
            response = client.get("/imagine", params=fields, headers={"x-request-id": f"r{count}"})
            assert response.status_code == 200
            assert response.headers["x-request-id"] == f"r{count}"
    return number


def scrape(served: Server) -> Scrape:
    response = httpx.get(f"{served.address}/metrics", timeout=30)
    assert response.status_code == 200
    assert PROMPT not in response.text
    return read(response.text)


def access_lines(served: Server, asked: set[str]) -> dict[str, Any]:
    """The access log's lines by request id, once there is one of each that was asked."""

    def found() -> dict[str, Any]:
        lines = [line for line in served.err.read_text().splitlines() if line.startswith("{")]
        told = [json.loads(line) for line in lines]
        by_id = {line["request_id"]: line for line in told if line["logger"] == "mezzotint.access"}
        return by_id if asked <= set(by_id) else {}

    found_lines: dict[str, Any] = wait_for(found, "a line for each")
    return found_lines


def test_any_gateway_tells_the_series_of_every_process(served: Server, drawn: int) -> None:
    seen: set[str] = set()
    told_by: set[str] = set()

    def told_by_both() -> bool:
        # A new connection each: both gateways come to answer.
        look = scrape(served)
        gateways = look.values_of("mezzotint_event_loop_lag_seconds_count", "replica", process="gateway")
        engines = look.values_of("mezzotint_backlog_seconds", "replica", process="engine")
        # Whichever takes the gateway that was asked more than a second to hear from is left out.
        if (len(gateways), len(engines)) == (2, 2):
            seen.update([*gateways, *engines])
            assert look.total("mezzotint_requests_total", surface="imagine", outcome="ok") == drawn
            # Each engine has drawn one more to warm up.
            assert look.total("mezzotint_images_total") >= drawn
            # The gateway that was asked is at work on this very request.
            in_flight = "mezzotint_requests_in_flight"
            told_by.update(
                each for each in gateways if look.total(in_flight, surface="operations", replica=each)
            )
        return len(told_by) == 2

    wait_for(told_by_both, "the series of all four from each gateway")
    assert len(seen) == 4


def test_what_ray_keeps_of_the_lines_does_not_grow_for_ever(served: Server, drawn: int) -> None:
    # Which starts all workers, and gives them its own environment.
    [raylet] = [process for process in served.helpers if process.name() == "raylet"]
    kept = {name: int(raylet.environ()[f"RAY_ROTATION_{name}"]) for name in ("MAX_BYTES", "BACKUP_COUNT")}
    assert 0 < kept["MAX_BYTES"] * (1 + kept["BACKUP_COUNT"]) < 1e9


def ask_a1111(served: Server, method: str, path: str, name: str, **fields: Any) -> Any:
    """Over a new connection, for which Ray Serve chooses a gateway anew. name: the request's id."""
    url = f"{served.address}/sdapi/v1/{path}"
    response = httpx.request(method, url, headers={"x-request-id": name}, timeout=LIMIT_SECONDS, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_any_gateway_tells_how_far_a_request_is_and_stops_it(served: Server) -> None:
    """A1111's `progress` and `interrupt`. Which gateway answered is what the access log says."""
    # 30 s for two engines.
    wanted = {"prompt": PROMPT, "width": 64, "height": 64, "steps": 150, "batch_size": 10}
    end = time.monotonic() + LIMIT_SECONDS
    idle_polled = idle_stopped = False
    # Until a gateway that does not draw was asked both, and knew.
    for turn in count():
        draw, stop, *polls = [f"{name}-{turn}" for name in ("draw", "stop", *map(str, range(10)))]

        def state(name: str) -> dict[str, Any]:
            return dict(ask_a1111(served, "GET", "progress", name)["state"])

        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(ask_a1111, served, "POST", "txt2img", draw, json=wanted)
            wait_for(lambda: state("first")["job_count"], "progress of the request")
            told = {name: state(name) for name in polls}
            assert ask_a1111(served, "POST", "interrupt", stop) == {}
            answer = drawing.result()
        assert json.loads(answer["info"])["interrupted"] is True
        assert len(answer["images"]) < 10
        lines = access_lines(served, {draw, stop, *polls})
        gateways = {name: lines[name]["replica"] for name in (draw, stop, *polls)}
        # Which draws and is slow to tell an idle one counts as silent there.
        knew = [name for name in polls if gateways[name] == gateways[draw] or told[name]["job_count"]]
        assert {(told[name]["job_count"], told[name]["sampling_steps"]) for name in knew} <= {(10, 150)}
        idle_polled |= any(gateways[name] != gateways[draw] for name in knew)
        idle_stopped |= gateways[stop] != gateways[draw]
        if idle_polled and idle_stopped:
            break
        assert time.monotonic() < end


def test_a_scrape_is_well_formed(served: Server, drawn: int) -> None:
    text = httpx.get(f"{served.address}/metrics", timeout=30).text
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) > 20


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_a_real_prometheus_scrapes_the_whole_service_from_one_target(
    served: Server, drawn: int, tmp_path: Path
) -> None:
    target = served.address.removeprefix("http://")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: mezzotint, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    own = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--web.listen-address={own}"]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={tmp_path}/data"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:

        def found() -> set[str]:
            try:
                response = httpx.get(f"http://{own}/api/v1/query", params={"query": QUERY}, timeout=5)
            except httpx.TransportError:
                return set()
            # It listens before it is ready.
            answer = {} if response.status_code == 503 else response.json()
            return {each["metric"]["replica"] for each in answer.get("data", {}).get("result", [])}

        assert wait_for(lambda: len(replicas := found()) == 4 and replicas, "series of four processes")
    finally:
        process.kill()
        process.wait()


def test_every_request_is_one_json_line_on_the_servers_stderr(served: Server, drawn: int) -> None:
    asked = {f"r{count}" for count in range(drawn)}
    lines = access_lines(served, asked)
    assert all(lines[each]["status"] == 200 and lines[each]["images"] == 1 for each in asked)
    assert len({lines[each]["replica"] for each in asked}) >= 1
    assert PROMPT not in served.err.read_text()


def test_top_looks_once(served: Server, drawn: int, capsys: pytest.CaptureFixture[str]) -> None:
    def sees_all() -> bool:
        assert run(["top", "--api", served.address, "--every", "0.2", "--json"]) == 0
        seen = json.loads(capsys.readouterr().out)
        # Whoever is slow to answer is left out.
        return (len(seen["engines"]), len(seen["gateways"])) == (2, 2)

    wait_for(sees_all, "two engines and two gateways")
    assert run(["top", "--api", served.address, "--every", "0.2", "--once"]) == 0
    assert "engine" in capsys.readouterr().out
    assert run(["top", "--api", "http://127.0.0.1:9", "--once"]) == 2
    assert "no server answers" in capsys.readouterr().err


def test_nothing_in_rays_own_logs_holds_a_prompt(served: Server, drawn: int) -> None:
    folders = {
        Path(argument.split("=", 1)[1])
        for helper in served.helpers
        for argument in helper.cmdline()
        if argument.startswith(("--log-dir=", "--logs-dir=", "--log_dir="))
    }
    assert folders
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert PROMPT.encode() not in path.read_bytes(), path
        assert PROMPT.replace(" ", "+").encode() not in path.read_bytes(), path
