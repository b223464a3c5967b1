"""Pictures held to by ControlNets: what diffusers' pipelines draw, whatever else is in the pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint import Engine
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import Control, GenerationRequest
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.imaging.edges import canny
from mezzotint.models.loading import load_backend
from mezzotint.tuning import Tuning
from tests.controlnets import lines, make_controlnet, photo, write_controlnet
from tests.parity.conftest import Studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
Make = Callable[..., DiffusersBackend]


A, B = Control("a", lines(1)), Control("b", lines(2))
CASES = {
    "one": (A,),
    "weak": (replace(A, scale=0.4),),
    "early": (replace(A, end=0.5),),
    "late": (replace(A, start=0.4),),
    "edges": (replace(A, image=photo(), preprocessor="canny"),),
    "resized": (replace(A, image=lines(1, 96, 160)),),
    "two": (A, replace(B, scale=0.7, start=0.3)),
}


@pytest.mark.parametrize("controls", CASES.values(), ids=CASES)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_it_draws_what_diffusers_does(
    controls_studio: Studio, controls: tuple[Control, ...], guidance: float
) -> None:
    request = controls_studio.request(steps=4, controls=controls, guidance_scale=guidance, **SIZE)
    free = controls_studio.draw((0, controls_studio.request(steps=4, guidance_scale=guidance, **SIZE)))[0]
    drawn = controls_studio.draw((0, request))[0]
    assert_same(drawn, controls_studio.reference(request))
    assert np.abs(drawn.astype(int) - free).max() > 8


@pytest.mark.parametrize("scheduler", ["DPM++ 2M Karras", "Heun", "Euler a", "LCM"])
def test_with_each_kind_of_sampler(controls_studio: Studio, scheduler: str) -> None:
    request = controls_studio.request(steps=4, controls=(replace(A, end=0.7),), scheduler=scheduler, **SIZE)
    assert_same(controls_studio.draw((0, request))[0], controls_studio.reference(request))


@pytest.mark.parametrize("masked", [False, True])
def test_from_a_picture_and_into_one(controls_studio: Studio, masked: bool) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48] = 255
    request = controls_studio.request(
        steps=5,
        strength=0.7,
        image=photo(3),
        mask=mask if masked else None,
        controls=(replace(A, start=0.2),),
        **SIZE,
    )
    assert_same(controls_studio.draw((0, request))[0], controls_studio.reference(request))


def test_those_with_and_without_share_passes_and_change_nothing_in_each_other(
    controls_studio: Studio,
) -> None:
    controls = [(), (A,), (), (replace(B, scale=0.5),), (A, B), (replace(A, end=0.4),)]
    requests = [
        controls_studio.request(
            steps=3 + number % 3, controls=each, guidance_scale=1.0 if number % 2 else 5.0, **SIZE
        )
        for number, each in enumerate(controls)
    ]
    alone = [controls_studio.draw((0, request))[0] for request in requests]
    assert len({pixels.tobytes() for pixels in alone}) == len(requests)
    together = controls_studio.draw(*((number % 2, request) for number, request in enumerate(requests)))
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_company_that_comes_and_goes_changes_nothing(controls_studio: Studio) -> None:
    """The rows that are held stay the same while others join and leave the pass."""
    # Without guidance the held row stays in its place, whoever comes.
    held = controls_studio.request(steps=6, controls=(A,), guidance_scale=1.0, **SIZE)
    guest = controls_studio.request(steps=2, seed=3, guidance_scale=1.0, **SIZE)
    alone = [controls_studio.draw((0, each))[0] for each in (held, guest)]
    drawn, *guests = controls_studio.draw((0, held), (1, guest), (4, guest))
    assert_same(drawn, alone[0])
    for each in guests:
        assert_same(each, alone[1])


def test_the_engine_draws_them_in_both_stages_and_its_receipt_tells(
    tiny_sdxl: Path, controlnets: list[str]
) -> None:
    from mezzotint.core import Hires

    asked = GenerationRequest(
        "a fox", seed=3, steps=3, controls=(replace(A, image=photo(0, 96, 96), preprocessor="canny"),), **SIZE
    )
    larger = replace(asked, hires=Hires(1.5))
    with Engine.load(
        str(tiny_sdxl), device="cpu", threads=1, warm_up=False, controlnets=controlnets
    ) as engine:
        plain, held, big = (
            ticket.result()
            for ticket in [engine.submit(each) for each in (replace(asked, controls=()), asked, larger)]
        )
        # The second stage by hand: the same picture, enlarged, held to the same edges at its own size.
        from mezzotint.imaging.inputs import resize_image

        second = replace(asked, width=96, height=96, image=resize_image(held.pixels, 96, 96))
        by_hand = engine.generate(second)
    assert not np.array_equal(plain.pixels, held.pixels)
    assert_same(big.pixels, by_hand.pixels)
    (told,) = held.receipt.controls
    assert (told.name, told.preprocessor, told.scale, told.start, told.end) == ("a", "canny", 1.0, 0.0, 1.0)
    assert held.receipt.from_dict(held.receipt.to_dict()) == held.receipt


@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
@pytest.mark.parametrize(
    "tuning", [Tuning(compile="blocks", channels_last="on"), Tuning(fused_projections="on")], ids=str
)
def test_a_tuned_unet_is_held_too(
    tiny_sdxl: Path, controlnets: list[str], controls_studio: Studio, tuning: Tuning
) -> None:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=controlnets, tuning=tuning)
    assert isinstance(backend, DiffusersBackend)
    tuned = Studio(backend, controls_studio.pipeline, controls_studio.scheduler_config)
    for controls in ((), (A,), ()):
        request = controls_studio.request(steps=2, controls=controls, **SIZE)
        assert_same(tuned.draw((0, request))[0], controls_studio.draw((0, request))[0])


class TestFiles:
    def test_weights_alone_are_read_as_the_folder_is(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        folder = write_controlnet(tmp_path / "one", tiny_sdxl)
        file = tmp_path / "two.safetensors"
        save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), file)
        backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(folder), str(file)])
        assert [each.name for each in backend.info.limits.controlnets] == ["one", "two"]
        studio = Studio(backend, None, {})  # type: ignore[arg-type]
        one, two = (
            studio.draw((0, studio.request(steps=2, controls=(Control(name, lines()),), **SIZE)))[0]
            for name in ("one", "two")
        )
        assert np.array_equal(one, two)

    def test_a_halved_variant_is_found(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        make_controlnet(tiny_sdxl).half().save_pretrained(tmp_path / "half", variant="fp16")
        backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(tmp_path / "half")])
        assert [each.name for each in backend.info.limits.controlnets] == ["half"]

    def test_one_for_another_model_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        net = write_controlnet(tmp_path / "other", Path("src/mezzotint/models/demo"))
        with pytest.raises(ModelInvalid, match="other is no ControlNet for this model: its block_out"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(net)])

    def test_another_kind_is_refused_by_name(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        net = write_controlnet(tmp_path / "net", tiny_sdxl)
        config = net / "config.json"
        config.write_text(config.read_text().replace('"ControlNetModel"', '"ControlNetUnionModel"'))
        with pytest.raises(ModelInvalid, match="net is a ControlNetUnionModel"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(net)])

    @pytest.mark.parametrize(
        ("option", "value", "told"),
        [
            ("global_pool_conditions", True, "net pools what it makes"),
            ("controlnet_conditioning_channel_order", "bgr", "net reads no RGB pictures"),
        ],
    )
    def test_one_that_reads_pictures_otherwise_is_refused(
        self, tiny_sdxl: Path, tmp_path: Path, option: str, value: object, told: str
    ) -> None:
        net = write_controlnet(tmp_path / "net", tiny_sdxl)
        config = net / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), option: value}))
        with pytest.raises(ModelInvalid, match=told):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(net)])

    @pytest.mark.parametrize("change", ["more", "fewer"])
    def test_a_file_of_another_kinds_weights_is_refused_by_the_odd_one(
        self, tiny_sdxl: Path, tmp_path: Path, change: str
    ) -> None:
        """Such as a Control-LoRA's, which says so by a weight of its own."""
        folder = write_controlnet(tmp_path / "one", tiny_sdxl)
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        if change == "more":
            weights["lora_controlnet"] = torch.ones(1)
        else:
            del weights["time_embedding.linear_1.bias"]
        save_file(weights, tmp_path / "odd.safetensors")
        named = "lora_controlnet" if change == "more" else "time_embedding.linear_1.bias"
        with pytest.raises(ModelInvalid, match=rf"odd.safetensors holds no weights .* {named}"):
            load_backend(
                str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(tmp_path / "odd.safetensors")]
            )

    def test_a_file_of_something_else_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        file = tmp_path / "odd.safetensors"
        save_file({"somewhere.weight": torch.ones(2)}, file)
        with pytest.raises(ModelInvalid, match="odd"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(file)])

    def test_a_truncated_file_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        net = write_controlnet(tmp_path / "net", tiny_sdxl)
        weights = net / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelInvalid, match="truncated"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(net)])

    def test_a_place_with_none_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingInvalid, match="controlnets: takes PATH or NAME=PATH of folders"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(tmp_path)])


def test_edges_are_white_on_black() -> None:
    edges = canny(photo())
    assert edges.shape == (64, 64, 3)
    assert set(np.unique(edges)) == {0, 255}
