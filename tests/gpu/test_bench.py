"""`bench gpu` in small on a GPU, or on the stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mezzotint.bench.gpu import QUICK, WHOLE_SECONDS, GpuBench, run_parts
from mezzotint.bench.gpu_parts import PARTS
from tests.gpu.conftest import loading
from tests.gpu.needs import GPU, HAS_CUDA
from tests.gpu.stand_in import StandIn

pytestmark = [*GPU, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
# Not what is for compiled models; nor what would take minutes of the stand-in's.
HERE = ["matrix", "unet", "switches", "decode", "controls", "memory"]
HERE += ["throughput", "loop", "load"] if HAS_CUDA else []


@pytest.fixture
def bench(gpu: StandIn | None) -> Iterator[GpuBench]:
    with loading(gpu):
        made = GpuBench(QUICK, torch.device("cuda"))
        yield made
        made.close()


def test_every_part_has_its_figures(bench: GpuBench) -> None:
    told: list[int] = []
    # All the time there is: a machine that is busy leaves nothing out.
    seconds = WHOLE_SECONDS * len(HERE)
    results = run_parts(bench, HERE, PARTS, seconds=seconds, after=lambda so_far: told.append(len(so_far)))
    assert bench.left_out == []
    assert {each.part for each in results if each.name != "seconds it took"} == set(HERE)
    assert told == sorted(set(told))
    assert len(told) == len(HERE)
    switches = {each.name.partition(",")[0] for each in results if each.part == "switches"}
    assert {"cuda_graphs", "channels_last", "fused_projections", "attention flash"} <= switches
