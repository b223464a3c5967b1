"""What speed is bought with leaves the pictures as they were, or nearly; and says what it cannot do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch._dynamo.testing import CompileCounter

from mezzotint.backends import tuned
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.tuned import compute_with, is_on
from mezzotint.bench.fullsize import TINY, build
from mezzotint.core import GenerationRequest, Pixels
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.loading import load_backend
from mezzotint.resolving import resolve
from mezzotint.tuning import Tuning

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Make = Callable[..., DiffusersBackend]
CPU = torch.device("cpu")


def draw(backend: DiffusersBackend, **fields: Any) -> Pixels:
    request = resolve(
        GenerationRequest(**{"prompt": "a red apple", "seed": 1, "steps": 4, **fields}), backend.info.limits
    )
    backend.start("a", request)
    for _ in range(request.evaluations):
        assert backend.step(["a"]) == {}
    pixels = backend.decode("a")
    backend.release("a")
    return pixels


def apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="module")
def plain() -> Pixels:
    backend = load_backend("demo", device="cpu")
    assert isinstance(backend, DiffusersBackend)
    return draw(backend)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(channels_last="on"),
        Tuning(fused_projections="on"),
        Tuning(attention="math"),
        Tuning(channels_last="on", fused_projections="on", attention="math"),
    ],
    ids=["channels_last", "fused_projections", "attention", "all"],
)
def test_the_picture_is_the_same(plain: Pixels, tuning: Tuning) -> None:
    backend = load_backend("demo", device="cpu", tuning=tuning)
    assert isinstance(backend, DiffusersBackend)
    assert apart(draw(backend), plain) <= 1


def test_each_switch_is_in_effect(fresh_modules: Make) -> None:
    unet = fresh_modules(tuning=Tuning(channels_last="on", fused_projections="on"))._unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    names = [name for name, _ in unet.named_modules() if ".attn" in name]
    assert any(name.endswith("to_qkv") for name in names)
    # The parts would be memory for nothing.
    assert not any(name.endswith(("to_k", "to_v", "attn1.to_q")) for name in names)


def test_auto_is_on_for_a_gpu_and_off_for_a_cpu() -> None:
    assert [is_on("auto", torch.device(name)) for name in ("cuda", "cpu")] == [True, False]
    assert [is_on("off", torch.device("cuda")), is_on("on", CPU)] == [False, True]


def test_the_attention_asked_for_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    kernel = tuned.sdpa_kernel
    monkeypatch.setattr(
        tuned, "sdpa_kernel", lambda order, set_priority: asked.append(order) or kernel(order)
    )
    compute = compute_with(lambda: 5, Tuning(attention="cudnn"), torch.device("cuda"))
    assert compute() == 5
    assert [len(asked), asked[0][0].name, len(asked[0])] == [1, "CUDNN_ATTENTION", 4]


def test_int8_draws_nearly_the_same_picture_and_the_receipt_says_so(plain: Pixels) -> None:
    pytest.importorskip("torchao", reason="the extra quantisation is not installed")
    backend = load_backend("demo", device="cpu", tuning=Tuning(quantisation="int8", fused_projections="on"))
    assert isinstance(backend, DiffusersBackend)
    kinds = {type(module.weight).__name__ for module in backend._unet.modules() if _is_product(module)}
    assert "Int8Tensor" in kinds
    drawn = draw(backend)
    difference = np.abs(drawn.astype(int) - plain.astype(int))
    # Another picture to the last bit, the same to the eye.
    assert 0 < difference.mean() < 8
    assert backend.info.versions["quantisation"] == "int8"
    assert "torchao" in backend.info.versions


def _is_product(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantisation": "fp8"}, "quantisation fp8 needs a GPU"),
        ({"attention": "flash"}, "attention flash is for CUDA"),
        ({"cuda_graphs": "on"}, "cuda_graphs must be auto or off"),
        ({"preview_vae": "/nowhere"}, "preview_vae must be a folder"),
        ({"compile": "blocks", "compile_cache": "/dev/null/x"}, "compile_cache must be a folder"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_by_name(tiny_sdxl: Path, changes: Any, words: str) -> None:
    if changes.get("quantisation"):
        pytest.importorskip("torchao", reason="the extra quantisation is not installed")
    with pytest.raises(SettingInvalid, match=words):
        load_backend(str(tiny_sdxl), device="cpu", tuning=Tuning(**changes))


def test_without_the_extra_quantisation_says_how_to_get_it(
    tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "find_spec", lambda _: None)
    with pytest.raises(SettingInvalid, match=r"pip install 'mezzotint\[quantisation\]'"):
        load_backend(str(tiny_sdxl), device="cpu", tuning=Tuning(quantisation="int8"))


@pytest.mark.parametrize("name", ["channels_last", "attention", "compile", "quantisation"])
def test_an_unknown_value_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(SettingInvalid, match=rf"{name} must be .* or .*, not 'perhaps'") as refused:
        Tuning(**{name: "perhaps"})
    assert refused.value.param == name


def test_graphs_take_no_tuning(small_graphs: Path) -> None:
    with pytest.raises(SettingInvalid, match="fused_projections is for modules"):
        load_backend(str(small_graphs), device="neuron", stand_in=True, tuning=Tuning(fused_projections="on"))


@pytest.mark.filterwarnings("ignore")  # the compiler's own, as it is imported
def test_what_is_compiled_is_kept_where_it_is_told(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    load_backend(
        str(tiny_sdxl), device="cpu", tuning=Tuning(compile="unet", compile_cache=str(tmp_path / "kept"))
    )
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


def test_passes_are_compiled_without_a_limit_in_whichever_thread() -> None:
    seen: list[int] = []

    class Unet(nn.Module):
        def forward(self) -> None:
            seen.append(torch._dynamo.config.recompile_limit)

        def compile(self) -> None:
            pass

    compute = tuned.tune_unet(Unet(), Tuning(compile="unet"), CPU)
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [tuned.RECOMPILE_LIMIT]


def test_pictures_are_decoded_and_encoded_without_a_limit_too() -> None:
    vae = build(TINY, device=CPU, dtype=torch.float32).vae
    tuned.tune_vae(vae, Tuning(compile="blocks"), CPU)
    seen: list[int] = []
    for half in (vae.encoder, vae.decoder):
        half.forward = lambda: seen.append(torch._dynamo.config.recompile_limit)
        thread = threading.Thread(target=half)
        thread.start()
        thread.join()
    assert seen == [tuned.RECOMPILE_LIMIT] * 2


def test_what_is_compiled_for_a_square_is_for_other_shapes_too() -> None:
    compiled = CompileCounter()
    double = torch.compile(lambda pixels: pixels * 2, backend=compiled, dynamic=True)

    def run() -> None:
        tuned.prepare_compiling()
        for shape in ((2, 16, 16), (2, 16, 24), (3, 8, 8)):
            double(torch.ones(shape))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert compiled.frame_count == 1


def tiny_decoder(folder: Path, channels: int = 4) -> str:
    # Some random weights draw nothing but black.
    torch.manual_seed(1)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=channels,
    ).save_pretrained(folder)
    return str(folder)


def test_a_small_decoder_draws_previews_of_the_pictures_size(fresh_modules: Make, tmp_path: Path) -> None:
    backend = fresh_modules(tuning=Tuning(preview_vae=tiny_decoder(tmp_path / "taesd")))
    request = resolve(
        GenerationRequest("a fox", seed=1, steps=2, width=64, height=32, preview_every=1),
        backend.info.limits,
    )
    backend.start("a", request)
    backend.step(["a"])
    first = backend.preview("a")()
    assert first is not None
    assert (first.shape, first.dtype) == ((32, 64, 3), np.uint8)
    backend.step(["a"])
    assert not np.array_equal(backend.preview("a")(), first)


def test_a_decoder_of_other_latents_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = tiny_decoder(tmp_path / "other", channels=16)
    with pytest.raises(ModelInvalid, match="16 channels, not of 4"):
        load_backend(str(tiny_sdxl), device="cpu", tuning=Tuning(preview_vae=folder))


@pytest.mark.filterwarnings("ignore")  # torchao's own, as it is imported
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_prompt_of_zeros_is_quantised_to_zeros(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize_ = pytest.importorskip("torchao.quantization").quantize_
    # A CPU can, slowly, though torchao asks for a GPU.
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
    layer = nn.Sequential(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    quantize_(layer, tuned.quantisation_of(kind))
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    rows[1] = 0
    with torch.inference_mode():
        found = layer(rows)
    assert (found[1] == 0).all()
    assert found.isfinite().all()
