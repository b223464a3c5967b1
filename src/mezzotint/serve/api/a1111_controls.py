"""ControlNets and IP-Adapters as A1111's extension has them: units in `alwayson_scripts`, and what its
clients ask for.

Edges are found at the size that is drawn, as with the extension's `pixel_perfect`; its own resolution for
them (`processor_res`) is therefore accepted and not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field, ValidationError

from mezzotint.core import (
    MAX_CONTROL_SCALE,
    MAX_CONTROLS,
    PREPROCESSORS,
    Control,
    GenerationRequest,
    ImagePrompt,
    ModelLimits,
    Pixels,
)
from mezzotint.errors import InvalidRequest, NotSupported
from mezzotint.imaging.inputs import clip_square, cropped_to, padded_to
from mezzotint.imaging.size import fitting_size
from mezzotint.imaging.uploads import read_upload_text
from mezzotint.resolving_added import check_controlnets, check_ip_adapters, sides_of
from mezzotint.serve.api.a1111_answers import ERRORS
from mezzotint.serve.api.a1111_fields import Real, check_neutral
from mezzotint.serve.api.dependencies import CallerOf, KeyedRoute, ServicesOf
from mezzotint.serve.api.errors import invalid_body
from mezzotint.serve.api.fields import Fields

__all__ = ["router", "with_controls"]

SCRIPTS = "alwayson_scripts"
NAME = "controlnet"
PLACE = f"{SCRIPTS}.{NAME}"

Shaping = Callable[[Pixels, int, int], Pixels]
# By name and, as older clients have them, by number and by the names of then.
JUST = ("just resize", "0")
CROP = ("crop and resize", "1", "scale to fit (inner fit)", "inner fit (scale to fit)")
FILL = ("resize and fill", "2", "envelope (outer fit)", "outer fit (shrink to fit)")
RESIZE_MODES: Mapping[str, Shaping] = {
    **dict.fromkeys(JUST, lambda image, width, height: image),
    **dict.fromkeys(CROP, cropped_to),
    **dict.fromkeys(FILL, padded_to),
}
BALANCED = ("balanced", "0")
# What the extension calls a model: its name and the beginning of its hash.
HASHED = re.compile(r" \[[0-9a-f]+\]$")
# Bounds of the edges: -1 and 64 are what clients send unasked, whatever the module.
THRESHOLDS = {"threshold_a": (-1, 64, 100), "threshold_b": (-1, 64, 200)}
HARMLESS = frozenset({"is_ui", "low_vram", "lowvram", "pixel_perfect", "processor_res", "save_detected_map"})
# The extension's own words for what is done here too.
IN_FORCE: Mapping[str, object] = {
    # Its older name of guidance_end.
    "guidance": 1,
    "hr_option": "Both",
    "input_mode": "simple",
    "pulid_mode": "Fidelity",
}
# Its words for what a ControlNet-Union is to read (`ControlNetUnionControlType`), and how names end here.
UNION_KINDS: Mapping[str, str] = {
    "openpose": "openpose",
    "depth": "depth",
    "soft edge": "softedge",
    "hard edge": "canny",
    "normal map": "normal",
    "segmentation": "segment",
    "tile": "tile",
    "inpaint": "repaint",
}
UNKNOWN = "unknown"
# Its modules for the image encoders of plain IP-Adapters and plus, by all their names; here there is one
# encoder, whatever is said.
ADAPTER_MODULES = (
    "ip-adapter-auto",
    "ip-adapter_clip_g",
    "ip-adapter_clip_h",
    "ip-adapter_clip_sdxl",
    "ip-adapter_clip_sdxl_plus_vith",
)


class Unit(Fields):
    """One of the extension's units. What is left out is its default."""

    model_config = ConfigDict(extra="allow")

    enabled: bool = True
    module: str = Field("none", description="none or canny; of an IP-Adapter, none or ip-adapter-auto")
    model: str = Field("None", description="a name of /controlnet/model_list")
    weight: Real = Field(1.0, ge=0, le=MAX_CONTROL_SCALE)
    image: str | dict[str, Any] | None = Field(None, description="base64 file or data: URL")
    input_image: str | None = Field(None, description="its older name")
    guidance_start: Real = Field(0.0, ge=0, le=1)
    guidance_end: Real = Field(1.0, ge=0, le=1)
    resize_mode: str | int = Field(1, description="Just Resize, Crop and Resize, Resize and Fill; or 0, 1, 2")
    control_mode: str | int = Field(0, description="Balanced (0)")
    union_control_type: str | None = Field(
        None, description='what a ControlNet-Union reads, such as "Soft Edge", where model does not say it'
    )

    @property
    def is_used(self) -> bool:
        return self.enabled and self.model.casefold() != "none"

    @property
    def adapter(self) -> str:
        """The IP-Adapter's name."""
        return HASHED.sub("", self.model)

    @property
    def net(self) -> str:
        """The ControlNet's name."""
        name = HASHED.sub("", self.model)
        kind = UNION_KINDS.get((self.union_control_type or UNKNOWN).casefold())
        return name if kind is None or f"-{name}".endswith(f"-{kind}") else f"{name}-{kind}"

    @property
    def picture(self) -> str | None:
        """As it was sent; None where the picture that is drawn from is meant."""
        if isinstance(self.image, dict):
            if self.image.get("mask"):
                raise NotSupported(f"{PLACE}: a mask of a unit's image is not served", param=SCRIPTS)
            picture = self.image.get("image")
            if not isinstance(picture, str):
                raise InvalidRequest(f"{PLACE}: image.image must be base64, a text", param=SCRIPTS)
            return picture
        return self.image or self.input_image

    def names_adapter(self, limits: ModelLimits) -> bool:
        """Whether it is an IP-Adapter's, and not a ControlNet's."""
        nets, adapters = ({each.name for each in of} for of in (limits.controlnets, limits.ip_adapters))
        return self.module.casefold() in ADAPTER_MODULES or self.adapter in adapters - nets

    def check_prompt(self) -> None:
        """As `check`, of an IP-Adapter's. To the extension, too, its picture has no place and no mode."""
        if self.module.casefold() not in ("none", *ADAPTER_MODULES):
            served = " and ".join(ADAPTER_MODULES)
            raise NotSupported(f"{PLACE}: of an IP-Adapter's modules {served} are served", param=SCRIPTS)
        if (self.guidance_start, self.guidance_end) != (0, 1):
            raise NotSupported(
                f"{PLACE}: guidance_start and guidance_end of an IP-Adapter must be 0 and 1", param=SCRIPTS
            )
        self._check_others()

    def check(self) -> None:
        """Raises: NotSupported: it asks for what would change the picture and is not served."""
        if self.module.casefold() not in PREPROCESSORS:
            served = " and ".join(PREPROCESSORS)
            raise NotSupported(f"{PLACE}: of module only {served} are served", param=SCRIPTS)
        if str(self.resize_mode).casefold() not in RESIZE_MODES:
            raise NotSupported(
                f"{PLACE}: of resize_mode only Just Resize, Crop and Resize and Resize and Fill are served",
                param=SCRIPTS,
            )
        if str(self.control_mode).casefold() not in BALANCED:
            raise NotSupported(f"{PLACE}: of control_mode only Balanced is served", param=SCRIPTS)
        if (self.union_control_type or UNKNOWN).casefold() not in (UNKNOWN, *UNION_KINDS):
            raise NotSupported(
                f"{PLACE}: union_control_type is one of {', '.join(UNION_KINDS)}, in any case, not "
                f"{self.union_control_type!r}",
                param=SCRIPTS,
            )
        for name, usual in THRESHOLDS.items():
            value = (self.model_extra or {}).get(name)
            if self.module.casefold() == "canny" and value not in (None, *usual):
                raise NotSupported(f"{PLACE}: {name} must be {usual[-1]}, not {value!r}", param=SCRIPTS)
        self._check_others()

    def _check_others(self) -> None:
        extra = self.model_extra or {}
        others = {name: extra[name] for name in extra if name not in HARMLESS and name not in THRESHOLDS}
        check_neutral(others, IN_FORCE, f"{PLACE}.")

    def image_prompt(self, place: str, drawn_from: Pixels | None, side: int) -> ImagePrompt:
        """As `control`. side: of the square that is read."""
        image = drawn_from if self.picture is None else read_upload_text(self.picture, place)
        if image is None:
            raise InvalidRequest(f"{place} is required", param=SCRIPTS)
        return ImagePrompt(self.adapter, clip_square(image, side), self.weight)

    def control(self, place: str, drawn_from: Pixels | None, shape: tuple[int, int]) -> Control:
        """place: of its picture. drawn_from: what it reads where it has none. shape: width and height."""
        if self.picture is not None:
            sent = read_upload_text(self.picture, place)
            image = RESIZE_MODES[str(self.resize_mode).casefold()](sent, *shape)
        elif drawn_from is not None:
            # Brought to size as it is to be drawn from, whatever the unit says: cropped, its lines would lie
            # elsewhere than what is drawn. So does the extension.
            image = drawn_from
        else:
            raise InvalidRequest(f"{place} is required", param=SCRIPTS)
        return Control(
            name=self.net,
            image=image,
            preprocessor="canny" if self.module.casefold() == "canny" else "none",
            scale=self.weight,
            start=self.guidance_start,
            end=self.guidance_end,
        )


def with_controls(
    request: GenerationRequest, scripts: Mapping[str, Any], limits: ModelLimits
) -> GenerationRequest:
    """The request with what the units of `alwayson_scripts` ask for. Computes: not on an event loop.

    Raises:
        MezzotintError: a unit or another script is not accepted, or not served.
    """
    units = {number: unit for number, unit in enumerate(_units(scripts)) if unit.is_used}
    if not units:
        return request
    prompts = {number: unit for number, unit in units.items() if unit.names_adapter(limits)}
    nets = {number: unit for number, unit in units.items() if number not in prompts}
    for unit in prompts.values():
        unit.check_prompt()
    for unit in nets.values():
        unit.check()
    # Before any picture is decoded: a small file may hold a large one.
    check_controlnets([unit.net for unit in nets.values()], limits)
    check_ip_adapters([unit.adapter for unit in prompts.values()], limits)
    width, height = _size(request, limits)
    # What is not drawn is refused later on; until then nothing is made of such a size.
    shape = (_within(width, limits), _within(height, limits))
    places = {number: f"{PLACE}[{number}].image" for number in units}
    sides = sides_of(limits)
    return replace(
        request,
        width=width,
        height=height,
        controls=tuple(unit.control(places[number], request.image, shape) for number, unit in nets.items()),
        image_prompts=tuple(
            unit.image_prompt(places[number], request.image, sides[unit.adapter])
            for number, unit in prompts.items()
        ),
    )


def _units(scripts: Mapping[str, Any]) -> list[Unit]:
    """Of the one script that is served."""
    found: list[Unit] = []
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, Mapping) else script
        if not args or (isinstance(args, list) and not any(args)):
            continue
        if name.casefold() != NAME:
            raise NotSupported(f"{SCRIPTS}: of scripts only ControlNet is served, not {name}", param=SCRIPTS)
        if found:
            raise InvalidRequest(f"{SCRIPTS} has ControlNet twice, by names of different case", param=SCRIPTS)
        if not isinstance(args, list) or not all(isinstance(each, Mapping) for each in args):
            raise InvalidRequest(f"{PLACE}.args must be a list of units", param=SCRIPTS)
        if len(args) > MAX_CONTROLS:
            raise InvalidRequest(f"{PLACE} has at most {MAX_CONTROLS} units, not {len(args)}", param=SCRIPTS)
        found = [_unit(told, f"{PLACE}[{number}]") for number, told in enumerate(args)]
    return found


def _unit(told: Mapping[str, Any], place: str) -> Unit:
    try:
        return Unit.model_validate(told)
    except ValidationError as error:
        raise invalid_body(error, place) from None


def _size(request: GenerationRequest, limits: ModelLimits) -> tuple[int, int]:
    """What is drawn, whose proportions a picture is brought to: never a control's own, as in A1111."""
    if request.image is not None and request.width is None and request.height is None:
        height, width = request.image.shape[:2]
        return fitting_size(width, height, limits)
    return (
        limits.default_width if request.width is None else request.width,
        limits.default_height if request.height is None else request.height,
    )


def _within(side: int, limits: ModelLimits) -> int:
    return min(max(side, limits.min_size), limits.max_size)


router = APIRouter(prefix="/controlnet", tags=["A1111"], route_class=KeyedRoute, responses=ERRORS)
# The extension's own; what they ask for is so here anyway.
Flag = Annotated[bool, Query(description="accepted, and not used")]


@router.get("/version", summary="The extension's version, as its clients ask for it")
async def version(_: CallerOf) -> dict[str, int]:
    return {"version": 2}


@router.get("/model_list", summary="The ControlNets and IP-Adapters that a unit may name")
async def model_list(_: CallerOf, services: ServicesOf, update: Flag = True) -> dict[str, list[str]]:
    limits = (await services.gateway.served()).limits
    nets = [(each.name, each.sha256) for each in limits.controlnets]
    adapters = [(each.name, each.sha256) for each in limits.ip_adapters]
    return {"model_list": [f"{name} [{sha256[:8]}]" for name, sha256 in nets + adapters]}


@router.get("/module_list", summary="The preprocessors")
async def module_list(_: CallerOf, services: ServicesOf, alias_names: Flag = False) -> dict[str, Any]:
    served = (await services.gateway.served()).limits.ip_adapters
    modules = [*PREPROCESSORS, *(ADAPTER_MODULES if served else ())]
    nothing_to_set = {"model_free": False, "sliders": []}
    return {"module_list": modules, "module_detail": dict.fromkeys(modules, nothing_to_set)}


@router.get("/settings", summary="How many units there are")
async def settings(_: CallerOf) -> dict[str, int]:
    return {"control_net_unit_count": MAX_CONTROLS}
