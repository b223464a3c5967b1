"""From what stands in the form to the body of a job, and back from a picture's record. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mezzotint.core import MAX_SEED, Lora
from mezzotint.ui.offer import Offer
from mezzotint.ui.receipts import Recipe

__all__ = ["STYLES", "Wish", "filled", "read_seed"]

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


@dataclass(frozen=True)
class Wish:
    """What somebody asks for. None and empty: as the service thinks best. image, mask: files.

    seed: None draws one at random.
    """

    prompt: str
    negative_prompt: str = ""
    style: str = ""
    size: str = ""
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

    def body(self) -> dict[str, Any]:
        """The body of `POST /v1/images/jobs`, without what was left open."""
        fields: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt.strip(),
            "style_preset": self.style,
            # A picture that is changed keeps its size, or the nearest that is served.
            "size": self.size if self.image is None else "",
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "model": self.model,
            "loras": [asdict(lora) for lora in self.loras],
            "strength": self.strength if self.image is not None else None,
            "image": _encoded(self.image),
            "mask": _encoded(self.mask),
        }
        given = {name: value for name, value in fields.items() if value not in (None, "", [])}
        return {"n": self.n, "partial_images": PREVIEWS, "output_format": "png", **given}


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


def filled(recipe: Recipe, offer: Offer | None) -> tuple[Mapping[str, Any], str]:
    """The form's values for a picture like that, by field; a sentence on what could not be taken over."""
    left_out: list[str] = []
    values: dict[str, Any] = {"prompt": recipe.prompt, "negative_prompt": recipe.negative_prompt, "style": ""}
    if recipe.seed is not None:
        values["seed"] = str(recipe.seed)
    served = [lora.name for lora in offer.loras] if offer else []
    loras = [lora for lora in recipe.loras if lora.name in served]
    left_out += [f"LoRA {lora.name}" for lora in recipe.loras if lora not in loras]
    values["loras"] = [lora.name for lora in loras]
    # The form has one strength for all.
    values["lora_scale"] = loras[0].scale if loras else 1.0
    left_out += [f"LoRA {lora.name} at {lora.scale:g}" for lora in loras if lora.scale != loras[0].scale]
    for name, value, fits in (
        ("size", recipe.size, offer is None or offer.accepts(recipe.size or "")),
        ("steps", recipe.steps, offer is None or 1 <= (recipe.steps or 0) <= offer.max_steps),
        ("guidance", recipe.guidance, offer is None or (recipe.guidance or 0) <= offer.max_guidance),
        ("scheduler", recipe.scheduler, offer is None or recipe.scheduler in offer.schedulers),
    ):
        if value is None:
            continue
        if fits:
            values[name] = value
        else:
            left_out.append(f"{name} {value}")
    said = (
        f" The service does not draw with {' or '.join(left_out)}: that stays as it was." if left_out else ""
    )
    return values, f"The settings of the picture are in the form.{said}"


def _encoded(file: bytes | None) -> str | None:
    return None if file is None else base64.b64encode(file).decode()
