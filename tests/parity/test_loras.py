"""Pictures with LoRAs: what the merged weights draw, whatever else is drawn in between."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint import Engine
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.loras import AdaptedModule, Change
from mezzotint.core import GenerationRequest, Lora
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.loading import load_backend
from mezzotint.models.reading import load_parts
from mezzotint.models.reading_loras import read_lora
from mezzotint.tuning import Tuning
from tests.loras import ATTENTION, Layout, merge, write_lora
from tests.parity.conftest import Studio, open_studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
KOHYA_ATTENTION = f"lora_unet_{ATTENTION.replace('.', '_')}"
Make = Callable[..., DiffusersBackend]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`ink` changes all, `oil` the UNet alone."""
    folder = tmp_path_factory.mktemp("loras")
    ink = write_lora(folder / "ink.safetensors", seed=1)
    oil = write_lora(folder / "oil.safetensors", "unet", seed=2)
    return [str(ink), str(oil)]


@pytest.fixture(scope="module")
def studio(tiny_sdxl: Path, files: list[str]) -> Studio:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, loras=files)
    return open_studio(str(tiny_sdxl), backend)


@pytest.mark.parametrize(
    "loras", [(Lora("ink"),), (Lora("oil", -0.7),), (Lora("ink", 0.5), Lora("oil"))], ids=str
)
def test_it_draws_what_diffusers_does_with_the_merged_weights(
    studio: Studio, tiny_sdxl: Path, loras: tuple[Lora, ...]
) -> None:
    request = studio.request(steps=3, loras=loras, negative_prompt="dull", **SIZE)
    merged = open_studio(str(tiny_sdxl), studio.backend)
    for lora in loras:
        seed, components = {"ink": (1, ()), "oil": (2, ("unet",))}[lora.name]
        merge(merged.pipeline.components, seed, lora.scale, *components)
    assert_same(studio.draw((0, request))[0], merged.reference(request))


def test_one_drawn_between_others_is_the_same_and_leaves_them_the_same(studio: Studio) -> None:
    wanted = [(), (Lora("ink"),), (Lora("oil"),), (Lora("ink", 0.5), Lora("oil", 2.0))]
    requests = [studio.request(steps=3, loras=loras, **SIZE) for loras in wanted]
    alone = [studio.draw((0, request))[0] for request in requests]
    assert len({pixels.tobytes() for pixels in alone}) == len(wanted)
    for index, request in enumerate(requests):
        studio.backend.start(f"r{index}", request)
    for _ in range(requests[0].evaluations):
        for index in range(len(requests)):
            assert studio.backend.step([f"r{index}"]) == {}
    for index, pixels in enumerate(alone):
        assert np.array_equal(studio.backend.decode(f"r{index}"), pixels)
        studio.backend.release(f"r{index}")


def test_the_engine_draws_those_with_and_without_together(tiny_sdxl: Path, files: list[str]) -> None:
    asked = [
        GenerationRequest("a fox", seed=3, steps=3, loras=loras, **SIZE)
        for loras in ((), (Lora("ink"),), (), (Lora("oil"),), (Lora("ink"),))
    ]
    with Engine.load(str(tiny_sdxl), device="cpu", threads=1, warm_up=False, loras=files) as engine:
        alone = [engine.generate(request) for request in asked]
        together = [ticket.result() for ticket in [engine.submit(request) for request in asked]]
    for one, other in zip(alone, together, strict=True):
        assert_same(other.pixels, one.pixels)
        assert other.receipt == one.receipt
    assert [lora.name for lora in alone[4].receipt.loras] == ["ink"]


def product(change: Change) -> torch.Tensor:
    """scaling · B·A"""
    return change.delta(torch.empty(0))


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_each_layout_is_read_as_the_same_lora(tiny_sdxl: Path, tmp_path: Path, layout: Layout) -> None:
    parts = load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))
    peft = read_lora(write_lora(tmp_path / "a.safetensors"), parts)
    other = read_lora(write_lora(tmp_path / "b.safetensors", layout=layout), parts)
    assert (len(peft.unet), *map(len, peft.text_encoders)) == (2, 1, 1)
    for one, two in zip((peft.unet, *peft.text_encoders), (other.unet, *other.text_encoders), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(product(one[path]), product(two[path])) for path in one)


PEFT_CONFIG = {
    f"{component}.{name}": value
    for component in ("unet", "text_encoder", "text_encoder_2")
    for name, value in {
        "r": 2,
        "lora_alpha": 4,
        "alpha_pattern": {"conv1": 1, "to_q": 1, "q_proj": 1},
    }.items()
}


@pytest.mark.parametrize(
    "halved",
    [
        {"layout": "kohya", "alpha": 1.0},
        {"metadata": {"lora_adapter_metadata": json.dumps(PEFT_CONFIG)}},
    ],
    ids=["kohya", "peft"],
)
def test_alpha_over_rank_scales_it(tiny_sdxl: Path, tmp_path: Path, halved: dict[str, Any]) -> None:
    parts = load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))
    half = read_lora(write_lora(tmp_path / "a.safetensors", **halved), parts)
    whole = read_lora(write_lora(tmp_path / "b.safetensors"), parts)
    for one, two in zip((half.unet, *half.text_encoders), (whole.unet, *whole.text_encoders), strict=True):
        assert all(torch.allclose(2 * product(one[path]), product(two[path])) for path in one)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"unet.conv_in.lora_magnitude_vector": torch.ones(4)}, "no LoRA"),
        ({"unet.conv_in.hada_w1_a": torch.ones(4, 4)}, "no LoRA"),
        ({"unet.conv_in.lora_A.weight": torch.ones(4, 4)}, "no LoRA"),
        ({"unet.conv_in.lora_B.weight": torch.ones(4, 4)}, "no LoRA"),
        ({"unet.conv_in.alpha": torch.ones(())}, "no LoRA"),
        ({f"unet.{ATTENTION}.lora_B.bias": torch.ones(64)}, "no LoRA"),
        ({f"unet.{ATTENTION}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "another shape"),
        ({"unet.conv_norm_out.w_norm": torch.ones(())}, "another shape"),
        ({f"unet.{ATTENTION}.alpha": torch.tensor(math.nan)}, "cannot be loaded"),
        ({f"unet.{ATTENTION}.alpha": torch.tensor(math.inf)}, "cannot be loaded"),
        ({"unet.conv_norm_out.w_norm": torch.full((32,), math.nan)}, "cannot be loaded"),
        ({f"unet.{ATTENTION}.hada_t1": torch.ones(2, 2)}, "no LoRA"),
        ({f"unet.{ATTENTION}.lokr_t1": torch.ones(2, 2)}, "no LoRA"),
        ({f"unet.{ATTENTION}.wd_for_diff": torch.ones(())}, "no LoRA"),
        ({f"unet.{ATTENTION}.oft_blocks": torch.ones(2, 2, 2)}, "no LoRA"),
        ({f"unet.{ATTENTION}.lora_down.weight": torch.ones(2, 64)}, "by two names"),
        ({f"{KOHYA_ATTENTION}.diff": torch.ones(64, 64)}, "by two names"),
        ({"somewhere.lora_A.weight": torch.ones(1)}, "has nothing for"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(1)}, "has nothing for"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_understood_is_refused_by_name(
    tiny_sdxl: Path, tmp_path: Path, more: dict[str, torch.Tensor], told: str
) -> None:
    path = write_lora(tmp_path / "odd.safetensors", "unet", **more)
    parts = load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ModelInvalid) as refused:
        AdaptedModule(parts.unet, {"odd": read_lora(path, parts).unet})
    assert told in str(refused.value)
    assert told in ("another shape", "by two names") or next(iter(more)) in str(refused.value)


def test_a_service_does_not_start_with_a_file_that_it_cannot_read(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "odd.safetensors", "unet", **{f"unet.{ATTENTION}.oft_blocks": torch.ones(2)})
    with pytest.raises(
        ModelInvalid, match=r"odd\.safetensors is no LoRA, LoHa, LoKr, DoRA or full difference"
    ):
        load_backend(str(tiny_sdxl), device="cpu", threads=1, loras=[str(path)])


def test_speed_that_keeps_weights_in_another_form_is_refused(tiny_sdxl: Path, files: list[str]) -> None:
    with pytest.raises(SettingInvalid, match="fused_projections must be off with LoRAs"):
        load_backend(
            str(tiny_sdxl), device="cpu", threads=1, loras=files, tuning=Tuning(fused_projections="on")
        )


def test_the_models_own_give_way_to_speed(tiny_sdxl: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sdxl, tmp_path / "model")
    write_lora(model / "loras/own.safetensors")
    load = {"device": "cpu", "threads": 1}
    plain = load_backend(str(model), **load)
    fused = load_backend(str(model), tuning=Tuning(fused_projections="on"), **load)
    assert [lora.name for lora in plain.info.limits.loras] == ["own"]
    assert fused.info.limits.loras == ()


@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
def test_compiled_modules_wear_them_too(tiny_sdxl: Path, files: list[str], studio: Studio) -> None:
    request = studio.request(steps=2, loras=(Lora("ink"),), **SIZE)
    plain = studio.request(steps=2, **SIZE)
    backend = load_backend(
        str(tiny_sdxl), device="cpu", threads=1, loras=files, tuning=Tuning(compile="blocks")
    )
    assert isinstance(backend, DiffusersBackend)
    compiled = Studio(backend, studio.pipeline, studio.scheduler_config)
    for each in (plain, request, plain):
        assert_same(compiled.draw((0, each))[0], studio.draw((0, each))[0])
