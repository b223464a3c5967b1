"""The cores of a process: sorted and one by one before Ray or the runtime sees them, or refused in words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mezzotint.backends.neuron.standin import StandIn
from mezzotint.cores import NUMBER_OF_CORES, VISIBLE_CORES, prepare_cores, read_cores
from mezzotint.errors import SettingInvalid
from mezzotint.models import graphs as loading
from mezzotint.models.graphs import load_graphs
from tests.neuron.chips import for_a_chip


@pytest.fixture(autouse=True)
def no_cores_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and then deleted, so that what a test leaves there is undone.
    for name in (VISIBLE_CORES, NUMBER_OF_CORES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("given", "prepared"),
    [
        ("1,0", "0,1"),
        ("0-1", "0,1"),
        ("5, 4", "4,5"),
        ("2-3,0-1", "0,1,2,3"),
        ("7", "7"),
        ("10,9,11", "9,10,11"),
    ],
)
def test_cores_are_sorted_and_named_one_by_one(
    given: str, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_CORES, given)
    assert prepare_cores(2) == len(prepared.split(","))
    assert os.environ[VISIBLE_CORES] == prepared
    assert NUMBER_OF_CORES not in os.environ


@pytest.mark.parametrize("given", ["0,2", "a", "1-0", "0,,1", "0-", "-1", "0,0", "0-1,1", "0-99999", "0;1"])
def test_cores_that_the_runtime_does_not_take_are_refused_with_what_it_does(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_CORES, given)
    with pytest.raises(SettingInvalid, match=VISIBLE_CORES):
        prepare_cores(2)


def test_without_a_word_any_free_cores_are_asked_for() -> None:
    assert prepare_cores() is None
    assert prepare_cores(2) == 2
    assert os.environ[NUMBER_OF_CORES] == "2"
    assert VISIBLE_CORES not in os.environ


def test_a_range_is_read_in_its_own_order() -> None:
    assert read_cores("2-3,0") == (2, 3, 0)


def test_the_stand_in_refuses_cores_as_ray_may_hand_them_and_takes_them_sorted(
    tiny_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_CORES, "1,0")
    with pytest.raises(SettingInvalid, match="ascending; not 1,0"):
        StandIn().load("unet", tiny_graphs / "64x64/unet/model.neuron", (), 0)
    load_graphs(tiny_graphs, stand_in=True).close()
    assert os.environ[VISIBLE_CORES] == "0,1"


def test_a_core_that_the_process_does_not_have_is_refused(
    tiny_graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_CORES, "3")
    with pytest.raises(SettingInvalid, match="this process has 1"):
        StandIn().load("unet", tiny_graphs / "64x64/unet/model.neuron", (), 1)


def test_a_process_with_one_core_uses_that_one(tiny_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_CORES, "3")
    stand_in = StandIn()
    backend = load_graphs(tiny_graphs, stand_in=stand_in)
    assert backend.info.max_batch == 4
    backend.close()


STUB = """
import contextlib, os
at_import = os.environ.get("NEURON_RT_VISIBLE_CORES")
placed = []

@contextlib.contextmanager
def neuron_cores_context(start_nc, nc_count):
    placed.append((start_nc, nc_count))
    yield
"""


@pytest.fixture
def torch_neuronx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of that name that notes what is asked of it; what a chip does, it does not."""
    package = tmp_path / "stubs/torch_neuronx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "experimental.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(package.parent))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_neuronx"]:
        del sys.modules[name]


@pytest.mark.usefixtures("torch_neuronx")
def test_on_a_chip_the_unet_goes_to_each_core_and_the_rest_to_the_last(
    tiny_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE_CORES, "3,2")
    folder = for_a_chip(tiny_graphs, tmp_path / "chip", sizes=2)
    monkeypatch.setattr(loading, "installed", {"torch-neuronx": "2.8.0.2.10"}.get)
    backend = load_graphs(folder)
    placement = sys.modules["torch_neuronx.experimental"]
    assert placement.at_import == "2,3", "the cores were sorted too late"
    # Two sizes: a UNet each on both cores; encoder and decoder each, and one of either text encoder, on the
    # last.
    assert sorted(placement.placed) == [(0, 1)] * 2 + [(1, 1)] * (2 + 4 + 2)
    assert backend.info.backend == "neuron"
    backend.close()


def test_without_torch_neuronx_the_error_says_where_it_comes_from(
    tiny_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = for_a_chip(tiny_graphs, tmp_path / "chip", sizes=1)
    monkeypatch.setattr(loading, "installed", {"torch-neuronx": "2.8.0.2.10"}.get)
    monkeypatch.setitem(sys.modules, "torch_neuronx", None)
    with pytest.raises(SettingInvalid, match="needs torch-neuronx"):
        load_graphs(folder)
