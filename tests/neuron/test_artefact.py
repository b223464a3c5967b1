"""A folder of graphs is trusted whole or not at all, and before the first graph is deserialised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.backends.neuron.shapes import Input, inputs_of
from mezzotint.core import ADDED, GenerationRequest
from mezzotint.errors import InvalidRequest, ModelInvalid, ModelNotFound, SettingInvalid
from mezzotint.models.artefact import adopt, read_artefact
from mezzotint.models.loading import load_backend
from mezzotint.models.locations import check, limits_of
from mezzotint.models.manifest import write_manifest
from mezzotint.resolving import resolve
from mezzotint.tuning import Tuning

GRAPH = "64x64/unet/model.neuron"


@pytest.fixture
def graphs(tiny_graphs: Path, tmp_path: Path) -> Path:
    """Graphs of this test's own."""
    return Path(shutil.copytree(tiny_graphs, tmp_path / "mine"))


@pytest.fixture
def adopted(tiny_graphs: Path, tmp_path: Path) -> Path:
    """One size's folder alone, as optimum-neuron leaves it: without manifest and description."""
    return Path(shutil.copytree(tiny_graphs / "64x32", tmp_path / "exported"))


@pytest.fixture(autouse=True)
def nothing_is_deserialised(tiny_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any graph fails the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a graph was deserialised")

    monkeypatch.setattr(torch.jit, "load", fail)


def load(folder: Path, **options: Any) -> Any:
    return load_backend(str(folder), **{"device": "neuron", "stand_in": True, "threads": 1, **options})


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def describe_as(folder: Path, **changes: Any) -> None:
    """Change what the folder says of itself, and have its manifest agree."""
    path = folder / "mezzotint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(folder)


def configure(folder: Path, component: str, **changes: Any) -> None:
    path = folder / component / "config.json"
    configuration = json.loads(path.read_text())
    configuration["neuron"] |= changes
    path.write_text(json.dumps(configuration))


def lose_a_part(folder: Path) -> None:
    (folder / "64x64/vae_encoder/model.neuron").unlink()
    write_manifest(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in a graph": (lambda f: flip_a_bit(f / GRAPH), f"{GRAPH} is not the file"),
    "a flipped bit in a shape": (
        lambda f: flip_a_bit(f / "64x64/unet/config.json"),
        "unet/config.json is not the file",
    ),
    "an extra file": (
        lambda f: (f / "64x64/unet/more.neuron").write_text("x"),
        "more.neuron, which its manifest",
    ),
    "a lost file": (lambda f: (f / GRAPH).unlink(), f"lacks {GRAPH}"),
    "a lost part that no manifest misses": (lose_a_part, "lacks 64x64/vae_encoder/model.neuron"),
    "a lost manifest": (lambda f: (f / "manifest.json").unlink(), "--adopt"),
    "a pickle": (lambda f: (f / "weights.pkl").write_text("x"), "weights.pkl; only safetensors"),
    "another version of the compiler": (
        lambda f: describe_as(f, toolchain={"torch": "1.13.1"}),
        "compiled by torch 1.13.1, and here is",
    ),
    "a compiler that is not here": (
        lambda f: describe_as(f, toolchain={"torch-neuronx": "2.8.0.2.10"}),
        "compiled by torch-neuronx 2.8.0.2.10, and here is none",
    ),
    "another format": (lambda f: describe_as(f, format=2), "format 2"),
    "a description that is none": (
        lambda f: describe_as(f, buckets=None),
        "mezzotint.json is not a description",
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_folder_that_is_not_as_it_was_compiled_is_refused_with_the_reason(
    graphs: Path, damage: str
) -> None:
    change, reason = DAMAGE[damage]
    change(graphs)
    with pytest.raises(ModelInvalid) as refused:
        load(graphs)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("component", "changes", "reason"),
    [
        ("vae_decoder", {"static_height": 4}, "was compiled for 4×8, and the UNet beside it needs 8×8"),
        ("vae_encoder", {"static_width": 8}, "was compiled for 64×8"),
        ("text_encoder", {"static_sequence_length": 77}, "was compiled for 77"),
        ("unet", {"static_batch_size": 0}, "does not tell the graph's shapes"),
        ("unet", {"static_width": "8"}, "does not tell the graph's shapes"),
        ("unet", {"tensor_parallel_size": 2}, "split over several cores"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    graphs: Path, component: str, changes: dict[str, Any], reason: str
) -> None:
    configure(graphs / "64x64", component, **changes)
    write_manifest(graphs)
    with pytest.raises(ModelInvalid, match=reason):
        load(graphs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stand_in": False}, "was compiled for cpu: run it with --stand-in"),
        ({"device": "cpu", "stand_in": False}, "take --device neuron"),
        ({"device": "auto", "stand_in": False}, "take --device neuron"),
        ({"device": "cpu"}, "--stand-in is for --device neuron"),
        ({"dtype": "bf16"}, "dtype"),
        ({"tuning": Tuning(compile="blocks")}, "compile is for modules"),
        *(({kind: ["any.safetensors"]}, f"{kind} are for modules") for kind in ADDED),
    ],
)
def test_options_that_graphs_do_not_take_are_refused_by_name(
    tiny_graphs: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingInvalid, match=reason):
        load(tiny_graphs, **options)


def test_graphs_for_a_chip_are_refused_by_the_stand_in(graphs: Path) -> None:
    describe_as(graphs, target="inf2")
    with pytest.raises(SettingInvalid, match="was compiled for inf2"):
        load(graphs)


def test_a_model_without_graphs_is_told_how_to_get_some(tiny_sdxl: Path) -> None:
    with pytest.raises(SettingInvalid, match="mezzotint compile --model"):
        load(tiny_sdxl)


def test_the_limits_of_a_folder_of_graphs_are_its_sizes_and_nothing_else(tiny_graphs: Path) -> None:
    limits = limits_of(str(tiny_graphs))
    assert limits.served == ((64, 64), (64, 32), (32, 64), (56, 72), (128, 64), (96, 64))
    assert (limits.default_width, limits.default_height) == (64, 64)
    assert resolve(GenerationRequest("a", width=56, height=72), limits).height == 72
    for width, height in ((64, 72), (8, 64), (256, 64), (64, 60)):
        with pytest.raises(InvalidRequest, match=r"64x64, 64x32, 32x64") as refused:
            resolve(GenerationRequest("a", width=width, height=height), limits)
        assert refused.value.param == "size"


def test_check_says_that_a_folder_of_graphs_is_whole(tiny_graphs: Path) -> None:
    assert check(str(tiny_graphs)).verified


def test_what_optimum_neuron_exported_is_refused_until_it_is_adopted(adopted: Path) -> None:
    assert read_artefact(adopted).limits.served == ((64, 32),)
    with pytest.raises(ModelInvalid, match="--adopt"):
        load(adopted)
    adopt(str(adopted))
    # Trusted now, and for a chip's compiler: a CPU does not stand in for that.
    with pytest.raises(SettingInvalid, match="cannot stand in"):
        load(adopted)
    flip_a_bit(adopted / "unet/model.neuron")
    with pytest.raises(ModelInvalid, match="is not the file"):
        load(adopted)


def test_only_a_folder_of_graphs_without_a_manifest_is_adopted(
    adopted: Path, tiny_sdxl: Path, tiny_graphs: Path
) -> None:
    with pytest.raises(ModelNotFound, match="no folder of compiled graphs"):
        adopt(str(tiny_sdxl))
    with pytest.raises(ModelInvalid, match=r"has its manifest\.json"):
        adopt(str(tiny_graphs))
    (adopted / "text_encoder_2/model.neuron").unlink()
    with pytest.raises(ModelInvalid, match="lacks exported/text_encoder_2"):
        adopt(str(adopted))
    assert not (adopted / "manifest.json").exists()


def test_the_unet_of_sdxl_takes_what_optimum_neuron_compiled_it_for() -> None:
    """The configuration as `optimum-cli export neuron` writes it for 1024×1024, shortened."""
    configuration = {
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
        "addition_time_embed_dim": 256,
        "neuron": {
            "static_batch_size": 4,
            "static_sequence_length": 77,
            "static_num_channels": 4,
            "static_width": 128,
            "static_height": 128,
            "dynamic_batch_size": False,
            "tensor_parallel_size": 1,
        },
    }
    assert inputs_of("unet", configuration) == (
        Input("sample", (4, 4, 128, 128)),
        Input("timestep", (4,)),
        Input("encoder_hidden_states", (4, 77, 2048)),
        Input("text_embeds", (4, 1280)),
        Input("time_ids", (4, 6)),
    )


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("time_cond_proj_dim", 256, "guidance scale"),
        ("encoder_hid_dim_type", "ip_image_proj", "image prompt"),
    ],
)
def test_a_graph_with_an_input_that_nobody_would_fill_is_refused(
    adopted: Path, name: str, value: object, what: str
) -> None:
    path = adopted / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ModelInvalid, match=f"also reads .*{what}"):
        adopt(str(adopted))
