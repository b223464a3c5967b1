"""From what stands in the form to the body of a job. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

__all__ = ["LAST_SEED", "Wish"]

LAST_SEED = 2**63 - 1
PREVIEWS = 3


@dataclass(frozen=True)
class Wish:
    """What somebody asks for. None and empty: as the service thinks best. image, mask: files.

    seed: None draws one at random. loras: name and scale.
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
    loras: tuple[tuple[str, float], ...] = ()
    strength: float | None = None
    image: bytes | None = None
    mask: bytes | None = None

    def body(self) -> dict[str, Any]:
        """The body of `POST /v1/images/jobs`, without what was left open."""
        fields: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt.strip(),
            "style_preset": self.style,
            "size": self.size,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "model": self.model,
            "loras": [{"name": name, "scale": scale} for name, scale in self.loras],
            "strength": self.strength if self.image is not None else None,
            "image": _encoded(self.image),
            "mask": _encoded(self.mask),
        }
        given = {name: value for name, value in fields.items() if value not in (None, "", [])}
        return {"n": self.n, "partial_images": PREVIEWS, "output_format": "png", **given}


def _encoded(file: bytes | None) -> str | None:
    return None if file is None else base64.b64encode(file).decode()
