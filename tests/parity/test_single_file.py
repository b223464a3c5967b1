"""A model in one file of the original layout draws what the same weights draw from a diffusers folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.backends.base import Backend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.errors import ModelInvalid
from mezzotint.models.loading import load_backend
from mezzotint.models.manifest import write_manifest
from mezzotint.resolving import resolve
from tests.parity.test_image_inputs import hole, picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Weights = dict[str, torch.Tensor]

# Where each module of the tiny UNet lies in the original layout, which numbers its blocks through.
UNET_MODULES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RULES = (
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{3 - int(found[1])}.block.{found[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)
OPEN_CLIP_RULES = (
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.embeddings\.", ""),
    (r"text_model\.final_layer_norm", "ln_final"),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"fc1", "c_fc"),
    (r"fc2", "c_proj"),
    (r"self_attn", "attn"),
)


def renamed(name: str, rules: Any) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def original_unet(weights: Weights) -> Weights:
    result = {}
    for name, value in weights.items():
        module = next(key for key in UNET_MODULES if name.startswith(key + "."))
        rest = name.removeprefix(module + ".")
        if ".resnets." in module:
            part, _, leaf = rest.rpartition(".")
            rest = f"{UNET_RESNET[part]}.{leaf}"
        result[f"model.diffusion_model.{UNET_MODULES[module]}.{rest}"] = value
    return result


def original_open_clip(weights: Weights) -> Weights:
    result = {}
    for name, value in weights.items():
        if name == "text_projection.weight":
            result["text_projection"] = value.T.contiguous()
        elif ".q_proj." in name:
            parts = [weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            joined = renamed(name, OPEN_CLIP_RULES).replace("q_proj.", "in_proj_")
            result[joined] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[renamed(name, OPEN_CLIP_RULES)] = value
    return {f"conditioner.embedders.1.model.{name}": value for name, value in result.items()}


def write_single_file(folder: Path, path: Path) -> Path:
    """The weights of a tiny SDXL folder in one file, named as the original code names them."""
    first = load_file(folder / "text_encoder/model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    prefix = "conditioner.embedders.0.transformer."
    weights = {
        **original_unet(load_file(folder / "unet/diffusion_pytorch_model.safetensors")),
        **{f"first_stage_model.{renamed(name, VAE_RULES)}": value for name, value in vae.items()},
        **{f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in first.items()},
        **original_open_clip(load_file(folder / "text_encoder_2/model.safetensors")),
    }
    save_file(weights, path)
    return path


@pytest.fixture
def single_file(tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny SDXL as one file, where the models' home has it as `sdxl`, its weights zeroed."""
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "home"))
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "home/models/sdxl"))
    for file in base.rglob("*.safetensors"):
        save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)
    write_manifest(base)
    return write_single_file(tiny_sdxl, tmp_path / "merge.safetensors")


def test_a_single_file_draws_what_its_folder_draws(single_file: Path, tiny_sdxl: Path) -> None:
    backend, of_folder = (
        load_backend(str(path), device="cpu", threads=1) for path in (single_file, tiny_sdxl)
    )
    assert backend.info.model == "merge"
    asked = GenerationRequest("a fox", seed=1, steps=3, width=256, height=256)
    request = resolve(asked, backend.info.limits)
    assert draw(backend, request) == draw(of_folder, request)


def test_one_whose_unet_was_trained_for_inpainting_does_too(single_file: Path, inpainting_sdxl: Path) -> None:
    """Its base, whose configuration it takes, was not."""
    write_single_file(inpainting_sdxl, single_file)
    backend, of_folder = (
        load_backend(str(path), device="cpu", threads=1) for path in (single_file, inpainting_sdxl)
    )
    given = {"image": picture(256, 256), "mask": hole(256, 256), "width": 256, "height": 256}
    request = resolve(GenerationRequest("a fox", seed=1, steps=3, **given), backend.info.limits)
    assert draw(backend, request) == draw(of_folder, request)


def draw(backend: Backend, request: ResolvedRequest) -> bytes:
    backend.start("a", request)
    for _ in range(request.evaluations):
        assert backend.step(["a"]) == {}
    return backend.decode("a").tobytes()


V, ZERO = {"v_pred": torch.zeros(0)}, {"ztsnr": torch.zeros(0)}


@pytest.mark.parametrize(
    ("marks", "metadata", "zero"),
    [
        (V, None, False),
        ({**V, **ZERO}, None, True),
        ({}, {"modelspec.prediction_type": "v"}, False),
    ],
    ids=["comfyui", "comfyui, to zero", "kohya"],
)
def test_a_single_file_that_says_it_predicts_v_draws_so(
    single_file: Path,
    tiny_sdxl: Path,
    tmp_path: Path,
    marks: Weights,
    metadata: dict[str, str] | None,
    zero: bool,
) -> None:
    save_file({**load_file(single_file), **marks}, single_file, metadata)
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "folder"))
    config = folder / "scheduler/scheduler_config.json"
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
    config.write_text(json.dumps({**json.loads(config.read_text()), **told}))
    backend, of_folder = (load_backend(str(path), device="cpu", threads=1) for path in (single_file, folder))
    asked = GenerationRequest("a fox", seed=1, steps=3, width=256, height=256)
    request = resolve(asked, backend.info.limits)
    assert draw(backend, request) == draw(of_folder, request)


def test_a_single_file_that_was_trained_to_other_noise_is_refused(single_file: Path) -> None:
    save_file({**load_file(single_file), "edm_vpred.sigma_max": torch.ones(())}, single_file)
    with pytest.raises(ModelInvalid, match="EDM's noise levels"):
        load_backend(str(single_file), device="cpu", threads=1)


def test_a_single_file_that_lacks_weights_is_refused(single_file: Path) -> None:
    weights = load_file(single_file)
    for name in list(weights):
        if "resblocks.1.ln_2" in name or "out_layers" in name:
            del weights[name]
    save_file(weights, single_file)
    with pytest.raises(ModelInvalid):
        load_backend(str(single_file), device="cpu", threads=1)


def test_a_truncated_single_file_is_refused(single_file: Path) -> None:
    single_file.write_bytes(single_file.read_bytes()[:-10])
    with pytest.raises(ModelInvalid, match="truncated or no safetensors"):
        load_backend(str(single_file), device="cpu", threads=1)


def test_a_single_file_that_is_another_model_is_refused_in_one_line(single_file: Path) -> None:
    save_file({"weight": torch.zeros(3)}, single_file)
    with pytest.raises(ModelInvalid, match="cannot be loaded") as refusal:
        load_backend(str(single_file), device="cpu", threads=1)
    assert "\n" not in str(refusal.value)
