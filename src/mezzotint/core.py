"""The nouns. Everything else in Mezzotint passes these around.

A `GenerationRequest` is what a caller asks for: one picture, with anything left out meaning "the model's
default". `resolve` checks it against a `ModelLimits` and fills the defaults in, giving a `ResolvedRequest`,
from which the picture follows to the byte. The engine answers with `Event`s, the last of which is `Done`,
`Failed` or `Cancelled`; `Done` holds an `Image`, whose `Receipt` says how to draw it again.

Every noun is frozen. This module needs nothing of Mezzotint but the errors and the table of samplers;
`Image.encode` and `save` reach for `imaging` when they are called.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.samplers import find_sampler

_T = TypeVar("_T")

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "Cancelled",
    "Done",
    "Event",
    "Failed",
    "GenerationRequest",
    "Image",
    "ModelLimits",
    "Pixels",
    "Progress",
    "Queued",
    "Receipt",
    "ResolvedRequest",
    "resolve",
]

Pixels = NDArray[np.uint8]
"""Height × width × 3, RGB, 0…255."""

MAX_PROMPT_CHARACTERS = 10_000
MAX_SEED = 2**63 - 1
MAX_DEADLINE_SECONDS = 86_400
# A random seed is short enough to read out and type in again.
RANDOM_SEED_BITS = 32


@dataclass(frozen=True)
class GenerationRequest:
    """One picture, asked for. `None` means the model's default (a random number for `seed`).

    prompt: what to draw, 1…10,000 characters; what exceeds the text encoders' window is cut and named
        in the receipt's warnings.
    negative_prompt: what to steer away from; takes effect only with guidance_scale > 1. `None` uses the
        model's unconditional embedding, as diffusers does; the empty string is encoded like any text.
    width, height: pixels, multiples of 8, within the model's limits.
    steps: denoising steps, 1…the model's maximum.
    guidance_scale: classifier-free guidance, 0…50; at most 1 turns it off and halves the work.
    scheduler: a name of `mezzotint.samplers.SAMPLERS`.
    seed: 0…2^63 - 1. The same resolved request on the same backend gives the same bytes.
    deadline_s: seconds from submission, at most a day, after which the request fails instead of going on.
    preview_every: a preview image with every n-th progress event; 0 means none.
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


@dataclass(frozen=True)
class ModelLimits:
    """What a loaded model draws by default and at most. Sizes in pixels."""

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


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with nothing left open: valid for its model, and enough to draw the picture again."""

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

    @property
    def guided(self) -> bool:
        """Whether each step evaluates the unconditional row too (diffusers' rule)."""
        return self.guidance_scale > 1.0

    @property
    def evaluations(self) -> int:
        """UNet evaluations until the latents are final; a guided evaluation counts once."""
        return find_sampler(self.scheduler).evaluations(self.steps)


@dataclass(frozen=True)
class Receipt:
    """How to draw an image again: the resolved request, and with what it was drawn."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in the order above."""
        return {**asdict(self), "warnings": list(self.warnings)}


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

    def encode(self, format: str = "png") -> bytes:
        """The picture as a `png`, `jpeg` or `webp` file that carries its receipt."""
        from mezzotint.imaging.formats import encode

        return encode(self, format)

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
    _check_text("prompt", request.prompt, required=True)
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, required=False)
    sampler = find_sampler(_default(request.scheduler, limits.default_scheduler, str, "scheduler"))
    width = _default(request.width, limits.default_width, int, "width")
    height = _default(request.height, limits.default_height, int, "height")
    _check_size(width, height, limits)
    max_steps = min(limits.max_steps, sampler.max_steps)
    steps = _default(request.steps, min(limits.default_steps, max_steps), int, "steps")
    _check_range("steps", steps, 1, max_steps, f" with {sampler.name}")
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
    )


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
