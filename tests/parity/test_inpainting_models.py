"""A model whose UNet was trained for inpainting draws what diffusers' inpainting pipeline draws with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mezzotint import Engine
from mezzotint.core import Control, GenerationRequest, Hires, Lora, ResolvedRequest
from mezzotint.errors import ModelInvalid
from mezzotint.imaging.inputs import resize_image
from mezzotint.models.loading import load_backend
from tests.controlnets import lines, write_controlnet
from tests.loras import merge, write_lora
from tests.parity.conftest import open_studio
from tests.parity.test_batching import assert_same
from tests.parity.test_image_inputs import STRENGTHS, hole, picture

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
SIZE = {"width": 64, "height": 64}
# One of each kind: ancestral, of several steps, of two evaluations a step, of noise by seed.
NAMES = ("Euler a", "DPM++ 2M Karras", "Heun", "DPM++ SDE", "UniPC", "LCM")


def with_mask(request: ResolvedRequest) -> ResolvedRequest:
    """The same picture, asked of a pipeline that needs an image and a mask: all of it is redrawn, from noise
    where there is no image."""
    if request.mask is not None:
        return request
    whole = np.full((request.height, request.width), 255, np.uint8)
    if request.image is not None:
        return replace(request, mask=whole)
    return replace(request, image=picture(request.width, request.height), mask=whole, strength=1.0)


@pytest.mark.parametrize(("strength", "guidance_scale"), STRENGTHS)
def test_samplers_share_passes_whatever_there_is_of_image_and_mask(
    inpainting_studio: Any, strength: float, guidance_scale: float
) -> None:
    inputs: tuple[dict[str, Any], ...] = (
        {},
        # Of an image without a mask something shows through the noise at 1.0 too, as in image-to-image.
        {"image": picture(seed=1), "strength": min(strength, 0.99)},
        {"image": picture(seed=2), "strength": strength, "mask": hole()},
    )
    arrivals: list[tuple[int, ResolvedRequest]] = []
    for index, name in enumerate(NAMES):
        for kind, given in enumerate(inputs):
            request = inpainting_studio.request(
                prompt=f"picture {index}",
                negative_prompt=(None, "", "dull")[index % 3],
                scheduler=name,
                steps=4 + (index + kind) % 4,
                # Rows that are guided stand beside rows that are not.
                guidance_scale=guidance_scale if kind else 5.0 - guidance_scale,
                seed=1000 + index,
                **SIZE,
                **given,
            )
            arrivals.append((index // 3, request))
    drawn = inpainting_studio.draw(*arrivals)
    for pixels, (_, request) in zip(drawn, arrivals, strict=True):
        assert_same(pixels, inpainting_studio.reference(with_mask(request)))


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE", "Heun"])
def test_alone_it_is_the_same_to_the_byte_each_time(inpainting_studio: Any, name: str) -> None:
    request = inpainting_studio.request(
        scheduler=name, steps=5, strength=0.7, image=picture(), mask=hole(), **SIZE
    )
    first, second = (inpainting_studio.draw((0, request))[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert_same(first, inpainting_studio.reference(request))


def test_a_mask_and_what_it_leaves_are_seen(inpainting_studio: Any) -> None:
    """Pure noise begins all of these: what tells them apart are the channels beside the latents."""
    given = {"steps": 4, "strength": 1.0, "mask": hole()}
    fields: tuple[dict[str, Any], ...] = (
        {"steps": 4},
        {**given, "image": picture(seed=1)},
        {**given, "image": picture(seed=2)},
        {**given, "image": picture(seed=1), "mask": 255 - hole()},
    )
    drawn = inpainting_studio.draw(*((0, inpainting_studio.request(**SIZE, **each)) for each in fields))
    assert len({pixels.tobytes() for pixels in drawn}) == len(fields)


def test_a_mask_that_redraws_nothing_is_told(inpainting_studio: Any) -> None:
    request = inpainting_studio.request(steps=4, image=picture(), mask=np.zeros((64, 64), np.uint8), **SIZE)
    (warning,) = inpainting_studio.backend.start("a", request)
    assert warning.startswith("mask: nothing is redrawn")
    inpainting_studio.backend.release("a")


@pytest.mark.parametrize("masked", [True, False])
def test_controlnets_of_plain_models_hold_it(
    inpainting_sdxl: Path, tiny_sdxl: Path, tmp_path: Path, masked: bool
) -> None:
    net = write_controlnet(tmp_path / "net", tiny_sdxl)
    file = tmp_path / "file.safetensors"
    save_file(load_file(net / "diffusion_pytorch_model.safetensors"), file)
    backend = load_backend(str(inpainting_sdxl), device="cpu", threads=1, controlnets=[str(net), str(file)])
    studio = replace(open_studio(str(inpainting_sdxl), backend), controlnets=[str(net)])
    fields = {"steps": 5, "strength": 0.7, "image": picture(), "mask": hole() if masked else None, **SIZE}
    control = Control("net", lines(1))
    held = studio.request(controls=(control,), **fields)
    of_file = studio.request(controls=(replace(control, name="file"),), **fields)
    one, other, free = studio.draw((0, held), (0, of_file), (0, studio.request(**fields)))
    assert_same(one, studio.reference(with_mask(held)))
    assert_same(one, other)
    assert np.abs(one.astype(int) - free).max() > 8


def test_a_controlnet_that_reads_the_mask_too_is_refused(inpainting_sdxl: Path, tmp_path: Path) -> None:
    net = write_controlnet(tmp_path / "net", inpainting_sdxl)
    with pytest.raises(ModelInvalid, match="its in_channels is 9, not 4"):
        load_backend(str(inpainting_sdxl), device="cpu", threads=1, controlnets=[str(net)])


def test_loras_of_plain_models_change_it(inpainting_sdxl: Path, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "ink.safetensors", seed=1)
    studio = open_studio(
        str(inpainting_sdxl),
        load_backend(str(inpainting_sdxl), device="cpu", threads=1, loras=[str(file)]),
    )
    request = studio.request(
        steps=4, strength=0.9, image=picture(), mask=hole(), loras=(Lora("ink"),), **SIZE
    )
    merge(studio.pipeline.components, 1, 1.0)
    assert_same(studio.draw((0, request))[0], studio.reference(request))


def test_the_engine_draws_both_stages_with_previews(inpainting_sdxl: Path) -> None:
    asked = GenerationRequest("a fox", seed=3, steps=3, preview_every=1, **SIZE)
    with Engine.load(str(inpainting_sdxl), device="cpu", threads=1, warm_up=False) as engine:
        tickets = [engine.submit(each) for each in (asked, replace(asked, hires=Hires(1.5)))]
        small, large = (ticket.result() for ticket in tickets)
        second = replace(asked, width=96, height=96, image=resize_image(small.pixels, 96, 96))
        by_hand = engine.generate(second)
    assert_same(large.pixels, by_hand.pixels)
