"""From what is asked for to what is drawn: fields checked against the model's limits, defaults filled in."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from functools import lru_cache

from mezzotint.checks import check_range, check_size, check_text, or_default, shown
from mezzotint.core import (
    MAX_DEADLINE_SECONDS,
    MAX_HIRES_SCALE,
    MAX_PREVIEW_EVERY,
    MAX_SEED,
    PRIORITIES,
    RANDOM_SEED_BITS,
    UPSCALERS,
    GenerationRequest,
    Hires,
    Mask,
    ModelLimits,
    Pixels,
    Priority,
    ResolvedRequest,
    has_pictures,
    size_of,
)
from mezzotint.embeddings import names_in
from mezzotint.emphasis import has_marks, parse_emphasis
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.inputs import check_image, check_mask, resize_image, resize_mask
from mezzotint.imaging.size import fitting_size
from mezzotint.resolving_added import (
    check_controls,
    check_holds,
    check_image_prompts,
    limits_with,
    resolve_controls,
    resolve_image_prompts,
    resolve_loras,
)
from mezzotint.samplers import find_sampler

__all__ = ["resolve"]

# The defaults of diffusers' StableDiffusionXLImg2ImgPipeline and StableDiffusionXLInpaintPipeline.
DEFAULT_STRENGTH = 0.3
DEFAULT_INPAINTING_STRENGTH = 0.9999
# A1111's. Noise has to hide the blur of latents that were enlarged.
DEFAULT_LATENTS_STRENGTH = 0.7


def resolve(request: GenerationRequest, limits: ModelLimits) -> ResolvedRequest:
    """Check `request` and fill in the model's defaults.

    Raises:
        InvalidRequest: the first field that is not accepted, and what is.
        NotSupported: a prompt's emphasis is of a kind that is not served.
    """
    check_controls(request.controls, limits)
    check_image_prompts(request.image_prompts, limits)
    # What changes nothing is as if it were not asked for.
    request = replace(
        request,
        controls=tuple(each for each in request.controls if each.scale != 0),
        image_prompts=tuple(each for each in request.image_prompts if each.scale != 0),
    )
    # A picture can be followed without words.
    check_text("prompt", request.prompt, required=not has_pictures(request))
    if request.negative_prompt is not None:
        check_text("negative_prompt", request.negative_prompt, required=False)
    emphasis = _emphasis(request)
    loras = resolve_loras(request.loras, limits)
    limits = limits_with(loras, limits)
    sampler = find_sampler(or_default(request.scheduler, limits.default_scheduler, str, "scheduler"))
    width, height = _size(request, limits)
    max_steps = min(limits.max_steps, sampler.max_steps)
    steps = or_default(request.steps, min(limits.default_steps, max_steps), int, "steps")
    check_range("steps", steps, 1, max_steps, f" with {sampler.name}")
    strength = _strength(request, steps)
    hires = _hires(request, (width, height), steps, max_steps, limits)
    image, mask = _inputs(request, width, height)
    guidance = or_default(
        request.guidance_scale, limits.default_guidance_scale, (int, float), "guidance_scale"
    )
    check_range("guidance_scale", guidance, 0.0, limits.max_guidance_scale)
    seed = or_default(request.seed, secrets.randbits(RANDOM_SEED_BITS), int, "seed")
    check_range("seed", seed, 0, MAX_SEED)
    deadline_s, preview_every, priority = _handling(request)
    resolved = ResolvedRequest(
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
        controls=resolve_controls(request.controls, *size_of(width, height, hires)),
        image_prompts=resolve_image_prompts(request.image_prompts, limits),
        embeddings=_embeddings(request, emphasis, guidance > 1, limits),
        emphasis=emphasis,
        hires=hires,
        tenant=request.tenant,
        priority=priority,
    )
    check_holds(resolved)
    return resolved


def _emphasis(request: GenerationRequest) -> bool:
    """Whether the prompts say something else in A1111's grammar than as they are."""
    if not isinstance(request.emphasis, bool):
        raise InvalidRequest(f"emphasis must be bool, not {shown(request.emphasis)}", param="emphasis")
    if not request.emphasis or not has_marks(request.prompt, request.negative_prompt):
        return False
    _pieces(request.prompt, "prompt")
    _pieces(request.negative_prompt or "", "negative_prompt")
    return True


# The pictures of one request say the same, and an intricate text takes a while.
@lru_cache(maxsize=64)
def _pieces(text: str, field: str) -> tuple[str, ...]:
    return tuple(piece.text for piece in parse_emphasis(text, field))


def _texts(text: str, emphasis: bool, field: str) -> tuple[str, ...]:
    """As they are tokenized."""
    return _pieces(text, field) if emphasis else (text,)


def _embeddings(
    request: GenerationRequest, emphasis: bool, guided: bool, limits: ModelLimits
) -> tuple[str, ...]:
    """Those that the prompts name."""
    texts = _texts(request.prompt, emphasis, "prompt")
    # Without guidance nobody reads it.
    if guided:
        texts += _texts(request.negative_prompt or "", emphasis, "negative_prompt")
    return names_in([each.name for each in limits.embeddings], *texts)


def _handling(request: GenerationRequest) -> tuple[float | None, int, Priority]:
    """The deadline, the previews and the priority: what changes no picture."""
    deadline_s = or_default(request.deadline_s, None, (int, float), "deadline_s")
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_SECONDS:
        raise InvalidRequest(
            f"deadline_s must be positive and at most {MAX_DEADLINE_SECONDS:,} seconds", param="deadline_s"
        )
    preview_every = or_default(request.preview_every, 0, int, "preview_every")
    check_range("preview_every", preview_every, 0, MAX_PREVIEW_EVERY)
    priority = or_default(request.priority, "normal", str, "priority")
    if priority not in PRIORITIES:
        raise InvalidRequest(f"priority must be low, normal or high, not {shown(priority)}", param="priority")
    return deadline_s, preview_every, priority


def _size(request: GenerationRequest, limits: ModelLimits) -> tuple[int, int]:
    width, height = limits.default_width, limits.default_height
    image = request.controls[0].image if request.controls else None
    if request.image is not None:
        image = check_image(request.image)
    if image is not None and request.width is None and request.height is None:
        width, height = fitting_size(image.shape[1], image.shape[0], limits)
    width = or_default(request.width, width, int, "width")
    height = or_default(request.height, height, int, "height")
    check_size(width, height, limits)
    return width, height


def _inputs(request: GenerationRequest, width: int, height: int) -> tuple[Pixels | None, Mask | None]:
    """The image and the mask at the picture's size."""
    if request.image is None:
        if request.mask is not None:
            raise InvalidRequest("mask needs an image to redraw a part of", param="mask")
        return None, None
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
    default = DEFAULT_STRENGTH if request.mask is None else DEFAULT_INPAINTING_STRENGTH
    return _share_of_steps("strength", request.strength, default, steps)


def _share_of_steps(name: str, strength: float | None, default: float, steps: int) -> float:
    # The least that takes a step, in thousandths, so that it can be read out and typed in again.
    least = math.ceil(1000 / steps) / 1000
    share = or_default(strength, max(default, least), (int, float), name)
    # The comparison is written so that NaN fails it.
    if not 0 < share <= 1:
        raise InvalidRequest(f"{name} must be above 0 and at most 1, not {shown(strength)}", param=name)
    if int(steps * share) < 1:
        raise InvalidRequest(
            f"{name} {share:g} takes none of {steps} steps; at least {least:g} takes one", param=name
        )
    return float(share)


def _hires(
    request: GenerationRequest, size: tuple[int, int], steps: int, max_steps: int, limits: ModelLimits
) -> Hires | None:
    """The second stage, with nothing left open."""
    hires = request.hires
    if hires is None:
        return None
    if not isinstance(hires, Hires):
        raise InvalidRequest(f"hires takes a mezzotint.core.Hires, not {shown(hires)}", param="hires")
    if request.image is not None:
        raise InvalidRequest(
            "hires enlarges what is drawn from words; with an image, ask for a larger size instead",
            param="hires",
        )
    scale = or_default(hires.scale, Hires.scale, (int, float), "hires.scale")
    # The comparison is written so that NaN fails it.
    if not 1 < scale <= MAX_HIRES_SCALE:
        raise InvalidRequest(
            f"hires.scale must be above 1 and at most {MAX_HIRES_SCALE:g}, not {shown(scale)}",
            param="hires.scale",
        )
    width, height = size_of(*size, Hires(scale))
    if (width, height) == size:
        raise InvalidRequest(
            f"hires.scale of {scale:g} makes {width}x{height} no larger, for sides are multiples of 8",
            param="hires.scale",
        )
    try:
        check_size(width, height, limits)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"hires.scale of {scale:g} makes {size[0]}x{size[1]} {width}x{height}: {error.message}",
            param="hires.scale",
        ) from None
    own = or_default(hires.steps, steps, int, "hires.steps")
    check_range("hires.steps", own, 1, max_steps)
    if hires.upscaler not in UPSCALERS:
        raise InvalidRequest(
            f"hires.upscaler must be one of {', '.join(UPSCALERS)}, not {shown(hires.upscaler)}",
            param="hires.upscaler",
        )
    default = DEFAULT_LATENTS_STRENGTH if hires.of_latents else DEFAULT_STRENGTH
    strength = _share_of_steps("hires.strength", hires.strength, default, own)
    return Hires(float(scale), strength, own, hires.upscaler)
