"""What OpenAI's clients send for a picture, and its translation.

One model of fields for generations, edits and variations: as JSON it is checked strictly (a number in quotes
is no number), as a form leniently, for there everything is text. Jobs take the same fields.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from mezzotint.core import (
    MAX_CONTROLS,
    MAX_LORAS,
    RANDOM_SEED_BITS,
    Control,
    GenerationRequest,
    Hires,
    ImagePrompt,
    Lora,
    ModelLimits,
    Priority,
)
from mezzotint.errors import InvalidRequest, NotSupported
from mezzotint.imaging.size import parse_size
from mezzotint.resolving_added import check_controlnets, check_ip_adapters, limits_with, sides_of
from mezzotint.serve.api.bounds import MAX_IMAGES, seeds_of
from mezzotint.serve.api.fields import Fields
from mezzotint.serve.api.openai_objects import ControlFields, HiresFields, ImagePromptFields, LoraFields
from mezzotint.serve.api.styles import with_styles

__all__ = [
    "ALIASES",
    "NOT_SERVED",
    "SENT_AS",
    "EditFields",
    "GenerationFields",
    "ImageFields",
    "VariationFields",
    "is_alias",
]

ALIASES = ("dall-e-2", "dall-e-3", "gpt-image-1")
"""Models that clients ask for because their authors wrote it down; the served one is drawn. Every few months
OpenAI has others, which are taken for it too."""
ALIAS = re.compile(r"(dall-e|gpt-image|chatgpt-image)-.+")
ANSWER_LINKS = ("dall-e-2", "dall-e-3")
"""Models of OpenAI's that answer links where no response_format says otherwise: what their clients read."""

QUALITIES: Mapping[str, float] = {
    "auto": 1.0,
    "low": 0.5,
    "medium": 1.0,
    "standard": 1.0,
    "high": 1.5,
    "hd": 1.5,
}
"""Each quality as a share of the default steps, the model's or a LoRA's, rounded up."""
# What the answer calls them.
TOLD_AS = {"low": "low", "high": "high", "hd": "high"}

SENT_AS = {"steps": "num_inference_steps", "width": "size", "height": "size", "format": "output_format"}
"""Core's names of the fields that OpenAI's clients know by another."""

NOT_SERVED = (
    "complexity",
    "frame_count",
    "frame_duration_ms",
    "markup",
    "refiner",
    "svg",
)
"""Fields that are known and mean nothing to this model."""
VARIATION_STRENGTH = 0.6


def is_alias(name: str) -> bool:
    """Whether OpenAI has, or had, or may have a model of this name."""
    return ALIAS.fullmatch(name) is not None


def _check_background(value: object) -> object:
    """What OpenAI knows and this does not serve is refused as that, and not offered with the others."""
    if value == "transparent":
        raise NotSupported("background: transparent pictures are not supported", param="background")
    return value


class ImageFields(Fields):
    """The fields that every route shares."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="the served model's name, or an alias of it")
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="pictures; the i-th has the seed `seed + i`")
    size: str | None = Field(None, description="auto, or WIDTHxHEIGHT in pixels")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None, description="a preset of steps"
    )
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="a JPEG's or WebP's quality, a PNG's effort"
    )
    background: Annotated[Literal["auto", "opaque"] | None, BeforeValidator(_check_background)] = Field(
        None, description="transparent is not supported"
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="accepted: what is drawn is for the server to say"
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="words added to the prompt")
    stream: bool | None = Field(None, description="answer with server-sent events")
    partial_images: int | None = Field(None, ge=0, le=3, description="previews while streaming")
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="accepted: how closely a picture is followed, strength says alone"
    )
    user: str | None = Field(None, description="accepted, and neither used nor kept")
    safety_identifier: str | None = Field(None, description="accepted, and neither used nor kept")

    negative_prompt: str | None = None
    num_inference_steps: int | None = Field(None, description="denoising steps, instead of quality")
    guidance_scale: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    strength: float | None = Field(None, description="how far from the image to go, above 0…1")
    style_preset: str | None = Field(None, description="words added to both prompts")
    loras: list[LoraFields] | None = Field(
        None, max_length=MAX_LORAS, description="LoRAs to draw with; they may bring defaults of their own"
    )
    emphasis: bool | None = Field(
        None, description="whether (words:1.2) and [words] weigh words and BREAK parts them, as in A1111"
    )
    hires: HiresFields | None = Field(
        None, description="draw it larger in a second stage, from words alone; {} is 1.5 times the size"
    )
    deadline_s: float | None = None
    priority: Priority | None = None
    deterministic: bool | None = Field(None, description="true is not supported")

    complexity: Any = Field(None, description="not supported")
    frame_count: Any = Field(None, description="not supported")
    frame_duration_ms: Any = Field(None, description="not supported")
    markup: Any = Field(None, description="not supported")
    refiner: Any = Field(None, description="not supported")
    svg: Any = Field(None, description="not supported")

    @property
    def count(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def format(self) -> str:
        return self.output_format or "png"

    @property
    def as_links(self) -> bool:
        """Whether the answer has links, and not the pictures."""
        if self.response_format is not None:
            return self.response_format == "url"
        return self.model in ANSWER_LINKS and not self.stream

    @property
    def told_quality(self) -> str:
        """The quality as the answer names it."""
        if self.num_inference_steps is not None:
            return "auto"
        return TOLD_AS.get(self.quality or "auto", "medium")

    def model_unless_alias(self, *, aliases: bool) -> str | None:
        """The model that is asked for; `None` is the served one. `aliases`: the setting."""
        return None if aliases and is_alias(self.model or "") else self.model

    def to_requests(self, limits: ModelLimits) -> list[GenerationRequest]:
        """One request for each picture. Their seeds are settled here.

        Raises:
            InvalidRequest: a value is not accepted, or two fields contradict each other.
            NotSupported: a field that is not served, and would have changed the picture.
        """
        self._refuse_what_is_not_served()
        self._check_streaming()
        first = self._to_request(limits)
        seed = secrets.randbits(RANDOM_SEED_BITS) if first.seed is None else first.seed
        return [replace(first, seed=each) for each in seeds_of(seed, self.count)]

    def _to_request(self, limits: ModelLimits) -> GenerationRequest:
        loras = tuple(Lora(lora.name, lora.scale) for lora in self.loras or ())
        width, height = (None, None) if self.size in (None, "auto") else parse_size(self.size or "")
        request = GenerationRequest(
            prompt=self._prompt(),
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            steps=self._steps(limits_with(loras, limits)),
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            seed=self.seed,
            deadline_s=self.deadline_s,
            strength=self.strength,
            loras=loras,
            emphasis=bool(self.emphasis),
            hires=None if self.hires is None else Hires(**self.hires.model_dump()),
            priority=self.priority,
        )
        return with_styles(request, self.style, self.style_preset)

    def _prompt(self) -> str:
        return ""

    def read_conditioning(self, limits: ModelLimits) -> tuple[tuple[Control, ...], tuple[ImagePrompt, ...]]:
        """Controls and image prompts, decoded. Computes: not on an event loop.

        Raises:
            MezzotintError: one of them is not accepted; if it is not served, before any is decoded.
        """
        return (), ()

    def forget_pictures(self) -> None:
        """Let go of those that are decoded by now."""

    def _steps(self, limits: ModelLimits) -> int | None:
        share = QUALITIES[self.quality or "auto"]
        if self.num_inference_steps is not None:
            if self.quality not in (None, "auto"):
                raise InvalidRequest("give either quality or num_inference_steps", param="quality")
            return self.num_inference_steps
        return None if share == 1.0 else min(ceil(limits.default_steps * share), limits.max_steps)

    def _refuse_what_is_not_served(self) -> None:
        for name in NOT_SERVED:
            # To say no to what is not served is to ask for nothing; in a form, no is a text.
            if str(getattr(self, name)).lower() not in ("none", "false"):
                raise NotSupported(f"{name} is not supported", param=name)
        if self.deterministic:
            raise NotSupported(
                "deterministic: a picture may differ by 1/255 in a channel with what it was batched with",
                param="deterministic",
            )

    def _check_streaming(self) -> None:
        if self.stream and self.response_format == "url":
            raise InvalidRequest("response_format must be b64_json with stream", param="response_format")
        if self.partial_images and not self.stream:
            raise InvalidRequest("partial_images needs stream", param="partial_images")


class GenerationFields(ImageFields):
    """The body of `POST /v1/images/generations`."""

    prompt: str = Field(description="what to draw")
    controls: list[ControlFields] | None = Field(
        None, max_length=MAX_CONTROLS, description="pictures that ControlNets hold what is drawn to"
    )

    image_prompts: list[ImagePromptFields] | None = Field(
        None, max_length=MAX_CONTROLS, description="pictures that IP-Adapters read beside the prompt"
    )

    def _prompt(self) -> str:
        return self.prompt

    def read_conditioning(self, limits: ModelLimits) -> tuple[tuple[Control, ...], tuple[ImagePrompt, ...]]:
        controls, prompts = self.controls or (), self.image_prompts or ()
        check_controlnets([each.name for each in controls], limits)
        check_ip_adapters([each.name for each in prompts], limits)
        sides = sides_of(limits)
        return (
            tuple(each.read(f"controls[{number}].image") for number, each in enumerate(controls)),
            tuple(
                each.read(f"image_prompts[{number}].image", sides[each.name])
                for number, each in enumerate(prompts)
            ),
        )

    def forget_pictures(self) -> None:
        self.controls = self.image_prompts = None


class EditFields(GenerationFields):
    """The text fields of `POST /v1/images/edits`, whose files are `image` and `mask`."""

    # Not told of: they are there to say where they are taken.
    controls: SkipJsonSchema[Any] = None
    image_prompts: SkipJsonSchema[Any] = None

    def read_conditioning(self, limits: ModelLimits) -> tuple[tuple[Control, ...], tuple[ImagePrompt, ...]]:
        return (), ()

    def _refuse_what_is_not_served(self) -> None:
        super()._refuse_what_is_not_served()
        for name in ("controls", "image_prompts"):
            if getattr(self, name):
                raise NotSupported(
                    f"{name}: their pictures have no place in a form; a job takes image, mask and {name}",
                    param=name,
                )


class VariationFields(ImageFields):
    """The text fields of `POST /v1/images/variations`, whose file is `image`.

    There is no prompt to be guided to, so guidance is off, and the picture is followed from `strength` 0.6.
    """

    # Not told of: they are there to say that they are not for variations.
    style: SkipJsonSchema[Literal["vivid", "natural"] | None] = None
    style_preset: SkipJsonSchema[str | None] = None
    negative_prompt: SkipJsonSchema[str | None] = None
    stream: SkipJsonSchema[bool | None] = None
    partial_images: SkipJsonSchema[int | None] = Field(None, ge=0, le=3)

    def _to_request(self, limits: ModelLimits) -> GenerationRequest:
        for name in ("style", "style_preset", "negative_prompt"):
            if getattr(self, name) is not None:
                raise NotSupported(f"{name} has no meaning without a prompt", param=name)
        if self.stream:
            raise NotSupported("variations are not streamed", param="stream")
        request = super()._to_request(limits)
        return replace(
            request,
            guidance_scale=1.0 if request.guidance_scale is None else request.guidance_scale,
            strength=VARIATION_STRENGTH if request.strength is None else request.strength,
        )
