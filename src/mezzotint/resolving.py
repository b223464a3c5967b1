"""From what is asked for to what is drawn: fields checked against the model's limits, defaults filled in."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from mezzotint.core import (
    MAX_CONTROL_SCALE,
    MAX_CONTROLS,
    MAX_DEADLINE_SECONDS,
    MAX_HIRES_SCALE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_PREVIEW_EVERY,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    PREPROCESSORS,
    PRIORITIES,
    RANDOM_SEED_BITS,
    Control,
    GenerationRequest,
    Hires,
    Lora,
    Mask,
    ModelLimits,
    Pixels,
    ResolvedRequest,
    ServedControlNet,
    ServedLora,
    size_of,
)
from mezzotint.embeddings import names_in
from mezzotint.emphasis import has_marks, parse_emphasis
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.inputs import check_image, check_mask, resize_image, resize_mask
from mezzotint.imaging.size import fitting_size
from mezzotint.samplers import find_sampler

__all__ = ["check_names", "limits_with", "resolve"]

# The defaults of diffusers' StableDiffusionXLImg2ImgPipeline and StableDiffusionXLInpaintPipeline.
DEFAULT_STRENGTH = 0.3
DEFAULT_INPAINTING_STRENGTH = 0.9999

_T = TypeVar("_T")


def resolve(request: GenerationRequest, limits: ModelLimits) -> ResolvedRequest:
    """Check `request` and fill in the model's defaults.

    Raises:
        InvalidRequest: the first field that is not accepted, and what is.
        NotSupported: a prompt's emphasis is of a kind that is not served.
    """
    _check_controls(request.controls, limits)
    # What changes nothing is as if it were not asked for.
    request = replace(request, controls=tuple(each for each in request.controls if each.scale != 0))
    # A picture can be followed without words.
    _check_text("prompt", request.prompt, required=request.image is None and not request.controls)
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, required=False)
    emphasis = _emphasis(request)
    loras = _loras(request.loras, limits)
    limits = limits_with(loras, limits)
    sampler = find_sampler(_default(request.scheduler, limits.default_scheduler, str, "scheduler"))
    width, height = _size(request, limits)
    max_steps = min(limits.max_steps, sampler.max_steps)
    steps = _default(request.steps, min(limits.default_steps, max_steps), int, "steps")
    _check_range("steps", steps, 1, max_steps, f" with {sampler.name}")
    strength = _strength(request, steps)
    hires = _hires(request, (width, height), steps, max_steps, limits)
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
    _check_range("preview_every", preview_every, 0, MAX_PREVIEW_EVERY)
    priority = _default(request.priority, "normal", str, "priority")
    if priority not in PRIORITIES:
        raise InvalidRequest(
            f"priority must be low, normal or high, not {_shown(priority)}", param="priority"
        )
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
        controls=_controls(request.controls, *size_of(width, height, hires)),
        embeddings=names_in(
            [each.name for each in limits.embeddings],
            *_texts(request.prompt, emphasis, "prompt"),
            # Without guidance nobody reads it.
            *(_texts(request.negative_prompt or "", emphasis, "negative_prompt") if guidance > 1 else ()),
        ),
        emphasis=emphasis,
        hires=hires,
        tenant=request.tenant,
        priority=priority,
    )
    _check_holds(resolved)
    return resolved


def _emphasis(request: GenerationRequest) -> bool:
    """Whether the prompts say something else in A1111's grammar than as they are."""
    if not isinstance(request.emphasis, bool):
        raise InvalidRequest(f"emphasis must be bool, not {_shown(request.emphasis)}", param="emphasis")
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


def _loras(asked: tuple[Lora, ...], limits: ModelLimits) -> tuple[Lora, ...]:
    if not isinstance(asked, tuple | list) or not all(
        isinstance(lora, Lora) and isinstance(lora.name, str) for lora in asked
    ):
        raise InvalidRequest("loras takes a tuple of mezzotint.core.Lora(name, scale)", param="loras")
    _check_served("loras", "", [lora.name for lora in asked], limits.loras, MAX_LORAS)
    for lora in asked:
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


def _check_controls(asked: tuple[Control, ...], limits: ModelLimits) -> None:
    if not isinstance(asked, tuple | list) or not all(
        isinstance(control, Control) and isinstance(control.name, str) for control in asked
    ):
        raise InvalidRequest("controls takes a tuple of mezzotint.core.Control", param="controls")
    check_names([control.name for control in asked], limits)
    for control in asked:
        _check_control(control)


def check_names(names: Sequence[str], limits: ModelLimits) -> None:
    """Refuse ControlNets that are not served, are too many, or the same twice.

    Raises:
        InvalidRequest: on `controls`.
    """
    _check_served("controls", "ControlNet ", names, limits.controlnets, MAX_CONTROLS)


def _check_served(
    param: str,
    what: str,
    names: Sequence[str],
    served: Sequence[ServedLora | ServedControlNet],
    most: int,
) -> None:
    """Refuse names that are too many, not served, or the same twice. `what`: what goes before one."""
    if len(names) > most:
        raise InvalidRequest(f"{param} takes at most {most}, not {len(names)}", param=param)
    known = [each.name for each in served]
    for number, name in enumerate(names):
        if name not in known:
            there_is = f"served are {', '.join(known)}" if known else "this model is served without any"
            raise InvalidRequest(f"{param}: there is no {what}{_shown(name)}; {there_is}", param=param)
        if name in names[:number]:
            raise InvalidRequest(f"{param} names {name} twice", param=param)


def _check_control(control: Control) -> None:
    check_image(control.image, "controls.image")
    if control.preprocessor not in PREPROCESSORS:
        raise InvalidRequest(
            f"controls.preprocessor must be {' or '.join(PREPROCESSORS)}, not {_shown(control.preprocessor)}",
            param="controls.preprocessor",
        )
    for name, most in (("scale", MAX_CONTROL_SCALE), ("start", 1.0), ("end", 1.0)):
        value = getattr(control, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise InvalidRequest(
                f"controls.{name} must be 0…{most:g} for {control.name}, not {_shown(value)}",
                param=f"controls.{name}",
            )
    if control.start >= control.end:
        raise InvalidRequest(
            f"controls.start must be below the end of {control.name}, {control.end:g}, not {control.start:g}",
            param="controls.start",
        )


def _check_holds(request: ResolvedRequest) -> None:
    """Refuse a control that would be in no evaluation of any stage."""
    totals = [stage.evaluations for stage in request.stages]
    for control in request.controls:
        if not any(control.holds(done, total) for total in totals for done in range(total)):
            raise InvalidRequest(
                f"controls.start of {control.start:g} and end of {control.end:g} leave {control.name} no "
                f"whole step of {max(totals)}",
                param="controls.start",
            )


def _controls(asked: tuple[Control, ...], width: int, height: int) -> tuple[Control, ...]:
    """At the picture's size, in one order."""
    return tuple(
        Control(
            each.name,
            resize_image(each.image, width, height),
            each.preprocessor,
            float(each.scale),
            float(each.start),
            float(each.end),
        )
        for each in sorted(asked, key=lambda control: control.name)
    )


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
    image = request.controls[0].image if request.controls else None
    if request.image is not None:
        image = check_image(request.image)
    if image is not None and request.width is None and request.height is None:
        width, height = fitting_size(image.shape[1], image.shape[0], limits)
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
    share = _default(strength, max(default, least), (int, float), name)
    # The comparison is written so that NaN fails it.
    if not 0 < share <= 1:
        raise InvalidRequest(f"{name} must be above 0 and at most 1, not {_shown(strength)}", param=name)
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
        raise InvalidRequest(f"hires takes a mezzotint.core.Hires, not {_shown(hires)}", param="hires")
    if request.image is not None:
        raise InvalidRequest(
            "hires enlarges what is drawn from words; with an image, ask for a larger size instead",
            param="hires",
        )
    scale = _default(hires.scale, Hires.scale, (int, float), "hires.scale")
    # The comparison is written so that NaN fails it.
    if not 1 < scale <= MAX_HIRES_SCALE:
        raise InvalidRequest(
            f"hires.scale must be above 1 and at most {MAX_HIRES_SCALE:g}, not {_shown(scale)}",
            param="hires.scale",
        )
    width, height = size_of(*size, Hires(scale))
    if (width, height) == size:
        raise InvalidRequest(
            f"hires.scale of {scale:g} makes {width}x{height} no larger, for sides are multiples of 8",
            param="hires.scale",
        )
    try:
        _check_size(width, height, limits)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"hires.scale of {scale:g} makes {size[0]}x{size[1]} {width}x{height}: {error.message}",
            param="hires.scale",
        ) from None
    own = _default(hires.steps, steps, int, "hires.steps")
    _check_range("hires.steps", own, 1, max_steps)
    strength = _share_of_steps("hires.strength", hires.strength, DEFAULT_STRENGTH, own)
    return Hires(float(scale), strength, own)


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
