"""Pictures and captions: pictograms of Noto Color Emoji on flat backgrounds.

This room renders glyphs, composes pictures and writes captions. It knows nothing of torch or of models.
A picture is a ``uint8`` array (height, width, 3). Everything random takes a ``numpy`` generator.

Held-out pairs: every glyph has two backgrounds, chosen by a hash of its name, that no training picture
ever shows it on. The evaluation draws only those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mezzotint.bench import quality

Picture = NDArray[np.uint8]

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
#: The one bitmap size that Noto Color Emoji carries, in pixels per em.
FONT_SIZE = 109

#: Background name → RGB. Pairwise distances are over 60/255 so that "nearest named colour" is safe.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (140, 144, 150),
    "black": (24, 24, 28),
    "red": (205, 45, 50),
    "orange": (245, 145, 35),
    "yellow": (250, 220, 80),
    "green": (70, 165, 75),
    "teal": (30, 150, 155),
    "blue": (55, 110, 215),
    "purple": (125, 70, 175),
    "pink": (248, 165, 195),
    "brown": (125, 85, 55),
}
STYLES = ("pixel art", "pencil sketch", "night")
#: Scene name → the background that it is held out with: a glyph kept off green is kept off the grass as well.
SCENES = {"grass": "green", "night sky": "black", "seaside": "blue"}
#: Width and height in pixels.
SIZES: tuple[tuple[int, int], ...] = ((128, 128), (160, 96), (96, 160), (192, 128), (128, 192))


@dataclass(frozen=True)
class Glyph:
    """A pictogram: its caption name and the text that the font joins into one picture."""

    name: str
    text: str


@cache
def glyphs(count: int | None = None) -> tuple[Glyph, ...]:
    """The first ``count`` of ``glyphs.txt``, or all: every model knows a beginning of one list."""
    found: list[Glyph] = []
    for line in (Path(__file__).parent / "glyphs.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            codes, name = line.split(" ", 1)
            found.append(Glyph(name, "".join(chr(int(code, 16)) for code in codes.split("+"))))
    return tuple(found[:count])


@cache
def held_out(name: str) -> tuple[str, ...]:
    """The backgrounds on which this glyph is never shown in training; stable across vocabularies."""
    return quality.held_out(name, tuple(BACKGROUNDS))


@cache
def allowed(name: str) -> tuple[str, ...]:
    """The backgrounds on which this glyph may be shown in training."""
    return tuple(b for b in BACKGROUNDS if b not in held_out(name))


@cache
def render(text: str) -> Image.Image:
    """One glyph as a square RGBA image of 128 pixels, centred on the box of its ink, premultiplied later.

    The ink is scaled so that its longer side fills the square: a die and a castle are equally large.
    """
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    canvas = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((16, 16), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for {text!r}")
    ink = canvas.crop(box)
    side = max(ink.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((128, 128), Image.Resampling.LANCZOS)


@cache
def scaled(text: str, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Premultiplied colour (side, side, 3) in 0..255 and alpha (side, side, 1) in 0..1."""
    return premultiplied(render(text), side)


def premultiplied(square: Image.Image, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same of any square RGBA image."""
    # Resizing premultiplied colour keeps dark fringes off the edges.
    pixels = np.asarray(square, dtype=np.float32)
    alpha = pixels[..., 3:] / 255.0
    stacked = np.concatenate([pixels[..., :3] * alpha, alpha], axis=-1)
    channels = [
        np.asarray(Image.fromarray(stacked[..., c]).resize((side, side), Image.Resampling.BOX))
        if side < 64
        else np.asarray(Image.fromarray(stacked[..., c]).resize((side, side), Image.Resampling.BILINEAR))
        for c in range(4)
    ]
    small = np.stack(channels, axis=-1)
    return small[..., :3].copy(), np.clip(small[..., 3:], 0.0, 1.0)


def paste(canvas: NDArray[np.float32], text: str, side: int, x: int, y: int) -> None:
    """Composite a glyph of ``side`` pixels with its top left corner at (x, y); what lies outside is cut."""
    overlay(canvas, *scaled(text, side), x, y)


def overlay(
    canvas: NDArray[np.float32], colour: NDArray[np.float32], alpha: NDArray[np.float32], x: int, y: int
) -> None:
    """The same of premultiplied ``colour`` (side, side, 3) and ``alpha`` (side, side, 1)."""
    side = len(colour)
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    if x0 >= x1 or y0 >= y1:
        return
    part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1.0 - alpha[part]) + colour[part]


def glyph_side(width: int, height: int, count: int) -> int:
    """How many pixels wide one glyph is drawn, for a picture of this size with this many glyphs."""
    if count == 1:
        return int(0.8 * min(width, height))
    return int(0.9 * min(width, height, max(width, height) / 2)) // 2 * 2


def centres(width: int, height: int, count: int) -> list[tuple[float, float]]:
    """Where glyphs sit: in the middle, or side by side (one above the other in a tall picture)."""
    if count == 1:
        return [(width / 2, height / 2)]
    if height > width:
        return [(width / 2, height / 4), (width / 2, 3 * height / 4)]
    return [(width / 4, height / 2), (3 * width / 4, height / 2)]


def scenery(scene: str, size: tuple[int, int]) -> NDArray[np.float32]:
    """The empty scene, (height, width, 3) in 0..255; the same one for every picture of a ``size``."""
    width, height = size
    canvas = np.empty((height, width, 3), dtype=np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    if scene == "grass":
        canvas[:] = BACKGROUNDS["green"]
        # Blades: triangles, eight pixels wide, half of them set back.
        for top, tint in ((0.70, (56, 144, 62)), (0.82, (44, 122, 52))):
            edge = height * top + 1.5 * np.abs((columns + 80 * top) % 8 - 4)
            canvas[rows > edge] = tint
    elif scene == "night sky":
        fade = (rows / height)[..., None]
        canvas[:] = np.array([14, 18, 48]) * (1 - fade) + np.array([44, 52, 104]) * fade
        rng = np.random.default_rng(20)
        for x, y, far in rng.random((14, 3)):
            distance = np.hypot(columns - x * width, rows - y * height)
            canvas += (np.clip(2.2 + far - distance, 0, 1) * 210)[..., None]
    elif scene == "seaside":
        canvas[:] = (150, 205, 245)
        canvas[rows > 0.45 * height] = (40, 120, 200)
        canvas[rows > 0.78 * height + 2 * np.sin(columns / 7)] = (238, 210, 150)
    else:
        raise ValueError(f"scene {scene!r} is not one of {', '.join(SCENES)}")
    return np.clip(canvas, 0, 255)


def empty(ground: tuple[int, int, int] | str, size: tuple[int, int]) -> NDArray[np.float32]:
    """A flat colour or, by its name, a scene; (height, width, 3) in 0..255."""
    if isinstance(ground, str):
        return scenery(ground, size)
    width, height = size
    canvas = np.empty((height, width, 3), dtype=np.float32)
    canvas[:] = ground
    return canvas


def rounded(canvas: NDArray[np.float32]) -> Picture:
    """What was composed, as a picture."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def compose(
    texts: list[str],
    ground: tuple[int, int, int] | str,
    size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
) -> Picture:
    """One or two glyphs on a flat colour or, by its name, in a scene.

    ``size`` is (width, height), ``shift`` moves all glyphs; both in pixels.
    """
    width, height = size
    canvas = empty(ground, size)
    side = glyph_side(width, height, len(texts))
    for text, (cx, cy) in zip(texts, centres(width, height, len(texts)), strict=True):
        x, y = int(cx - side / 2) + shift[0], int(cy - side / 2) + shift[1]
        paste(canvas, text, side, x, y)
    return rounded(canvas)


def stylise(picture: Picture, style: str, seed: int = 0) -> Picture:
    """An image filter for each style word."""
    height, width = picture.shape[:2]
    if style == "pixel art":
        small = Image.fromarray(picture).resize((width // 6, height // 6), Image.Resampling.BOX)
        small = small.quantize(24, dither=Image.Dither.NONE).convert("RGB")
        return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    if style == "pencil sketch":
        grey = picture.astype(np.float32) @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        # Strength of the edges in all channels, so that equally light colours still part.
        f = picture.astype(np.float32)
        dx = np.abs(np.diff(f, axis=1, append=f[:, -1:])).max(-1)
        dy = np.abs(np.diff(f, axis=0, append=f[-1:])).max(-1)
        edge = np.clip((dx + dy) * 1.6, 0, 200)
        # A faint wash of the shading inside; the flat background becomes paper.
        wash = np.where(np.abs(f - f[0, 0]).max(-1) > 6, 0.25 * (255 - grey), 0)
        paper = np.clip(248 - edge - wash, 0, 255)
        tint = np.array([1.0, 0.99, 0.96], dtype=np.float32)
        return (paper[..., None] * tint).astype(np.uint8)
    if style == "night":
        tint = np.array([0.28, 0.34, 0.58], dtype=np.float32)
        dark = picture.astype(np.float32) * tint + np.array([4, 8, 24], dtype=np.float32)
        return np.clip(dark, 0, 255).astype(np.uint8)
    raise ValueError(f"style {style!r} is not one of {STYLES}")
