"""A model's files to modules, and the certainty that together they are a Stable Diffusion XL.

Only safetensors are read, each module by the class that this file names (never one that a file names), and
nothing here uses the network. Whether the files are the right ones, the caller has checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open

from mezzotint.backends.diffusers import PipelineParts
from mezzotint.backends.loras import LoraWeights, LowRank
from mezzotint.errors import MezzotintError, ModelInvalid, ModelNotFound, SettingInvalid
from mezzotint.models.catalogue import CATALOGUE, PIXELS_PER_LATENT, CatalogueEntry
from mezzotint.models.embeddings import ENCODERS
from mezzotint.models.json_files import read_json
from mezzotint.models.locations import find_model, verify

__all__ = [
    "check_is_sdxl",
    "load_parts",
    "quiet",
    "read_controlnet",
    "read_embedding",
    "read_lora",
    "read_preview_vae",
    "read_tokenizer",
]


# As LoRA files name them.
LORA_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


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
            parts = _read_folder(path, dtype, entry.variant if entry else None, overrides)
    check_is_sdxl(parts)
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
        vae = _read_module(diffusers.AutoencoderTiny, folder.parent, folder.name, dtype, None)
    if vae.config.latent_channels != 4:
        raise ModelInvalid(
            f"{folder.name} decodes latents of {vae.config.latent_channels} channels, not of 4"
        )
    return vae.eval().requires_grad_(False).to(device)


def read_controlnet(path: Path, unet: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' `ControlNetModel` for `unet`, from a folder in diffusers' layout, or from a file of its
    weights alone, which is taken to be made as the UNet is.

    Raises:
        ModelInvalid: it cannot be read, is of another kind, or is for another model.
    """
    with quiet():
        if path.is_file():
            net = _read_controlnet_file(path, unet, dtype)
        else:
            kind = read_json(path / "config.json").get("_class_name", "ControlNetModel")
            if kind != "ControlNetModel":
                raise ModelInvalid(f"{path.name} is a {kind}, and only ControlNetModel is served")
            net = _read_module(diffusers.ControlNetModel, path.parent, path.name, dtype, _find_variant(path))
    _check_is_for(net, unet, path.name)
    return net.eval().requires_grad_(False).to(device)


def _read_controlnet_file(file: Path, unet: Any, dtype: torch.dtype) -> Any:
    _check_header(file)
    with torch.device("meta"):
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    with _reading(file.name):
        weights = _read_tensors(file, dtype)
    wanted, found = ({name: each.shape for name, each in of.items()} for of in (net.state_dict(), weights))
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        raise ModelInvalid(
            f"{file.name} holds no weights of a ControlNet for this model as diffusers names them: "
            f"{odd[0]} is missing, or too much, or of another shape"
        )
    net.load_state_dict(weights, strict=True, assign=True)
    return net


# What makes a ControlNet's residuals those of the UNet's blocks, and its inputs the UNet's.
SHARED_WITH_UNET = (
    *("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)


def _check_is_for(net: Any, unet: Any, name: str) -> None:
    for option in SHARED_WITH_UNET:
        own, wanted = (_plain(module.config.get(option)) for module in (net, unet))
        if own != wanted:
            raise ModelInvalid(f"{name} is no ControlNet for this model: its {option} is {own}, not {wanted}")
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if factor != PIXELS_PER_LATENT or net.config.conditioning_channels != 3:
        raise ModelInvalid(f"{name} reads no RGB pictures of the size that is drawn")
    if net.config.global_pool_conditions:
        raise ModelInvalid(f"{name} pools what it makes over the picture, which is not served")


def _plain(value: Any) -> Any:
    # JSON has lists where Python has tuples.
    return list(value) if isinstance(value, tuple) else value


def read_embedding(file: Path, parts: PipelineParts) -> tuple[torch.Tensor, ...]:
    """A textual inversion's vectors, n × width for each of the text encoders.

    Raises:
        ModelInvalid: they are of another width than the encoders'.
    """
    vectors = []
    with _reading(file.name), safe_open(file, framework="pt") as opened:
        for name, encoder in zip(ENCODERS, parts.text_encoders, strict=True):
            own = opened.get_tensor(name)
            table = encoder.get_input_embeddings().weight
            if own.shape[1] != table.shape[1]:
                raise ModelInvalid(
                    f"{file.name} is no embedding for this model: the vectors of {name} have {own.shape[1]} "
                    f"numbers, not {table.shape[1]}"
                )
            vectors.append(own.to(table.device, table.dtype))
    return tuple(vectors)


def read_lora(file: Path, parts: PipelineParts) -> LoraWeights:
    """A LoRA of diffusers', PEFT's or kohya's layout; diffusers knows which names are which.

    Raises:
        ModelInvalid: it cannot be read, or is something else, such as a DoRA or a LoHa.
    """
    _check_header(file)
    with safe_open(file, framework="pt") as opened:
        # diffusers leaves it out and goes on.
        dora = next((name for name in opened.keys() if "dora_scale" in name), None)  # noqa: SIM118
    if dora is not None:
        raise ModelInvalid(f"{file.name} is a DoRA, and LoRAs alone are served: it holds {dora}")
    with quiet(), _reading(file.name):
        weights, alphas, config = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(file),
            unet_config=parts.unet.config,
            local_files_only=True,
            use_safetensors=True,
            return_lora_metadata=True,
        )
        odd = next((name for name in weights if name.partition(".")[0] not in LORA_COMPONENTS), None)
        if odd is not None or not weights:
            raise ModelInvalid(f"{file.name} is no LoRA of an SDXL: it holds {odd or 'nothing'}")
        unet, *text_encoders = (
            _low_ranks(file, weights, alphas or {}, config or {}, component) for component in LORA_COMPONENTS
        )
    # Newer versions of transformers have CLIP's modules one level higher than files name them.
    first, second = (
        changes if hasattr(encoder, "text_model") else _without("text_model.", changes)
        for encoder, changes in zip(parts.text_encoders, text_encoders, strict=True)
    )
    return LoraWeights(unet, (first, second))


def _low_ranks(
    file: Path,
    weights: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    config: Mapping[str, Any],
    component: str,
) -> dict[str, LowRank]:
    # Names are turned to PEFT's, which are those of the model's own modules, with each one's former name.
    names = {name.removeprefix(f"{component}."): name for name in weights if name.startswith(f"{component}.")}
    if component == "unet":
        names = convert_unet_state_dict_to_peft(names)
    else:
        names = convert_state_dict_to_peft(names, StateDictType.DIFFUSERS_OLD)
    found = {}
    for name, former in names.items():
        path, is_down, rest = name.partition(".lora_A.weight")
        up = names.get(f"{path}.lora_B.weight")
        if is_down and not rest and up is not None:
            down = weights[former]
            # kohya's, by either of the names that diffusers gives it; or PEFT's own configuration.
            alpha = alphas.get(f"{former}.alpha", alphas.get(f"{component}.{path}.alpha"))
            if alpha is None:
                alpha = _alpha_of(config, component, path)
            rank = down.shape[0]
            divisor = rank**0.5 if config.get(f"{component}.use_rslora") else rank
            found[path] = LowRank(down, weights[up], 1.0 if alpha is None else float(alpha) / divisor)
    pairs = {f"{path}.{part}.weight" for path in found for part in ("lora_A", "lora_B")}
    for odd in names.keys() - pairs:
        raise ModelInvalid(f"{file.name} is no LoRA of pairs of matrices: it holds {component}.{odd}")
    return found


def _alpha_of(config: Mapping[str, Any], component: str, path: str) -> float | None:
    """As PEFT wrote it beside the weights: one for all, and others for modules by the ends of their paths."""
    for end, alpha in (config.get(f"{component}.alpha_pattern") or {}).items():
        if f".{path}".endswith(f".{end}"):
            return float(alpha)
    alpha = config.get(f"{component}.lora_alpha")
    return None if alpha is None else float(alpha)


def _without(prefix: str, changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    return {path.removeprefix(prefix): change for path, change in changes.items()}


def _read_folder(
    path: Path, dtype: torch.dtype, variant: str | None, overrides: Mapping[str, object], *, unet: Any = None
) -> PipelineParts:
    variant = variant or _find_variant(path / "unet")
    if unet is None:
        unet = _read_module(diffusers.UNet2DConditionModel, path, "unet", dtype, variant)
    return PipelineParts(
        unet=unet,
        vae=_read_module(diffusers.AutoencoderKL, path, "vae", dtype, variant),
        tokenizers=(read_tokenizer(path, "tokenizer"), read_tokenizer(path, "tokenizer_2")),
        text_encoders=(
            _read_module(transformers.CLIPTextModel, path, "text_encoder", dtype, variant),
            _read_module(transformers.CLIPTextModelWithProjection, path, "text_encoder_2", dtype, variant),
        ),
        scheduler_config={**read_json(path / "scheduler/scheduler_config.json"), **overrides},
        force_zeros_for_empty_prompt=bool(
            read_json(path / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
    )


def _read_on_base(path: Path, entry: CatalogueEntry, dtype: torch.dtype) -> PipelineParts:
    """A UNet of its own in the place of its base's."""
    base = CATALOGUE[str(entry.base)]
    base_path = find_model(base.name)
    verify(base_path, required=True)
    file = path / str(entry.unet_file)
    _check_header(file)
    config = read_json(base_path / "unet/config.json")
    with _reading(file.name):
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(config)
        weights = _read_tensors(file, dtype)
        unet.load_state_dict(weights, strict=True, assign=True)
    return _read_folder(base_path, dtype, base.variant, entry.scheduler_overrides, unet=unet)


def _read_single_file(path: Path, dtype: torch.dtype) -> PipelineParts:
    """Weights from one file in the original layout; configuration and tokenizers from a pulled `sdxl`."""
    _check_header(path)
    try:
        base = find_model("sdxl")
    except ModelNotFound:
        raise ModelNotFound(
            "a single file holds weights alone; its tokenizers and configuration are read from the sdxl "
            "model, which is not on this machine: mezzotint models pull sdxl"
        ) from None
    verify(base, required=True)
    with _reading(path.name):
        pipeline = diffusers.StableDiffusionXLPipeline.from_single_file(
            str(path),
            config=str(base),
            local_files_only=True,
            **_options_for(diffusers.StableDiffusionXLPipeline, dtype),
        )
    return PipelineParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
        text_encoders=(pipeline.text_encoder, pipeline.text_encoder_2),
        scheduler_config=read_json(base / "scheduler/scheduler_config.json"),
        force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )


def _read_module(kind: Any, path: Path, name: str, dtype: torch.dtype, variant: str | None) -> Any:
    """One module of a diffusers folder, every weight of it from the folder's safetensors."""
    read_json(path / name / "config.json")
    files = sorted((path / name).glob("*.safetensors"))
    if not files:
        raise ModelInvalid(f"the model lacks {name}'s weights: no safetensors file in {name}/")
    for file in files:
        _check_header(file)
    with _reading(name):
        module, report = kind.from_pretrained(
            path / name,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **_options_for(kind, dtype),
        )
    problems = [*report["missing_keys"], *report["mismatched_keys"]]
    if issubclass(kind, diffusers.ModelMixin):
        # Old text encoders carry a table of positions that is no weight; the others may carry nothing more.
        problems += report["unexpected_keys"]
    if problems:
        first = problems[0] if isinstance(problems[0], str) else problems[0][0]
        raise ModelInvalid(f"{name}: its weights do not fit its configuration, {first} first of all")
    return module


def _options_for(kind: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The dtype by the name that the library knows, and weights by the names that it gives them.

    Neuron's image has the older diffusers and transformers (docs/neuron.md); there, CLIP's text model has its
    weights one level deeper than the newer writes them.
    """
    if kind.__module__.partition(".")[0] == "diffusers":
        old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42)
        return {"torch_dtype" if old else "dtype": dtype}
    if kind is transformers.CLIPTextModel and int(transformers.__version__.split(".")[0]) < 5:
        return {
            "dtype": dtype,
            "key_mapping": {r"^(embeddings|encoder|final_layer_norm)\.": r"text_model.\1."},
        }
    return {"dtype": dtype}


def read_tokenizer(path: Path, name: str) -> Any:
    """The tokenizer of a diffusers folder.

    Raises:
        ModelInvalid: it cannot be read.
    """
    read_json(path / name / "tokenizer_config.json")
    with _reading(name):
        return transformers.CLIPTokenizer.from_pretrained(path / name, local_files_only=True)


def _read_tensors(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).to(dtype) for name in tensors.keys()}  # noqa: SIM118


def _check_header(file: Path) -> None:
    """Refuse a file that is truncated or no safetensors, before anything else reads it."""
    name = f"{file.parent.name}/{file.name}"
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError:
        raise ModelInvalid(f"{name} is truncated or no safetensors file") from None
    except OSError:
        raise ModelInvalid(f"{name} cannot be read") from None


def check_is_sdxl(parts: PipelineParts) -> None:
    """Refuse what is no Stable Diffusion XL, by the modules' configurations.

    Raises:
        ModelInvalid: and what is wrong with it.
    """
    unet, vae = parts.unet.config, parts.vae.config
    widths = sum(encoder.config.hidden_size for encoder in parts.text_encoders)
    pooled = parts.text_encoders[1].config.projection_dim
    lengths = [tokenizer.model_max_length for tokenizer in parts.tokenizers]
    requirements = (
        (unet.addition_embed_type == "text_time", "its UNet reads no picture size"),
        (
            unet.in_channels == vae.latent_channels,
            "its UNet reads more than latents (inpainting is not served)",
        ),
        (len(vae.block_out_channels) == 4, "its VAE does not turn a latent into 8×8 pixels"),
        (unet.cross_attention_dim == widths, "its text encoders do not fit its UNet"),
        (
            unet.projection_class_embeddings_input_dim == pooled + 6 * unet.addition_time_embed_dim,
            "its second text encoder does not fit its UNet",
        ),
        (lengths[0] == lengths[1], "its two tokenizers have different windows"),
    )
    for holds, problem in requirements:
        if not holds:
            raise ModelInvalid(f"this is not a Stable Diffusion XL model: {problem}")


def _check_is_complete(parts: PipelineParts) -> None:
    # A weight that no file held is left without memory by the libraries' way of loading.
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        for name, weight in module.named_parameters():
            if weight.is_meta:
                raise ModelInvalid(f"{type(module).__name__}: no file holds its weight {name}")


def _find_variant(folder: Path) -> str | None:
    """The infix of a module's folder that holds its weights under a variant's names alone."""
    names = [file.name for file in folder.glob("*.safetensors")]
    if any(name.count(".") == 1 for name in names):
        return None
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    return sorted(variants)[0] if variants else None


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever the libraries raise over files that passed the checks, as one line of ours."""
    try:
        yield
    except MezzotintError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelInvalid(f"{what} cannot be loaded: {reason[:200]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines from the libraries while they read; errors still come as errors."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
