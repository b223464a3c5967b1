"""The objects in a body of OpenAI's surface: a LoRA, a ControlNet, an image prompt, a second
stage. Always JSON, so strict."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mezzotint.core import (
    MAX_CONTROL_SCALE,
    MAX_HIRES_SCALE,
    MAX_LORA_SCALE,
    Control,
    Hires,
    ImagePrompt,
    Preprocessor,
    Upscaler,
)
from mezzotint.imaging.inputs import clip_square
from mezzotint.imaging.uploads import read_upload_text
from mezzotint.serve.api.fields import Fields

__all__ = ["ControlFields", "HiresFields", "ImagePromptFields", "LoraFields"]


class LoraFields(Fields):
    """One of `loras`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(description="as /v1/capabilities tells it")
    scale: float = Field(1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, description="how much of it")


class ControlFields(Fields):
    """One of `controls`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(description="the ControlNet's, as /v1/capabilities tells it")
    image: str = Field(description="base64 or a data: URL; what it reads, at the picture's size")
    preprocessor: Preprocessor = Field("none", description="canny: the image's edges are read in its place")
    scale: float = Field(1.0, ge=0, le=MAX_CONTROL_SCALE, description="how strongly it holds")
    start: float = Field(0.0, ge=0, le=1, description="from which part of the steps on")
    end: float = Field(1.0, ge=0, le=1, description="until which")

    def read(self, param: str) -> Control:
        image = read_upload_text(self.image, param)
        return Control(self.name, image, self.preprocessor, self.scale, self.start, self.end)


class ImagePromptFields(Fields):
    """One of `image_prompts`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(description="the IP-Adapter's, as /v1/capabilities tells it")
    image: str = Field(description="base64 or a data: URL; its middle square is read")
    scale: float = Field(1.0, ge=0, le=MAX_CONTROL_SCALE, description="how much of it")

    def read(self, param: str, side: int) -> ImagePrompt:
        """side: of the square that is read. The rest of each is let go of before the next is decoded."""
        return ImagePrompt(self.name, clip_square(read_upload_text(self.image, param), side), self.scale)


class HiresFields(Fields):
    """`hires`: a second, larger stage."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    scale: float = Field(
        Hires.scale, gt=1, le=MAX_HIRES_SCALE, description="how many times wider and higher than size"
    )
    strength: float | None = Field(None, description="how far from the enlarged picture to go, above 0…1")
    steps: int | None = Field(None, description="of which the last steps × strength are taken")
    upscaler: Upscaler = Field(Hires.upscaler, description="what enlarges the picture, or its latents")
