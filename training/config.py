"""The presets of the recipe: ``cpu`` and, from its model on, ``grown``, which made the shipped weights on two
cores; and ``gpu`` (never run by us)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

OUT = Path(__file__).parent / "out"
MODEL = Path(__file__).parents[1] / "src" / "mezzotint" / "models" / "demo"


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on besides the font. Times in seconds, channels per level."""

    name: str = "cpu"
    #: How many of `glyphs.txt` it knows; `None` for all.
    glyph_count: int | None = 336
    #: Start from the model in the repository, which knows so many of the list; 0 starts from nothing.
    known: int = 0
    seed: int = 20
    device: str = "cpu"
    threads: int = 2
    #: Processes that draw batches beside the training; 0 draws them inline.
    workers: int = 0
    compile: bool = False
    # -- VAE
    vae_channels: tuple[int, ...] = (16, 32, 64, 128)
    vae_budget: float = 1440.0
    vae_rate: float = 3e-3
    vae_optimiser: str = "muon"
    #: Pixels a step, in units of one 64×64 crop.
    vae_batch: int = 16
    # -- UNet and text encoders
    text_width: int = 96
    text_layers: int = 3
    positions: int = 32
    unet_channels: tuple[int, ...] = (48, 96, 160)
    unet_layers: int = 1
    unet_budget: float = 3500.0
    unet_rate: float = 3.5e-3
    unet_optimiser: str = "muon"
    unet_batch: int = 64
    bf16_unet: bool = True
    pairs: int = 7500
    # -- LoRAs
    few_step_budget: float = 1200.0
    few_step_rank: int = 6
    style_budget: float = 240.0
    style_rank: int = 3
    style_pictures: int = 3000
    lora_rate: float = 2e-3
    # -- ControlNet
    controlnet_budget: float = 1200.0
    controlnet_rate: float = 3e-3
    controlnet_optimiser: str = "muon"
    controlnet_batch: int = 32
    #: Channels of what reads the lines, from full size down to the latents'.
    controlnet_channels: tuple[int, ...] = (16, 32, 64, 96)
    controlnet_pictures: int = 12000
    checkpoint_every: float = 90.0

    @property
    def out(self) -> Path:
        """Where checkpoints and caches of this preset go; ignored by git."""
        return OUT / self.name


CPU = Config()
GROWN = replace(
    CPU,
    name="grown",
    glyph_count=1103,
    known=336,
    unet_budget=9700.0,
    unet_rate=3e-3,
    pairs=14000,
)
GPU = replace(
    CPU,
    name="gpu",
    glyph_count=None,
    device="cuda",
    threads=8,
    workers=12,
    compile=True,
    vae_channels=(64, 96, 128, 192),
    vae_budget=480.0,
    vae_batch=256,
    text_width=192,
    text_layers=4,
    unet_channels=(96, 192, 288),
    unet_budget=780.0,
    unet_rate=1e-3,
    unet_batch=512,
    bf16_unet=True,
    pairs=40000,
    few_step_budget=240.0,
    few_step_rank=3,
    style_budget=60.0,
    style_rank=1,
    style_pictures=6000,
    lora_rate=1e-3,
    controlnet_budget=180.0,
    controlnet_rate=1e-3,
    controlnet_batch=256,
    controlnet_pictures=24000,
)
PRESETS = {"cpu": CPU, "grown": GROWN, "gpu": GPU}
