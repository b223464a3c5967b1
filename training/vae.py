"""Stage 1: the autoencoder. ``python -m training.vae --config cpu``.

An AutoencoderKL of factor 8 with four latent channels, trained from scratch on composed pictures: half of
the work on 64×64 crops around the ink (every pixel counts there), the rest on whole pictures, since group
normalisation sees the whole picture in use. The loss is L1 + squared error early (edges form sooner) and
squared error alone late (PSNR is what counts), with a tiny KL term that only keeps latents from growing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from training import data
from training.config import PRESETS, Config
from training.optim import Average, learning_rate, optimisers
from training.stream import batches

KL_WEIGHT = 1e-6


def build(config: Config) -> AutoencoderKL:
    """The autoencoder with random weights. No attention in the middle: it costs time and adds no PSNR."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def sample(rng: np.random.Generator, glyphs: tuple[data.Glyph, ...], size: tuple[int, int]) -> data.Picture:
    """One training picture: mostly single glyphs as the UNet will draw them; pairs, styles, odd colours."""
    first, second = (glyphs[i] for i in rng.choice(len(glyphs), 2, replace=False))
    pair = rng.random() < 0.25
    shown = [first, second] if pair else [first]
    common = [b for b in data.BACKGROUNDS if all(b not in data.held_out(g.name) for g in shown)]
    colour = data.BACKGROUNDS[common[rng.integers(len(common))]]
    if rng.random() < 0.1:
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))  # type: ignore[assignment]
    shift = (int(rng.integers(-4, 5)), int(rng.integers(-4, 5)))
    picture = data.compose([g.text for g in shown], colour, size, shift)
    if rng.random() < 0.12:
        picture = data.stylise(picture, data.STYLES[rng.integers(len(data.STYLES))])
    return picture


def batch(rng: np.random.Generator, glyphs: tuple[data.Glyph, ...], units: int, crops: bool) -> Tensor:
    """Pictures (n, 3, h, w) in -1..1 with about ``units`` × 64×64 pixels: crops, or whole pictures."""
    if crops:
        pictures = []
        for _ in range(units):
            whole = sample(rng, glyphs, (128, 128))
            x, y = (int(v) for v in np.clip(rng.normal(32, 14, 2), 0, 64))
            pictures.append(whole[y : y + 64, x : x + 64])
    else:
        size = data.SIZES[rng.choice(len(data.SIZES), p=(0.7, 0.075, 0.075, 0.075, 0.075))]
        pictures = [sample(rng, glyphs, size) for _ in range(max(units // 4, 1))]
    return to_tensor(np.stack(pictures))


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) bytes to (n, 3, h, w) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def validation(glyphs: tuple[data.Glyph, ...], count: int) -> Tensor:
    """Whole pictures of glyphs on backgrounds that training never shows them on."""
    chosen = [glyphs[i * len(glyphs) // count] for i in range(count)]
    pictures = [
        data.compose([g.text], data.BACKGROUNDS[data.held_out(g.name)[0]], (128, 128)) for g in chosen
    ]
    return to_tensor(np.stack(pictures))


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures of the PSNR in dB of decode(mode of encode), values clipped to the range."""
    values = []
    for part in pictures.split(16):
        latents = vae.encode(part).latent_dist.mode()
        error = (vae.decode(latents).sample.clamp(-1, 1) - part).square().mean(dim=(1, 2, 3))
        values.append(10 * torch.log10(4.0 / error))
    return float(torch.cat(values).mean())


def train(config: Config, budget: float | None = None, resume: bool = True) -> Path:
    """Train for ``budget`` seconds and return the checkpoint; picks up a run that was cut off."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    budget = budget or config.vae_budget
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "vae.pt"
    glyphs = data.glyphs(config.glyph_count)
    vae = build(config).to(config.device)
    solvers = optimisers([vae], config.vae_optimiser, config.vae_rate)
    average = Average(vae, 0.999)
    elapsed, step = 0.0, 0
    if resume and path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        for solver, values in zip(solvers, state["solvers"], strict=True):
            solver.load_state_dict(values)
        average.load_state_dict(state["average"])
        elapsed, step = state["elapsed"], state["step"]
    held = validation(glyphs, 64).to(config.device)
    shadow = build(config).to(config.device).eval()
    start, saved, running = time.monotonic() - elapsed, time.monotonic(), 0.0

    def save() -> None:
        state = {
            "vae": vae.state_dict(),
            "solvers": [s.state_dict() for s in solvers],
            "average": average.state_dict(),
            "elapsed": time.monotonic() - start,
            "step": step,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def draw(rng: np.random.Generator) -> Tensor:
        # The clock is the same in every process of the machine, so workers see the progress too.
        late = time.monotonic() - start > 0.6 * budget
        crops = bool(rng.random() < (0.2 if late else 0.6))
        return batch(rng, glyphs, config.vae_batch, crops)

    stream = batches(draw, config.seed + step, config.workers)
    while (elapsed := time.monotonic() - start) < budget:
        progress = elapsed / budget
        for solver in solvers:
            for group in solver.param_groups:
                group["lr"] = learning_rate(progress, config.vae_rate)
        pictures = next(stream).to(config.device)
        with torch.autocast(config.device, torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - pictures
        absolute = max(0.0, 1.0 - progress / 0.6)
        kl = posterior.kl().float().mean()
        loss = error.square().mean() + 0.3 * absolute * error.abs().mean() + KL_WEIGHT * kl
        for solver in solvers:
            solver.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for solver in solvers:
            solver.step()
        average.update(vae)
        step += 1
        running += float(error.detach().square().mean())
        if step % 50 == 0:
            print(f"vae {elapsed:.0f}s step {step} mse {running / 50:.5f}", flush=True)
            running = 0.0
        if time.monotonic() - saved > config.checkpoint_every:
            shadow.load_state_dict(average.values)
            print(
                f"vae {elapsed:.0f}s step {step} held-out PSNR {psnr(shadow, held):.2f} dB",
                flush=True,
            )
            save()
            saved = time.monotonic()
    save()
    shadow.load_state_dict(average.values)
    print(f"vae done step {step} held-out PSNR {psnr(shadow, held):.2f} dB", flush=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--budget", type=float, help="seconds, instead of the preset's")
    arguments = parser.parse_args()
    train(PRESETS[arguments.config], arguments.budget)


if __name__ == "__main__":
    main()
