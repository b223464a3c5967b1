"""The monitoring component: what it adds to a cluster, and the form of its dashboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.watching import COMPONENT, asked, dashboard, objects, panels

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

# --- the dashboard's form ---


def test_the_dashboard_is_of_grafanas_form_and_no_panel_lies_on_another() -> None:
    board = dashboard()
    assert (board["uid"], board["title"]) == ("mezzotint", "Mezzotint")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        columns, lines = range(place["w"]), range(place["h"])
        covered = {(place["x"] + column, place["y"] + line) for column in columns for line in lines}
        assert not covered & cells, panel["title"]
        cells |= covered
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["type"] in ("timeseries", "stat")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == source
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == source
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= asked(target["expr"]).grouped_by | {"replica"}, panel["title"]


# --- the component ---


@needs_kubectl
def test_the_component_renders_by_itself_and_only_adds_objects(tmp_path: Path) -> None:
    where = os.path.relpath(COMPONENT, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\ncomponents: [{where}]\n"
    )
    found = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    rendered = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(found.stdout)}
    assert set(rendered) == {
        ("ConfigMap", "mezzotint-dashboard"),
        ("NetworkPolicy", "prometheus-to-edge"),
        ("NetworkPolicy", "prometheus-to-ray"),
        ("PodMonitor", "edge"),
        ("PodMonitor", "ray"),
        ("PrometheusRule", "mezzotint"),
        ("ScrapeConfig", "mezzotint"),
    }
    assert {each["metadata"]["namespace"] for each in rendered.values()} == {"mezzotint"}
    board = rendered["ConfigMap", "mezzotint-dashboard"]
    assert board["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert yaml.safe_load(board["data"]["mezzotint.json"]) == dashboard()


# By kind: the fields of `spec` that are used, as the operator's API reference names them.
SPEC_FIELDS = {
    "ScrapeConfig": {
        "authorization", "metricsPath", "scheme", "scrapeInterval", "scrapeTimeout", "staticConfigs",
    },
    "PodMonitor": {"selector", "podMetricsEndpoints"},
}  # fmt: skip
ENDPOINT_FIELDS = {"port", "path", "interval"}


def test_the_application_is_scraped_once_and_with_the_key() -> None:
    found = objects("monitors.yaml")
    scrapes = [each for each in found if each["kind"] == "ScrapeConfig"]
    (scrape,) = scrapes
    assert scrape["apiVersion"] == "monitoring.coreos.com/v1alpha1"
    (static,) = scrape["spec"]["staticConfigs"]
    assert static == {"targets": ["mezzotint-serve-svc.mezzotint.svc:8000"], "labels": {"job": "mezzotint"}}
    assert scrape["spec"]["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": "mezzotint-metrics", "key": "api_key"},
    }
    for each in found:
        assert set(each["spec"]) <= SPEC_FIELDS[each["kind"]]
        for endpoint in each["spec"].get("podMetricsEndpoints", []):
            assert set(endpoint) == ENDPOINT_FIELDS
            # The application's own port is not scraped by the pod.
            assert endpoint["port"] == "metrics"


def test_prometheus_alone_is_let_in_and_only_to_the_ports_of_metrics() -> None:
    ports = {}
    for policy in objects("network-policy.yaml"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        (rule,) = policy["spec"]["ingress"]
        (peer,) = rule["from"]
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
        assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
        ports[policy["metadata"]["name"]] = {port["port"] for port in rule["ports"]}
    assert ports == {"prometheus-to-ray": {8000, 8080}, "prometheus-to-edge": {9902}}
    monitored = {each["metadata"]["name"]: each["spec"] for each in objects("monitors.yaml")}
    for policy in objects("network-policy.yaml"):
        name = policy["metadata"]["name"].removeprefix("prometheus-to-")
        assert policy["spec"]["podSelector"] == monitored[name]["selector"]
