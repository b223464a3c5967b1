"""Stages 2 and 3: latents, then the UNet with both text encoders.

``python -m training.unet --config cpu`` (needs the VAE's checkpoint).

SDXL in small: cross-attention on the two lower levels over the joined ``hidden_states[-2]`` of two CLIP text
encoders, ``text_time`` conditioning on the pooled projection and six sizes. Noise is predicted, weighted by
min-SNR (Hang et al., 2023, gamma 5), under SDXL's own noise schedule. Latents are cached once.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from training import captions, data, tokenizer, vae
from training.config import MODEL, PRESETS, Config
from training.optim import Trainer, clock_of
from training.stream import batches

#: SDXL's own, so that code written for it meets the same magnitude of latents.
SCALING_FACTOR = 0.13025
MIN_SNR_GAMMA = 5.0
#: Shares of a training run: captions whose embeddings are zeros (the guidance's empty prompt as the
#: pipeline makes it), and captions of nothing but filler (a real negative prompt; an empty string).
ZERO_SHARE, FILLER_SHARE = 0.08, 0.04


# -- models -----------------------------------------------------------------------------------------


def build_tokenizer(config: Config, folder: Path) -> CLIPTokenizer:
    """Write the tokenizer for the preset's vocabulary to ``folder`` and load it."""
    return tokenizer.write(words(config), folder, config.positions)


def words(config: Config) -> tuple[str, ...]:
    """Every word that becomes one token."""
    return captions.vocabulary_words(tuple(g.name for g in data.glyphs(config.glyph_count)))


def build_text(config: Config, tokens: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders with random weights; their joined width is the UNet's cross-attention width."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": config.text_width,
        "intermediate_size": config.text_width * 4,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_width // 32,
        "max_position_embeddings": config.positions,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        "projection_dim": config.text_width,
    }
    first = CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **settings))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", **settings))
    for model in (first, second):
        for name, weight in model.named_parameters():
            # hidden_states[-2] is not normalised: start at a size that attention can work with.
            if "token_embedding" in name:
                torch.nn.init.normal_(weight, std=0.5)
            elif "position_embedding" in name:
                torch.nn.init.normal_(weight, std=0.15)
    return first, second


def build_unet(config: Config) -> UNet2DConditionModel:
    """The UNet with random weights; 16×16 latents, that is 128×128 pixels, are its default size."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        transformer_layers_per_block=1,
        # As in SDXL's configuration, this is the number of heads on each level.
        attention_head_dim=tuple(c // 32 for c in config.unet_channels),
        cross_attention_dim=2 * config.text_width,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + config.text_width,
    )


def begin_with(
    folder: Path, tokens: CLIPTokenizer, first: CLIPTextModel, second: CLIPTextModelWithProjection, unet: Any
) -> None:
    """Take a finished model's weights, where its vocabulary is a beginning of this one.

    A word's embedding is found by the word: longer lists give the same words other numbers.
    """
    old = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    new = tokens.get_vocab()
    both = [(new[token], index) for token, index in old.items() if token in new]
    here, there = (torch.tensor(column) for column in zip(*both, strict=True))
    for name, model in (("text_encoder", first), ("text_encoder_2", second)):
        state = load_file(folder / name / "model.safetensors")
        known = next(key for key in state if key.endswith("token_embedding.weight"))
        embeddings = model.state_dict()[known].clone()
        embeddings[here] = state[known][there].float()
        model.load_state_dict({**state, known: embeddings})
    unet.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler configuration."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=False,
        interpolation_type="linear",
    )


def load_vae(config: Config) -> AutoencoderKL:
    """The trained autoencoder, its latents centred and scaled so that SDXL's factor makes them unit.

    The affine map of each channel is folded into the 1×1 convolutions either side of the latents, which
    changes nothing in what encode-then-decode returns.
    """
    if config.known:
        # From the bare parts: `from_pretrained` would have the export say in which folder this was.
        known = AutoencoderKL.from_config(json.loads((MODEL / "vae/config.json").read_text(encoding="utf-8")))
        known.load_state_dict(load_file(MODEL / "vae/diffusion_pytorch_model.safetensors"))
        return known.eval()
    state = torch.load(config.out / "vae.pt", weights_only=True)
    model = vae.build(config)
    model.load_state_dict(state["average"]["values"])
    # A decoder trained on after the latents were cached replaces only what comes after them.
    finer = config.out / "decoder.pt"
    if finer.exists():
        model.load_state_dict(torch.load(finer, weights_only=True)["decoder"], strict=False)
    model.eval()
    moments = config.out / "moments.pt"
    if moments.exists():
        saved = torch.load(moments, weights_only=True)
        mean, deviation = saved["mean"], saved["deviation"]
    else:
        rng = np.random.default_rng(config.seed)
        glyphs = data.glyphs(config.glyph_count)
        with torch.no_grad():
            pictures = [vae.sample(rng, glyphs, (128, 128)) for _ in range(256)]
            latents = torch.cat(
                [model.encode(p).latent_dist.mode() for p in vae.to_tensor(np.stack(pictures)).split(16)]
            )
        mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        torch.save({"mean": mean, "deviation": deviation}, moments)
    fold(model, mean, deviation * SCALING_FACTOR)
    model.register_to_config(scaling_factor=SCALING_FACTOR)
    return model


@torch.no_grad()
def fold(model: AutoencoderKL, mean: Tensor, scale: Tensor) -> None:
    """Make ``encode`` return (z − mean) / scale and ``decode`` undo it; ``mean``, ``scale``: (4,)."""
    before, after = model.quant_conv, model.post_quant_conv
    if before is None or after is None or before.bias is None or after.bias is None:
        raise ValueError("the autoencoder needs both 1×1 convolutions, with biases")
    before.weight[:4] /= scale[:, None, None, None]
    before.bias[:4] = (before.bias[:4] - mean) / scale
    before.bias[4:] -= 2 * scale.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(dim=1)
    after.weight *= scale[None, :, None, None]


# -- latents ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One training picture as it is cached: what it shows and how it was framed (pixels)."""

    scene: captions.Scene
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    #: The original picture was this many times smaller on each side: 1, 2 or 4.
    coarseness: int = 1

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's six sizes: original height, width, crop top, left, target height, width."""
        width, height = self.size
        coarse = self.coarseness
        return (height // coarse, width // coarse, *self.crop, height, width)

    @property
    def group(self) -> str:
        if self.scene.style:
            return "style"
        if self.scene.place:
            return "scene"
        if self.crop != (0, 0) or self.coarseness > 1:
            return "frame"
        if len(self.scene.names) == 2:
            return "pair"
        return "single" if self.size == data.SIZES[0] else "shaped"

    def draw(self, texts: dict[str, str]) -> data.Picture:
        shift = (self.shift[0] - self.crop[1], self.shift[1] - self.crop[0])
        picture = data.compose(
            [texts[n] for n in self.scene.names],
            self.scene.place or data.BACKGROUNDS[self.scene.background],
            self.size,
            shift,
        )
        if self.scene.style:
            picture = data.stylise(picture, self.scene.style)
        if self.coarseness > 1:
            image = Image.fromarray(picture)
            small = image.resize(
                (image.width // self.coarseness, image.height // self.coarseness),
                Image.Resampling.BOX,
            )
            picture = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
        return picture


#: How often each group of examples is drawn in training.
NEW_WEIGHT = 2.0
GROUP_SHARES = {"single": 0.40, "shaped": 0.11, "pair": 0.35, "style": 0.04, "frame": 0.03, "scene": 0.07}


def examples(config: Config) -> list[Example]:
    """The training set; no glyph ever stands on its held-out backgrounds."""
    rng = np.random.default_rng(config.seed)
    found: list[Example] = []
    names = [g.name for g in data.glyphs(config.glyph_count)]
    square, *others = data.SIZES

    def jitter() -> tuple[int, int]:
        return int(rng.integers(-3, 4)), int(rng.integers(-3, 4))

    def choose(options: tuple[str, ...], count: int) -> list[str]:
        return [options[i] for i in rng.permutation(len(options))[:count]]

    for name in names:
        allowed = data.allowed(name)
        framed = [(square, b) for b in (*allowed, *choose(allowed, 2))]
        framed += [(size, b) for size in others for b in choose(allowed, 3)]
        found += [Example(captions.Scene((name,), b), size, jitter()) for size, b in framed]
        for style in data.STYLES:
            for background, size in zip(choose(allowed, 2), (square, others[0]), strict=True):
                found.append(Example(captions.Scene((name,), background, style), size, jitter()))
        for place, base in data.SCENES.items():
            if base in allowed:
                for size in (square, others[int(rng.integers(len(others)))]):
                    found.append(Example(captions.Scene((name,), base, place=place), size, jitter()))
        for background in choose(allowed, 2):
            crop = (int(rng.integers(0, 5)) * 8, int(rng.integers(1, 5)) * 8)
            found.append(Example(captions.Scene((name,), background), square, jitter(), crop))
        for background, coarseness in zip(choose(allowed, 2), (2, 4), strict=True):
            scene = captions.Scene((name,), background)
            found.append(Example(scene, square, jitter(), coarseness=coarseness))
    for i in range(config.pairs):
        first, second = (names[j] for j in rng.choice(len(names), 2, replace=False))
        allowed = tuple(b for b in data.allowed(first) if b in data.allowed(second))
        size = (square, others[0], square, *others)[i % 7]
        tall = size[1] > size[0]
        scene = captions.Scene((first, second), allowed[rng.integers(len(allowed))], tall=tall)
        found.append(Example(scene, size, jitter()))
    return found


#: Latents (n, 4, h, w) of each size in half precision, and the numbers of the examples that they are of.
Store = dict[str, dict[str, Tensor]]


@torch.inference_mode()
def encode(every: Sequence[Example], encoder: AutoencoderKL, texts: dict[str, str], device: str) -> Store:
    """The pictures of all examples as unit latents, by their size."""
    encoder.to(device)
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, example in enumerate(every):
        by_size[example.size].append(i)
    store: Store = {}
    start = time.monotonic()
    for size, indices in by_size.items():
        parts = []
        for at in range(0, len(indices), 32):
            pictures = np.stack([every[i].draw(texts) for i in indices[at : at + 32]])
            with torch.autocast(device, torch.bfloat16):
                moments = encoder.encode(vae.to_tensor(pictures).to(device))
            parts.append((moments.latent_dist.mode().float() * SCALING_FACTOR).half().cpu())
        store[f"{size[0]}x{size[1]}"] = {
            "latents": torch.cat(parts),
            "indices": torch.tensor(indices),
        }
        print(f"latents {size} {len(indices)} after {time.monotonic() - start:.0f}s", flush=True)
    return store


def cached(path: Path, make: Callable[[], Store]) -> Path:
    """The file with what ``make`` returns; made only where it is not there yet."""
    if not path.exists():
        torch.save(make(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return path


def texts_of(config: Config) -> dict[str, str]:
    """What the font joins into each pictogram, by name."""
    return {g.name: g.text for g in data.glyphs(config.glyph_count)}


def cache_latents(config: Config) -> Path:
    """Encode the training set once: unit latents, half precision, in the order of :func:`examples`."""
    torch.set_num_threads(config.threads)
    return cached(
        config.out / "latents.pt",
        lambda: encode(examples(config), load_vae(config), texts_of(config), config.device),
    )


# -- training ---------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Rows of one shape: latents (n, 4, h, w), time ids (n, 6), token ids (n, positions), zeros (n,)."""

    latents: Tensor
    time_ids: Tensor
    ids: Tensor
    #: True where the text conditioning is replaced by zeros.
    zeros: Tensor


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Batches:
    """Draws batches of one shape, groups in their shares, with captions written anew each time."""

    group_shares: Mapping[str, float] = GROUP_SHARES
    filler_share = FILLER_SHARE

    def __init__(
        self,
        config: Config,
        tokens: CLIPTokenizer,
        every: list[Example] | None = None,
        latents: Path | None = None,
    ) -> None:
        """``every`` and the file of their ``latents`` are the whole training set where none are given."""
        self.config, self.tokens = config, tokens
        self.every = every or examples(config)
        self.words = words(config)
        known = {glyph.name for glyph in data.glyphs(config.known)}
        store: Store = torch.load(latents or cache_latents(config), weights_only=True)
        self.pools: list[tuple[Tensor, list[int], Any]] = []
        counts: dict[str, int] = defaultdict(int)
        for example in self.every:
            counts[example.group] += 1
        shares = []
        for entry in store.values():
            indices = entry["indices"].tolist()
            found = [self.every[i] for i in indices]
            weights = np.array([self.group_shares[each.group] / counts[each.group] for each in found])
            # What a model knows it only has to keep.
            weights *= [1.0 if known.issuperset(each.scene.names) else NEW_WEIGHT for each in found]
            shares.append(weights.sum())
            self.pools.append((entry["latents"], indices, np.cumsum(weights / weights.sum())))
        self.shares = np.array(shares) / sum(shares)

    def filler(self, rng: np.random.Generator) -> str:
        """Nothing that names a picture: an empty string, or loose words."""
        if rng.random() < 0.5:
            return ""
        options = (*captions.ENDINGS, *captions.OPENINGS, *captions.ACTIONS)
        parts = [
            captions.invented(rng, self.words) if rng.random() < 0.5 else options[rng.integers(len(options))]
            for _ in range(int(rng.integers(1, 6)))
        ]
        return ", ".join(parts)

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch: a shape by its share, then rows of that shape by the shares of their groups."""
        return self.captioned(rng, *self.rows(rng))

    def rows(self, rng: np.random.Generator) -> tuple[Tensor, list[Example]]:
        """The latents of a batch, and what they are of."""
        latents, indices, cumulative = self.pools[rng.choice(len(self.pools), p=self.shares)]
        rows = np.minimum(np.searchsorted(cumulative, rng.random(self.config.unet_batch)), len(indices) - 1)
        return latents[torch.from_numpy(rows)].float(), [self.every[indices[r]] for r in rows]

    def captioned(self, rng: np.random.Generator, clean: Tensor, chosen: list[Example]) -> Batch:
        texts, zeros = [], []
        for example in chosen:
            roll = rng.random()
            zeros.append(roll < ZERO_SHARE)
            filler = roll >= 1 - self.filler_share
            texts.append(self.filler(rng) if filler else captions.caption(rng, example.scene, self.words))
        ids = torch.tensor([e.time_ids for e in chosen], dtype=torch.float32)
        return Batch(clean, ids, token_ids(self.tokens, texts), torch.tensor(zeros))


def token_ids(tokens: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Padded and cut to the model's length, as the pipeline does it: (n, positions)."""
    ids: Tensor = tokens(
        texts,
        padding="max_length",
        truncation=True,
        max_length=tokens.model_max_length,
        return_tensors="pt",
    ).input_ids
    return ids


def encode_text(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """SDXL's text conditioning: (n, positions, 2·width) and the pooled projection (n, width)."""
    one = first(ids, output_hidden_states=True).hidden_states[-2]
    two = second(ids, output_hidden_states=True)
    return torch.cat([one, two.hidden_states[-2]], dim=-1), two.text_embeds


def conditioning(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, drawn: Batch, device: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states (n, positions, 2·width), zeros where the batch says so, and what is added in time."""
    hidden, pooled = encode_text(first, second, drawn.ids.to(device))
    keep = (~drawn.zeros).to(device, hidden.dtype)
    added = {"text_embeds": pooled * keep[:, None], "time_ids": drawn.time_ids.to(device)}
    return hidden * keep[:, None, None], added


def denoising_losses(
    config: Config, stream: Iterator[Batch], first: Any, second: Any, unet: Any
) -> Iterator[Tensor]:
    """For each batch the error of the noise that the UNet predicts, weighted by min-SNR."""

    def predict(drawn: Batch, noisy: Tensor, timesteps: Tensor) -> Tensor:
        hidden, added = conditioning(first, second, drawn, config.device)
        predicted: Tensor = unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
        return predicted

    yield from noise_losses(config, stream, predict)


def noise_losses(
    config: Config, stream: Iterator[AnyBatch], predict: Callable[[AnyBatch, Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """The same for whatever predicts it, of a batch, the noisy latents and their timesteps (n,)."""
    alphas = build_scheduler().alphas_cumprod.to(config.device)
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr
    for drawn in stream:
        clean = drawn.latents.to(config.device, memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        # One timestep from each of n equal spans: the same mean as uniform draws, less variance.
        spans = (torch.arange(len(clean)) + torch.rand(len(clean))) / len(clean)
        timesteps = (spans * 1000).long().clamp(max=999).to(config.device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16_unet):
            predicted = predict(drawn, noisy, timesteps)
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        yield (errors * weights[timesteps]).mean()


def arrange(built: UNet2DConditionModel | ControlNetModel, device: str) -> None:
    """Move the UNet, or what is like one, to its device, in the form that is fastest to train there."""
    built.to(device)
    if device == "cpu":
        # On two cores together 0.50 s instead of 0.84 s a step: fused attention is slow backwards when
        # sequences are this short, and convolutions prefer their channels last.
        built.set_attn_processor(AttnProcessor())
        built.to(memory_format=torch.channels_last)


def train(config: Config, budget: float | None = None) -> Path:
    """Train for ``budget`` seconds and return the checkpoint; picks up a run that was cut off."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed + 1)
    path = config.out / "unet.pt"
    tokens = build_tokenizer(config, config.out / "tokenizer")
    first, second = build_text(config, tokens)
    built = build_unet(config)
    model = torch.nn.ModuleDict({"first": first, "second": second, "unet": built})
    if config.known and not path.exists():
        listed = json.loads((MODEL / "vocabulary.json").read_text(encoding="utf-8"))["glyphs"]
        if len(listed) != config.known:
            raise ValueError(
                f"{MODEL} knows {len(listed)} pictograms; {config.name} begins with {config.known}"
            )
        begin_with(MODEL, tokens, first, second, built)
    model.to(config.device)
    arrange(built, config.device)
    if config.device == "cpu":
        # As in `arrange`: 0.71 s a step in place of 0.74 s, with 32 places.
        for text in (first, second):
            text.set_attn_implementation("eager")
    trainer = Trainer("unet", model, path, config.unet_optimiser, config.unet_rate)
    stream = batches(Batches(config, tokens).draw, config.seed + 7 + trainer.step, config.workers)
    unet: Any = torch.compile(built) if config.compile else built
    losses = denoising_losses(config, stream, first, second, unet)
    clock = clock_of(config.device, config.threads)
    trainer.run(losses, budget or config.unet_budget, clock, config.checkpoint_every)
    return path


def load(config: Config) -> tuple[CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel]:
    """The averaged weights of the last checkpoint."""
    tokens = build_tokenizer(config, config.out / "tokenizer")
    first, second = build_text(config, tokens)
    model = torch.nn.ModuleDict({"first": first, "second": second, "unet": build_unet(config)})
    checkpoint = config.out / "unet.pt"
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["average"]["values"])
    copied = copy.deepcopy(model).eval()
    return copied["first"], copied["second"], copied["unet"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--budget", type=float, help="seconds, instead of the preset's")
    arguments = parser.parse_args()
    train(PRESETS[arguments.config], arguments.budget)


if __name__ == "__main__":
    main()
