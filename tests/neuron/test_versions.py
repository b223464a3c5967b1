"""`mezzotint doctor` on a Neuron machine: what fits together, what does not, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mezzotint import neuron_versions
from mezzotint.doctor import examine
from mezzotint.neuron_versions import NeuronVersions, explain, find_versions

FITTING: dict[str, Any] = {
    "driver": "2.24.7.0",
    "runtime": "2.28.23.0-dd5879008",
    "torch": "2.8.0+cpu",
    "torch_neuronx": "2.8.0.2.10.16998+a9b5f4b",
    "compiler": "2.21.33363.0+82129205",
    "has_neuron_ls": True,
}


def found(**changes: Any) -> dict[str, tuple[str, str, str]]:
    return {
        part: (state, told, fix) for state, part, told, fix in explain(NeuronVersions(**FITTING | changes))
    }


def test_the_set_this_was_written_against_fits() -> None:
    assert {state for state, _, _ in found().values()} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "part", "state", "told"),
    [
        ({"driver": "2.29.1.0"}, "Neuron driver", "wrong", "nrt_init will fail"),
        ({"driver": "2.29.0", "runtime": "2.33.1"}, "Neuron driver", "ok", ""),
        ({"driver": "2.28.9", "runtime": "2.28"}, "Neuron driver", "ok", ""),
        ({"driver": "2.31", "runtime": "2.32.9"}, "Neuron driver", "wrong", "v20260625"),
        ({"driver": None}, "Neuron driver", "note", "inf2 or trn1"),
        ({"runtime": None}, "Neuron driver", "note", "aws-neuronx-runtime-lib"),
        ({"torch": "2.9.0"}, "torch-neuronx", "wrong", "built for torch 2.8"),
        ({"torch": None}, "torch-neuronx", "wrong", "built for torch 2.8"),
        ({"torch_neuronx": None}, "torch-neuronx", "note", "Neuron image"),
        ({"compiler": "2.26.100"}, "neuronx-cc", "wrong", "different SDKs; 2.26.1 has 2.21"),
        ({"torch_neuronx": "2.9.0.2.13", "torch": "2.9.0"}, "neuronx-cc", "wrong", "different SDKs"),
        ({"torch_neuronx": "2.9.0.2.13", "compiler": "2.26", "torch": "2.9.0"}, "neuronx-cc", "ok", ""),
        ({"compiler": None}, "neuronx-cc", "note", "only needed to compile"),
        ({"has_neuron_ls": False}, "Neuron tools", "note", "aws-neuronx-tools"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_do(
    changes: dict[str, Any], part: str, state: str, told: str
) -> None:
    assert found(**changes)[part][0] == state
    assert told in found(**changes)[part][2]


def test_a_machine_without_neuron_is_not_told_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_versions() is None
    assert not any("euron" in finding.part for finding in examine())


def test_a_driver_and_a_runtime_package_are_found_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.write_text("2.29.1.0\n")
    query = tmp_path / "dpkg-query"
    query.write_text("#!/bin/sh\necho 2.28.23.0-dd5879008\n")
    query.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(neuron_versions, "DRIVER_FILE", driver)
    versions = find_versions()
    assert versions is not None
    assert (versions.driver, versions.runtime) == ("2.29.1.0", "2.28.23.0-dd5879008")
    told = {finding.part: finding for finding in examine()}
    assert told["Neuron driver"].state == "wrong"


def test_in_the_neuron_image_its_own_versions_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.doctor.find_versions", lambda: NeuronVersions(**FITTING))
    installed = {"torch": "2.8.0", "diffusers": "0.35.2", "transformers": "4.57.6"}
    monkeypatch.setattr("mezzotint.doctor.version", lambda name: installed.get(name, "99"))
    states = {finding.part: finding.state for finding in examine()}
    assert {states[name] for name in installed} == {"ok"}
    monkeypatch.setattr("mezzotint.doctor.find_versions", lambda: None)
    states = {finding.part: finding.state for finding in examine()}
    assert {states[name] for name in installed} == {"wrong"}
