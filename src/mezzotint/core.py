"""The nouns. Everything else in Mezzotint passes these around.

A `GenerationRequest` is what a caller asks for: one picture, with anything left out meaning "the model's
default". `resolve` checks it against a `ModelLimits` and fills the defaults in, giving a `ResolvedRequest`,
from which the picture follows to the byte. The engine answers with `Event`s, the last of which is `Done`,
`Failed` or `Cancelled`; `Done` holds an `Image`, whose `Receipt` says how to draw it again.

Every noun is frozen. This module needs nothing of Mezzotint but the errors and the table of samplers;
`Image.encode` and `save` reach for `imaging` when they are called.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.samplers import find_sampler

_T = TypeVar("_T")

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "PRIORITIES",
    "Cancelled",
    "Done",
    "Event",
    "Failed",
    "GenerationRequest",
    "Image",
    "Lora",
    "Mask",
    "ModelLimits",
    "Pixels",
    "Priority",
    "Progress",
    "Queued",
    "Receipt",
    "ResolvedRequest",
    "ServedLora",
    "UsedLora",
    "limits_with",
    "resolve",
]

Pixels = NDArray[np.uint8]
"""Height × width × 3, RGB, 0…255."""
Mask = NDArray[np.uint8]
"""Height × width, 0…255; above 127 is what to redraw."""
Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

MAX_PROMPT_CHARACTERS = 10_000
MAX_SEED = 2**63 - 1
MAX_DEADLINE_SECONDS = 86_400
# A random seed is short enough to read out and type in again.
RANDOM_SEED_BITS = 32
# The defaults of diffusers' StableDiffusionXLImg2ImgPipeline and StableDiffusionXLInpaintPipeline.
DEFAULT_STRENGTH = 0.3
DEFAULT_INPAINTING_STRENGTH = 0.9999
MAX_LORAS = 8
MAX_LORA_SCALE = 4.0


@dataclass(frozen=True, order=True)
class Lora:
    """A LoRA that a picture is drawn with, by the name it is served under.

    scale: how much of it, -4…4; at 1 it is as it was trained, at 0 as if it were not there.
    """

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """One picture, asked for. `None` means the model's default (a random number for `seed`).

    prompt: what to draw, 1…10,000 characters, or none with an image; what exceeds the text encoders'
        window is cut and named in the receipt's warnings.
    negative_prompt: what to steer away from; takes effect only with guidance_scale > 1. `None` uses the
        model's unconditional embedding, as diffusers does; the empty string is encoded like any text.
    width, height: pixels, multiples of 8, within the model's limits.
    steps: denoising steps, 1…the model's maximum.
    guidance_scale: classifier-free guidance, 0…50; at most 1 turns it off and halves the work.
    scheduler: a name of `mezzotint.samplers.SAMPLERS`.
    seed: 0…2^63 - 1. The same resolved request on the same backend gives the same bytes.
    deadline_s: seconds from submission, at most a day, after which the request fails instead of going on;
        a picture that is being decoded by then is finished.
    preview_every: a preview image with every n-th progress event; 0 means none.
    image: image-to-image starts from this picture instead of from noise. It is resized to width × height;
        without either, the picture has the image's own size, or the nearest that the model draws.
    mask: inpainting redraws where this is above 127 and keeps the rest; needs `image`, of its size.
    strength: how far from `image` to go, above 0…1: of the steps, the last ⌊steps × strength⌋ are taken.
        The default is diffusers', 0.3 and with a mask 0.9999, or what takes one step if that takes none.
    loras: each a name of the model's limits, at most 8.
    tenant: whose share of the engine the request uses; the shares of tenants are fair among each other.
    priority: low, normal or high: a quarter, one or four times the share, and the order within a tenant.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    deadline_s: float | None = None
    preview_every: int = 0
    image: Pixels | None = field(default=None, compare=False, repr=False)
    mask: Mask | None = field(default=None, compare=False, repr=False)
    strength: float | None = None
    loras: tuple[Lora, ...] = ()
    tenant: str = ""
    priority: Priority = "normal"


@dataclass(frozen=True)
class ServedLora:
    """A LoRA that requests may name. sha256: of its file.

    steps, guidance_scale, scheduler: what its makers draw with it; the model's own where that is None.
    """

    name: str
    title: str
    sha256: str
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class ModelLimits:
    """What a loaded model draws by default and at most. Sizes in pixels.

    served: the only sizes (width, height) there are, of a backend whose shapes are compiled ahead; `None`
        where any size within the other limits is drawn.
    """

    default_width: int
    default_height: int
    default_steps: int
    default_guidance_scale: float
    default_scheduler: str
    min_size: int
    max_size: int
    max_pixels: int
    max_steps: int = 150
    max_guidance_scale: float = 50.0
    served: tuple[tuple[int, int], ...] | None = None
    loras: tuple[ServedLora, ...] = ()


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with nothing left open: valid for its model, and enough to draw the picture again.

    `image` and `mask` are width × height; `mask` holds 0 and 255 alone. `loras` are by name, without those
    that change nothing.
    """

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    deadline_s: float | None = None
    preview_every: int = 0
    image: Pixels | None = field(default=None, compare=False, repr=False)
    mask: Mask | None = field(default=None, compare=False, repr=False)
    strength: float | None = None
    loras: tuple[Lora, ...] = ()
    tenant: str = ""
    priority: Priority = "normal"

    @property
    def guided(self) -> bool:
        """Whether each step evaluates the unconditional row too (diffusers' rule)."""
        return self.guidance_scale > 1.0

    @property
    def steps_taken(self) -> int:
        """The denoising steps that are really taken: of image-to-image, the last ones alone."""
        # Written as diffusers does: another product may round to another number of steps.
        return self.steps if self.strength is None else int(self.steps * self.strength)

    @property
    def evaluations(self) -> int:
        """UNet evaluations until the latents are final; a guided evaluation counts once."""
        return find_sampler(self.scheduler).evaluations(self.steps, self.steps_taken)


@dataclass(frozen=True)
class UsedLora(Lora):
    """As a receipt tells it."""

    sha256: str = ""


@dataclass(frozen=True)
class Receipt:
    """How to draw an image again: the resolved request, and with what it was drawn.

    The hashes are `imaging.inputs.pixels_sha256` of the image and mask at the picture's size.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    scheduler: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    model: str
    revision: str
    backend: str
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    strength: float | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    loras: tuple[UsedLora, ...] = ()

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Receipt:
        """As `to_dict` told it, of this version or of another."""
        known = {each.name: told[each.name] for each in fields(cls) if each.name in told}
        loras = tuple(
            UsedLora(str(lora["name"]), float(lora["scale"]), str(lora["sha256"]))
            for lora in told.get("loras", ())
        )
        return cls(**{**known, "warnings": tuple(told.get("warnings", ())), "loras": loras})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in the order above."""
        told = asdict(self)
        return {**told, "warnings": list(self.warnings), "loras": list(told["loras"])}


@dataclass(frozen=True, eq=False)
class Image:
    """A finished picture and its receipt. Pixels are read-only."""

    pixels: Pixels
    receipt: Receipt

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def to_pil(self) -> PilImage:
        """The picture as a Pillow image."""
        from PIL import Image as PilImage

        return PilImage.fromarray(self.pixels)

    def encode(self, format: str = "png", compression: int | None = None) -> bytes:
        """The picture as a `png`, `jpeg` or `webp` file that carries its receipt.

        compression: 0…100; a JPEG's or WebP's quality, a PNG's effort. None is the format's default.
        """
        from mezzotint.imaging.formats import encode

        return encode(self, format, compression)

    def save(self, path: str | Path) -> Path:
        """Write the picture, whole or not at all; the format is the path's suffix (PNG without one).

        Raises:
            InvalidRequest: the suffix is none of .png, .jpg, .jpeg, .webp.
            OutputUnwritable: the path cannot be written.
        """
        from mezzotint.imaging.formats import save

        return save(self, Path(path))


@dataclass(frozen=True)
class Queued:
    """Waiting for its first step. `position` counts the requests ahead, `eta_s` until its picture."""

    request_id: str
    position: int
    eta_s: float


@dataclass(frozen=True)
class Progress:
    """`step` of `total` denoising steps are done. `preview` is H/8 × W/8 × 3, when asked for."""

    request_id: str
    step: int
    total: int
    preview: Pixels | None = None


@dataclass(frozen=True)
class Done:
    """The picture. `queue_s` until the first step began, `compute_s` from there to the pixels."""

    request_id: str
    image: Image
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Failed:
    """No picture, and why."""

    request_id: str
    error: MezzotintError


@dataclass(frozen=True)
class Cancelled:
    """Stopped because the caller asked or left."""

    request_id: str


Event = Queued | Progress | Done | Failed | Cancelled


def resolve(request: GenerationRequest, limits: ModelLimits) -> ResolvedRequest:
    """Check `request` and fill in the model's defaults.

    Raises:
        InvalidRequest: the first field that is not accepted, and what is.
    """
    # A picture can be followed without words.
    _check_text("prompt", request.prompt, required=request.image is None)
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, required=False)
    loras = _loras(request.loras, limits)
    limits = limits_with(loras, limits)
    sampler = find_sampler(_default(request.scheduler, limits.default_scheduler, str, "scheduler"))
    width, height = _size(request, limits)
    max_steps = min(limits.max_steps, sampler.max_steps)
    steps = _default(request.steps, min(limits.default_steps, max_steps), int, "steps")
    _check_range("steps", steps, 1, max_steps, f" with {sampler.name}")
    strength = _strength(request, steps)
    image, mask = _inputs(request, width, height)
    guidance = _default(request.guidance_scale, limits.default_guidance_scale, (int, float), "guidance_scale")
    _check_range("guidance_scale", guidance, 0.0, limits.max_guidance_scale)
    seed = _default(request.seed, secrets.randbits(RANDOM_SEED_BITS), int, "seed")
    _check_range("seed", seed, 0, MAX_SEED)
    deadline_s = _default(request.deadline_s, None, (int, float), "deadline_s")
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_SECONDS:
        raise InvalidRequest(
            f"deadline_s must be positive and at most {MAX_DEADLINE_SECONDS:,} seconds", param="deadline_s"
        )
    preview_every = _default(request.preview_every, 0, int, "preview_every")
    _check_range("preview_every", preview_every, 0, max_steps)
    priority = _default(request.priority, "normal", str, "priority")
    if priority not in PRIORITIES:
        raise InvalidRequest(
            f"priority must be low, normal or high, not {_shown(priority)}", param="priority"
        )
    return ResolvedRequest(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=float(guidance),
        scheduler=sampler.name,
        seed=seed,
        deadline_s=deadline_s,
        preview_every=preview_every,
        image=image,
        mask=mask,
        strength=strength,
        loras=loras,
        tenant=request.tenant,
        priority=priority,
    )


def _loras(asked: tuple[Lora, ...], limits: ModelLimits) -> tuple[Lora, ...]:
    if not isinstance(asked, tuple | list) or not all(
        isinstance(lora, Lora) and isinstance(lora.name, str) for lora in asked
    ):
        raise InvalidRequest("loras takes a tuple of mezzotint.core.Lora(name, scale)", param="loras")
    if len(asked) > MAX_LORAS:
        raise InvalidRequest(f"loras takes at most {MAX_LORAS}, not {len(asked)}", param="loras")
    served = [lora.name for lora in limits.loras]
    for number, lora in enumerate(asked):
        if lora.name not in served:
            there_is = f"served are {', '.join(served)}" if served else "this model is served without any"
            raise InvalidRequest(f"loras: there is no {_shown(lora.name)}; {there_is}", param="loras")
        if lora.name in (other.name for other in asked[:number]):
            raise InvalidRequest(f"loras names {lora.name} twice", param="loras")
        if isinstance(lora.scale, bool) or not isinstance(lora.scale, (int, float)):
            raise InvalidRequest(f"loras: the scale of {lora.name} must be a number", param="loras")
        if not abs(lora.scale) <= MAX_LORA_SCALE:
            raise InvalidRequest(
                f"loras: the scale of {lora.name} must be {-MAX_LORA_SCALE:g}…{MAX_LORA_SCALE:g}, "
                f"not {_shown(lora.scale)}",
                param="loras",
            )
    # In one order, so that those who ask for the same share passes.
    return tuple(sorted(Lora(lora.name, float(lora.scale)) for lora in asked if lora.scale != 0))


def limits_with(loras: tuple[Lora, ...], limits: ModelLimits) -> ModelLimits:
    """The limits with the LoRAs' own defaults in place of the model's: few steps, no guidance."""
    names = {lora.name for lora in loras}
    for lora in limits.loras:
        if lora.name in names:
            limits = replace(
                limits,
                default_steps=lora.steps or limits.default_steps,
                default_guidance_scale=limits.default_guidance_scale
                if lora.guidance_scale is None
                else lora.guidance_scale,
                default_scheduler=lora.scheduler or limits.default_scheduler,
            )
    return limits


def _size(request: GenerationRequest, limits: ModelLimits) -> tuple[int, int]:
    width, height = limits.default_width, limits.default_height
    if request.image is not None:
        from mezzotint.imaging.inputs import check_image, fitting_size

        image = check_image(request.image)
        if request.width is None and request.height is None:
            width, height = fitting_size(image, limits)
    width = _default(request.width, width, int, "width")
    height = _default(request.height, height, int, "height")
    _check_size(width, height, limits)
    return width, height


def _inputs(request: GenerationRequest, width: int, height: int) -> tuple[Pixels | None, Mask | None]:
    """The image and the mask at the picture's size."""
    if request.image is None:
        if request.mask is not None:
            raise InvalidRequest("mask needs an image to redraw a part of", param="mask")
        return None, None
    from mezzotint.imaging.inputs import check_mask, resize_image, resize_mask

    image = resize_image(request.image, width, height)
    if request.mask is None:
        return image, None
    return image, resize_mask(check_mask(request.mask, request.image), width, height)


def _strength(request: GenerationRequest, steps: int) -> float | None:
    """The share of the steps to take; None without an image."""
    if request.image is None:
        if request.strength is not None:
            raise InvalidRequest("strength needs an image to start from", param="strength")
        return None
    # The least that takes a step, in thousandths, so that it can be read out and typed in again.
    least = math.ceil(1000 / steps) / 1000
    default = max(DEFAULT_STRENGTH if request.mask is None else DEFAULT_INPAINTING_STRENGTH, least)
    strength = _default(request.strength, default, (int, float), "strength")
    # The comparison is written so that NaN fails it.
    if not 0 < strength <= 1:
        raise InvalidRequest(
            f"strength must be above 0 and at most 1, not {_shown(request.strength)}", param="strength"
        )
    if int(steps * strength) < 1:
        raise InvalidRequest(
            f"strength {strength:g} takes none of {steps} steps; at least {least:g} takes one",
            param="strength",
        )
    return float(strength)


def _default(value: _T | None, default: _T, kind: type | tuple[type, ...], name: str) -> _T:
    if value is None:
        return default
    # bool is an int to Python, and a mistake to anyone who sends it as a number of steps.
    if isinstance(value, bool) or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        accepted = " or ".join(each.__name__ for each in kinds)
        raise InvalidRequest(f"{name} must be {accepted}, not {_shown(value)}", param=name)
    return value


def _check_text(name: str, text: object, *, required: bool) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be text, not {type(text).__name__}", param=name)
    if required and not text.strip():
        raise InvalidRequest(f"{name} is empty; say what to draw", param=name)
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are accepted",
            param=name,
        )
    # Lone surrogates cannot be written to a file or a header as UTF-8, and no tokenizer knows them.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{name} is not valid Unicode text", param=name)


def _check_range(name: str, value: float, low: float, high: float, where: str = "") -> None:
    # The comparison is written so that NaN fails it.
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {low:g}…{high:,}{where}, not {_shown(value)}", param=name)


def _shown(value: object) -> str:
    """A value as an error message can hold it. Python itself refuses to print integers of huge length."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _check_size(width: int, height: int, limits: ModelLimits) -> None:
    if limits.served is not None:
        # One rule in the place of three, so that every refusal names the sizes there are.
        if (width, height) not in limits.served:
            raise InvalidRequest(
                f"{_shown(width)}x{_shown(height)} is not compiled; "
                f"this server draws {_sizes(limits.served)}",
                param="size",
            )
        return
    for name, value in (("width", width), ("height", height)):
        if value % 8 or not limits.min_size <= value <= limits.max_size:
            raise InvalidRequest(
                f"{name} must be a multiple of 8 from {limits.min_size} to {limits.max_size}, "
                f"not {_shown(value)}",
                param=name,
            )
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{width}x{height} is {width * height:,} pixels; at most {limits.max_pixels:,} are accepted",
            param="size",
        )


def _sizes(sizes: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes)
