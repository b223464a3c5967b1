"""From what stands in the form to the body of a job, and back from a picture's record. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mezzotint.core import MAX_LORAS, MAX_SEED, Hires, Lora
from mezzotint.ui.guides import FOLLOWED, READ, Guide, Look
from mezzotint.ui.offer import Offer
from mezzotint.ui.receipts import Recipe
from mezzotint.ui.stages import OFF, choice_of, larger, read_choice, stage_in_words

__all__ = ["KEPT", "STYLES", "TABS", "JobRequest", "filled", "read_kept", "read_seed", "read_whole"]

PREVIEWS = 3
# The service's words for `style_preset`; a service that knows others refuses these by name.
STYLES = (
    "3d-model",
    "analog-film",
    "anime",
    "cinematic",
    "comic-book",
    "digital-art",
    "fantasy-art",
    "isometric",
    "line-art",
    "low-poly",
    "origami",
    "photographic",
    "pixel-art",
)
TABS = ("draw", "edit")
# What a picture's record tells beside its texts, its seed and its LoRAs.
RECIPE = ("size", "steps", "guidance", "scheduler")
NUMBER = (int, float)
# What a browser keeps of the form, and as what. A picture that is to be changed is too much for it.
KEPT: Mapping[str, type | tuple[type, ...]] = {
    "prompt": str,
    "size": str,
    "n": NUMBER,
    "edit_prompt": str,
    "negative_prompt": str,
    "emphasis": bool,
    "style": str,
    "steps": NUMBER,
    "guidance": NUMBER,
    "scheduler": str,
    "hires": str,
    "seed": str,
    "model": str,
    "loras": list,
    "lora_scale": NUMBER,
    "guide": str,
    "guide_reads": str,
    "guide_scale": NUMBER,
    "guide_start": NUMBER,
    "guide_end": NUMBER,
    "adapter": str,
    "adapter_scale": NUMBER,
}


@dataclass(frozen=True)
class JobRequest:
    """What somebody asks for. None and empty: as the service thinks best. image, mask, guiding, seen: files.

    seed: None draws one at random. guide: how `guiding` is followed. look: how `seen` is read.
    """

    prompt: str
    negative_prompt: str = ""
    emphasis: bool = False
    style: str = ""
    size: str = ""
    hires: Hires | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str = ""
    seed: int | None = None
    n: int = 1
    model: str = ""
    loras: Sequence[Lora] = ()
    strength: float | None = None
    image: bytes | None = None
    mask: bytes | None = None
    guide: Guide | None = None
    guiding: bytes | None = None
    look: Look | None = None
    seen: bytes | None = None

    @property
    def is_wordless(self) -> bool:
        """Whether there is nothing to draw it by."""
        return not self.prompt.strip() and self.guide is None and self.look is None

    @property
    def drawn_size(self) -> str:
        """Of the picture that comes: `WIDTHxHEIGHT`, or empty where that is the service's to say."""
        return larger(self.size, self.hires)

    def body(self) -> dict[str, Any]:
        """The body of `POST /v1/images/jobs`, without what was left open."""
        fields: dict[str, Any] = {
            "negative_prompt": self.negative_prompt.strip(),
            "emphasis": self.emphasis or None,
            "style_preset": self.style,
            # A picture that is changed keeps its size, or the nearest that is served.
            "size": self.size if self.image is None else "",
            # Nor has it a second stage: the service enlarges what is drawn from words.
            "hires": _hires_body(self.hires) if self.image is None else None,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "model": self.model,
            "loras": [asdict(lora) for lora in self.loras],
            "controls": []
            if self.guide is None
            else [{**asdict(self.guide), "image": _encoded(self.guiding)}],
            "image_prompts": []
            if self.look is None
            else [{**asdict(self.look), "image": _encoded(self.seen)}],
            "strength": self.strength if self.image is not None else None,
            "image": _encoded(self.image),
            "mask": _encoded(self.mask),
        }
        given = {name: value for name, value in fields.items() if value not in (None, "", [])}
        # The service wants to be told of no words too.
        always = {"prompt": self.prompt, "n": self.n, "partial_images": PREVIEWS, "output_format": "png"}
        return {**always, **given}


def read_kept(kept: object) -> dict[str, Any]:
    """The form's values, by field, as a browser kept them, where anyone may have written to them."""
    given = kept if isinstance(kept, Mapping) else {}
    found = {name: given[name] for name, kind in KEPT.items() if isinstance(given.get(name), kind)}
    loras = found.get("loras", [])
    if not all(isinstance(name, str) for name in loras):
        del found["loras"]
    return found


def read_seed(text: str) -> int | None:
    """The seed in the field. None where it is empty.

    Raises:
        ValueError: it is no whole number from 0 to `MAX_SEED`.
    """
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"\d{1,19}", text) or int(text) > MAX_SEED:
        raise ValueError(f"Seed takes a whole number from 0 to {MAX_SEED}. Leave it empty for a new one.")
    return int(text)


def read_whole(label: str, value: float | None) -> int | None:
    """The number in a slider's field, into which anything between its bounds can be typed.

    Raises:
        ValueError: it is not whole.
    """
    if value is None:
        return None
    if not float(value).is_integer():
        raise ValueError(f"{label} takes a whole number. Change it and draw again.")
    return int(value)


def filled(
    recipe: Recipe, offer: Offer | None, *, is_guided: bool = False, has_seen: bool = False
) -> tuple[Mapping[str, Any], str]:
    """The form's values for a picture like that, by field; what is to be said of them.

    is_guided, has_seen: a picture to follow, or to read, lies in the form, which stays there.

    What the picture does not tell, or the service does not draw with, is as the service has it: nothing of
    what stood in the form before is mixed in, but for whether brackets weigh words where it has none.
    """
    usual = {} if offer is None else offer.usual
    values: dict[str, Any] = {
        **{name: usual[name] for name in RECIPE if name in usual},
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "style": "",
        "seed": "" if recipe.seed is None else str(recipe.seed),
    }
    if recipe.emphasis is not None:
        values["emphasis"] = recipe.emphasis
    served = [lora.name for lora in offer.loras] if offer else []
    # As many as a request has: a stranger's file may list any number.
    asked = recipe.loras[:MAX_LORAS]
    loras = [lora for lora in asked if lora.name in served]
    left_out = [f"LoRA {lora.name}" for lora in asked if lora.name not in served]
    values["loras"] = [lora.name for lora in loras]
    # The form has one strength for all.
    values["lora_scale"] = loras[0].scale if loras else 1.0
    left_out += [f"LoRA {lora.name} at {lora.scale:g}" for lora in loras if lora.scale != loras[0].scale]
    for name in RECIPE:
        value = getattr(recipe, name)
        if value is None:
            continue
        if offer is None or offer.takes(name, value):
            values[name] = value
        else:
            left_out.append(f"{name} {value}")
    values["hires"] = OFF
    if recipe.hires is not None:
        choice = choice_of(recipe.hires)
        # A choice cannot say every number that a file can.
        is_said = read_choice(choice) == recipe.hires
        if is_said and (offer is None or offer.enlarges(str(values["size"]), recipe.hires)):
            values["hires"] = choice
        else:
            left_out.append(f"a second stage of {stage_in_words(recipe.hires)}")
    guides = [guide for guide in recipe.guides if offer is not None and offer.follows(guide)]
    left_out += [f"ControlNet {guide.name}" for guide in recipe.guides if guide not in guides]
    values |= _of_guide(guides[0] if guides else None)
    looks = [look for look in recipe.looks if offer is not None and offer.reads(look)]
    left_out += [f"IP-Adapter {look.name}" for look in recipe.looks if look not in looks]
    look = looks[0] if looks else Look(OFF)
    values |= {"adapter": look.name, "adapter_scale": look.scale}
    left_out += recipe.unserved
    said = ["The settings of the picture are in the form."]
    if left_out:
        said.append(f"The service does not draw with {' or '.join(left_out)}: it has its own values there.")
    if recipe.strength is not None:
        said.append("It was drawn from another picture: its settings alone draw something else.")
    for kind, drawn_by, place, is_given in (
        ("ControlNet", guides, FOLLOWED, is_guided),
        ("IP-Adapter", looks, READ, has_seen),
    ):
        if drawn_by[1:]:
            others = " and ".join(each.name for each in drawn_by[1:])
            said.append(f"The form has one {kind} at a time: it is without {others}.")
        if drawn_by:
            said.append(place.still if is_given else place.again)
    return values, " ".join(said)


def _of_guide(guide: Guide | None) -> dict[str, Any]:
    """The form's values for it, by field."""
    name, followed = (OFF, Guide("")) if guide is None else (guide.name, guide)
    return {
        "guide": name,
        "guide_reads": followed.preprocessor,
        "guide_scale": followed.scale,
        "guide_start": followed.start,
        "guide_end": followed.end,
    }


def _hires_body(hires: Hires | None) -> dict[str, Any] | None:
    if hires is None:
        return None
    told = {name: value for name, value in asdict(hires).items() if value is not None}
    if not hires.of_latents:
        # A service that is older than the choice refuses to hear of it.
        del told["upscaler"]
    return told


def _encoded(file: bytes | None) -> str | None:
    return None if file is None else base64.b64encode(file).decode()
