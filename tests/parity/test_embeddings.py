"""Pictures whose prompts name textual inversions: what diffusers draws that has loaded the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import Lora
from mezzotint.errors import ModelInvalid
from mezzotint.models.loading import load_backend
from tests.embeddings import vectors_of, write_embedding
from tests.loras import write_lora
from tests.parity.conftest import Studio, open_studio
from tests.parity.test_batching import assert_same

SIZE = {"width": 64, "height": 64}
COUNTS = {"ink": 1, "neg": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("embeddings")
    return [
        str(write_embedding(folder / f"{name}.safetensors", count, seed=count))
        for name, count in COUNTS.items()
    ]


@pytest.fixture(scope="module")
def studio(tiny_sdxl: Path, files: list[str]) -> Studio:
    """diffusers' pipeline has the same, by names that no word of the prompts is a part of."""
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, embeddings=files)
    studio = open_studio(str(tiny_sdxl), backend)
    pipeline = studio.pipeline
    for name, count in COUNTS.items():
        vectors = vectors_of(count, seed=count)
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            pipeline.load_textual_inversion(
                vectors[key],
                token=f"<{name}>",
                text_encoder=getattr(pipeline, f"text_encoder{number}"),
                tokenizer=getattr(pipeline, f"tokenizer{number}"),
            )
    return studio


def reference(studio: Studio, prompt: str, negative: str | None, **fields: object) -> np.ndarray:
    """What diffusers draws; its prompts have brackets round the names."""
    import torch

    told = {name: f"<{name}>" for name in COUNTS}
    prompts = [
        None if text is None else " ".join(told.get(word, word) for word in text.split())
        for text in (prompt, negative)
    ]
    image = studio.pipeline(
        prompts[0],
        negative_prompt=prompts[1],
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
        **SIZE,
    ).images[0]
    return np.asarray(image)


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a ink", None), ("ink", "neg"), ("a ink b", "b neg neg"), ("ink neg ink", "")],
)
def test_it_draws_what_diffusers_does(studio: Studio, prompt: str, negative: str | None) -> None:
    request = studio.request(prompt=prompt, negative_prompt=negative, steps=3, **SIZE)
    studio.pipeline.set_progress_bar_config(disable=True)
    drawn = studio.draw((0, request))[0]
    assert_same(drawn, reference(studio, prompt, negative))
    assert set(request.embeddings) == {name for name in COUNTS if name in f"{prompt} {negative}"}


def test_a_prompt_without_is_what_it_was(studio: Studio, tiny_sdxl: Path) -> None:
    plain = open_studio(str(tiny_sdxl), studio.backend)
    request = studio.request(prompt="a pink negligee", steps=3, **SIZE)
    assert request.embeddings == ()
    assert_same(studio.draw((0, request))[0], plain.reference(request))


def test_any_case_and_a_weight_are_of_the_name(studio: Studio) -> None:
    def drawn(prompt: str) -> np.ndarray:
        return studio.draw((0, studio.request(prompt=prompt, emphasis=True, steps=2, **SIZE)))[0]

    assert np.array_equal(drawn("a ink"), drawn("a INK"))
    assert not np.array_equal(drawn("a ink"), drawn("a (ink:1.6)"))


def test_beside_a_lora_of_the_text_encoders_both_hold(
    tiny_sdxl: Path, files: list[str], tmp_path: Path
) -> None:
    lora = write_lora(tmp_path / "oil.safetensors", seed=1)
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, embeddings=files, loras=[str(lora)])
    assert isinstance(backend, DiffusersBackend)
    studio = Studio(backend, None, {})
    pictures = [
        studio.draw((0, studio.request(prompt=prompt, loras=loras, steps=2, **SIZE)))[0].tobytes()
        for prompt in ("a ink", "a b")
        for loras in ((), (Lora("oil"),))
    ]
    assert len(set(pictures)) == 4


def test_vectors_of_another_width_are_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = write_embedding(tmp_path / "wide.safetensors", widths=(32, 48))
    with pytest.raises(ModelInvalid, match="vectors of clip_g have 48 numbers, not 64"):
        load_backend(str(tiny_sdxl), device="cpu", threads=1, embeddings=[str(path)])
