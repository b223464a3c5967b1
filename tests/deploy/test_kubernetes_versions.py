"""Nodes can be had for every Kubernetes version that may be asked for."""

from __future__ import annotations

import re
from datetime import date, datetime

import pytest

from tests.deploy.manifests import ROOT, overlay
from tests.deploy.test_manifests import VERSIONS

# When EKS began to offer a version, and what it has had AMIs for since (its release calendar, autumn 2026).
ARRIVAL = {"1.35": date(2026, 1, 27), "1.36": date(2026, 6, 2)}
# The AMIs from here on have Neuron's driver 2.29 (docs/neuron.md).
TOO_NEW = date(2026, 7, 14)


def allowed(file: str) -> tuple[str, ...]:
    text = (ROOT / "deploy/terraform" / file).read_text()
    (listed,) = re.findall(r"contains\((\[[^]]*\]), var\.kubernetes_version\)", text)
    return tuple(re.findall(r'"([\d.]+)"', listed))


@pytest.mark.parametrize("file", ["infra/variables.tf", "modules/cluster/variables.tf"])
def test_the_versions_that_terraform_takes_are_those_that_the_manifests_are_held_to(file: str) -> None:
    assert allowed(file) == VERSIONS


@pytest.mark.parametrize("name", ["gpu", "inf2", "trn1"])
def test_every_nodes_ami_is_younger_than_every_version_that_may_be_asked_for(name: str) -> None:
    """Karpenter resolves an alias by the cluster's version: of one from before its arrival there is none."""
    classes = [each for each in overlay(name) if each["kind"] == "EC2NodeClass"]
    assert len(classes) == 2
    for each in classes:
        (term,) = each["spec"]["amiSelectorTerms"]
        made = datetime.strptime(term["alias"], "al2023@v%Y%m%d").date()
        assert {version for version in VERSIONS if ARRIVAL[version] >= made} == set()
        assert made < TOO_NEW
