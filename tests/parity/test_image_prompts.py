"""Pictures read beside the prompt by IP-Adapters: what diffusers' pipelines draw, whatever else is in the
pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mezzotint import Engine
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.image_prompts import cross_attentions, reading_images
from mezzotint.core import Control, GenerationRequest, Hires, ImagePrompt, Lora
from mezzotint.errors import ModelInvalid
from mezzotint.imaging.inputs import clip_square, pixels_sha256, resize_image
from mezzotint.models.loading import load_backend
from mezzotint.models.manifest import files_hash
from mezzotint.models.reading_ip_adapters import MEAN, read_image_encoder
from mezzotint.tuning import Tuning
from tests.controlnets import lines, photo
from tests.ip_adapters import SIDE, adapter_weights, write_image_encoder, write_ip_adapter
from tests.loras import write_lora
from tests.parity.conftest import Studio, open_studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
A, B = ImagePrompt("a", photo(1)), ImagePrompt("b", photo(2), 0.6)
PLUS = ImagePrompt("plus", photo(3))
CASES = {
    "plain": (A,),
    "weak": (replace(A, scale=0.4),),
    "plus": (PLUS,),
    "wide": (replace(PLUS, image=photo(4, 160, 96)),),
    "two": (A, B),
    "both kinds": (replace(A, scale=0.7), PLUS),
}


@pytest.mark.parametrize("prompts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_each_case_draws_what_diffusers_does(
    images_studio: Studio, prompts: tuple[ImagePrompt, ...], guidance: float
) -> None:
    request = images_studio.request(steps=4, image_prompts=prompts, guidance_scale=guidance, **SIZE)
    plain = images_studio.draw((0, images_studio.request(steps=4, guidance_scale=guidance, **SIZE)))[0]
    drawn = images_studio.draw((0, request))[0]
    assert_same(drawn, images_studio.reference(request))
    assert np.abs(drawn.astype(int) - plain).max() > 8


def test_rows_of_all_adapters_and_of_none_share_passes_and_draw_what_diffusers_draws_alone(
    images_studio: Studio,
) -> None:
    prompts = [(), (A,), (PLUS,), (), (A, PLUS), (replace(B, scale=1.4),)]
    requests = [
        images_studio.request(
            steps=3,
            seed=number,
            image_prompts=each,
            guidance_scale=1.0 if number % 2 else 5.0,
            negative_prompt="dark" if number % 3 == 0 else None,
            **SIZE,
        )
        for number, each in enumerate(prompts)
    ]
    together = images_studio.draw(*((number % 2, request) for number, request in enumerate(requests)))
    assert len({pixels.tobytes() for pixels in together}) == len(requests)
    for drawn, request in zip(together, requests, strict=True):
        assert_same(drawn, images_studio.reference(request))


def test_rows_without_are_the_same_to_the_byte_beside_one_that_has(images_studio: Studio) -> None:
    free = [images_studio.request(steps=3, seed=seed, **SIZE) for seed in (1, 2)]
    company = images_studio.request(steps=3, seed=3, **SIZE)
    reading = replace(company, image_prompts=images_studio.request(image_prompts=(A, PLUS)).image_prompts)
    before = images_studio.draw(*((0, each) for each in (*free, company)))
    after = images_studio.draw(*((0, each) for each in (*free, reading)))
    assert [each.tobytes() for each in after[:2]] == [each.tobytes() for each in before[:2]]
    assert not np.array_equal(after[2], before[2])


@pytest.mark.parametrize("masked", [False, True])
def test_from_a_picture_and_into_one(images_studio: Studio, masked: bool) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48] = 255
    drawn_from = {"image": photo(5), "mask": mask if masked else None, "strength": 0.7}
    request = images_studio.request(steps=5, image_prompts=(PLUS,), **drawn_from, **SIZE)
    assert_same(images_studio.draw((0, request))[0], images_studio.reference(request))


def test_a_negative_prompt_is_led_away_from_beside_no_picture(images_studio: Studio) -> None:
    for negative in ("", "dark"):
        request = images_studio.request(steps=3, image_prompts=(A,), negative_prompt=negative, **SIZE)
        assert_same(images_studio.draw((0, request))[0], images_studio.reference(request))


def test_a_text_of_several_windows_is_read_beside_one(images_studio: Studio) -> None:
    """Alone and beside others it is the same picture; diffusers reads no more than a window."""
    long = images_studio.request(prompt="a fox " * 30, steps=3, image_prompts=(A,), **SIZE)
    short = images_studio.request(steps=3, image_prompts=(PLUS,), **SIZE)
    alone = [images_studio.draw((0, each))[0] for each in (long, short)]
    for one, other in zip(images_studio.draw((0, long), (0, short)), alone, strict=True):
        assert_same(one, other)


def test_with_a_lora_and_a_controlnet_it_draws_what_diffusers_does(
    tiny_sdxl: Path, ip_adapters: dict[str, Any], controlnets: list[str], tmp_path: Path
) -> None:
    lora = write_lora(tmp_path / "ink.safetensors", seed=1)
    added: dict[str, Any] = {"controlnets": controlnets, **ip_adapters}
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, loras=[str(lora)], **added)
    studio = replace(open_studio(str(tiny_sdxl), backend), **added)
    told = {"controls": (Control("a", lines()),), "image_prompts": (PLUS,)}
    request = studio.request(steps=3, **told, **SIZE)
    assert_same(studio.draw((0, request))[0], studio.reference(request))
    pictures = [
        studio.draw((0, studio.request(steps=3, loras=loras, **each, **SIZE)))[0].tobytes()
        for loras in ((), (Lora("ink"),))
        for each in ({}, told)
    ]
    assert len(set(pictures)) == 4


@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
@pytest.mark.parametrize(
    "tuning", [Tuning(compile="blocks", channels_last="on"), Tuning(fused_projections="on")], ids=str
)
def test_a_tuned_unet_reads_them_too(
    tiny_sdxl: Path, ip_adapters: dict[str, Any], images_studio: Studio, tuning: Tuning
) -> None:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, tuning=tuning, **ip_adapters)
    assert isinstance(backend, DiffusersBackend)
    tuned = Studio(backend, images_studio.pipeline, images_studio.scheduler_config)
    for prompts in ((), (A,), ()):
        request = images_studio.request(steps=2, image_prompts=prompts, **SIZE)
        assert_same(tuned.draw((0, request))[0], images_studio.draw((0, request))[0])


def test_the_engine_draws_them_in_both_stages_and_its_receipt_tells(
    tiny_sdxl: Path, ip_adapters: dict[str, Any]
) -> None:
    asked = GenerationRequest("a fox", seed=3, steps=3, image_prompts=(replace(A, scale=0.5),), **SIZE)
    with Engine.load(str(tiny_sdxl), device="cpu", threads=1, warm_up=False, **ip_adapters) as engine:
        plain, read, large = (
            ticket.result()
            for ticket in [
                engine.submit(each)
                for each in (replace(asked, image_prompts=()), asked, replace(asked, hires=Hires(1.5)))
            ]
        )
        # The second stage by hand: from the same picture, enlarged, beside the same image prompt.
        second = replace(asked, width=96, height=96, image=resize_image(read.pixels, 96, 96))
        by_hand = engine.generate(second)
    assert not np.array_equal(plain.pixels, read.pixels)
    assert_same(large.pixels, by_hand.pixels)
    (told,) = read.receipt.image_prompts
    assert (told.name, told.scale) == ("a", 0.5)
    assert told.image_sha256 == pixels_sha256(clip_square(A.image, SIDE))
    assert told.sha256 == files_hash(Path(ip_adapters["ip_adapters"][0]))
    assert told.encoder_sha256 == files_hash(Path(ip_adapters["image_encoder"]))
    assert read.receipt.from_dict(read.receipt.to_dict()) == read.receipt


def test_what_reads_images_is_in_the_attentions_for_such_passes_alone(tiny_sdxl: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    before = dict(unet.attn_processors)
    seen = []

    def compute(*, fails: bool = False) -> None:
        seen.append(dict(unet.attn_processors))
        if fails:
            raise RuntimeError("out of memory")

    call = reading_images(compute, unet)
    images = torch.zeros(1, 2, 1, 4, sum(each.inner_dim for each in cross_attentions(unet)))
    call()
    call(images=images)
    with pytest.raises(RuntimeError):
        call(images=images, fails=True)
    free, *reading = seen
    assert free == before == dict(unet.attn_processors)
    for each in reading:
        changed = {name for name in before if each[name] is not before[name]}
        assert changed == {name for name in before if ".attn2." in name}


class TestFiles:
    def load(self, model: Path, file: Path, encoder: str) -> None:
        load_backend(str(model), device="cpu", threads=1, ip_adapters=[str(file)], image_encoder=encoder)

    @pytest.mark.parametrize("change", ["more", "fewer", "other"])
    def test_one_for_another_unet_is_refused_by_the_odd_weight(
        self, tiny_sdxl: Path, ip_adapters: dict[str, Any], tmp_path: Path, change: str
    ) -> None:
        weights = adapter_weights(tiny_sdxl)
        name = "ip_adapter.3.to_v_ip.weight"
        if change == "more":
            name = "ip_adapter.99.to_v_ip.weight"
            weights[name] = torch.ones(1)
        elif change == "fewer":
            del weights[name]
        else:
            weights[name] = weights[name][:-1].clone()
        save_file(weights, tmp_path / "odd.safetensors")
        with pytest.raises(ModelInvalid, match=rf"odd.safetensors is no IP-Adapter for this model: {name}"):
            self.load(tiny_sdxl, tmp_path / "odd.safetensors", ip_adapters["image_encoder"])

    def test_one_whose_tokens_are_not_as_wide_as_the_text_is_refused(
        self, tiny_sdxl: Path, ip_adapters: dict[str, Any], tmp_path: Path
    ) -> None:
        weights = adapter_weights(tiny_sdxl)
        for name in ("proj.weight", "proj.bias", "norm.weight", "norm.bias"):
            weights[f"image_proj.{name}"] = weights[f"image_proj.{name}"][::2].clone()
        save_file(weights, tmp_path / "odd.safetensors")
        with pytest.raises(ModelInvalid, match=r"odd.safetensors cannot be loaded"):
            self.load(tiny_sdxl, tmp_path / "odd.safetensors", ip_adapters["image_encoder"])

    def test_an_encoder_of_another_kind_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        encoder = write_image_encoder(tmp_path / "encoder")
        config = encoder / "config.json"
        config.write_text(config.read_text().replace('"clip_vision_model"', '"siglip_vision_model"'))
        file = write_ip_adapter(tmp_path / "a.safetensors", tiny_sdxl)
        with pytest.raises(ModelInvalid, match="encoder is no image encoder of CLIP: its model_type is sig"):
            self.load(tiny_sdxl, file, str(encoder))

    @pytest.mark.parametrize("mean", ["half", [0.5, 0.5], ["a", "b", "c"]], ids=str)
    def test_a_processor_that_is_none_is_refused(self, tiny_sdxl: Path, tmp_path: Path, mean: Any) -> None:
        encoder = write_image_encoder(tmp_path / "encoder")
        (encoder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
        with pytest.raises(ModelInvalid, match=r"encoder/preprocessor_config\.json cannot be loaded"):
            read_image_encoder(encoder, dtype=torch.float32, device=torch.device("cpu"))

    def test_what_the_encoders_own_processor_subtracts_is_subtracted_and_told_in_the_receipt(
        self, tiny_sdxl: Path, tmp_path: Path
    ) -> None:
        file = write_ip_adapter(tmp_path / "model/a.safetensors", tiny_sdxl)
        drawn, told = [], []
        for name, mean in (("one", None), ("two", MEAN), ("three", (0.0, 0.0, 0.0))):
            encoder = write_image_encoder(tmp_path / name)
            if mean:
                (encoder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
            backend = load_backend(
                str(tiny_sdxl), device="cpu", threads=1, ip_adapters=[str(file)], image_encoder=str(encoder)
            )
            assert isinstance(backend, DiffusersBackend)
            studio = Studio(backend, None, {})
            request = studio.request(steps=2, image_prompts=(A,), **SIZE)
            drawn.append(studio.draw((0, request))[0])
            told.append(backend.info.receipt(request).image_prompts[0].encoder_sha256)
        assert np.array_equal(drawn[0], drawn[1])
        assert not np.array_equal(drawn[0], drawn[2])
        assert told[0] != told[2]


def test_what_is_read_of_a_picture_is_what_clips_processor_cuts_out() -> None:
    processor = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE, do_rescale=False, do_normalize=False)
    for width, height in ((64, 64), (96, 64), (50, 97), (SIDE, SIDE), (16, 48), (33, 32)):
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = processor(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        assert np.array_equal(clip_square(picture, SIDE), expected)
    assert clip_square(photo(0, 3200, 16), SIDE).shape == (SIDE, SIDE, 3)
