"""What A1111's clients send, and its translation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as PilImage
from PIL import ImageFilter
from pydantic import ConfigDict, Field

from mezzotint.core import MAX_PROMPT_CHARACTERS, UPSCALERS, GenerationRequest, Hires, Lora, Mask, Pixels
from mezzotint.errors import InvalidRequest, MezzotintError, NotSupported
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.samplers import SAMPLERS, find_sampler
from mezzotint.serve.api.a1111_fields import Blur, Count, Real, Seed, Whole, check_neutral
from mezzotint.serve.api.bounds import MAX_IMAGES
from mezzotint.serve.api.fields import Fields

__all__ = ["NO_UPSCALER", "SENT_AS", "Img2Img", "Txt2Img", "loras_of", "sampler_of"]

SENT_AS: Mapping[str, str] = {
    "controls": "alwayson_scripts",
    "controls.image": "alwayson_scripts",
    "controls.start": "alwayson_scripts.controlnet.guidance_start",
    "image_prompts": "alwayson_scripts",
    "image_prompts.image": "alwayson_scripts",
    "guidance_scale": "cfg_scale",
    "hires": "enable_hr",
    "hires.scale": "hr_scale",
    "hires.steps": "hr_second_pass_steps",
    "hires.strength": "denoising_strength",
    "image": "init_images",
    "loras": "prompt",
    "scheduler": "sampler_name",
    # Of too many pixels.
    "size": "width",
    "strength": "denoising_strength",
}
"""Core's names of the fields that A1111's clients know by another."""

# To A1111 no network: what is left is Lanczos' filter.
NO_UPSCALER = "None"
# Says nothing without what it is of: a second, larger stage, and a mask.
OF_HIRES = ("hr_", "firstphase_")
OF_A_MASK = ("inpaint", "mask_")
# With LoRAs, which are taken out of it; to look for them takes time that grows with the text.
MAX_TAGGED_CHARACTERS = 2 * MAX_PROMPT_CHARACTERS
# A1111's "extra networks" in a prompt; of a LoRA, its name and how much of it.
EXTRA_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)
LORA = re.compile(r"([^:]+)(?::([^:=]*))?")
MASK_BLUR = 4
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


class Txt2Img(Fields):
    """`POST /sdapi/v1/txt2img`. What is left out is the model's default, not A1111's."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(
        description="what to draw, with weights as (words:1.2) and LoRAs as <lora:name:scale>"
    )
    negative_prompt: str | None = Field(None, description="what to steer away from; empty means none")
    seed: Seed | None = Field(None, description="-1 draws one; picture i has seed + i")
    steps: Whole | None = None
    cfg_scale: Real | None = None
    width: Whole | None = None
    height: Whole | None = None
    sampler_name: str | None = Field(None, description="a name of /sdapi/v1/samplers")
    sampler_index: str | None = Field(None, description="the sampler's name, where sampler_name is left out")
    scheduler: str | None = Field(None, description="a name or label of /sdapi/v1/schedulers")
    batch_size: Count | None = None
    n_iter: Count | None = None
    enable_hr: bool | None = Field(None, description="draw it larger in a second stage")
    hr_scale: Real | None = Field(None, description="how many times larger")
    hr_second_pass_steps: Whole | None = Field(
        None, description="of which the last steps × denoising_strength are taken; 0 is those of the first"
    )
    hr_upscaler: str | None = Field(
        None, description="a name of /sdapi/v1/upscalers or latent-upscale-modes; Lanczos when left out"
    )
    denoising_strength: Real | None = Field(None, description="of the second stage")
    alwayson_scripts: dict[str, Any] | None = Field(
        None, description='{"controlnet": {"args": [units]}}; other scripts are not served'
    )
    send_images: bool = True
    override_settings: dict[str, Any] | None = None

    @property
    def images(self) -> int:
        """How many pictures."""
        return (self.batch_size or 1) * (self.n_iter or 1)

    @property
    def format(self) -> str:
        """The files' format: A1111's setting `samples_format`."""
        name = (self.override_settings or {}).get("samples_format")
        name = "png" if name is None else name
        if not isinstance(name, str) or name.lower() not in FORMATS:
            accepted = ", ".join(CONTENT_TYPES)
            raise InvalidRequest(f"samples_format must be one of {accepted}", param="samples_format")
        return FORMATS[name.lower()]

    @property
    def model(self) -> str | None:
        """The model asked for, if any: A1111's setting `sd_model_checkpoint`."""
        name = (self.override_settings or {}).get("sd_model_checkpoint")
        if name is not None and not isinstance(name, str):
            raise InvalidRequest("sd_model_checkpoint must be a model's name", param="sd_model_checkpoint")
        return name or None

    @property
    def preview_every(self) -> int:
        """Steps between previews: A1111's setting `show_progress_every_n_steps`; none unless it is given."""
        every = (self.override_settings or {}).get("show_progress_every_n_steps") or 0
        if isinstance(every, bool) or not isinstance(every, int) or not -1 <= every <= 1000:
            raise InvalidRequest(
                "show_progress_every_n_steps must be a whole number to 1000", param="override_settings"
            )
        return max(every, 0)

    @property
    def emphasis(self) -> bool:
        """Whether brackets weigh words: A1111's setting `emphasis`."""
        kind = (self.override_settings or {}).get("emphasis") or "No norm"
        if kind not in ("No norm", "None"):
            raise NotSupported('of emphasis only "No norm" and "None" are served', param="emphasis")
        return bool(kind == "No norm")

    def _not_served(self) -> dict[str, Any]:
        """What was sent besides, but for what is said of what there is not."""
        of_nothing = (*(() if self.enable_hr else OF_HIRES), *(() if self._has_mask() else OF_A_MASK))
        others = self.model_extra or {}
        return {name: value for name, value in others.items() if not name.startswith(of_nothing)}

    def _has_mask(self) -> bool:
        return False

    def _hires(self) -> Hires | None:
        """The second stage. A1111's fields of it may say again what is of the first."""
        if not self.enable_hr:
            return None
        upscaler = Hires.upscaler if self.hr_upscaler in (None, NO_UPSCALER) else self.hr_upscaler
        if upscaler not in UPSCALERS:
            served = ", ".join((NO_UPSCALER, *UPSCALERS))
            raise NotSupported(f"of hr_upscaler only {served} are served", param="hr_upscaler")
        scale = Hires.scale if self.hr_scale is None else self.hr_scale
        return Hires(scale, self.denoising_strength, self.hr_second_pass_steps or None, upscaler)

    def to_request(self) -> GenerationRequest:
        """The first of the pictures.

        Raises:
            MezzotintError: a field is not accepted, or not served.
        """
        check_neutral(self._not_served(), self._said_again())
        known = ("sd_model_checkpoint", "samples_format", "show_progress_every_n_steps", "emphasis")
        settings = self.override_settings or {}
        others = {name: value for name, value in settings.items() if name not in known}
        check_neutral(others, place="override_settings.")
        if len(self.prompt) > MAX_TAGGED_CHARACTERS:
            raise InvalidRequest(
                f"prompt has {len(self.prompt):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are accepted",
                param="prompt",
            )
        prompt, loras = loras_of(self.prompt)
        if self.images > MAX_IMAGES:
            raise InvalidRequest(
                f"batch_size times n_iter must be at most {MAX_IMAGES}, not {self.images}", param="batch_size"
            )
        return GenerationRequest(
            prompt=prompt,
            loras=loras,
            emphasis=self.emphasis,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.cfg_scale,
            scheduler=self._sampler(),
            seed=None if self.seed == -1 else self.seed,
            hires=self._hires(),
        )

    def _sampler(self) -> str | None:
        field = "sampler_name" if self.sampler_name or not self.sampler_index else "sampler_index"
        return sampler_of(getattr(self, field), self.scheduler, field)

    def forget_pictures(self) -> None:
        """Let go of those that are decoded by now, and that the answer does not repeat."""
        self.alwayson_scripts = None

    def _said_again(self) -> Mapping[str, object]:
        """Fields that are others again, with what those say: the second stage's, and clients' own."""
        sampler = self.sampler_name or self.sampler_index
        lora = (self.model_extra or {}).get("lora")
        return {
            "hr_cfg": self.cfg_scale,
            "hr_negative_prompt": self.negative_prompt,
            "hr_prompt": self.prompt,
            "hr_sampler_name": sampler,
            "hr_scheduler": self.scheduler,
            # AI Render's.
            "sampler": sampler,
            # Dify's: what it puts into the settings, and before the prompt.
            "model": self.model,
            "lora": lora if isinstance(lora, str) and self.prompt.startswith(lora) else None,
        }


class Img2Img(Txt2Img):
    """`POST /sdapi/v1/img2img`, with a mask: inpainting."""

    init_images: list[str] = Field(min_length=1, description="one base64 file or data: URL")
    mask: str | None = Field(None, description="base64 file or data: URL; white is redrawn")
    denoising_strength: Real = 0.75
    mask_blur: Blur | None = Field(None, description="pixels, whatever the two of a side say")
    mask_blur_x: Blur | None = Field(None, description="pixels; 4 when left out")
    mask_blur_y: Blur | None = Field(None, description="pixels; 4 when left out")
    # A1111's own tests say true and false.
    inpainting_mask_invert: int | None = Field(None, ge=0, le=1, description="1 redraws the black")
    include_init_images: bool = False

    def _has_mask(self) -> bool:
        return bool(self.mask)

    def forget_pictures(self) -> None:
        super().forget_pictures()
        (self.model_extra or {}).pop("expanded_mask", None)
        if not self.include_init_images:
            self.init_images, self.mask = [], None

    def with_pictures(
        self, request: GenerationRequest, image: Pixels, mask: Mask | None
    ) -> GenerationRequest:
        """The request with its pictures, the mask prepared as A1111 does. Computes: not on an event loop."""
        mask = None if mask is None else self._prepared(mask)
        return replace(request, image=image, mask=mask, strength=self.denoising_strength)

    def _prepared(self, mask: Mask) -> Mask:
        inverted = 255 - mask if self.inpainting_mask_invert else mask
        # As in A1111, whose own defaults of the two sides clients send beside the one for both.
        sides = (self.mask_blur_x, self.mask_blur_y) if self.mask_blur is None else (self.mask_blur,) * 2
        radius = tuple(MASK_BLUR if side is None else side for side in sides)
        # The latents' mask is hard, so blurring it first rounds its outline: as in A1111 with mask_round.
        return np.asarray(PilImage.fromarray(inverted).filter(ImageFilter.GaussianBlur(radius)))


def loras_of(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """The prompt without its `<lora:name:scale>`, and those.

    Raises:
        NotSupported: it names another kind of network, or a scale for each part of the model.
        InvalidRequest: a scale is no number.
    """
    loras = []
    for kind, told in EXTRA_NETWORK.findall(prompt):
        found = LORA.fullmatch(told)
        if kind.lower() == "hypernet" or found is None:
            raise NotSupported(f"prompt: of <{kind}:{told}> only <lora:name:scale> is served", param="prompt")
        try:
            loras.append(Lora(found[1], 1.0 if found[2] is None else float(found[2])))
        except ValueError:
            raise InvalidRequest(
                f"prompt: <{kind}:{told}> has a scale that is no number", param="prompt"
            ) from None
    return (EXTRA_NETWORK.sub("", prompt).strip() if loras else prompt), tuple(loras)


def sampler_of(name: str | None, scheduler: str | None, field: str) -> str | None:
    """One of our samplers from A1111's two fields: "DPM++ 2M" and "Karras" are "DPM++ 2M Karras".

    field: which says the name.

    Raises:
        InvalidRequest: there is none of that name, or not with that schedule.
    """
    schedule = (scheduler or "automatic").strip().casefold()
    if name is None or not name.strip():
        if schedule == "automatic":
            return None
        raise InvalidRequest("scheduler needs a sampler_name beside it", param="scheduler")
    sampler = _named(name, field)
    if schedule == "automatic" or (schedule == "karras" and sampler.endswith(" Karras")):
        return sampler
    combined = f"{sampler} {schedule}".casefold()
    for each in SAMPLERS:
        if each.name.casefold() == combined:
            return each.name
    raise InvalidRequest(
        f"{sampler} has no scheduler {scheduler!r} here; Automatic is, and Karras with the DPM++ ones",
        param="scheduler",
    )


def _named(name: str, field: str) -> str:
    try:
        return find_sampler(name).name
    except MezzotintError:
        accepted = ", ".join(each.name for each in SAMPLERS)
        raise InvalidRequest(f"unknown {field} {name!r}; accepted are {accepted}", param=field) from None
