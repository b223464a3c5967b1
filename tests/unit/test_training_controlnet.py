"""The recipe's ControlNet: what changes nothing at first, what learns, what it reads, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.imaging.edges import canny
from mezzotint.models.manifest import check_manifest, write_manifest

controlnet = pytest.importorskip("training.controlnet", reason="needs the repository root on the path")
captions = pytest.importorskip("training.captions")
config = pytest.importorskip("training.config")
data = pytest.importorskip("training.data")
judged = pytest.importorskip("training.lines")
lora = pytest.importorskip("training.lora")
unet = pytest.importorskip("training.unet")

CONFIG = replace(config.GROWN, controlnet_pictures=40, unet_batch=4, bf16_unet=False)
SIZE = (128, 128)


@pytest.fixture(scope="module")
def base() -> Any:
    return lora.Base.load(config.MODEL, "cpu")


@pytest.fixture
def begun(base: Any) -> Any:
    torch.manual_seed(0)
    return controlnet.build(CONFIG, base)


@pytest.fixture
def shown(base: Any, tmp_path: Path) -> Any:
    """Batches of placed pictures whose latents carry the number of the picture, so that rows can be told."""
    every = [e for e in controlnet.examples(CONFIG)[: CONFIG.controlnet_pictures] if e.size == SIZE]
    marks = torch.arange(len(every)).float()[:, None, None, None].expand(-1, 4, 16, 16)
    store = {"128x128": {"latents": marks.half(), "indices": torch.arange(len(every))}}
    torch.save(store, tmp_path / "latents.pt")
    return controlnet.LinedBatches(CONFIG, base.tokens, every, tmp_path / "latents.pt")


@pytest.fixture
def drawn() -> Any:
    torch.manual_seed(1)
    ids = torch.zeros(2, 32, dtype=torch.long)
    sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)
    lines = torch.zeros(2, 1, 128, 128, dtype=torch.uint8)
    lines[:, :, 40:80, 64] = 255
    return controlnet.Lined(torch.randn(2, 4, 16, 16), sizes, ids, torch.tensor([False, True]), lines)


def test_a_controlnet_that_has_just_begun_changes_nothing(base: Any, begun: Any, drawn: Any) -> None:
    noisy, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([900, 30])
    with torch.no_grad():
        hidden, added = unet.conditioning(base.first, base.second, drawn, "cpu")
        alone = base.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
        both = controlnet.Controlled(CONFIG, base, begun)(drawn, noisy, timesteps)
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


def test_only_the_controlnet_learns(base: Any, begun: Any, drawn: Any) -> None:
    next(controlnet.losses(CONFIG, iter([drawn]), base, begun)).backward()
    for frozen in (base.first, base.second, base.unet):
        assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in begun.parameters())
    # What joins it to the UNet is zeros, and so is where lines come in: the first step is these layers' own.
    joined = [*begun.controlnet_down_blocks, begun.controlnet_mid_block]
    assert all(layer.weight.grad.abs().sum() > 0 for layer in joined)


def test_one_step_later_lines_matter(base: Any, begun: Any, drawn: Any) -> None:
    solver = torch.optim.SGD(begun.parameters(), lr=1.0)
    for _ in range(2):
        solver.zero_grad()
        next(controlnet.losses(CONFIG, iter([drawn]), base, begun)).backward()
        solver.step()
    noisy, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([900, 30])
    predict = controlnet.Controlled(CONFIG, base, begun)
    with torch.no_grad():
        lined = predict(drawn, noisy, timesteps)
        blank = predict(replace(drawn, lines=torch.zeros_like(drawn.lines)), noisy, timesteps)
    assert not torch.allclose(lined, blank)


def test_conditions_are_the_edges_of_the_very_pictures(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlnet, "GAPS_SHARE", 0.0)
    monkeypatch.setattr(controlnet, "THICK_SHARE", 0.0)
    rng = np.random.default_rng(3)
    for _ in range(3):
        batch = shown.draw(rng)
        numbers = batch.latents[:, 0, 0, 0].long().tolist()
        assert len(set(numbers)) > 1
        for number, lines in zip(numbers, batch.lines, strict=True):
            picture = shown.every[number].draw(shown.texts)
            assert np.array_equal(lines[0].numpy(), canny(picture)[..., 0])


def test_what_the_controlnet_reads_is_white_on_black_in_0_to_1() -> None:
    lines = torch.tensor([[[[0, 255], [255, 0]]]], dtype=torch.uint8)
    read = controlnet.to_condition(lines, "cpu")
    assert read.shape == (1, 3, 2, 2)
    assert read.dtype == torch.float32
    assert read.unique().tolist() == [0.0, 1.0]
    # As diffusers' pipelines make it of a picture.
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(
        vae_scale_factor=1, do_convert_rgb=True, do_normalize=False
    )
    picture = np.repeat(lines[0, 0].numpy()[..., None], 3, axis=2)
    told = processor.preprocess(processor.numpy_to_pil(picture / 255.0)[0], height=2, width=2)
    assert torch.equal(read, told)


def test_lines_by_hand_have_gaps_or_are_thicker_and_are_lines_still() -> None:
    lines = np.zeros((96, 160), np.uint8)
    lines[20:70, 30] = lines[20, 30:120] = 255
    kept = lines.copy()
    rng = np.random.default_rng(0)
    made = [controlnet.by_hand(rng, lines) for _ in range(60)]
    assert np.array_equal(lines, kept)
    counts = [int((each > 0).sum()) for each in made]
    whole = int((lines > 0).sum())
    assert min(counts) < whole < max(counts)
    assert sum(np.array_equal(each, lines) for each in made) > 20
    assert {value for each in made for value in np.unique(each).tolist()} == {0, 255}


def test_placed_pictures_are_of_all_sizes_and_never_on_a_held_out_background() -> None:
    every = controlnet.examples(replace(CONFIG, controlnet_pictures=400))
    assert {each.size for each in every} == set(data.SIZES)
    assert {each.group for each in every} <= set(controlnet.SHARES)
    for example in every:
        for name in example.scene.names:
            assert example.scene.background in data.allowed(name)
    two = [each for each in every if each.group == "placed" and len(each.scene.names) == 2]
    assert {each.scene.tall for each in two if each.size == SIZE} == {False, True}
    for each in two:
        first, second = each.spots
        assert first.y < second.y if each.scene.tall else first.x < second.x


def test_what_is_written_is_small_and_diffusers_reads_it(begun: Any, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = tmp_path / "model"
    model.mkdir()
    write_manifest(model)
    with torch.no_grad():
        begun.controlnet_mid_block.bias.fill_(0.5)
    folder = controlnet.write(begun, model)
    assert sorted(p.relative_to(model).as_posix() for p in folder.iterdir()) == [
        "controlnets/canny/config.json",
        "controlnets/canny/diffusion_pytorch_model.safetensors",
    ]
    check_manifest(model)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 8e6
    told = json.loads((folder / "config.json").read_text())
    assert told["_class_name"] == "ControlNetModel"
    assert told["addition_embed_type"] == "text_time"
    assert "_name_or_path" not in told
    assert "/" not in (folder / "config.json").read_text()
    read = diffusers.ControlNetModel.from_pretrained(folder, torch_dtype=torch.float16)
    for name, weight in begun.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight.half()), name
    # It is replaced by the next one, and nothing else is left behind.
    controlnet.write(begun, model)
    check_manifest(model)
    assert list(tmp_path.iterdir()) == [model]


def test_lines_are_followed_as_far_as_two_pixels() -> None:
    line, close, far = (np.zeros((64, 64, 3), np.uint8) for _ in range(3))
    line[10:50, 20] = close[10:50, 22] = far[10:50, 23] = 255
    assert judged.near(line, line) == judged.near(line, close) == (40, 40)
    assert judged.near(line, far) == (0, 40)
    assert judged.near(line, np.zeros_like(line)) == (0, 40)


def test_the_judge_finds_a_glyph_wherever_it_stands() -> None:
    texts = {glyph.name: glyph.text for glyph in data.glyphs(336)}
    vocabulary = judged.Vocabulary.load(config.MODEL)
    asked = [judged.Asked(("fox",), "teal"), judged.Asked(("castle",), "red")]
    cases = judged.elsewhere(asked)
    report = judged.judge(
        [judged.framed(case.draw(texts), case.spots[0]) for case in cases], asked, vocabulary
    )
    assert report.top1 == report.backgrounds == 1.0
