"""Stage 6: a ControlNet of Canny's edges for the finished model.

``python -m training.controlnet --config grown [--budget S]``

As Zhang et al. have it (2023, arXiv:2302.05543): a copy of the UNet's way down reads a picture's lines as
well, and adds to what the UNet's way up is given. UNet and text encoders stay as they are. It is diffusers'
own ``ControlNetModel``, in the model's folder ``controlnets/canny``, in half precision.

Lines: white on black, as ``mezzotint.imaging.edges.canny`` draws them, in 0..1. They are of the very picture
that the latents are of.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from mezzotint.imaging.edges import canny
from mezzotint.models.manifest import files_hash, write_manifest
from training import captions, data, unet
from training.config import MODEL, PRESETS, Config
from training.lora import Base, knowing, plain_examples
from training.optim import Trainer, clock_of
from training.stream import batches

#: In the model's folder.
PLACE = Path("controlnets") / "canny"
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: How often each group of pictures is drawn. Where glyphs always stand in the middle, lines would say nothing
#: that the prompt did not: more than half of them stand anywhere.
SHARES = {"placed": 0.6, "single": 0.12, "shaped": 0.06, "pair": 0.14, "scene": 0.08}
#: Captions that name nothing, so that lines are enough: an empty string or loose words.
SILENT_SHARE = 0.2
#: Of placed pictures: two glyphs; turned; mirrored.
TWO_SHARE, TURNED_SHARE, MIRRORED_SHARE = 0.3, 0.5, 0.3
TURN = 20.0
#: People draw by hand: lines with gaps, and thicker ones.
GAPS_SHARE, THICK_SHARE = 0.3, 0.15

# -- pictures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """Where one glyph stands: its square's top left corner and side in pixels, then turned by degrees."""

    x: int
    y: int
    side: int
    turn: float = 0.0
    mirrored: bool = False

    def paste(self, canvas: NDArray[np.float32], text: str) -> None:
        square = data.render(text)
        if self.mirrored:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.turn:
            square = square.rotate(self.turn, Image.Resampling.BICUBIC, expand=True)
        data.overlay(canvas, *data.premultiplied(square, self.side), self.x, self.y)


@dataclass(frozen=True)
class Placed(unet.Example):
    """A picture whose glyphs stand anywhere, in any size."""

    spots: tuple[Spot, ...] = ()

    @property
    def group(self) -> str:
        return "placed"

    def draw(self, texts: dict[str, str]) -> data.Picture:
        canvas = data.empty(data.BACKGROUNDS[self.scene.background], self.size)
        for name, spot in zip(self.scene.names, self.spots, strict=True):
            spot.paste(canvas, texts[name])
        return data.rounded(canvas)


def spot(rng: np.random.Generator, box: tuple[int, int, int, int], smallest: float) -> Spot:
    """Somewhere within ``box`` (left, top, width, height), or over its edge by a tenth of the glyph."""
    left, top, width, height = box
    side = int(rng.uniform(smallest, 0.95) * min(width, height))
    over = side // 10
    x = left + int(rng.integers(-over, width - side + over + 1))
    y = top + int(rng.integers(-over, height - side + over + 1))
    turn = float(rng.uniform(-TURN, TURN)) if rng.random() < TURNED_SHARE else 0.0
    return Spot(x, y, side, turn, bool(rng.random() < MIRRORED_SHARE))


def placed(
    rng: np.random.Generator, names: tuple[str, ...], background: str, size: tuple[int, int]
) -> Placed:
    """One or two glyphs anywhere in a picture; the first of two is left of the second, or above it."""
    width, height = size
    if len(names) == 1:
        return Placed(
            captions.Scene(names, background), size, spots=(spot(rng, (0, 0, width, height), 0.45),)
        )
    tall = height > width or (height == width and rng.random() < 0.5)
    half = (width, height // 2) if tall else (width // 2, height)
    corners = ((0, 0), (0, height // 2) if tall else (width // 2, 0))
    spots = tuple(spot(rng, (*corner, *half), 0.6) for corner in corners)
    return Placed(captions.Scene(names, background, tall=tall), size, spots=spots)


def examples(config: Config) -> list[unet.Example]:
    """Placed pictures and some of the usual ones; no glyph on its held-out backgrounds."""
    rng = np.random.default_rng(config.seed + 4)
    names = [glyph.name for glyph in data.glyphs(config.glyph_count)]
    square, *others = data.SIZES
    found: list[unet.Example] = []
    for i in range(config.controlnet_pictures):
        # Every glyph as often, whatever the number of pictures.
        first, other = names[i % len(names)], names[int(rng.integers(len(names)))]
        chosen = (first, other) if rng.random() < TWO_SHARE and other != first else (first,)
        allowed = [b for b in data.BACKGROUNDS if all(b in data.allowed(name) for name in chosen)]
        size = square if rng.random() < 0.6 else others[int(rng.integers(len(others)))]
        found.append(placed(rng, chosen, allowed[int(rng.integers(len(allowed)))], size))
    return found + plain_examples(config)


# -- lines ------------------------------------------------------------------------------------------


@dataclass
class Lined(unet.Batch):
    """A batch with the lines of its pictures: (n, 1, height, width), 0 or 255."""

    lines: Tensor


class LinedBatches(unet.Batches):
    """Batches of pictures with their lines, some as if drawn by hand."""

    group_shares = SHARES
    filler_share = SILENT_SHARE

    def __init__(
        self, config: Config, tokens: CLIPTokenizer, every: list[unet.Example], latents: Path
    ) -> None:
        super().__init__(config, tokens, every, latents)
        self.texts = unet.texts_of(config)
        self.drawn: dict[unet.Example, NDArray[np.uint8]] = {}

    def lines(self, example: unet.Example) -> NDArray[np.uint8]:
        """Canny's edges (height, width) of the picture that its latents were made of."""
        if example not in self.drawn:
            # A bit a pixel: they are drawn once, and all of them are kept.
            self.drawn[example] = np.packbits(canny(example.draw(self.texts))[..., 0] > 0, axis=1)
        return np.unpackbits(self.drawn[example], axis=1) * np.uint8(255)

    def draw(self, rng: np.random.Generator) -> Lined:
        latents, chosen = self.rows(rng)
        drawn = self.captioned(rng, latents, chosen)
        lines = np.stack([by_hand(rng, self.lines(example)) for example in chosen])
        told = {field.name: getattr(drawn, field.name) for field in fields(unet.Batch)}
        return Lined(**told, lines=torch.from_numpy(lines)[:, None])


def by_hand(rng: np.random.Generator, lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Some lines (height, width) with gaps, some thicker, most as they are."""
    if rng.random() < GAPS_SHARE:
        lines = lines.copy()
        height, width = lines.shape
        for _ in range(int(rng.integers(1, 6))):
            y, x, tall, wide = (int(rng.integers(most)) for most in (height, width, height // 5, width // 5))
            lines[y : y + tall + 3, x : x + wide + 3] = 0
    if rng.random() < THICK_SHARE:
        lines = np.asarray(cv2.dilate(lines, np.ones((3, 3), np.uint8)), dtype=np.uint8)
    return lines


def to_condition(lines: Tensor, device: str) -> Tensor:
    """What the ControlNet reads of lines (n, 1, height, width) of 0..255: (n, 3, height, width) of 0..1."""
    return (lines.to(device).float() / 255).expand(-1, 3, -1, -1)


# -- training ---------------------------------------------------------------------------------------


def build(config: Config, base: Base) -> ControlNetModel:
    """One that changes nothing yet: the UNet's way down, and zeros where it joins the UNet."""
    built = ControlNetModel.from_unet(
        base.unet, conditioning_embedding_out_channels=config.controlnet_channels
    )
    unet.arrange(built, config.device)
    return built


@dataclass(frozen=True)
class Controlled:
    """The noise that the frozen model predicts with what the ``controlnet`` adds."""

    config: Config
    base: Base
    controlnet: ControlNetModel

    def __call__(self, drawn: Lined, noisy: Tensor, timesteps: Tensor) -> Tensor:
        with torch.no_grad():
            hidden, added = unet.conditioning(self.base.first, self.base.second, drawn, self.config.device)
        down, middle = self.controlnet(
            noisy,
            timesteps,
            hidden,
            controlnet_cond=to_condition(drawn.lines, self.config.device),
            added_cond_kwargs=added,
            return_dict=False,
        )
        predicted: Tensor = self.base.unet(
            noisy,
            timesteps,
            hidden,
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return predicted


def losses(
    config: Config, stream: Iterator[Lined], base: Base, controlnet: ControlNetModel
) -> Iterator[Tensor]:
    """For each batch the error of the predicted noise, as in the UNet's training."""
    return unet.noise_losses(config, stream, Controlled(config, base, controlnet))


def lined_batches(config: Config, base: Base, model: Path) -> LinedBatches:
    """Batches of all pictures; their latents are encoded once."""
    every = examples(config)

    def encode() -> unet.Store:
        encoder = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval()
        return unet.encode(every, encoder, unet.texts_of(config), config.device)

    return LinedBatches(config, base.tokens, every, unet.cached(config.out / "canny-latents.pt", encode))


def write(controlnet: ControlNetModel, model: Path) -> Path:
    """The ControlNet's folder in the ``model``'s; files appear complete, and then in the manifest."""
    folder = model / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(controlnet).to(torch.float16, memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".controlnet-") as scratch:
        half.save_pretrained(scratch)
        for name in ("config.json", WEIGHTS):
            made = Path(scratch) / name
            made.chmod(0o644)
            made.replace(folder / name)
    write_manifest(model)
    return folder


def train(config: Config, model: Path = MODEL, budget: float | None = None) -> Path:
    """Train for ``budget`` seconds and return the ControlNet's folder; picks up a run that was cut off."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed + 4)
    config = replace(knowing(config, model), unet_batch=config.controlnet_batch)
    config.out.mkdir(parents=True, exist_ok=True)
    base = Base.load(model, config.device)
    controlnet = build(config, base)
    # What was begun for other weights is not gone on with.
    checkpoint = config.out / f"canny-{files_hash(model / 'unet')[:8]}.pt"
    trainer = Trainer("canny", controlnet, checkpoint, config.controlnet_optimiser, config.controlnet_rate)
    batch = lined_batches(config, base, model)
    stream = batches(batch.draw, config.seed + 13 + trainer.step, config.workers)
    budget = budget or config.controlnet_budget
    clock = clock_of(config.device, config.threads)
    trainer.run(losses(config, stream, base, controlnet), budget, clock, config.checkpoint_every)
    controlnet.load_state_dict(trainer.average.values)
    folder = write(controlnet, model)
    print(f"{folder}: {(folder / WEIGHTS).stat().st_size / 1e6:.2f} MB", flush=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--model", type=Path, default=MODEL, help="the finished model")
    parser.add_argument("--budget", type=float, help="seconds, instead of the preset's")
    arguments = parser.parse_args()
    train(PRESETS[arguments.config], arguments.model, arguments.budget)


if __name__ == "__main__":
    main()
