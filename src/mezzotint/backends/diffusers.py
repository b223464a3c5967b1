"""Stable Diffusion XL by diffusers' modules, or by graphs in their place, many requests to a pass.

The arithmetic is `StableDiffusionXLPipeline.__call__`'s, turned inside out: there one call walks one batch
through all its steps; here each row has its own sampler, timestep, guidance scale and generator, and a pass
takes each one evaluation further. Rows meet only inside the UNet, which mixes nothing across its batch
dimension: that is why a picture never depends on its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.painting import Kept, begin
from mezzotint.backends.pictures import PictureCodec
from mezzotint.backends.prompts import PromptEncoder
from mezzotint.backends.sampling import Sampling, SamplingFactory
from mezzotint.core import Pixels, ResolvedRequest
from mezzotint.errors import GenerationFailed, MezzotintError

__all__ = ["DiffusersBackend", "PipelineParts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PipelineParts:
    """The modules of one SDXL model, in evaluation mode on one device, and what configures them.

    A module is diffusers' or transformers' own, or one that is called alike (`mezzotint.backends.neuron`).
    """

    unet: Any
    vae: Any
    tokenizers: tuple[Any, Any]
    text_encoders: tuple[Any, Any]
    scheduler_config: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool
    # The only sizes, width and height in pixels, that VAE and UNet take; `None` where they take any.
    sizes: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, eq=False)
class _Conditioning:
    """What the UNet reads beside latents and timestep; one entry an evaluated row along dimension 0."""

    hidden: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    guidance_embedding: torch.Tensor | None


@dataclass(eq=False)
class _Row:
    """One request's state. Latents are 1 × 4 × h × w."""

    request: ResolvedRequest
    sampling: Sampling
    latents: torch.Tensor
    positive: _Conditioning
    negative: _Conditioning | None
    # What inpainting leaves alone.
    kept: Kept | None = None
    # What the last evaluation saw and predicted, and where; kept only for previews.
    last: tuple[torch.Tensor, torch.Tensor, float] | None = None

    def advance(self, noise: torch.Tensor) -> None:
        """Move on by the evaluation that predicted `noise`."""
        latents = self.sampling.advance(noise, self.latents)
        self.latents = latents if self.kept is None else self.kept.blend(latents, self.sampling)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What stays the same while the same rows share passes.

    conditioning: the negatives of those that are guided, then the positives of all.
    guidance: the scales of the former. places: where they stand among all; `index` has them on the device,
        unless they are all.
    """

    request_ids: tuple[str, ...]
    conditioning: _Conditioning
    guidance: torch.Tensor | None
    places: tuple[int, ...]
    index: torch.Tensor | None


class DiffusersBackend:
    """One set of modules, any number of requests. See `mezzotint.backends.base` for what each method owes."""

    def __init__(self, parts: PipelineParts, info: BackendInfo, *, compile: bool = False) -> None:
        self._unet = parts.unet
        self._device = parts.unet.device
        self._info = info
        self._guidance_width: int | None = parts.unet.config.time_cond_proj_dim
        self._channels = int(parts.unet.config.in_channels)
        self.prompts = PromptEncoder(
            parts.tokenizers,
            parts.text_encoders,
            zeros_without_negative=parts.force_zeros_for_empty_prompt,
        )
        self._pictures = PictureCodec(parts.vae, parts.sizes)
        self._scale_factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self._samplings = SamplingFactory(parts.scheduler_config)
        self._rows: dict[str, _Row] = {}
        self._batch: _Batch | None = None
        # Decoding overlaps with the loop's passes only on a stream of its own.
        self._decode_stream = _new_stream(self._device)
        if compile:
            _compile(self._unet)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def counters(self) -> Mapping[str, int]:
        prompts: PromptEncoder | None = self.prompts
        if prompts is None:
            return {}
        return {"prompt_cache_hits": prompts.hits, "prompt_cache_misses": prompts.misses}

    @torch.inference_mode()
    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        """Encode prompts and image and draw the noise, from the request's own generator."""
        with _failures_of("starting the request"):
            generator = torch.Generator("cpu").manual_seed(request.seed)
            sampling = self._samplings.make(
                request.scheduler,
                request.steps,
                request.seed,
                generator,
                skipped=request.steps - request.steps_taken,
            )
            warnings, positive, negative = self._condition(request)
            height, width = (side // self._scale_factor for side in (request.height, request.width))
            empty = positive.hidden.new_empty((1, self._channels, height, width))
            latents, kept = begin(request, sampling, self._pictures, empty, generator)
            self._rows[request_id] = _Row(request, sampling, latents, positive, negative, kept)
            return warnings if kept is None else (*warnings, *kept.warnings)

    @torch.inference_mode()
    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        rows = [self._rows[request_id] for request_id in request_ids]
        with _failures_of("a pass of the UNet"):
            batch = self._batch_of(tuple(request_ids), rows)
            timesteps = [row.sampling.timestep for row in rows]
            scaled = torch.cat([row.sampling.scale(row.latents) for row in rows])
            noise = self._predict(batch, scaled, timesteps)
        failed: dict[str, MezzotintError] = {}
        for index, (request_id, row) in enumerate(zip(request_ids, rows, strict=True)):
            row_noise = noise[index : index + 1]
            if row.request.preview_every:
                row.last = (scaled[index : index + 1], row_noise, timesteps[index])
            try:
                row.advance(row_noise)
            except Exception as error:
                failed[request_id] = _failure("the sampler's step", error)
        finite = torch.isfinite(torch.cat([row.latents for row in rows])).flatten(1).all(1).tolist()
        for request_id, is_finite in zip(request_ids, finite, strict=True):
            if not is_finite and request_id not in failed:
                failed[request_id] = GenerationFailed(
                    "the model's prediction for this picture was not a finite number"
                )
        return failed

    @torch.inference_mode()
    def preview(self, request_id: str) -> Pixels:
        row = self._rows[request_id]
        with _failures_of("the preview"):
            if row.last is None:
                return self._pictures.preview(row.latents / row.sampling.initial_sigma)
            return self._pictures.preview(row.sampling.predict_clean(*row.last))

    @torch.inference_mode()
    def decode(self, request_id: str) -> Pixels:
        # `step` waits for its result, so these latents are whole whichever stream reads them.
        latents = self._rows[request_id].latents
        with _failures_of("decoding the picture"):
            if self._decode_stream is None:
                return self._pictures.decode(latents)
            with torch.cuda.stream(self._decode_stream):
                return self._pictures.decode(latents)

    def release(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        if self._batch is not None and request_id in self._batch.request_ids:
            self._batch = None

    def close(self) -> None:
        """Forget every request and drop the modules. Nothing can be drawn afterwards."""
        self._rows.clear()
        self._batch = None
        self._unet = self._pictures = self.prompts = None  # type: ignore[assignment]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _condition(
        self, request: ResolvedRequest
    ) -> tuple[tuple[str, ...], _Conditioning, _Conditioning | None]:
        """The receipt's warnings, what the positive evaluation reads, and what the negative one does."""
        prompt = self.prompts.encode(request.prompt)
        # The size the picture should look cropped from, the crop's corner, and its size: SDXL's section 2.2.
        sizes = (request.height, request.width, 0, 0, request.height, request.width)
        time_ids = torch.tensor([sizes], dtype=prompt.hidden.dtype, device=self._device)
        embedding = None
        if self._guidance_width is not None:
            embedding = guidance_embedding(request.guidance_scale, self._guidance_width)
            embedding = embedding.to(self._device, prompt.hidden.dtype)
        positive = _Conditioning(prompt.hidden, prompt.pooled, time_ids, embedding)
        # A model that was distilled to know its guidance scale needs no second evaluation for it.
        if not request.guided or self._guidance_width is not None:
            return prompt.warning("prompt"), positive, None
        negative = self.prompts.encode_negative(request.negative_prompt)
        warnings = (*prompt.warning("prompt"), *negative.warning("negative_prompt"))
        return warnings, positive, _Conditioning(negative.hidden, negative.pooled, time_ids, None)

    def _batch_of(self, request_ids: tuple[str, ...], rows: Sequence[_Row]) -> _Batch:
        """The rows' conditioning side by side, kept until another set of rows comes."""
        if self._batch is not None and self._batch.request_ids == request_ids:
            return self._batch
        positives = [row.positive for row in rows]
        negatives = [row.negative for row in rows if row.negative is not None]
        guidance = index = None
        places = tuple(place for place, row in enumerate(rows) if row.negative is not None)
        if negatives:
            scales = [rows[place].request.guidance_scale for place in places]
            guidance = torch.tensor(scales, dtype=torch.float32, device=self._device).view(-1, 1, 1, 1)
            if len(places) < len(rows):
                index = torch.tensor(places, device=self._device)
        self._batch = _Batch(request_ids, _join([*negatives, *positives]), guidance, places, index)
        return self._batch

    def _predict(self, batch: _Batch, scaled: torch.Tensor, timesteps: list[float]) -> torch.Tensor:
        """The UNet's prediction for each row, guidance applied; as many rows as `scaled` has."""
        if batch.guidance is not None:
            twice = scaled if batch.index is None else scaled[batch.index]
            scaled = torch.cat([twice, scaled])
            timesteps = [*(timesteps[place] for place in batch.places), *timesteps]
        conditioning = batch.conditioning
        noise: torch.Tensor = self._unet(
            scaled,
            torch.tensor(timesteps, dtype=torch.float32, device=self._device),
            encoder_hidden_states=conditioning.hidden,
            timestep_cond=conditioning.guidance_embedding,
            added_cond_kwargs={"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids},
            return_dict=False,
        )[0]
        if batch.guidance is None:
            return noise
        negative, positive = noise.tensor_split([len(batch.guidance)])
        towards = positive if batch.index is None else positive[batch.index]
        guided = (negative + batch.guidance * (towards - negative)).to(noise.dtype)
        return guided if batch.index is None else positive.index_copy(0, batch.index, guided)


def guidance_embedding(guidance_scale: float, width: int) -> torch.Tensor:
    """The guidance scale as a distilled model reads it, 1 × `width` (an even number).

    Sines and cosines of (scale - 1) · 1000, as in `StableDiffusionXLPipeline.get_guidance_scale_embedding`.
    """
    half = width // 2
    decay = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -decay)
    angles = torch.tensor([guidance_scale - 1]) * 1000.0 * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)]).unsqueeze(0)


def _join(parts: Sequence[_Conditioning]) -> _Conditioning:
    embeddings = [part.guidance_embedding for part in parts if part.guidance_embedding is not None]
    return _Conditioning(
        torch.cat([part.hidden for part in parts]),
        torch.cat([part.pooled for part in parts]),
        torch.cat([part.time_ids for part in parts]),
        torch.cat(embeddings) if embeddings else None,
    )


def _new_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _compile(unet: Any) -> None:
    # The repeated transformer blocks are most of the work; compiling one serves them all.
    if getattr(unet, "_repeated_blocks", None):
        unet.compile_repeated_blocks(fullgraph=True)
    else:
        unet.compile()


@contextmanager
def _failures_of(what: str) -> Iterator[None]:
    """Turn whatever torch raises into this project's error, and tell the log the whole of it."""
    try:
        yield
    except MezzotintError:
        raise
    except Exception as error:
        raise _failure(what, error) from error


def _failure(what: str, error: Exception) -> GenerationFailed:
    logger.error("%s failed", what, exc_info=error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _tells_of_memory(str(error)):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return GenerationFailed(f"{what} ran out of memory; try a smaller size")
    return GenerationFailed(f"{what} failed ({type(error).__name__})")


def _tells_of_memory(message: str) -> bool:
    # torch's CPU allocator and Neuron's runtime report by message alone.
    return any(words in message for words in ("not enough memory", "Allocation Failure", "NRT_RESOURCE"))
