"""Stable Diffusion XL by diffusers' modules, or by graphs in their place, many requests to a pass.

The arithmetic is `StableDiffusionXLPipeline.__call__`'s, turned inside out: there one call walks one batch
through all its steps; here each row has its own sampler, timestep, guidance scale and generator, and a pass
takes each one evaluation further. Rows meet only inside the UNet, which mixes nothing across its batch
dimension: that is why a picture never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mezzotint.backends.base import BackendInfo, MakeWay, PendingPreview, go_straight_on
from mezzotint.backends.conditioning import Conditioning, guidance_embedding
from mezzotint.backends.controls import ControlNets, EncodedControl, Inputs
from mezzotint.backends.failures import failure, failures_of, not_finite
from mezzotint.backends.image_prompts import ImagePrompts
from mezzotint.backends.loras import AdaptedModule
from mezzotint.backends.painting import Inpainting, begin
from mezzotint.backends.parts import PipelineParts
from mezzotint.backends.passes import Pass, PassQueue
from mezzotint.backends.pictures import PictureCodec
from mezzotint.backends.prompts import PromptEncoder
from mezzotint.backends.sampling import Sampling, SamplingFactory
from mezzotint.backends.streams import streams_of
from mezzotint.backends.transfers import to_device
from mezzotint.backends.tuned import tune_controlnets, tune_unet, tune_vae, with_plain_weights
from mezzotint.core import PIXELS_PER_LATENT, Latents, Pixels, ResolvedRequest, Upscaler
from mezzotint.errors import MezzotintError
from mezzotint.tuning import Tuning

__all__ = ["DiffusersBackend"]


@dataclass(eq=False)
class _Row:
    """One request's state. Latents are 1 × 4 × h × w."""

    request: ResolvedRequest
    sampling: Sampling
    latents: torch.Tensor
    positive: Conditioning
    negative: Conditioning | None
    inpainting: Inpainting | None = None
    controls: tuple[EncodedControl, ...] = ()
    # What the last evaluation saw and predicted, and where; kept only for previews.
    last: tuple[torch.Tensor, torch.Tensor, float] | None = None
    # The latest pass it was in, and what is known so far of all of them.
    in_pass: Pass | None = None
    finite: bool = True

    @property
    def active_controls(self) -> tuple[EncodedControl, ...]:
        """In the next evaluation."""
        return tuple(each for each in self.controls if each.control.holds(*self.sampling.progress))

    def advance(self, noise: torch.Tensor) -> None:
        """Move on by the evaluation that predicted `noise`."""
        latents = self.sampling.advance(noise, self.latents)
        self.latents = latents if self.inpainting is None else self.inpainting.blend(latents, self.sampling)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What stays the same while the same rows share passes.

    conditioning: the negatives of those that are guided, then the positives of all.
    guidance: the scales of the former. places: where they stand among all; `index` has them on the device,
        unless they are all.
    """

    request_ids: tuple[str, ...]
    conditioning: Conditioning
    guidance: torch.Tensor | None
    places: tuple[int, ...]
    index: torch.Tensor | None


class DiffusersBackend:
    """One set of modules, any number of requests. See `mezzotint.backends.base` for what each method owes.

    On a GPU `step` returns while the device is still at its pass (`mezzotint.backends.passes`), and a row
    whose numbers are not finite fails at its next step or at its decoding.
    """

    def __init__(self, parts: PipelineParts, info: BackendInfo, tuning: Tuning | None = None) -> None:
        """
        Raises:
            SettingInvalid: this device or installation cannot do what `tuning` asks.
        """
        tuning = tuning or Tuning()
        if parts.loras:
            tuning = with_plain_weights(tuning)
        device = self._device = parts.unet.device
        self._streams = streams_of(device)
        self._unet = tune_unet(parts.unet, tuning, device, reads_images=bool(parts.ip_adapters))
        self._image_prompts = ImagePrompts(parts.ip_adapters, parts.image_encoder)
        self._adapted = AdaptedModule(parts.unet, {name: lora.unet for name, lora in parts.loras.items()})
        tune_vae(parts.vae, tuning, device)
        self._controlnets = ControlNets(
            tune_controlnets(parts.controlnets, tuning, device), device, parts.unet.dtype
        )
        self._guidance_width: int | None = parts.unet.config.time_cond_proj_dim
        self._channels = int(parts.vae.config.latent_channels)
        self._reads_mask = parts.unet.config.in_channels > self._channels
        self.prompts = PromptEncoder(
            parts.tokenizers,
            parts.text_encoders,
            zeros_without_negative=parts.force_zeros_for_empty_prompt,
            max_windows=parts.max_windows,
            loras=parts.loras,
            embeddings=parts.embeddings,
            knows_tokens_alone=parts.knows_tokens_alone,
        )
        self._info = replace(info, limits=replace(info.limits, prompt_tokens=self.prompts.max_tokens))
        self._pictures = PictureCodec(
            parts.vae, parts.sizes, preview_vae=parts.preview_vae, streams=self._streams
        )
        self._samplings = SamplingFactory(parts.scheduler_config, device)
        self._rows: dict[str, _Row] = {}
        self._batch: _Batch | None = None
        self._passes = PassQueue(self._streams)
        if device.type == "cuda":
            # What lays weights out and copies them is in another queue than the steps that will change them.
            torch.cuda.synchronize(device)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def compute(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        """A bare pass of the UNet as tuned, in the steps' queue and without waiting for it. For measuring."""
        with self._streams.steps():
            result: tuple[torch.Tensor] = self._unet(*args, **kwargs)
            return result

    @property
    def counters(self) -> Mapping[str, int]:
        prompts: PromptEncoder | None = self.prompts
        if prompts is None:
            return {}
        return {"prompt_cache_hits": prompts.hits, "prompt_cache_misses": prompts.misses}

    @torch.inference_mode()
    def start(self, request_id: str, request: ResolvedRequest) -> tuple[str, ...]:
        """Encode prompts and image and draw the noise, from the request's own generator."""
        with failures_of("starting the request"), self._streams.steps():
            generator = torch.Generator("cpu").manual_seed(request.seed)
            sampling = self._samplings.make(
                request.scheduler,
                request.steps,
                request.seed,
                generator,
                skipped=request.steps - request.steps_taken,
            )
            warnings, positive, negative = self._condition(request)
            height, width = (side // PIXELS_PER_LATENT for side in (request.height, request.width))
            empty = positive.hidden.new_empty((1, self._channels, height, width))
            begun = begin(request, sampling, self._pictures, empty, generator, reads_mask=self._reads_mask)
            positive = replace(positive, channels=begun.channels)
            negative = negative and replace(negative, channels=begun.channels)
            controls = self._controlnets.encode(request)
            self._rows[request_id] = _Row(
                request, sampling, begun.latents, positive, negative, begun.inpainting, controls
            )
            return (*warnings, *begun.warnings)

    @torch.inference_mode()
    def step(self, request_ids: Sequence[str]) -> Mapping[str, MezzotintError]:
        rows = [self._rows[request_id] for request_id in request_ids]
        with failures_of("a pass of the UNet"), self._streams.steps():
            self._passes.begin()
            self._adapted.activate(rows[0].request.loras)
            batch = self._batch_of(tuple(request_ids), rows)
            timesteps = [row.sampling.timestep for row in rows]
            scaled = torch.cat([row.sampling.scale(row.latents) for row in rows])
            controls = [row.active_controls for row in rows]
            noise = self._predict(batch, scaled, timesteps, controls)
        try:
            with self._streams.steps():
                failed = self._advance(request_ids, rows, scaled, noise, timesteps)
                finite = torch.isfinite(torch.cat([row.latents for row in rows])).flatten(1).all(1)
                kind = (scaled.shape, batch.conditioning.hidden.shape, _control_rows(rows, controls))
                this = self._passes.end(kind, rows, finite)
        except Exception as error:
            # Rows have moved: the pass cannot be run again, and none of them can go on.
            return dict.fromkeys(request_ids, failure("the end of a pass", error))
        for request_id, row in zip(request_ids, rows, strict=True):
            row.in_pass = this
            if not row.finite and request_id not in failed:
                failed[request_id] = not_finite()
        return failed

    def _advance(
        self,
        request_ids: Sequence[str],
        rows: Sequence[_Row],
        scaled: torch.Tensor,
        noise: torch.Tensor,
        timesteps: Sequence[float],
    ) -> dict[str, MezzotintError]:
        """Move each row on by its own sampler; those that could not be."""
        failed: dict[str, MezzotintError] = {}
        for index, (request_id, row) in enumerate(zip(request_ids, rows, strict=True)):
            row_noise = noise[index : index + 1]
            if row.request.preview_every:
                row.last = (scaled[index : index + 1], row_noise, timesteps[index])
            try:
                row.advance(row_noise)
            except Exception as error:
                failed[request_id] = failure("the sampler's step", error)
        return failed

    @torch.inference_mode()
    def preview(self, request_id: str) -> PendingPreview:
        row = self._rows[request_id]
        with failures_of("the preview"), self._streams.steps():
            if row.last is None:
                return self._pictures.preview(row.latents / row.sampling.initial_sigma)
            return self._pictures.preview(row.sampling.predict_clean(*row.last))

    @torch.inference_mode()
    def decode(self, request_id: str, make_way: MakeWay = go_straight_on) -> Pixels:
        with failures_of("decoding the picture"), self._streams.decodes():
            return self._pictures.decode(self._finished(request_id), make_way)

    @torch.inference_mode()
    def latents(self, request_id: str, size: tuple[int, int], upscaler: Upscaler) -> Latents:
        with failures_of("enlarging the latents"), self._streams.decodes():
            return self._pictures.enlarge(self._finished(request_id), size, upscaler)

    def _finished(self, request_id: str) -> torch.Tensor:
        """The latents of a request that has had its last evaluation, 1 × 4 × h × w."""
        row = self._rows[request_id]
        if row.in_pass is not None:
            # Until then the latents are still being made, in the other stream.
            row.in_pass.look()
        if not row.finite:
            raise not_finite()
        return row.latents

    def release(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        if self._batch is not None and request_id in self._batch.request_ids:
            self._batch = None
            self._controlnets.forget()

    def close(self) -> None:
        """Forget every request and drop the modules. Nothing can be drawn afterwards."""
        if self._device.type == "cuda":
            # What is given back may be handed out again at once, and passes in the queue still read it.
            torch.cuda.synchronize(self._device)
        self._rows.clear()
        self._batch = None
        self._passes.forget()
        self._unet = self._adapted = self._controlnets = None  # type: ignore[assignment]
        self._pictures = self.prompts = self._image_prompts = None  # type: ignore[assignment]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _condition(
        self, request: ResolvedRequest
    ) -> tuple[tuple[str, ...], Conditioning, Conditioning | None]:
        """The receipt's warnings, what the positive evaluation reads, and what the negative one does."""
        prompt = self.prompts.encode(request.prompt, request.loras, emphasis=request.emphasis)
        # The size the picture should look cropped from, the crop's corner, and its size: SDXL's section 2.2.
        sizes = (request.height, request.width, 0, 0, request.height, request.width)
        time_ids = to_device(torch.tensor([sizes], dtype=prompt.hidden.dtype), self._device)
        embedding = None
        if self._guidance_width is not None:
            embedding = guidance_embedding(request.guidance_scale, self._guidance_width)
            embedding = to_device(embedding.to(prompt.hidden.dtype), self._device)
        away, towards = self._image_prompts.encode(request.image_prompts)
        positive = Conditioning(prompt.hidden, prompt.pooled, time_ids, embedding, images=towards)
        # A model that was distilled to know its guidance scale needs no second evaluation for it.
        if not request.guided or self._guidance_width is not None:
            return prompt.warnings("prompt"), positive, None
        negative = self.prompts.encode_negative(
            request.negative_prompt, request.loras, emphasis=request.emphasis
        )
        warnings = (*prompt.warnings("prompt"), *negative.warnings("negative_prompt"))
        return warnings, positive, Conditioning(negative.hidden, negative.pooled, time_ids, None, images=away)

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
            guidance = to_device(torch.tensor(scales, dtype=torch.float32), self._device).view(-1, 1, 1, 1)
            if len(places) < len(rows):
                index = to_device(torch.tensor(places), self._device)
        conditioning = Conditioning.join([*negatives, *positives])
        self._batch = _Batch(request_ids, conditioning, guidance, places, index)
        return self._batch

    def _predict(
        self,
        batch: _Batch,
        scaled: torch.Tensor,
        timesteps: list[float],
        controls: list[tuple[EncodedControl, ...]],
    ) -> torch.Tensor:
        """The UNet's prediction for each row, guidance applied; as many rows as `scaled` has."""
        if batch.guidance is not None:
            twice = scaled if batch.index is None else scaled[batch.index]
            scaled = torch.cat([twice, scaled])
            timesteps = [*(timesteps[place] for place in batch.places), *timesteps]
            controls = [*(controls[place] for place in batch.places), *controls]
        conditioning = batch.conditioning
        inputs = Inputs(
            scaled,
            to_device(torch.tensor(timesteps, dtype=torch.float32), self._device),
            conditioning.hidden,
            conditioning.pooled,
            conditioning.time_ids,
        )
        channels = conditioning.channels
        images = {} if conditioning.images is None else {"images": conditioning.images}
        noise: torch.Tensor = self._unet(
            scaled if channels is None else torch.cat([scaled, channels], dim=1),
            inputs.timesteps,
            encoder_hidden_states=inputs.hidden,
            timestep_cond=conditioning.guidance_embedding,
            added_cond_kwargs={"text_embeds": inputs.pooled, "time_ids": inputs.time_ids},
            **self._controlnets.residuals(controls, inputs),
            **images,
            return_dict=False,
        )[0]
        if batch.guidance is None:
            return noise
        negative, positive = noise.tensor_split([len(batch.guidance)])
        towards = positive if batch.index is None else positive[batch.index]
        guided = (negative + batch.guidance * (towards - negative)).to(noise.dtype)
        return guided if batch.index is None else positive.index_copy(0, batch.index, guided)


def _control_rows(rows: Sequence[_Row], controls: Sequence[tuple[EncodedControl, ...]]) -> int:
    """How many rows of the UNet's batch go through ControlNets, counted once for each of them."""
    return sum(
        len(each) * (1 if row.negative is None else 2) for row, each in zip(rows, controls, strict=True)
    )
