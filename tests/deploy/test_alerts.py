"""The rules: each alert fires and is silent when it should, is in the runbook, and asks for what exists."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed, MezzotintError
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.stores.job import STATES
from mezzotint.serve.telemetry.metrics import SURFACES
from tests.api.inprocess import gate, replica_of, settings_of
from tests.deploy.foreign_series import FOREIGN, TARGET_LABELS
from tests.deploy.watching import ROOT, asked, panels, queries, rules
from tests.telemetry.test_telemetry import leave_while_it_is_drawn

CASES = Path(__file__).parent / "alerts"
RUNBOOK = ROOT / "docs/deploy/runbook.md"
SEVERITIES = {"page", "ticket", "info"}
SECTION_PARTS = ("For users", "See it", "Causes", "Do", "Escalate")

Exported = dict[str, dict[str, set[str]]]
"""By name of a series: its labels, and the values that they had."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def all_rules() -> list[dict[str, Any]]:
    return [rule for group in rules()["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in all_rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in all_rules() if "record" in rule}


def cases() -> Iterator[dict[str, Any]]:
    for path in sorted(CASES.glob("*.yaml")):
        yield from yaml.safe_load(path.read_text())["tests"]


# --- what promtool says ---


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules()))
    return path


@needs_promtool
def test_promtool_accepts_the_rules(rule_file: Path) -> None:
    found = subprocess.run(["promtool", "check", "rules", rule_file], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "SUCCESS" in found.stdout


@needs_promtool
@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_alert_fires_on_its_bad_series_and_not_on_its_good_ones(rule_file: Path, path: Path) -> None:
    shutil.copy(path, rule_file.parent / "cases.yaml")
    command = ["promtool", "test", "rules", "cases.yaml"]
    found = subprocess.run(command, cwd=rule_file.parent, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


# --- completeness ---


def test_every_alert_has_a_series_that_it_fires_on_and_one_that_it_does_not() -> None:
    fires, silent = set(), set()
    for case in cases():
        (check,) = case["alert_rule_test"]
        assert case["name"].split()[0] == check["alertname"]
        (fires if check["exp_alerts"] else silent).add(check["alertname"])
    names = {alert["alert"] for alert in alerts()}
    assert fires == names
    assert silent == names


def test_every_label_that_an_alert_speaks_of_is_there_when_it_fires() -> None:
    texts = {alert["alert"]: " ".join(alert["annotations"].values()) for alert in alerts()}
    for case in cases():
        (check,) = case["alert_rule_test"]
        spoken = set(re.findall(r"\$labels\.(\w+)", texts[check["alertname"]]))
        for expected in check["exp_alerts"]:
            assert spoken <= set(expected["exp_labels"]), case["name"]


def test_every_alert_says_what_it_is_and_how_urgent() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))
    for alert in alerts():
        assert alert["alert"].startswith("Mezzotint")
        assert set(alert["labels"]) == {"severity"}
        assert alert["labels"]["severity"] in SEVERITIES
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert "for" in alert, alert["alert"]
        assert len(alert["annotations"]["summary"]) <= 100


def test_every_alert_has_its_section_in_the_runbook_and_no_section_is_of_another() -> None:
    text = RUNBOOK.read_text()
    sections = dict(re.findall(r"^### (Mezzotint\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        name = alert["alert"]
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (ROOT / page, anchor) == (RUNBOOK, name.lower())
        for part in SECTION_PARTS:
            assert f"**{part}.**" in sections[name], (name, part)
        assert f"`{alert['labels']['severity']}`" in sections[name].splitlines()[1], name


def test_the_runbook_speaks_of_panels_that_the_dashboard_has() -> None:
    titles = {panel["title"] for panel in panels()}
    text = RUNBOOK.read_text().replace("\n", " ")
    found = re.findall(r'[Pp]anels? "([^"]+)"(?: and "([^"]+)")?', text)
    spoken = {title for pair in found for title in pair if title}
    assert spoken
    assert spoken <= titles, spoken - titles


# --- the series exist ---

FAULT = "breaks"


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    return GenerationFailed("broken") if request.prompt == FAULT and where == "step" else None


async def series_after_everything(folder: Path, tiny_model: Path) -> str:
    """What a gateway tells after a picture, a failure, a refusal, a client that left, on two engines."""
    settings = settings_of(folder)
    fake = replica_of(settings, FakeBackend(fault=fault, pass_seconds=0.2))
    real = EngineReplica(settings, Engine.load(str(tiny_model), device="cpu", threads=1))
    try:
        async with gate(settings, fake) as opened:
            await opened.client.get("/imagine", params={"prompt": "a", "steps": "2"})
            await opened.client.get("/imagine", params={"prompt": FAULT, "steps": "2"})
            await opened.client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": b"no picture"})
            await leave_while_it_is_drawn(opened.client, fake)
            async with asyncio.timeout(30):
                while "mezzotint_cancelled_total{" not in (one := (await opened.client.get("/metrics")).text):
                    await asyncio.sleep(0.02)
        async with gate(settings, real) as opened:
            await opened.client.get("/imagine", params={"prompt": "a", "steps": "1"})
            two = (await opened.client.get("/metrics")).text
    finally:
        fake.close()
        real.close()
    return one + two


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path) -> Exported:
    text = asyncio.run(series_after_everything(tmp_path_factory.mktemp("exported"), tiny_sdxl))
    found: Exported = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        for family in text_string_to_metric_families(line + "\n"):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
    return found


def known_values(label: str) -> set[str] | None:
    """The values that a label of ours can have, where the code says which; None where it bounds nothing."""
    return {
        "surface": {surface for _, surface in SURFACES} | {"none"},
        "outcome": {"ok", "refused", "failed", "left"},
        "reason": {kind.code for kind in (MezzotintError, *MezzotintError.__subclasses__())},
        "process": {"gateway", "engine", "jobs"},
        "state": {"decoding", *STATES},
    }.get(label)


def labels_of(name: str, exported: Exported) -> set[str]:
    """Those that a selector of `name` may ask for, or a grouping keep."""
    if name in recorded():
        inner = asked(recorded()[name])
        return set(inner.grouped_by)
    if name in FOREIGN:
        return {*FOREIGN[name], *TARGET_LABELS}
    if name == "ALERTS":
        return {"alertname", "alertstate", "severity"}
    assert name in exported, f"nobody exports {name}"
    return {*exported[name], *TARGET_LABELS}


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((alert["alert"], alert["expr"]) for alert in alerts())
    yield from recorded().items()
    yield from queries()


def test_every_series_and_label_that_is_asked_for_exists(exported: Exported) -> None:
    for where, expression in expressions():
        wanted = asked(expression)
        assert wanted.series, where
        offered: set[str] = {"source"}
        for name, matchers in wanted.series:
            offered |= labels_of(name, exported)
            assert set(matchers) <= labels_of(name, exported), (where, name)
        assert wanted.grouped_by <= offered, where


# Of these a value that did not occur here is no mistake: any status, any key.
UNBOUNDED = {"status", "key"}


def test_every_value_of_a_label_that_is_asked_for_can_occur(exported: Exported) -> None:
    for where, expression in expressions():
        for name, matchers in asked(expression).series:
            if not name.startswith("mezzotint_"):
                continue
            for label in set(matchers) - UNBOUNDED:
                operator, value = matchers[label]
                possible = known_values(label) or exported[name][label]
                wanted = value.split("|") if operator in ("=~", "!~") else [value]
                assert set(wanted) <= possible, (where, name, label)


def test_every_series_of_the_application_is_watched_somewhere(
    exported: Exported,
) -> None:
    used = {name for _, expression in expressions() for name in asked(expression).names}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported}
    assert {family for family in families if not any(name.startswith(family) for name in used)} == set()


# --- where they go ---

ROUTES = yaml.safe_load((ROOT / "deploy/alertmanager.yaml").read_text())


def receiver_of(labels: dict[str, str]) -> str:
    """The first route whose matchers all hold, as Alertmanager takes it; its own first receiver otherwise."""
    holds = {
        "=": lambda value, wanted: value == wanted,
        "=~": lambda value, wanted: bool(re.fullmatch(wanted, value)),
    }
    for route in ROUTES["route"]["routes"]:
        matchers = [re.fullmatch(r'(\w+) (=~?) "(.*)"', each) for each in route["matchers"]]
        if all(holds[each[2]](labels[each[1]], each[3]) for each in matchers if each):
            return str(route["receiver"])
    return str(ROUTES["route"]["receiver"])


def test_every_severity_has_somebody_who_hears_of_it() -> None:
    heard = {each["name"] for each in ROUTES["receivers"] if len(each) > 1}
    for alert in alerts():
        labels = {"alertname": alert["alert"], **alert["labels"]}
        meant = {"page": "pager", "ticket": "tickets", "info": "list"}[labels["severity"]]
        assert receiver_of(labels) == meant
        assert meant in heard
    assert receiver_of({"alertname": "Watchdog", "severity": "none"}) in heard - {"pager", "tickets"}


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_takes_the_routes() -> None:
    found = subprocess.run(
        ["amtool", "check-config", ROOT / "deploy/alertmanager.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
