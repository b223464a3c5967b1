"""The LoRAs, ControlNets and IP-Adapters of a request: checked against those served, and filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mezzotint.checks import shown
from mezzotint.core import (
    MAX_CONTROL_SCALE,
    MAX_CONTROLS,
    MAX_LORA_SCALE,
    MAX_LORAS,
    PREPROCESSORS,
    Control,
    ImagePrompt,
    Lora,
    ModelLimits,
    ResolvedRequest,
    ServedControlNet,
    ServedIpAdapter,
    ServedLora,
)
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.inputs import check_image, clip_square, resize_image

__all__ = [
    "check_controlnets",
    "check_controls",
    "check_holds",
    "check_image_prompts",
    "check_ip_adapters",
    "limits_with",
    "resolve_controls",
    "resolve_image_prompts",
    "resolve_loras",
    "sides_of",
]


def resolve_loras(asked: tuple[Lora, ...], limits: ModelLimits) -> tuple[Lora, ...]:
    """Those that change something, in one order.

    Raises:
        InvalidRequest: on `loras`.
    """
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
                f"not {shown(lora.scale)}",
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


def check_controls(asked: tuple[Control, ...], limits: ModelLimits) -> None:
    """Refuse ControlNets that are not served, and a value of theirs that is not accepted.

    Raises:
        InvalidRequest: on `controls`, or a field of one.
    """
    if not isinstance(asked, tuple | list) or not all(
        isinstance(control, Control) and isinstance(control.name, str) for control in asked
    ):
        raise InvalidRequest("controls takes a tuple of mezzotint.core.Control", param="controls")
    check_controlnets([control.name for control in asked], limits)
    for control in asked:
        _check_control(control)


def check_controlnets(names: Sequence[str], limits: ModelLimits) -> None:
    """Refuse ControlNets that are not served, are too many, or the same twice.

    Raises:
        InvalidRequest: on `controls`.
    """
    _check_served("controls", "ControlNet ", names, limits.controlnets, MAX_CONTROLS)


def _check_served(
    param: str,
    what: str,
    names: Sequence[str],
    served: Sequence[ServedLora | ServedControlNet | ServedIpAdapter],
    most: int,
) -> None:
    """Refuse names that are too many, not served, or the same twice. `what`: what goes before one."""
    if len(names) > most:
        raise InvalidRequest(f"{param} takes at most {most}, not {len(names)}", param=param)
    known = [each.name for each in served]
    for number, name in enumerate(names):
        if name not in known:
            there_is = f"served are {', '.join(known)}" if known else "this model is served without any"
            raise InvalidRequest(f"{param}: there is no {what}{shown(name)}; {there_is}", param=param)
        if name in names[:number]:
            raise InvalidRequest(f"{param} names {name} twice", param=param)


def _check_control(control: Control) -> None:
    check_image(control.image, "controls.image")
    if control.preprocessor not in PREPROCESSORS:
        raise InvalidRequest(
            f"controls.preprocessor must be {' or '.join(PREPROCESSORS)}, not {shown(control.preprocessor)}",
            param="controls.preprocessor",
        )
    for name, most in (("scale", MAX_CONTROL_SCALE), ("start", 1.0), ("end", 1.0)):
        _check_number(f"controls.{name}", getattr(control, name), most, control.name)
    if control.start >= control.end:
        raise InvalidRequest(
            f"controls.start must be below the end of {control.name}, {control.end:g}, not {control.start:g}",
            param="controls.start",
        )


def _check_number(param: str, value: object, most: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise InvalidRequest(f"{param} must be 0…{most:g} for {name}, not {shown(value)}", param=param)


def resolve_controls(asked: tuple[Control, ...], width: int, height: int) -> tuple[Control, ...]:
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


def check_holds(request: ResolvedRequest) -> None:
    """Refuse a control that would be in no evaluation of any stage.

    Raises:
        InvalidRequest: on `controls.start`.
    """
    totals = [stage.evaluations for stage in request.stages]
    for control in request.controls:
        if not any(control.holds(done, total) for total in totals for done in range(total)):
            raise InvalidRequest(
                f"controls.start of {control.start:g} and end of {control.end:g} leave {control.name} no "
                f"whole step of {max(totals)}",
                param="controls.start",
            )


def check_image_prompts(asked: tuple[ImagePrompt, ...], limits: ModelLimits) -> None:
    """Refuse IP-Adapters that are not served, and a value of theirs that is not accepted.

    Raises:
        InvalidRequest: on `image_prompts`, or a field of one.
    """
    if not isinstance(asked, tuple | list) or not all(
        isinstance(prompt, ImagePrompt) and isinstance(prompt.name, str) for prompt in asked
    ):
        raise InvalidRequest(
            "image_prompts takes a tuple of mezzotint.core.ImagePrompt", param="image_prompts"
        )
    check_ip_adapters([prompt.name for prompt in asked], limits)
    for prompt in asked:
        check_image(prompt.image, "image_prompts.image")
        _check_number("image_prompts.scale", prompt.scale, MAX_CONTROL_SCALE, prompt.name)


def check_ip_adapters(names: Sequence[str], limits: ModelLimits) -> None:
    """Refuse IP-Adapters that are not served, are too many, or the same twice.

    Raises:
        InvalidRequest: on `image_prompts`.
    """
    _check_served("image_prompts", "IP-Adapter ", names, limits.ip_adapters, MAX_CONTROLS)


def sides_of(limits: ModelLimits) -> dict[str, int]:
    """Of the square that each IP-Adapter reads, in pixels."""
    return {each.name: each.side for each in limits.ip_adapters}


def resolve_image_prompts(asked: tuple[ImagePrompt, ...], limits: ModelLimits) -> tuple[ImagePrompt, ...]:
    """At their encoder's size, in one order."""
    sides = sides_of(limits)
    return tuple(
        ImagePrompt(each.name, clip_square(each.image, sides[each.name]), float(each.scale))
        for each in sorted(asked, key=lambda prompt: prompt.name)
    )
