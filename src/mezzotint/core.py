"""The nouns. Everything else in Mezzotint passes these around.

A `GenerationRequest` is what a caller asks for: one picture, with anything left out meaning "the model's
default". `resolving` checks it against a `ModelLimits` and fills the defaults in, giving a `ResolvedRequest`,
from which the picture follows to the byte. The engine answers with `Event`s, the last of which is `Done`,
`Failed` or `Cancelled`; `Done` holds an `Image`, whose `Receipt` says how to draw it again.

Every noun is frozen. This module needs nothing of Mezzotint but the errors and the table of samplers;
`Image.encode`, `Image.save` and `ResolvedRequest.begun_from` reach for `imaging` when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mezzotint.errors import MezzotintError
from mezzotint.samplers import find_sampler

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

__all__ = [
    "ADDED",
    "MAX_CONTROLS",
    "MAX_CONTROL_SCALE",
    "MAX_DEADLINE_SECONDS",
    "MAX_HIRES_SCALE",
    "MAX_LORAS",
    "MAX_LORA_SCALE",
    "MAX_PREVIEW_EVERY",
    "MAX_PROMPT_CHARACTERS",
    "MAX_SEED",
    "PIXELS_PER_LATENT",
    "PREPROCESSORS",
    "PRIORITIES",
    "RANDOM_SEED_BITS",
    "UPSCALERS",
    "Cancelled",
    "Control",
    "Done",
    "Event",
    "Failed",
    "GenerationRequest",
    "Hires",
    "Image",
    "ImagePrompt",
    "Latents",
    "Lora",
    "Mask",
    "ModelLimits",
    "Pixels",
    "Preprocessor",
    "Priority",
    "Progress",
    "Queued",
    "Receipt",
    "ResolvedRequest",
    "ServedControlNet",
    "ServedEmbedding",
    "ServedIpAdapter",
    "ServedLora",
    "Upscaler",
    "UsedControl",
    "UsedEmbedding",
    "UsedImagePrompt",
    "UsedLora",
    "has_pictures",
    "known_fields",
    "size_of",
]

Pixels = NDArray[np.uint8]
"""Height × width × 3, RGB, 0…255."""
Latents = NDArray[np.float32]
"""4 × height × width, of about unit variance: as they leave the sampler."""
Mask = NDArray[np.uint8]
"""Height × width, 0…255; above 127 is what to redraw."""
Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
Preprocessor = Literal["none", "canny"]
PREPROCESSORS: tuple[Preprocessor, ...] = get_args(Preprocessor)
# By A1111's names. The first enlarges the picture, the others its latents.
Upscaler = Literal[
    "Lanczos",
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
]
UPSCALERS: tuple[Upscaler, ...] = get_args(Upscaler)

# Of the VAE of any SDXL, along a side.
PIXELS_PER_LATENT = 8
MAX_PROMPT_CHARACTERS = 10_000
MAX_SEED = 2**63 - 1
MAX_DEADLINE_SECONDS = 86_400
# A random seed is short enough to read out and type in again.
RANDOM_SEED_BITS = 32
MAX_LORAS = 8
MAX_LORA_SCALE = 4.0
MAX_HIRES_SCALE = 4.0
MAX_CONTROLS = 4
MAX_CONTROL_SCALE = 2.0
ADDED = ("loras", "controlnets", "embeddings", "ip_adapters")
"""What is served beside a model and requests name: fields of `ModelLimits`, settings, folders in a model."""
# Of a receipt, what JSON has lists for.
LISTS = ("warnings", "loras", "controls", "image_prompts", "embeddings")
# More than any request has evaluations.
MAX_PREVIEW_EVERY = 1_000


@dataclass(frozen=True, order=True)
class Lora:
    """A LoRA that a picture is drawn with, by the name it is served under.

    scale: how much of it, -4…4; at 1 it is as it was trained, at 0 as if it were not there.
    """

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Control:
    """A conditioning image and the ControlNet that reads it.

    name: the ControlNet's, as it is served.
    image: what it reads, height × width × 3, 0…255; resized to the picture's size.
    preprocessor: what is made of `image` first: none, or canny, its edges as white lines on black.
    scale: how strongly it holds, 0…2.
    start, end: the part of the evaluations in which it does, 0…1.
    """

    name: str
    image: Pixels = field(compare=False, repr=False)
    preprocessor: Preprocessor = "none"
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def holds(self, done: int, total: int) -> bool:
        """Whether it does in the evaluation after `done` of `total`. The rule is diffusers'."""
        return done / total >= self.start and (done + 1) / total <= self.end


@dataclass(frozen=True)
class ImagePrompt:
    """A picture that is read beside the prompt, and the IP-Adapter that reads it.

    name: the IP-Adapter's, as it is served.
    image: height × width × 3, 0…255; what is read is its middle square, at the image encoder's size.
    scale: how much of it, 0…2.
    """

    name: str
    image: Pixels = field(compare=False, repr=False)
    scale: float = 1.0


@dataclass(frozen=True)
class Hires:
    """A second, larger stage, A1111's "hires fix": image-to-image from the picture that was drawn, enlarged,
    with the same prompts, seed, sampler and guidance.

    scale: how many times wider and higher, above 1…4; sides are rounded down to multiples of 8.
    strength: how far to go from the enlarged picture; as of a request with an image. The default is 0.3, and
        from enlarged latents 0.7: less leaves them blurred.
    steps: of which the last ⌊steps × strength⌋ are taken; by default the request's.
    upscaler: what enlarges, one of `UPSCALERS`.
    """

    scale: float = 1.5
    strength: float | None = None
    steps: int | None = None
    upscaler: Upscaler = "Lanczos"

    @property
    def of_latents(self) -> bool:
        """Whether latents are enlarged rather than the picture that is decoded from them."""
        return self.upscaler != "Lanczos"


@dataclass(frozen=True)
class GenerationRequest:
    """One picture, asked for. `None` means the model's default (a random number for `seed`).

    prompt: what to draw, 1…10,000 characters, or none with an image, controls or image prompts; what has
        more tokens than the model reads is cut and named in the receipt's warnings.
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
    controls: at most 4, one of each name. Without size and image, the picture has the first one's size.
    image_prompts: at most 4, one of each name.
    emphasis: whether brackets in both prompts weigh words and BREAK parts them, as `mezzotint.emphasis` reads
        them; otherwise they are text, as they are to diffusers.
    hires: draw it larger in a second stage, from words alone: not with `image`.
    tenant: whose share of the engine the request uses; the shares of tenants are fair among each other.
    priority: low, normal or high: a quarter, one or four times the share, and the order within a tenant.
        The default is normal.
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
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    emphasis: bool = False
    hires: Hires | None = None
    tenant: str = ""
    priority: Priority | None = None


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
class ServedControlNet:
    """A ControlNet that requests may name. sha256: of its files."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ServedIpAdapter:
    """An IP-Adapter that requests may name. sha256: of its file; side: of the squares it reads, in pixels;
    encoder_sha256: of the files of the image encoder that it reads them by."""

    name: str
    sha256: str
    side: int
    encoder_sha256: str = ""


@dataclass(frozen=True)
class ServedEmbedding:
    """A textual inversion that prompts may name. sha256: of its file; vectors: the tokens it takes."""

    name: str
    sha256: str
    vectors: int


@dataclass(frozen=True)
class ModelLimits:
    """What a loaded model draws by default and at most. Sizes in pixels.

    served: the only sizes (width, height) there are, of a backend whose shapes are compiled ahead; `None`
        where any size within the other limits is drawn.
    prompt_tokens: how much of a prompt is read at most; `None` of what reads none.
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
    controlnets: tuple[ServedControlNet, ...] = ()
    embeddings: tuple[ServedEmbedding, ...] = ()
    ip_adapters: tuple[ServedIpAdapter, ...] = ()
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with nothing left open: valid for its model, and enough to draw the picture again.

    `image` and `mask` are width × height, the images of `controls` of the picture's size, those of
    `image_prompts` of their encoder's; `mask` holds 0 and 255 alone. `loras`, `controls` and `image_prompts`
    are by name, without those that change nothing; `emphasis` is false
    where it changes nothing; `embeddings` are those that the prompts name. With `hires`, all of whose fields
    are there, width × height are the first stage's; `latents` are what a second stage starts from in place of
    an image, of its own size.
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
    latents: Latents | None = field(default=None, compare=False, repr=False)
    strength: float | None = None
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    embeddings: tuple[str, ...] = ()
    emphasis: bool = False
    hires: Hires | None = None
    tenant: str = ""
    priority: Priority = "normal"

    @property
    def guided(self) -> bool:
        """Whether each step evaluates the unconditional row too (diffusers' rule)."""
        return self.guidance_scale > 1.0

    @property
    def stages(self) -> tuple[ResolvedRequest, ...]:
        """What is drawn one after the other, each from the picture before it; most requests are one stage.

        A later one's `image` or `latents` are that picture's, enlarged, and not there before it is drawn.
        """
        if self.hires is None:
            return (self,)
        first = replace(self, hires=None)
        width, height = self.size
        steps = self.steps if self.hires.steps is None else self.hires.steps
        second = replace(first, width=width, height=height, steps=steps, strength=self.hires.strength)
        return (first, second)

    def begun_from(self, picture: Pixels) -> ResolvedRequest:
        """A later stage, with the picture of the one before it."""
        from mezzotint.imaging.inputs import resize_image

        return replace(self, image=resize_image(picture, self.width, self.height))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture that comes of it."""
        return size_of(self.width, self.height, self.hires)

    @property
    def steps_taken(self) -> int:
        """The denoising steps that are really taken: of image-to-image, the last ones alone."""
        if self.hires is not None:
            return sum(stage.steps_taken for stage in self.stages)
        # Written as diffusers does: another product may round to another number of steps.
        return self.steps if self.strength is None else int(self.steps * self.strength)

    @property
    def evaluations(self) -> int:
        """UNet evaluations until the picture's latents are final; a guided evaluation counts once."""
        if self.hires is not None:
            return sum(stage.evaluations for stage in self.stages)
        return find_sampler(self.scheduler).evaluations(self.steps, self.steps_taken)


def has_pictures(request: GenerationRequest | ResolvedRequest) -> bool:
    """Whether it starts from a picture or reads one."""
    return request.image is not None or bool(request.controls or request.image_prompts)


def size_of(width: int, height: int, hires: Hires | None) -> tuple[int, int]:
    """Width and height of the picture that comes of a first stage of width × height."""
    scale = 1.0 if hires is None else hires.scale
    # A product such as 100 × 1.2 may lie a hair below the whole number it stands for.
    return int(width * scale + 1e-6) // 8 * 8, int(height * scale + 1e-6) // 8 * 8


@dataclass(frozen=True)
class UsedLora(Lora):
    """As a receipt tells it."""

    sha256: str = ""


@dataclass(frozen=True)
class UsedControl:
    """As a receipt tells it. image_sha256: of the image at the picture's size; sha256: the ControlNet's."""

    name: str
    preprocessor: Preprocessor
    scale: float
    start: float
    end: float
    image_sha256: str
    sha256: str


@dataclass(frozen=True)
class UsedImagePrompt:
    """As a receipt tells it. image_sha256: of the image at the encoder's size; sha256: the IP-Adapter's;
    encoder_sha256: the image encoder's."""

    name: str
    scale: float
    image_sha256: str
    sha256: str
    encoder_sha256: str = ""


@dataclass(frozen=True)
class UsedEmbedding:
    """As a receipt tells it."""

    name: str
    sha256: str


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
    controls: tuple[UsedControl, ...] = ()
    image_prompts: tuple[UsedImagePrompt, ...] = ()
    embeddings: tuple[UsedEmbedding, ...] = ()
    emphasis: bool = False
    hires: Hires | None = None

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Receipt:
        """As `to_dict` told it, of this version or of another."""
        used = {
            "loras": UsedLora,
            "controls": UsedControl,
            "image_prompts": UsedImagePrompt,
            "embeddings": UsedEmbedding,
        }
        known = known_fields(cls, told)
        for name, kind in used.items():
            known[name] = tuple(kind(**known_fields(kind, each)) for each in told.get(name, ()))
        if known.get("hires") is not None:
            known["hires"] = Hires(**known_fields(Hires, known["hires"]))
        return cls(**{**known, "warnings": tuple(told.get("warnings", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in the order above."""
        told = asdict(self)
        return {**told, **{name: list(told[name]) for name in LISTS}}


def known_fields(kind: type, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of the fields of a dataclass; a later version may tell more."""
    return {each.name: told[each.name] for each in fields(kind) if each.name in told}


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

        Raises:
            InvalidRequest: there is no such format, or `compression` is not accepted.
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
    """`step` of `total` denoising steps are done.

    preview: when asked for, H/8 × W/8 × 3; of a backend with a `preview_vae`, H × W × 3.
    """

    request_id: str
    step: int
    total: int
    preview: Pixels | None = None


@dataclass(frozen=True)
class Done:
    """The picture. `queue_s` until the first step began, `compute_s` from there to the pixels, what it waited
    between its stages too."""

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
