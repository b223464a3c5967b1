"""Stage 5: LoRAs for the finished model. ``python -m training.lora --config cpu [--only NAME] [--budget S]``.

``few-step`` lets LCM draw in four steps without guidance what else takes twenty with it: latent consistency
distillation (Luo et al., 2023, arXiv:2310.04378) into a LoRA (arXiv:2311.05556). ``pencil-sketch`` and
``night`` draw any prompt in their style. Each is one file in the model's folder ``loras``, in PEFT's layout:
``unet.<module>.lora_A.weight`` and ``lora_B.weight``, alpha = rank. The text encoders stay as they are.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mezzotint.models.manifest import files_hash, write_manifest
from training import data, unet
from training.config import MODEL, PRESETS, Config
from training.optim import Trainer, clock_of
from training.stream import batches


@dataclass(frozen=True)
class Kind:
    """What a LoRA is for. ``metadata`` goes into its file; ``style`` is one of ``data.STYLES``."""

    title: str
    metadata: dict[str, str] = field(default_factory=dict)
    style: str | None = None


STEPS = 4
KINDS = {
    "few-step": Kind(
        "Four steps without guidance",
        {
            "mezzotint_steps": str(STEPS),
            "mezzotint_guidance_scale": "1.0",
            "mezzotint_scheduler": "LCM",
        },
    ),
    "pencil-sketch": Kind("Pencil sketch", style="pencil sketch"),
    "night": Kind("Night", style="night"),
}
#: The modules whose weights are changed, by how their paths end: attention, feed-forward, residual blocks.
ADAPTED = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "time_emb_proj"),
)

# -- low-rank changes -------------------------------------------------------------------------------


class LowRank(nn.Module):
    """W + B·A, of which only A and B learn; B begins as zeros, so nothing changes at first.

    ``down`` (A): rank × inputs, of a convolution × the kernel's height × width.
    ``up`` (B): outputs × rank, of a convolution × 1 × 1.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, *inputs = weight.shape
        self.down = nn.Parameter(torch.empty(rank, *inputs, device=weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in inputs[1:]), device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        # The sum is one of full precision: what is small beside W would be lost in half of it.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.up.flatten(1) @ self.down.flatten(1)).view(weight.shape)


class Adapter(nn.Module):
    """All low-rank changes of one UNet, whose own weights are frozen by this."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.paths = [path for path, _ in model.named_modules() if path.endswith(ADAPTED)]
        self.parts = nn.ModuleList()
        for path in self.paths:
            module = model.get_submodule(path)
            part = LowRank(module.get_parameter("weight"), rank)
            parametrize.register_parametrization(module, "weight", part)
            self.parts.append(part)

    def tensors(self) -> dict[str, Tensor]:
        """A and B of every module by their names in a file, in half precision."""
        found = {}
        for path, part in zip(self.paths, self.parts, strict=True):
            for name, weight in (("lora_A", part.down), ("lora_B", part.up)):
                found[f"unet.{path}.{name}.weight"] = weight.detach().half().cpu().contiguous()
        return found


def write(adapter: Adapter, name: str, model: Path) -> Path:
    """The LoRA's file in the ``model``'s folder; it appears when it is complete, then in the manifest."""
    kind = KINDS[name]
    path = model / "loras" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".lora-") as scratch:
        made = Path(scratch) / path.name
        save_file(adapter.tensors(), made, {"format": "pt", "title": kind.title, **kind.metadata})
        made.chmod(0o644)
        made.replace(path)
    write_manifest(model)
    return path


# -- few steps --------------------------------------------------------------------------------------

GUIDANCE = 5.0
#: How many of the grid's 50 places the teacher goes at once. An answer then goes through fewer hands than
#: with 1: outlines were cleaner and backgrounds truer, of four steps and of two, after the same time.
SKIP = 5
#: Errors below this count by their square, others by their size (pseudo-Huber; latents are unit).
HUBER = 0.05


class Consistency:
    """f(x, t): what the latents x of timestep t (n,) are without noise, as diffusers' LCMScheduler has it."""

    def __init__(self, device: str = "cpu") -> None:
        told = unet.build_scheduler().config
        shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        self.scheduler = LCMScheduler(**{name: told[name] for name in shared})
        self.alphas: Tensor = self.scheduler.alphas_cumprod.to(device)
        self.grid = self._timesteps(self.scheduler.config.original_inference_steps).to(device)
        #: Where the few steps are taken, from pure noise down.
        self.visited = self._timesteps(STEPS).to(device)

    def __call__(self, noisy: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """f, from the noise that was predicted; at timestep 0 it is ``noisy`` itself."""
        spread = timesteps[:, None, None, None]
        skip, out = self.scheduler.get_scalings_for_boundary_condition_discrete(spread)
        return out * self.clean(noisy, noise, timesteps) + skip * noisy

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha = self.alphas[timesteps][:, None, None, None]
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def clean(self, noisy: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha = self.alphas[timesteps][:, None, None, None]
        return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()

    def later(self, timesteps: Tensor, places: int = SKIP) -> Tensor:
        """The timesteps so many places of the grid nearer to the picture; 0 beyond its end."""
        at = (self.grid[None] == timesteps[:, None]).int().argmax(dim=1)
        return torch.cat([self.grid, self.grid.new_zeros(places)])[at + places]

    def _timesteps(self, count: int) -> Tensor:
        self.scheduler.set_timesteps(count)
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps


@dataclass(frozen=True)
class Asked:
    """What a batch's rows are to show: hidden states, and what is added to the time's embedding."""

    hidden: Tensor
    added: dict[str, Tensor]

    def noise(self, model: Any, noisy: Tensor, timesteps: Tensor, half: bool = True) -> Tensor:
        """As ``model`` predicts it; in full precision, computed in bfloat16 where ``half``."""
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=half):
            predicted = model(noisy, timesteps, self.hidden, added_cond_kwargs=self.added).sample
        return predicted.float()  # type: ignore[no-any-return]

    def guided_noise(self, model: Any, noisy: Tensor, timesteps: Tensor, half: bool = True) -> Tensor:
        """With guidance; without a prompt, rows are zeros, as the pipeline has them."""
        nothing = torch.zeros_like(self.added["text_embeds"])
        both = Asked(
            torch.cat([torch.zeros_like(self.hidden), self.hidden]),
            {
                "text_embeds": torch.cat([nothing, self.added["text_embeds"]]),
                "time_ids": self.added["time_ids"].repeat(2, 1),
            },
        )
        predicted = both.noise(model, noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), half)
        empty, asked = predicted.chunk(2)
        return empty + GUIDANCE * (asked - empty)


def consistency_losses(
    config: Config, stream: Iterator[unet.Batch], base: Base, student: Any
) -> Iterator[Tensor]:
    """How far what the student makes of a point is from what it makes of where the teacher goes from there.

    Four losses for each batch. Half of the rows walk down the four timesteps as the sampler will, from pure
    noise and by the student's own answers, so that it learns where it will be asked and to mend what it did
    before. The others are training pictures with the noise of any place of the grid, so that other numbers
    of steps work too.
    """
    f = Consistency(config.device)
    for drawn in stream:
        pictures = drawn.latents.to(config.device, memory_format=torch.channels_last)
        half = len(pictures) // 2
        asked = base.asked(drawn, config)
        walking, still = torch.randn_like(pictures[:half]), pictures[half:]
        for place in range(STEPS):
            anywhere = f.grid[torch.randint(len(f.grid), (len(still),))]
            timesteps = torch.cat([f.visited[place].expand(half), anywhere])
            noisy = torch.cat([walking, f.noised(still, torch.randn_like(still), anywhere)])
            with torch.no_grad():
                noise = asked.guided_noise(base.unet, noisy, timesteps, config.bf16_unet)
                later = f.later(timesteps)
                nearer = f.noised(f.clean(noisy, noise, timesteps), noise, later)
                target = f(nearer, asked.noise(student, nearer, later, config.bf16_unet), later)
            answer = f(noisy, asked.noise(student, noisy, timesteps, config.bf16_unet), timesteps)
            yield (((answer - target).square() + HUBER**2).sqrt() - HUBER).mean()
            if place + 1 < STEPS:
                then = f.visited[place + 1].expand(half)
                walking = f.noised(answer[:half].detach(), torch.randn_like(walking), then)


# -- styles -----------------------------------------------------------------------------------------


def plain_examples(config: Config) -> list[unet.Example]:
    """Some of the training set, of all sizes: those that have no style and are framed as usual."""
    usual = [each for each in unet.examples(config) if each.group not in ("style", "frame")]
    chosen = np.random.default_rng(config.seed + 3).permutation(len(usual))[: config.style_pictures]
    return [usual[i] for i in sorted(chosen)]


def style_batches(config: Config, name: str, style: str, base: Base, model: Path) -> unet.Batches:
    """Pictures in the style; their captions say nothing of it, and a sketch's background all the same."""
    every = plain_examples(config)

    def encode() -> unet.Store:
        encoder = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval()
        styled = [replace(each, scene=replace(each.scene, style=style)) for each in every]
        return unet.encode(styled, encoder, unet.texts_of(config), config.device)

    latents = unet.cached(config.out / f"{name}-latents.pt", encode)
    return unet.Batches(config, base.tokens, every, latents)


# -- training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """The finished model that LoRAs are for, with weights in full precision that do not learn."""

    tokens: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection
    unet: UNet2DConditionModel

    @classmethod
    def load(cls, model: Path, device: str) -> Base:
        first = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
        second = CLIPTextModelWithProjection.from_pretrained(
            model / "text_encoder_2", torch_dtype=torch.float32
        )
        denoiser = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
        for each in (first, second, denoiser):
            each.requires_grad_(False).to(device)
        unet.arrange(denoiser, device)
        return cls(CLIPTokenizer.from_pretrained(model / "tokenizer"), first, second, denoiser)

    @torch.no_grad()
    def asked(self, drawn: unet.Batch, config: Config) -> Asked:
        """What the captions say, of all rows: without guidance there is no row without a prompt."""
        worded = replace(drawn, zeros=torch.zeros_like(drawn.zeros))
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16_unet):
            return Asked(*unet.conditioning(self.first, self.second, worded, config.device))


def knowing(config: Config, model: Path) -> Config:
    """The preset for a model that knows all of its list: nothing is new, all is drawn as often.

    Raises: ValueError: the model knows another list.
    """
    listed = json.loads((model / "vocabulary.json").read_text(encoding="utf-8"))["glyphs"]
    if listed != [glyph.name for glyph in data.glyphs(config.glyph_count)]:
        raise ValueError(f"{model} does not know the list of the preset {config.name}: {len(listed)} of it")
    return replace(config, known=len(listed))


def train(config: Config, name: str, model: Path = MODEL, budget: float | None = None) -> Path:
    """Train one LoRA for ``budget`` seconds and return its file; picks up a run that was cut off."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed + 2)
    config = knowing(config, model)
    config.out.mkdir(parents=True, exist_ok=True)
    base, style = Base.load(model, config.device), KINDS[name].style
    student = copy.deepcopy(base.unet)
    adapter = Adapter(student, config.style_rank if style else config.few_step_rank)
    # What was begun for other weights is not gone on with.
    weights = files_hash(model / "unet")[:8]
    checkpoint = config.out / f"{name}-{weights}.pt"
    trainer = Trainer(name, adapter, checkpoint, "adamw", config.lora_rate)
    batch = style_batches(config, name, style, base, model) if style else unet.Batches(config, base.tokens)
    stream = batches(batch.draw, config.seed + 11 + trainer.step, config.workers)
    if style:
        losses = unet.denoising_losses(config, stream, base.first, base.second, student)
    else:
        losses = consistency_losses(config, stream, base, student)
    budget = budget or (config.style_budget if style else config.few_step_budget)
    trainer.run(losses, budget, clock_of(config.device, config.threads), config.checkpoint_every)
    adapter.load_state_dict(trainer.average.values)
    path = write(adapter, name, model)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)
    return path


def train_all(config: Config, model: Path = MODEL) -> list[Path]:
    """All LoRAs, one after another."""
    return [train(config, name, model) for name in KINDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--model", type=Path, default=MODEL, help="the finished model")
    parser.add_argument("--only", choices=KINDS, help="one instead of all")
    parser.add_argument("--budget", type=float, help="seconds for each, instead of the preset's")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else KINDS:
        train(PRESETS[arguments.config], name, arguments.model, arguments.budget)


if __name__ == "__main__":
    main()
