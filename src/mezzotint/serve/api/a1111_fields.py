"""What A1111's clients send unasked, and the rule for it.

They fill in dozens of fields that only A1111 knows. A field that is not served is accepted while it says
"nothing" (null, false, zero, empty) or A1111's own default, and refused by its name when it would have
changed the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import BeforeValidator, Field

from mezzotint.errors import NotSupported
from mezzotint.serve.api.bounds import MAX_IMAGES

__all__ = ["Blur", "Count", "Real", "Seed", "Whole", "check_neutral"]

# A1111's own defaults, and its clients', that say something; what else a field may hold without changing the
# picture. Of those about a mask they are all that is served: clients send them unasked.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "eta": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "s_noise": (1,),
    "s_tmax": (math.inf,),
    "initial_noise_multiplier": (1,),
    "inpaint_full_res": (True,),
    "inpainting_fill": (0, 1),
    "mask_round": (True,),
    "CLIP_stop_at_last_layers": (1, 2),
    "clip_skip": (1, 2),
    "comma_padding_backtrack": (20,),
    "ddim_discretize": ("uniform",),
    "hr_checkpoint_name": ("Use same checkpoint",),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler",),
    "inpainting_mask_weight": (1,),
    "sd_vae": ("Automatic",),
}
CHOOSES_BY_ZERO = ("initial_noise_multiplier",)
CHOOSES_BY_NONE = ("emphasis",)
# Bookkeeping, which no picture depends on.
HARMLESS = frozenset(
    {
        "comments",
        "do_not_save_grid",
        "do_not_save_samples",
        "force_task_id",
        # Of pix2pix models alone.
        "image_cfg_scale",
        "inpaint_full_res_padding",
        "override_settings_restore_afterwards",
        # Of the refiner and of a script, which are refused.
        "refiner_switch_at",
        "script_args",
        "return_grid",
        "save_images",
        "seed_enable_extras",
        # Of previews alone.
        "show_progress_type",
        # SillyTavern's own, by which it found this server.
        "auth",
        "url",
        # AI Render's own, which it sends as denoising_strength too.
        "image_similarity",
        # openOutpaint's own: of a mask, which it sends as inpainting_fill too, and of its page.
        "outpainting_fill",
        "sync_cursor_size",
        # Auto-Photoshop's own, which it keeps with its layers.
        "expanded_mask",
        "mask_expansion",
        "mode",
        "original_negative_prompt",
        "original_prompt",
        "prompt_shortcut_ui_dict",
        "selection_info",
        "uniqueDocumentId",
        "use_prompt_shortcut",
        "use_sharp_mask",
        # Without a strength, which is refused, it says nothing.
        "subseed",
    }
)


def _no_truth_value(value: object) -> object:
    # To pydantic true is 1, and to whoever sends it a mistake.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


NO_TRUTH_VALUE = BeforeValidator(_no_truth_value)
Whole = Annotated[int, NO_TRUTH_VALUE]
Real = Annotated[float, NO_TRUTH_VALUE]
# Bounds before the validator: behind one, pydantic writes them into the OpenAPI document as ge and le.
Seed = Annotated[int, Field(ge=-1), NO_TRUTH_VALUE]
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES), NO_TRUTH_VALUE]
Blur = Annotated[int, Field(ge=0, le=64), NO_TRUTH_VALUE]


def check_neutral(
    fields: Mapping[str, object], in_force: Mapping[str, object] = MappingProxyType({}), place: str = ""
) -> None:
    """Refuse a field that would change the picture and is not served.

    in_force: what holds for everybody, and may be said again. place: where the fields stand, before names.

    Raises:
        NotSupported: names the first of them.
    """
    for name, value in fields.items():
        if name in HARMLESS or _says_nothing(name, value):
            continue
        accepted = NEUTRAL.get(name, ())
        if not _says_nothing(name, in_force.get(name)):
            accepted = (in_force[name], *accepted)
        if value in accepted:
            continue
        own = "".join(f"{json.dumps(each)}, " for each in accepted)
        nothing = "null" if name in CHOOSES_BY_ZERO else "null, false, 0"
        told = f"{place}{name}"
        raise NotSupported(f"{told} is not served here; accepted are {own}{nothing} or empty", param=told)


def _says_nothing(name: str, value: object) -> bool:
    if value is None or value is False or value in ("", [], {}):
        return True
    if value in ("None", "none"):
        return name not in CHOOSES_BY_NONE
    if isinstance(value, list):
        return all(each in (None, "", "None", "none") for each in value)
    # Zero turns off whatever a number sets, or is sent unasked: s_noise, by Dify.
    return (value == 0 and name not in CHOOSES_BY_ZERO) or value in NEUTRAL.get(name, ())
