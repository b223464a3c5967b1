"""What the service offers, as its `/v1/capabilities` tells it, in the terms of a form. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from mezzotint.core import MAX_CONTROL_SCALE, Hires
from mezzotint.ui.drawing import SIZE, Shape
from mezzotint.ui.guides import Guide, Look
from mezzotint.ui.stages import OFF, SCALES, larger, read_choice

__all__ = ["Offer", "OfferedLora", "read_offer"]

# Embeddings that are named; a service may have hundreds.
MAX_WORDS = 20
# Width by height, of pictures with as many pixels as the model's own.
RATIOS = (1.0, 4 / 3, 3 / 2, 16 / 9)
# From here on a shape is called wide or tall.
WIDE = 1.6
# Models of the real size were trained on multiples of 64; small ones take finer steps.
LARGE_SIDE, LARGE_STEP, SMALL_STEP = 512, 64, 32


@dataclass(frozen=True)
class OfferedLora:
    """What is drawn with it unless somebody says otherwise; None is the model's own."""

    name: str
    title: str
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class Offer:
    """sizes: label and `WIDTHxHEIGHT`, the model's own first. max_hires_scale: 0 without second stages.

    controlnets, adapters: their names. readings: what may be read from a guiding picture. embeddings: words
        that prompts may name.
    """

    models: tuple[str, ...]
    loras: tuple[OfferedLora, ...]
    sizes: tuple[tuple[str, str], ...]
    schedulers: tuple[str, ...]
    scheduler: str
    steps: int
    max_steps: int
    guidance: float
    max_guidance: float
    max_images: int
    multiple_of: int
    max_size: int
    max_pixels: int
    min_size: int
    served: tuple[str, ...]
    max_hires_scale: float
    upscalers: tuple[str, ...]
    controlnets: tuple[str, ...]
    readings: tuple[str, ...]
    adapters: tuple[str, ...]
    embeddings: tuple[str, ...]

    def defaults_with(self, chosen: Collection[str]) -> tuple[int, float, str]:
        """Steps, guidance and scheduler that go with these LoRAs."""
        steps, guidance, scheduler = self.steps, self.guidance, self.scheduler
        for lora in self.loras:
            if lora.name in chosen:
                steps = lora.steps or steps
                guidance = guidance if lora.guidance is None else lora.guidance
                scheduler = lora.scheduler or scheduler
        return steps, guidance, scheduler

    @property
    def usual(self) -> dict[str, Any]:
        """What the model is drawn with unless somebody says otherwise, by the form's fields."""
        return {
            "size": self.sizes[0][1] if self.sizes else None,
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "hires": OFF,
            "model": self.models[0],
            "loras": [],
            "guide": OFF,
            "adapter": OFF,
        }

    def takes(self, field: str, value: Any) -> bool:
        """Whether it would be drawn with that. Of fields that it says nothing about: yes."""
        match field:
            case "size":
                return self.accepts(str(value))
            case "steps" | "guidance" | "n":
                low, high = self._bounds(field)
                return isinstance(value, int | float) and low <= value <= high
            case "scheduler":
                return value in self.schedulers
            case "hires":
                return value == OFF or self._takes_stage(read_choice(value))
            case "model":
                return value in self.models
            case "loras":
                served = {lora.name for lora in self.loras}
                return isinstance(value, list) and all(name in served for name in value)
            case "guide":
                return value == OFF or value in self.controlnets
            case "adapter":
                return value == OFF or value in self.adapters
            case _:
                return True

    def _bounds(self, field: str) -> tuple[float, float]:
        most = {"steps": self.max_steps, "guidance": self.max_guidance, "n": self.max_images}
        return (0 if field == "guidance" else 1), most[field]

    def follows(self, guide: Guide) -> bool:
        """Whether a picture would be drawn so; of what a file says, whatever that is."""
        numbers = (guide.scale, guide.start, guide.end)
        return (
            guide.name in self.controlnets
            and guide.preprocessor in self.readings
            and all(isinstance(number, int | float) for number in numbers)
            and 0 <= guide.scale <= MAX_CONTROL_SCALE
            and 0 <= guide.start < guide.end <= 1
        )

    def reads(self, look: Look) -> bool:
        """As `follows`."""
        is_number = isinstance(look.scale, int | float)
        return look.name in self.adapters and is_number and 0 <= look.scale <= MAX_CONTROL_SCALE

    @property
    def words(self) -> str | None:
        """Which embeddings there are, to be read; None where there are none."""
        if not self.embeddings:
            return None
        more = len(self.embeddings) - MAX_WORDS
        named = ", ".join(self.embeddings[:MAX_WORDS]) + (f" and {more} more" if more > 0 else "")
        return f"This service knows as words of their own, here and in the prompt: {named}"

    @property
    def hires_scales(self) -> tuple[float, ...]:
        """How many times larger a second stage is offered: what it draws of none of its sizes is left out."""
        return tuple(
            scale
            for scale in SCALES
            if scale <= self.max_hires_scale
            and any(self.accepts(larger(size, Hires(scale))) for _, size in self.sizes)
        )

    def enlarges(self, size: str, hires: Hires) -> bool:
        """Whether a picture of this size would get that second stage."""
        return self._takes_stage(hires) and self.accepts(larger(size, hires))

    def _takes_stage(self, hires: Hires | None) -> bool:
        # What is not offered at all is not on the page, where somebody could turn it off.
        if hires is None or not self.hires_scales or not 1 < hires.scale <= self.max_hires_scale:
            return False
        if hires.upscaler not in self.upscalers:
            return False
        strength = hires.strength is None or 0 < hires.strength <= 1
        return strength and (hires.steps is None or self.takes("steps", hires.steps))

    def accepts(self, size: str) -> bool:
        """Whether a picture of this size would be drawn."""
        if self.served:
            return size in self.served
        found = SIZE.fullmatch(size)
        if not found:
            return False
        width, height = int(found[1]), int(found[2])
        sides = all(
            self.min_size <= side <= self.max_size and side % self.multiple_of == 0
            for side in (width, height)
        )
        return sides and width * height <= self.max_pixels


def read_offer(told: Mapping[str, Any]) -> Offer:
    """Raises: KeyError, TypeError, ValueError: this is no answer of `/v1/capabilities`."""
    sizes, defaults, limits = told["sizes"], told["defaults"], told["limits"]
    # An older service tells of none.
    features = told.get("features") or {}
    served = tuple(str(size) for size in sizes.get("served") or ())
    return Offer(
        models=tuple(str(model["id"]) for model in told["models"]),
        loras=tuple(_lora(each) for each in told.get("loras") or ()),
        sizes=tuple((_label(size), size) for size in served or _shapes(sizes)),
        schedulers=tuple(str(sampler["name"]) for sampler in told["samplers"]),
        scheduler=str(defaults["scheduler"]),
        steps=int(defaults["steps"]),
        max_steps=int(limits["steps"]),
        guidance=float(defaults["guidance_scale"]),
        max_guidance=float(limits["guidance_scale"]),
        max_images=int(limits["images"]),
        multiple_of=int(sizes["multiple_of"]),
        max_size=int(sizes["max"]),
        max_pixels=int(sizes["max_pixels"]),
        min_size=int(sizes["min"]),
        served=served,
        max_hires_scale=float(limits.get("hires_scale", 0)) if features.get("hires") else 0.0,
        # One that tells none is older than the choice.
        upscalers=tuple(str(name) for name in limits.get("hires_upscalers") or (Hires.upscaler,)),
        controlnets=tuple(str(each["name"]) for each in told.get("controlnets") or ()),
        readings=tuple(str(name) for name in told.get("preprocessors") or ()),
        adapters=tuple(str(each["name"]) for each in told.get("ip_adapters") or ()),
        embeddings=tuple(str(each["name"]) for each in told.get("embeddings") or ()),
    )


def _lora(told: Mapping[str, Any]) -> OfferedLora:
    name, defaults = str(told["name"]), told.get("defaults") or {}
    return OfferedLora(
        name,
        str(told.get("title") or name),
        defaults.get("steps"),
        defaults.get("guidance_scale"),
        defaults.get("scheduler"),
    )


def _shapes(sizes: Mapping[str, Any]) -> list[str]:
    """The usual proportions at the model's own number of pixels, each way round."""
    default = _shape(sizes["default"])
    area = min(default[0] * default[1], int(sizes["max_pixels"]))
    step = max(LARGE_STEP if max(default) >= LARGE_SIDE else SMALL_STEP, int(sizes["multiple_of"]))
    found = {f"{default[0]}x{default[1]}": None}
    for ratio in RATIOS:
        short = round(sqrt(area / ratio) / step) * step
        long = int(area / short) // step * step if short else 0
        if sizes["min"] <= short <= long <= sizes["max"]:
            found |= {f"{long}x{short}": None, f"{short}x{long}": None}
    return list(found)


def _shape(size: str) -> Shape:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _label(size: str) -> str:
    width, height = _shape(size)
    ratio = max(width, height) / min(width, height)
    if ratio == 1:
        name = "Square"
    elif width > height:
        name = "Wide" if ratio >= WIDE else "Landscape"
    else:
        name = "Tall" if ratio >= WIDE else "Portrait"
    return f"{name} {width}×{height}"
