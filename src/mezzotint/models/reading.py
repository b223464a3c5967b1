"""A model's files to modules, and the certainty that together they are a Stable Diffusion XL.

Only safetensors are read, each module by the class that this file names (never one that a file names), and
nothing here uses the network. Whether the files are the right ones, the caller has checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open

from mezzotint.backends.parts import PipelineParts
from mezzotint.errors import ModelInvalid, ModelNotFound, SettingInvalid
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry
from mezzotint.models.json_files import VOCABULARY, read_json
from mezzotint.models.locations import find_model, verify
from mezzotint.models.weights import (
    check_header,
    options_for,
    quiet,
    read_module,
    read_tensors,
    reading,
)
from mezzotint.samplers import sampler_configured

__all__ = ["check_is_sdxl", "load_parts", "read_preview_vae", "read_tokenizer"]

# What every sampler of the table takes; and of the last prediction, most of them.
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Of a UNet's first convolution, in a single file.
FIRST_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"


def load_parts(
    path: Path, entry: CatalogueEntry | None = None, *, dtype: torch.dtype, device: torch.device
) -> PipelineParts:
    """The modules of the model at `path`, of which the caller has checked the files.

    Raises:
        ModelInvalid: they cannot be read, or are not those of an SDXL.
        ModelNotFound: another model that this one builds on is missing.
    """
    with quiet():
        if path.is_file():
            parts = _read_single_file(path, dtype)
        elif entry is not None and entry.base is not None:
            parts = _read_on_base(path, entry, dtype)
        else:
            overrides = entry.scheduler_overrides if entry else {}
            parts = _read_folder(path, dtype, overrides)
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        # Where its configuration tells of no window, the library's tokenizer has an endless one.
        window = encoder.config.max_position_embeddings
        tokenizer.model_max_length = min(tokenizer.model_max_length, window)
    check_is_sdxl(parts)
    _check_scheduler(parts.scheduler_config)
    _check_is_complete(parts)
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        module.eval().requires_grad_(False).to(device)
    return parts


def read_preview_vae(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A small decoder of SDXL's latents, diffusers' `AutoencoderTiny`, from its own folder.

    Raises:
        SettingInvalid: there is no such folder.
        ModelInvalid: it cannot be read, or decodes other latents.
    """
    if not (folder / "config.json").is_file():
        raise SettingInvalid(
            f"preview_vae must be a folder with an AutoencoderTiny, and {folder} has no config.json",
            param="preview_vae",
        )
    with quiet():
        vae = read_module(diffusers.AutoencoderTiny, folder.parent, folder.name, dtype)
    if vae.config.latent_channels != 4:
        raise ModelInvalid(
            f"{folder.name} decodes latents of {vae.config.latent_channels} channels, not of 4"
        )
    return vae.eval().requires_grad_(False).to(device)


def _read_folder(
    path: Path, dtype: torch.dtype, overrides: Mapping[str, object], *, unet: Any = None
) -> PipelineParts:
    if unet is None:
        unet = read_module(diffusers.UNet2DConditionModel, path, "unet", dtype)
    return PipelineParts(
        unet=unet,
        vae=read_module(diffusers.AutoencoderKL, path, "vae", dtype),
        tokenizers=(read_tokenizer(path, "tokenizer"), read_tokenizer(path, "tokenizer_2")),
        text_encoders=(
            read_module(transformers.CLIPTextModel, path, "text_encoder", dtype),
            read_module(transformers.CLIPTextModelWithProjection, path, "text_encoder_2", dtype),
        ),
        scheduler_config={**read_json(path / "scheduler/scheduler_config.json"), **overrides},
        force_zeros_for_empty_prompt=bool(
            read_json(path / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
        knows_tokens_alone=(path / VOCABULARY).is_file(),
    )


def _read_on_base(path: Path, entry: CatalogueEntry, dtype: torch.dtype) -> PipelineParts:
    """A UNet of its own in the place of its base's."""
    base = CATALOGUE[str(entry.base)]
    base_path = find_model(base.name)
    verify(base_path, required=True)
    file = path / str(entry.unet_file)
    check_header(file)
    config = read_json(base_path / "unet/config.json")
    with reading(file.name):
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(config)
        weights = read_tensors(file, dtype)
        unet.load_state_dict(weights, strict=True, assign=True)
    return _read_folder(base_path, dtype, entry.scheduler_overrides, unet=unet)


def _read_single_file(path: Path, dtype: torch.dtype) -> PipelineParts:
    """Weights from one file in the original layout; configuration and tokenizers from a pulled `sdxl`."""
    check_header(path)
    try:
        base = find_model("sdxl")
    except ModelNotFound:
        raise ModelNotFound(
            "a single file holds weights alone; its tokenizers and configuration are read from the sdxl "
            "model, which is not on this machine: mezzotint models pull sdxl"
        ) from None
    verify(base, required=True)
    options = {
        "config": str(base),
        "local_files_only": True,
        **options_for(diffusers.StableDiffusionXLPipeline, dtype),
    }
    with reading(path.name):
        unet = diffusers.UNet2DConditionModel.from_single_file(
            str(path), subfolder="unet", in_channels=_input_channels(path), **options
        )
        pipeline = diffusers.StableDiffusionXLPipeline.from_single_file(str(path), unet=unet, **options)
    return PipelineParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
        text_encoders=(pipeline.text_encoder, pipeline.text_encoder_2),
        scheduler_config={**read_json(base / "scheduler/scheduler_config.json"), **_told_of_noise(path)},
        force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )


def _input_channels(file: Path) -> int:
    """Of a single file's UNet, which may have been trained for inpainting where its base was not."""
    with safe_open(file, framework="pt") as opened:
        return int(opened.get_slice(FIRST_WEIGHT).get_shape()[1])


def _told_of_noise(file: Path) -> dict[str, Any]:
    """What a single file says of how its UNet was trained: by empty tensors, which ComfyUI reads, or in its
    metadata, as kohya's tools do. Most say nothing, and predict the noise.

    Raises:
        ModelInvalid: to noise levels that are not SDXL's.
    """
    with safe_open(file, framework="pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata() or {}
    if any(name.startswith("edm_") for name in names):
        raise ModelInvalid(f"{file.name} was trained to EDM's noise levels, which are not served")
    if "v_pred" not in names and metadata.get("modelspec.prediction_type") != "v":
        return {}
    return {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in names}


def read_tokenizer(path: Path, name: str) -> Any:
    """The tokenizer of a diffusers folder.

    Raises:
        ModelInvalid: it cannot be read.
    """
    read_json(path / name / "tokenizer_config.json")
    with reading(name):
        return transformers.CLIPTokenizer.from_pretrained(path / name, local_files_only=True)


def check_is_sdxl(parts: PipelineParts) -> None:
    """Refuse what is no Stable Diffusion XL, by the modules' configurations.

    Raises:
        ModelInvalid: and what is wrong with it.
    """
    unet, vae = parts.unet.config, parts.vae.config
    widths = sum(encoder.config.hidden_size for encoder in parts.text_encoders)
    pooled = parts.text_encoders[1].config.projection_dim
    scheduler = parts.scheduler_config
    lengths = [tokenizer.model_max_length for tokenizer in parts.tokenizers]
    requirements = (
        (unet.addition_embed_type == "text_time", "its UNet reads no picture size"),
        (
            # Of inpainting: a mask, and the latents of what it leaves of a picture.
            unet.in_channels in (vae.latent_channels, 2 * vae.latent_channels + 1),
            f"its UNet reads {unet.in_channels} channels, neither latents alone nor what inpainting adds",
        ),
        (len(vae.block_out_channels) == 4, "its VAE does not turn a latent into 8×8 pixels"),
        (isinstance(vae.scaling_factor, int | float), "its VAE's scaling_factor is no number"),
        (unet.cross_attention_dim == widths, "its text encoders do not fit its UNet"),
        (
            unet.projection_class_embeddings_input_dim == pooled + 6 * unet.addition_time_embed_dim,
            "its second text encoder does not fit its UNet",
        ),
        (lengths[0] == lengths[1], "its two tokenizers have different windows"),
        (
            scheduler.get("beta_schedule") in BETA_SCHEDULES,
            "its scheduler's noise levels are of another kind",
        ),
        (
            scheduler.get("prediction_type", "epsilon") in PREDICTIONS,
            "its UNet predicts neither noise, v nor latents",
        ),
    )
    for holds, problem in requirements:
        if not holds:
            raise ModelInvalid(f"this is not a Stable Diffusion XL model: {problem}")


def _check_scheduler(config: Mapping[str, Any]) -> None:
    # Of what a configuration may hold diffusers tells much no earlier.
    sampler = sampler_configured(config)
    with quiet(), reading("scheduler/scheduler_config.json"):
        kind = getattr(diffusers, sampler.diffusers_class)
        kind.from_config(config, **sampler.overrides).set_timesteps(1)


def _check_is_complete(parts: PipelineParts) -> None:
    # A weight that no file held is left without memory by the libraries' way of loading.
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        for name, weight in module.named_parameters():
            if weight.is_meta:
                raise ModelInvalid(f"{type(module).__name__}: no file holds its weight {name}")
