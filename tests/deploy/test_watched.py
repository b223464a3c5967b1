"""A real Prometheus, with the component's scrape and rules, on a real `mezzotint serve` under load."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from mezzotint.serve.stores.database import open_database
from mezzotint.serve.stores.keys import KeyStore, NewKey
from tests.deploy.foreign_series import FOREIGN
from tests.deploy.load import under_load
from tests.deploy.watching import asked, objects, queries, rules
from tests.ports import free_port
from tests.servers import Server, is_running
from tests.waiting import wait_until

wait_for = partial(wait_until, seconds=180.0, every=0.2)
# So that a test sees in seconds what takes minutes in a cluster.
EVERY = "1s"
RATE_WINDOW = "10s"

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


class Prometheus:
    """A running one, and what it answers."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        (folder / "prometheus.yml").write_text(json.dumps(configuration))
        own = f"127.0.0.1:{free_port()}"
        self._client = httpx.Client(base_url=f"http://{own}/api/v1", timeout=60)
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--web.listen-address={own}",
                    f"--storage.tsdb.path={folder}/data",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._log = folder / "prometheus.log"

    def get(self, path: str, **parameters: str) -> Any:
        """The answer's data; none while it is not ready yet. An error of the query is an error here."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            response = self._client.get(path, params=parameters)
        except httpx.TransportError:
            return None
        # It listens before it is ready, and says so in plain text.
        if response.status_code == 503 and response.text.strip() == "Service Unavailable":
            return None
        answer = response.json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def close(self) -> None:
        self._client.close()
        self.process.kill()
        self.process.wait()


async def create_admin_key(database: Path) -> str:
    async with open_database(f"sqlite+aiosqlite:///{database}") as opened:
        return (await KeyStore(opened).create(NewKey("prometheus", is_admin=True)))[1]


def as_prometheus_has_it(scrape: Mapping[str, Any], target: str, key_file: Path) -> dict[str, Any]:
    """What the operator makes of a ScrapeConfig, for another target and with the Secret in a file."""
    spec = scrape["spec"]
    assert spec["authorization"]["credentials"]["name"] == "mezzotint-metrics"
    return {
        "job_name": f"scrapeConfig/{scrape['metadata']['namespace']}/{scrape['metadata']['name']}",
        "static_configs": [{**static, "targets": [target]} for static in spec["staticConfigs"]],
        "scheme": spec["scheme"].lower(),
        "metrics_path": spec["metricsPath"],
        "authorization": {"type": spec["authorization"]["type"], "credentials_file": str(key_file)},
        "scrape_interval": EVERY,
        "scrape_timeout": EVERY,
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model behind keys, with little room."""
    folder = tmp_path_factory.mktemp("watched")
    environment = {
        "MEZZOTINT_AUTH": "on",
        "MEZZOTINT_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/watched.db",
        "MEZZOTINT_HOME": str(folder),
        "MEZZOTINT_MAX_QUEUE": "3",
    }
    with Server(folder, "--model", "demo", environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def key(served: Server) -> str:
    return asyncio.run(create_admin_key(served.out.parent / "watched.db"))


@pytest.fixture(scope="module")
def prometheus(served: Server, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(key)
    (scrape,) = (each for each in objects("monitors.yaml") if each["kind"] == "ScrapeConfig")
    loaded = {"groups": [{**group, "interval": EVERY} for group in rules()["groups"]]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(loaded))
    target = served.address.removeprefix("http://")
    running = Prometheus(
        folder,
        {
            "global": {"evaluation_interval": EVERY},
            "rule_files": [f"{folder}/rules.yaml"],
            "scrape_configs": [as_prometheus_has_it(scrape, target, key_file)],
        },
    )
    yield running
    running.close()


def is_of_the_application(expression: str) -> bool:
    return all(name.startswith(("mezzotint", "key:mezzotint")) for name in asked(expression).names)


def test_every_query_of_the_dashboard_has_an_answer_after_a_load(
    served: Server, key: str, prometheus: Prometheus
) -> None:
    wanted = {
        expression.replace("$__rate_interval", RATE_WINDOW)
        for _, expression in queries()
        if is_of_the_application(expression)
    }
    assert len(wanted) >= 40
    missing = set(wanted)

    def all_answered() -> bool:
        for expression in sorted(missing):
            data = prometheus.get("/query", query=expression)
            if data is not None and data["result"]:
                missing.discard(expression)
        return not missing

    with under_load(served.address, key):
        wait_for(all_answered, missing)


def test_every_other_query_is_at_least_one_that_prometheus_understands(prometheus: Prometheus) -> None:
    wait_for(lambda: prometheus.get("/query", query="up"), "Prometheus answers")
    for _, expression in queries():
        assert prometheus.get("/query", query=expression.replace("$__rate_interval", RATE_WINDOW)) is not None


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]]:
        data = prometheus.get("/rules") or {"groups": []}
        found = [rule for group in data["groups"] for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else []

    found = wait_for(evaluated, "every rule evaluated once")
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    assert len(found) == sum(len(group["rules"]) for group in rules()["groups"])


def listening(processes: Iterable[psutil.Process]) -> set[int]:
    """The ports of Ray's agents, which have the series; which of theirs it is, Ray tells nobody."""
    agents = [each for each in processes if is_running(each) and "DashboardAgent" in each.name()]
    connections = [each for agent in agents for each in agent.net_connections("tcp")]
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def metrics_at(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    except httpx.TransportError:
        return ""


def test_ray_tells_the_series_that_rules_ask_it_for(served: Server) -> None:
    # Of a device, only where there is one.
    missing = {name for name in FOREIGN if name.startswith("ray_") and "gpu" not in name}

    def all_told() -> bool:
        processes = served.process.children(recursive=True)
        text = "\n".join(metrics_at(port) for port in listening(processes))
        for name in set(missing):
            found = re.search(rf"^{name}{{([^}}]*)}}", text, re.MULTILINE)
            if found is not None:
                assert set(re.findall(r'(\w+)="', found[1])) >= FOREIGN[name], found[0]
                missing.discard(name)
        return not missing

    wait_for(all_told, missing)
