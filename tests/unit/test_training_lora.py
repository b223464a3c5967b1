"""LoRAs of the recipe: what changes nothing at first, what is written, and which pictures they learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from mezzotint.backends.loras import LowRank
from mezzotint.models.loras import find_loras
from mezzotint.models.manifest import check_manifest, write_manifest

lora = pytest.importorskip("training.lora", reason="needs the repository root on the path")
config = pytest.importorskip("training.config")
data = pytest.importorskip("training.data")
unet = pytest.importorskip("training.unet")

MEGABYTE = 2**20


class Small(nn.Module):
    """One of each kind of module that is changed, by names that are changed, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 5)
        self.conv1 = nn.Conv2d(4, 7, 3, padding=1)
        self.conv_out = nn.Conv2d(7, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv1(x)).sum() + self.to_q(x[:, 0]).square().sum()


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


def drawn_at_random(adapter: nn.Module) -> None:
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.normal_()


def test_a_lora_that_has_just_begun_changes_nothing(small: Small) -> None:
    x = torch.randn(1, 4, 6, 6)
    before = small(x)
    lora.Adapter(small, rank=2)
    assert torch.equal(small(x), before)


def test_only_the_low_ranks_learn(small: Small) -> None:
    adapter = lora.Adapter(small, rank=2)
    small(torch.randn(1, 4, 6, 6)).backward()
    assert adapter.paths == ["to_q", "conv1"]
    learning = {id(p) for p in small.parameters() if p.requires_grad}
    assert learning == {id(p) for p in adapter.parameters()}
    assert all(part.up.grad is not None for part in adapter.parts)


@pytest.mark.parametrize("path", ["to_q", "conv1"])
def test_what_is_in_the_file_added_to_the_weight_is_the_weight_that_was_trained(
    small: Small, path: str
) -> None:
    former = small.get_submodule(path).weight.detach().clone()
    adapter = lora.Adapter(small, rank=2)
    drawn_at_random(adapter)
    written = {name: weight.float() for name, weight in adapter.tensors().items()}
    down, up = (written[f"unet.{path}.lora_{which}.weight"] for which in "AB")
    change = LowRank(down, up)
    assert change.fits(former)
    trained = small.get_submodule(path).weight
    torch.testing.assert_close(
        former + change.delta(former).view(former.shape), trained, rtol=2e-3, atol=2e-3
    )


def test_a_convolution_of_the_kernel_and_one_of_one_pixel_make_the_same_change(small: Small) -> None:
    former = small.conv1.weight.detach().clone()
    adapter = lora.Adapter(small, rank=2)
    drawn_at_random(adapter)
    part = adapter.parts[1]
    x = torch.randn(1, 4, 6, 6)
    apart = nn.functional.conv2d(nn.functional.conv2d(x, part.down, padding=1), part.up)
    both = nn.functional.conv2d(x, small.conv1.weight - former, padding=1)
    torch.testing.assert_close(apart, both, rtol=1e-4, atol=1e-4)


def test_what_has_no_noise_is_its_own_answer() -> None:
    f = lora.Consistency()
    x, noise = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(f(x, noise, torch.zeros(3, dtype=torch.long)), x)


def test_an_answer_is_what_the_sampler_makes_of_the_same_noise() -> None:
    f = lora.Consistency()
    x, noise = torch.randn(2, len(f.visited), 4, 8, 8)
    f.scheduler.set_timesteps(lora.STEPS)
    for row, timestep in enumerate(f.scheduler.timesteps):
        answer = f(x, noise, f.visited)[row : row + 1]
        expected = f.scheduler.step(noise[row : row + 1], timestep, x[row : row + 1]).denoised
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-4)


def test_the_few_steps_are_places_of_the_grid_and_the_last_way_ends_without_noise() -> None:
    f = lora.Consistency()
    assert len(f.visited) == lora.STEPS
    assert set(f.visited.tolist()) <= set(f.grid.tolist())
    assert f.later(f.grid, 1).tolist() == [*f.grid[1:].tolist(), 0]
    assert f.later(f.grid[-2:], lora.SKIP).tolist() == [0, 0]


@pytest.mark.parametrize(("preset", "name"), [(p, n) for p in ("grown", "gpu") for n in lora.KINDS])
def test_a_file_is_small_and_says_what_it_is(preset: str, name: str, tmp_path: Path) -> None:
    chosen, kind = config.PRESETS[preset], lora.KINDS[name]
    rank = chosen.style_rank if kind.style else chosen.few_step_rank
    model = tmp_path / "model"
    model.mkdir()
    adapter = lora.Adapter(unet.build_unet(chosen), rank)
    path = lora.write(adapter, name, model)
    assert path.stat().st_size < MEGABYTE
    with safe_open(path, "pt") as file:
        keys, told = set(file.keys()), file.metadata()
    assert keys == {f"unet.{p}.lora_{which}.weight" for p in adapter.paths for which in "AB"}
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_A.weight" in keys
    assert "unet.down_blocks.0.resnets.0.conv1.lora_B.weight" in keys
    assert told == {"format": "pt", "title": kind.title, **kind.metadata}
    check_manifest(model)
    (found,) = find_loras(model)
    assert found.served.title == kind.title
    asked_for = (found.served.steps, found.served.guidance_scale, found.served.scheduler)
    assert asked_for == ((None, None, None) if kind.style else (4, 1.0, "LCM"))


def test_diffusers_reads_the_file(small: Small, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    write_manifest(tmp_path)
    path = lora.write(lora.Adapter(small, rank=2), "night", tmp_path)
    read, alphas = diffusers.StableDiffusionXLPipeline.lora_state_dict(str(path))
    assert set(read) == {f"unet.{p}.lora_{which}.weight" for p in ("to_q", "conv1") for which in "AB"}
    assert not alphas


def test_styles_are_learnt_from_usual_pictures_without_a_style_and_without_held_out_pairs() -> None:
    every = lora.plain_examples(config.GROWN)
    assert len(every) == config.GROWN.style_pictures
    assert {each.size for each in every} == set(data.SIZES)
    for example in every:
        assert example.scene.style is None
        for name in example.scene.names:
            assert example.scene.background in data.allowed(name)


def test_a_model_that_knows_another_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"glyphs": ["fox"]}))
    with pytest.raises(ValueError, match="does not know the list of the preset cpu"):
        lora.knowing(config.CPU, tmp_path)
