"""Pictures held to by the kinds of a ControlNet-Union: what diffusers' pipelines draw, in any company."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.tuned import tune_controlnets
from mezzotint.backends.unions import UnionKind
from mezzotint.core import Control
from mezzotint.errors import ModelInvalid
from mezzotint.models.loading import load_backend
from mezzotint.tuning import Tuning
from tests.controlnets import lines, make_union, photo, write_union
from tests.parity.conftest import Studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
DEPTH, CANNY = Control("union-depth", photo(1)), Control("union-canny", lines(1))
CASES = {
    "one": (DEPTH,),
    "edges, weak and early": (replace(CANNY, image=photo(), preprocessor="canny", scale=0.6, end=0.5),),
    "two": (replace(CANNY, start=0.3), replace(DEPTH, scale=0.7)),
}


@pytest.mark.parametrize("controls", CASES.values(), ids=CASES)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_it_draws_what_diffusers_does(
    unions_studio: Studio, controls: tuple[Control, ...], guidance: float
) -> None:
    request = unions_studio.request(steps=4, controls=controls, guidance_scale=guidance, **SIZE)
    free = unions_studio.draw((0, replace(request, controls=())))[0]
    drawn = unions_studio.draw((0, request))[0]
    assert_same(drawn, unions_studio.reference(request))
    assert np.abs(drawn.astype(int) - free).max() > 8


def test_from_a_picture_and_into_one(unions_studio: Studio) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48] = 255
    for each in (None, mask):
        request = unions_studio.request(
            steps=5, strength=0.7, image=photo(3), mask=each, controls=(replace(DEPTH, start=0.2),), **SIZE
        )
        assert_same(unions_studio.draw((0, request))[0], unions_studio.reference(request))


def test_rows_of_all_kinds_and_of_none_share_passes_and_draw_what_diffusers_draws_alone(
    unions_studio: Studio,
) -> None:
    """Also two of one kind that read different pictures, and two kinds of the same."""
    controls = [
        (),
        (DEPTH,),
        (replace(DEPTH, image=photo(2), scale=0.5),),
        (CANNY,),
        (replace(CANNY, name="union-openpose", end=0.4),),
        (CANNY, DEPTH),
        (),
    ]
    requests = [
        unions_studio.request(
            steps=3 + number % 3,
            seed=number,
            controls=each,
            guidance_scale=5.0 if number % 2 else 1.0,
            **SIZE,
        )
        for number, each in enumerate(controls)
    ]
    together = unions_studio.draw(*((number % 2, request) for number, request in enumerate(requests)))
    for drawn, request in zip(together, requests, strict=True):
        assert_same(drawn, unions_studio.reference(request))


@pytest.mark.parametrize("kind", [0, 3])
def test_what_a_row_is_given_is_diffusers_own_to_rounding(tiny_sdxl: Path, kind: int) -> None:
    """Finer than pictures show: the kind beside the time, and that no row has looked at the others."""
    alone = make_union(tiny_sdxl)
    nets = {"own": UnionKind(make_union(tiny_sdxl), kind)}
    read, compute = tune_controlnets(nets, Tuning(), torch.device("cpu"))["own"]
    random = torch.Generator().manual_seed(0)
    rows = 3
    latents = torch.randn(rows, 4, 8, 8, generator=random) * torch.tensor([0.3, 1.0, 3.0]).view(-1, 1, 1, 1)
    times = torch.tensor([1.0, 500.0, 999.0])
    hidden = torch.randn(rows, 77, alone.config.cross_attention_dim, generator=random)
    ids = torch.full((rows, 6), 64.0)
    wide = alone.config.projection_class_embeddings_input_dim - 6 * alone.config.addition_time_embed_dim
    pooled = torch.randn(rows, wide, generator=random)
    pictures = torch.rand(rows, 3, 64, 64, generator=random)
    with torch.inference_mode():
        down, mid = compute(
            latents,
            times,
            encoder_hidden_states=hidden,
            controlnet_cond=read(pictures),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
            return_dict=False,
        )
        for row in range(rows):
            own = slice(row, row + 1)
            expected, expected_mid = alone(
                latents[own],
                times[own],
                encoder_hidden_states=hidden[own],
                controlnet_cond=[pictures[own]],
                control_type=torch.eye(alone.config.num_control_type)[[kind]],
                control_type_idx=[kind],
                added_cond_kwargs={"text_embeds": pooled[own], "time_ids": ids[own]},
                return_dict=False,
            )
            for one, other in zip((*down, mid), (*expected, expected_mid), strict=True):
                assert (one[own] - other).abs().max() < 1e-3 * other.abs().max()


def test_each_kind_draws_its_own(unions_studio: Studio) -> None:
    kinds = ("openpose", "depth", "softedge", "canny", "normal", "segment")
    requests = [
        unions_studio.request(
            steps=4, guidance_scale=1.0, controls=(replace(CANNY, name=f"union-{kind}"),), **SIZE
        )
        for kind in kinds
    ]
    drawn = unions_studio.draw(*((0, request) for request in requests))
    for pixels, request in zip(drawn, requests, strict=True):
        assert_same(pixels, unions_studio.reference(request))
    assert len({pixels.tobytes() for pixels in drawn}) == len(kinds)


@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
def test_a_tuned_unet_is_held_too(tiny_sdxl: Path, unions: list[str], unions_studio: Studio) -> None:
    tuning = Tuning(compile="blocks", channels_last="on")
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=unions, tuning=tuning)
    assert isinstance(backend, DiffusersBackend)
    tuned = replace(unions_studio, backend=backend)
    request = unions_studio.request(steps=2, controls=(CANNY, DEPTH), **SIZE)
    assert_same(tuned.draw((0, request))[0], unions_studio.draw((0, request))[0])


class TestFiles:
    def test_weights_alone_are_read_as_the_folder_is(
        self, tiny_sdxl: Path, unions: list[str], unions_studio: Studio, tmp_path: Path
    ) -> None:
        file = tmp_path / "union.safetensors"
        save_file(load_file(Path(unions[0]) / "diffusion_pytorch_model.safetensors"), file)
        backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[f"other-depth={file}"])
        assert isinstance(backend, DiffusersBackend)
        assert [each.name for each in backend.info.limits.controlnets] == ["other-depth"]
        own = replace(unions_studio, backend=backend)
        request = own.request(steps=2, controls=(replace(DEPTH, name="other-depth"),), **SIZE)
        same = unions_studio.request(steps=2, controls=(DEPTH,), **SIZE)
        assert np.array_equal(own.draw((0, request))[0], unions_studio.draw((0, same))[0])

    def test_its_kinds_share_one_module_and_a_folder_may_call_it_a_plain_one(
        self, tiny_sdxl: Path, tmp_path: Path
    ) -> None:
        folder = write_union(tmp_path / "promax", tiny_sdxl, kinds=8)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": "ControlNetModel"}))
        backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(folder)])
        assert isinstance(backend, DiffusersBackend)
        assert len(backend.info.limits.controlnets) == 8
        assert len({id(read) for read, _ in backend._controlnets._nets.values()}) == 1

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"num_control_type": 8}, "cannot be loaded"),
            ({"num_trans_channel": 40}, "cannot be loaded"),
            ({"controlnet_conditioning_channel_order": "bgr"}, "union reads no RGB pictures"),
            ({"global_pool_conditions": True}, "union pools what it makes"),
        ],
        ids=str,
    )
    def test_a_folder_whose_configuration_does_not_fit_is_refused(
        self, tiny_sdxl: Path, tmp_path: Path, change: dict[str, object], told: str
    ) -> None:
        folder = write_union(tmp_path / "union", tiny_sdxl)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelInvalid, match=told):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(folder)])

    @pytest.mark.parametrize("change", ["more", "fewer", "wider"])
    def test_a_file_for_another_model_is_refused(self, tiny_sdxl: Path, tmp_path: Path, change: str) -> None:
        weights = make_union(tiny_sdxl).state_dict()
        if change == "more":
            weights["transformer_layes.1.ln_1.bias"] = torch.ones(32)
        elif change == "fewer":
            del weights["spatial_ch_projs.bias"]
        else:
            # No eight heads share them.
            weights["task_embedding"] = torch.ones(6, 36)
        file = tmp_path / "odd.safetensors"
        save_file(weights, file)
        with pytest.raises(ModelInvalid, match=r"odd\.safetensors"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(file)])

    def test_one_for_another_model_is_refused(self, tiny_sdxl: Path, tmp_path: Path) -> None:
        net = write_union(tmp_path / "other", Path("src/mezzotint/models/demo"))
        with pytest.raises(ModelInvalid, match="other is no ControlNet for this model: its block_out"):
            load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=[str(net)])
