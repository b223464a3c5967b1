"""The table of `style` and `style_preset`: words that are laid round a prompt, and nothing more.

`style` is what OpenAI's DALL·E clients send, `style_preset` what Stability's do. The prompt that was drawn is
in the answer as `revised_prompt` and in the receipt, so nothing of this is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mezzotint.core import MAX_PROMPT_CHARACTERS, GenerationRequest
from mezzotint.errors import InvalidRequest

__all__ = ["PRESETS", "with_styles"]


@dataclass(frozen=True)
class Style:
    """`added` follows the prompt after a comma, `avoided` the negative prompt."""

    added: str
    avoided: str = ""

    def prompt(self, prompt: str) -> str:
        return f"{prompt}, {self.added}"

    def negative_prompt(self, negative_prompt: str | None) -> str | None:
        """`None` stays `None` where nothing is avoided: it means the model's own "no text"."""
        return ", ".join(filter(None, (negative_prompt, self.avoided))) or negative_prompt


STYLES: Mapping[str, Style] = MappingProxyType(
    {
        "vivid": Style("vivid colors, dramatic lighting"),
        "natural": Style("natural colors, realistic lighting"),
    }
)
PRESETS: Mapping[str, Style] = MappingProxyType(
    {
        "3d-model": Style("3d model, octane render, highly detailed, volumetric lighting", "photo, drawing"),
        "analog-film": Style("analog film photo, faded film, 35mm, grain, vignette", "digital, drawing"),
        "anime": Style("anime artwork, key visual, vibrant, highly detailed", "photo, realism"),
        "cinematic": Style("cinematic film still, shallow depth of field, film grain", "drawing, cartoon"),
        "comic-book": Style("comic book page, graphic illustration, bold ink lines", "photo, realism"),
        "digital-art": Style("digital artwork, concept art, illustrative, detailed", "photo, realism"),
        "fantasy-art": Style("ethereal fantasy art, majestic, magical, painterly", "photo, modern"),
        "isometric": Style("isometric view, clean edges, soft shadows, miniature", "perspective, photo"),
        "line-art": Style("line art drawing, sleek, minimalist, black on white", "photo, shading, color"),
        "low-poly": Style("low-poly, polygonal shapes, ambient occlusion", "photo, noisy"),
        "origami": Style("origami, folded paper, pleats, studio light", "photo, noisy"),
        "photographic": Style("photograph, 35mm, sharp focus, natural light", "drawing, painting, cartoon"),
        "pixel-art": Style("pixel art, low-res, blocky, 8-bit graphics", "photo, smooth, blurry"),
    }
)


def with_styles(request: GenerationRequest, style: str | None, preset: str | None) -> GenerationRequest:
    """The request with the words of a `style` and a `style_preset` laid round its prompts.

    Raises:
        InvalidRequest: there is no such preset, or a prompt is too long with its words.
    """
    if preset is not None and preset not in PRESETS:
        raise InvalidRequest(f"style_preset must be one of {', '.join(PRESETS)}", param="style_preset")
    named = (STYLES.get(style or ""), PRESETS.get(preset or ""))
    styled = request
    # An empty prompt stays empty, and is refused.
    for each in filter(None, named) if request.prompt.strip() else ():
        styled = replace(
            styled,
            prompt=each.prompt(styled.prompt),
            negative_prompt=each.negative_prompt(styled.negative_prompt),
        )
    _check_length("prompt", request.prompt, styled.prompt)
    _check_length("negative_prompt", request.negative_prompt, styled.negative_prompt)
    return styled


def _check_length(name: str, sent: str | None, styled: str | None) -> None:
    length, added = len(sent or ""), len(styled or "") - len(sent or "")
    if added and length + added > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            f"{name} has {length:,} characters, and {added} more with the style's words; at most "
            f"{MAX_PROMPT_CHARACTERS:,} are accepted",
            param=name,
        )
