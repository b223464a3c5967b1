"""What the pages on deployment tell an operator to type, and what they reckon."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from mezzotint.deploy.config import read_config
from mezzotint.deploy.keys import RIGHTS
from tests.deploy.manifests import ROOT
from tests.deploy.test_names import DOCUMENTS
from tests.stores.postgres import PostgresServer

DEPLOY = ROOT / "docs/deploy"
# Of the aws command itself.
OWN_OPTIONS = {"--query", "--output", "--region"}
OWN_COMMANDS = {("s3", "ls"), ("configure", "export-credentials")}


def aws_calls() -> Iterator[tuple[str, str, str, set[str]]]:
    """(document, service, command, options) of each call of `aws` in a document."""
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^ *|`|\$\(|\{ )aws ([a-z0-9-]+ [a-z0-9-]+[^`\n|]*)", text, flags=re.M):
            service, command, *rest = line.split()
            options = {word for word in rest if re.fullmatch(r"--[a-z][a-z-]+", word)}
            yield str(document.relative_to(ROOT)), service, command, options


def test_every_call_of_aws_in_the_documents_is_one_that_botocore_knows() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore import xform_name

    calls = list(aws_calls())
    assert {("rds", "restore-db-instance-to-point-in-time"), ("eks", "list-insights")} <= {
        call[1:3] for call in calls
    }
    for document, service, command, options in calls:
        if (service, command) in OWN_COMMANDS or command.startswith(("get-login", "start-session")):
            continue
        model = session.get_service_model(service)
        if command == "wait":
            continue
        named = {xform_name(name, "-"): name for name in model.operation_names}
        assert command in named, f"{document}: aws {service} {command}"
        members = {
            f"--{xform_name(each, '-')}" for each in model.operation_model(named[command]).input_shape.members
        }
        given = {option.replace("--no-", "--") for option in options} - OWN_OPTIONS
        assert given <= members, f"{document}: aws {service} {command}: {given - members}"


def restoring_pod() -> dict[str, Any]:
    text = (DEPLOY / "upgrades.md").read_text()
    (manifest,) = re.findall(r"<<'END'\n(.*?)\n +END", text, flags=re.S)
    pod: dict[str, Any] = yaml.safe_load(manifest)
    return pod


def test_the_restoring_pod_is_restricted_and_may_reach_the_database() -> None:
    pod = restoring_pod()
    policies = yaml.safe_load_all(
        (ROOT / "deploy/kubernetes/components/aws/network-policies.yaml").read_text()
    )
    (policy,) = [each for each in policies if each["metadata"]["name"] == "postgresql"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    # The budget of the gateways counts no stranger.
    assert "app.kubernetes.io/part-of" not in pod["metadata"]["labels"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_a_backup_is_copied_whole_or_not_at_all(
    postgres: PostgresServer, tmp_path: Path, broken: bool
) -> None:
    """The pod's own script, on a real PostgreSQL; broken: what it copies from is lost in the middle."""
    (container,) = restoring_pod()["spec"]["containers"]
    (script,) = container["args"]
    names = [postgres.new_database().rpartition("/")[2] for _ in range(2)]
    for name, rows in zip(names, (20_000, 3), strict=True):
        with psycopg.connect(postgres.url(name, driver="postgresql")) as connection:
            connection.execute("CREATE TABLE keys (id int, secret text)")
            connection.execute(f"INSERT INTO keys SELECT n, repeat('x', 9) FROM generate_series(1, {rows}) n")
    (tmp_path / "from").write_text(names[0])
    (tmp_path / "to").write_text(names[1])
    for name in ("from-password", "to-password"):
        (tmp_path / name).touch()
    # One server here: what the script takes for its two hosts are two databases of it.
    script = script.replace("/restore", str(tmp_path)).replace("PGHOST", "PGDATABASE")
    script = script.replace("/tmp/copy.sql", str(tmp_path / "copy.sql"))
    tools = tmp_path / "tools"
    tools.mkdir()
    if broken:
        dump = tools / "pg_dump"
        dump.write_text(f'#!/bin/sh\n"{shutil.which("pg_dump")}" "$@" | head -c 90000\nexit 1\n')
        dump.chmod(0o755)
    found = subprocess.run(
        [*container["command"], script],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgres.port),
            "PGUSER": "mezzotint",
        },
        capture_output=True,
        text=True,
    )
    assert (found.returncode != 0) is broken, found.stderr
    with psycopg.connect(postgres.url(names[1], driver="postgresql")) as connection:
        assert connection.execute("SELECT count(*) FROM keys").fetchone() == (3 if broken else 20_000,)


def test_whoever_restores_the_database_has_the_clusters_own_keys_made_anew() -> None:
    """Those in the Secrets are not in a database of before them, and `up` makes only what is missing."""
    text = (DEPLOY / "upgrades.md").read_text()
    (told,) = re.findall(r"delete secret ([^`]*)`", text)
    assert set(told.split()) == {f"mezzotint-{name}" for name in RIGHTS}


def test_the_tutorials_file_lets_its_reader_in_and_nobody_else(tmp_path: Path) -> None:
    (text,) = re.findall(r"<<END\n(.*?)\nEND", (DEPLOY / "tutorial.md").read_text(), flags=re.S)
    file = tmp_path / "site.toml"
    file.write_text(text.replace("$ME", "203.0.113.7/32"))
    config = read_config(file)
    assert (config.scheme, config.cidrs) == ("internet-facing", ("203.0.113.7/32",))
    assert config.terraform == {"public_access_cidrs": ["203.0.113.7/32"]}
    assert 'variable "public_access_cidrs"' in (ROOT / "deploy/terraform/infra/variables.tf").read_text()


def test_the_tutorials_bill_adds_up() -> None:
    bill = (DEPLOY / "tutorial.md").read_text().partition("## What it costs")[2]
    rows = re.findall(r"^\| (.+?) \| (?:about )?\$([\d.]+) \|$", bill, flags=re.M)
    parts = {what: float(price) for what, price in rows}
    total = parts.pop("together, idle or busy")
    assert any("m6i.large" in what for what in parts)
    assert any("disks" in what for what in parts)
    assert sum(parts.values()) == pytest.approx(total, abs=0.05)
    (pictures, a_picture) = re.findall(r"two chips draw (\d+) an hour: about \*\*\$([\d.]+) a picture", bill)[
        0
    ]
    assert total / int(pictures) == pytest.approx(float(a_picture), abs=0.0005)


def test_no_selector_in_the_runbook_is_by_a_label_that_no_pod_has() -> None:
    text = (DEPLOY / "runbook.md").read_text()
    selectors = set(re.findall(r"-l ([\w./-]+)=", text))
    # KubeRay's own two, and ours.
    assert selectors == {"ray.io/group", "ray.io/node-type", "app.kubernetes.io/component"}
