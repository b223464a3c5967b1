"""The models that have a name, each pinned to a revision, with what they draw by default and at most.

Plain data: this module touches neither disk nor network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mezzotint.core import ModelLimits

__all__ = ["CATALOGUE", "CatalogueEntry", "Source", "limits_of_size"]


@dataclass(frozen=True)
class Source:
    """Files of one repository of the Hugging Face Hub at one commit."""

    repository: str
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class CatalogueEntry:
    """A model by name.

    source: where `pull` fetches it; `None` for what comes with this package.
    base: the entry whose other modules complete this one, when `source` is a UNet alone.
    unet_file: that UNet's file.
    scheduler_overrides: laid over the model's scheduler configuration, beneath the sampler's own.
    """

    name: str
    title: str
    license: str
    limits: ModelLimits
    source: Source | None = None
    base: str | None = None
    unet_file: str | None = None
    scheduler_overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


_FP16_PIPELINE = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/merges.txt",
    "tokenizer_2/*.json",
    "tokenizer_2/merges.txt",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "LICENSE*",
)
_TRAILING = MappingProxyType({"timestep_spacing": "trailing"})


def _limits(
    size: int,
    *,
    steps: int,
    low: int,
    high: int,
    side: int,
    guidance: float = 5.0,
    scheduler: str = "Euler",
    max_steps: int = ModelLimits.max_steps,
) -> ModelLimits:
    """Of square pictures by default. `side`: of the largest square."""
    return ModelLimits(
        default_width=size,
        default_height=size,
        default_steps=steps,
        default_guidance_scale=guidance,
        default_scheduler=scheduler,
        min_size=low,
        max_size=high,
        max_pixels=side * side,
        max_steps=max_steps,
    )


def limits_of_size(width: int, height: int, scheduler: str) -> ModelLimits:
    """Limits for a model of which no more is known than the size in pixels that it was trained on."""
    return ModelLimits(
        default_width=width,
        default_height=height,
        default_steps=30,
        default_guidance_scale=5.0,
        default_scheduler=scheduler,
        min_size=max(min(width, height) // 4 // 8 * 8, 16),
        max_size=max(width, height) * 2,
        max_pixels=width * height * 9 // 4,
    )


_ENTRIES = (
    CatalogueEntry(
        name="demo",
        title="A small SDXL that comes with Mezzotint",
        license="Apache-2.0",
        limits=_limits(128, steps=20, low=64, high=256, side=256),
    ),
    CatalogueEntry(
        name="sdxl",
        title="Stable Diffusion XL base 1.0",
        license="CreativeML Open RAIL++-M",
        limits=_limits(1024, steps=30, low=256, high=2048, side=1536),
        source=Source(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "462165984030d82259a11f4367a4eed129e94a7b",
            _FP16_PIPELINE,
        ),
    ),
    CatalogueEntry(
        name="sdxl-turbo",
        title="SDXL Turbo: 1 to 4 steps, without guidance",
        license="Stability AI Non-Commercial Research Community License",
        limits=_limits(
            512, steps=1, max_steps=4, low=256, high=1024, side=1024, guidance=0.0, scheduler="Euler a"
        ),
        source=Source("stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", _FP16_PIPELINE),
        scheduler_overrides=_TRAILING,
    ),
    CatalogueEntry(
        name="sdxl-lightning",
        title="SDXL Lightning: 4 steps, without guidance",
        license="CreativeML Open RAIL++-M",
        limits=_limits(1024, steps=4, max_steps=8, low=256, high=1536, side=1024, guidance=0.0),
        source=Source(
            "ByteDance/SDXL-Lightning",
            "c9a24f48e1c025556787b0c58dd67a091ece2e44",
            ("sdxl_lightning_4step_unet.safetensors", "LICENSE*"),
        ),
        base="sdxl",
        unet_file="sdxl_lightning_4step_unet.safetensors",
        scheduler_overrides=_TRAILING,
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
