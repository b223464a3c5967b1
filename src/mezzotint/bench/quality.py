"""The judge of the embedded model's pictures: does a picture show what its prompt named?

It knows the model's vocabulary folder (`vocabulary.json`, `glyphs.png`) and looks at pixels with numpy
and Pillow; it needs no font, no torch and knows nothing of the model. The formula, which the training recipe
shares and which must not be fitted to results:

1. **Background**: the median colour, per channel, of the outer ring of 4 pixels. Its name is that of the
   nearest background of the vocabulary (Euclidean distance in 8-bit RGB).
2. **Glyph**: the square where the training pictures carry a glyph (see `boxes`) is cut out at every
   shift of −6, −3, 0, 3, 6 pixels on both axes and averaged down to 32×32. Every glyph of the atlas is laid
   over the *measured* background colour at the same 32×32. The glyph seen is the one with the smallest mean
   squared difference over all shifts.
3. **Two glyphs**: the same in each of two squares; both are present if the two names seen are the two
   names asked for, in any order.

A picture without background in its prompt has only its glyphs judged. Styles change colours on purpose and
are not judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

CELL = 64
GRID = 32
RING = 4
HELD_OUT = 2
SHIFTS = (-6, -3, 0, 3, 6)


@dataclass(frozen=True)
class Vocabulary:
    """What the model knows; `atlas` is (glyphs, 64, 64, 4) RGBA in the order of `glyphs`."""

    glyphs: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]
    styles: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    atlas: Pixels

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read `vocabulary.json` and `glyphs.png` of a model folder."""
        listed = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        with Image.open(folder / "glyphs.png") as opened:
            sheet = np.asarray(opened.convert("RGBA"))
        columns = sheet.shape[1] // CELL
        cells = [
            sheet[i // columns * CELL :, i % columns * CELL :][:CELL, :CELL]
            for i in range(len(listed["glyphs"]))
        ]
        colours = listed["background_colours"]
        return cls(
            glyphs=tuple(listed["glyphs"]),
            backgrounds={name: tuple(colours[name]) for name in listed["backgrounds"]},
            styles=tuple(listed["styles"]),
            sizes=tuple((int(w), int(h)) for w, h in (s.split("x") for s in listed["sizes"])),
            atlas=np.stack(cells),
        )

    @cached_property
    def small(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The atlas at 32×32: premultiplied colour (n, 32, 32, 3) in 0..255, alpha (n, 32, 32, 1) in 0..1."""
        pixels = self.atlas.astype(np.float32)
        alpha = pixels[..., 3:] / 255.0
        both = np.concatenate([pixels[..., :3] * alpha, alpha], axis=-1)
        step = CELL // GRID
        means = both.reshape(len(both), GRID, step, GRID, step, 4).mean(axis=(2, 4))
        return means[..., :3], means[..., 3:]


@dataclass(frozen=True)
class Asked:
    """What a prompt named: one or two glyphs, and a background or `None`."""

    glyphs: tuple[str, ...]
    background: str | None = None


def held_out(name: str, backgrounds: Sequence[str]) -> tuple[str, ...]:
    """The two backgrounds, by a hash of the name alone, on which training never shows this glyph."""
    order = sorted(backgrounds, key=lambda b: hashlib.sha256(f"{name}|{b}".encode()).hexdigest())
    return tuple(order[:HELD_OUT])


def article(noun: str) -> str:
    """ "a" or "an"."""
    return "an" if noun[0] in "aeiou" and not noun.startswith(("un", "one")) else "a"


def prompt_for(asked: Asked) -> str:
    """The standard wording: "a koala and a fox on a blue background"."""
    things = " and ".join(f"{article(name)} {name}" for name in asked.glyphs)
    if asked.background is None:
        return things
    return f"{things} on {article(asked.background)} {asked.background} background"


@dataclass(frozen=True)
class Seen:
    """What the judge saw. `errors` are root mean squared differences in 8-bit levels, one per glyph."""

    glyphs: tuple[str, ...]
    background: str
    colour: tuple[float, float, float]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """One picture's judgement."""

    asked: Asked
    seen: Seen

    @property
    def glyphs_right(self) -> bool:
        """Every glyph that was asked for is there, in any order."""
        return sorted(self.asked.glyphs) == sorted(self.seen.glyphs)

    @property
    def background_right(self) -> bool:
        """The background is the one asked for; true if none was asked for."""
        return self.asked.background in (None, self.seen.background)


@dataclass(frozen=True)
class Report:
    """Shares, 0..1, over all judged pictures, and the verdicts they are made of."""

    verdicts: tuple[Verdict, ...]

    @property
    def top1(self) -> float:
        """Share of pictures that show the glyphs asked for; 0 of none, for that vouches for nothing."""
        return sum(v.glyphs_right for v in self.verdicts) / max(len(self.verdicts), 1)

    @property
    def backgrounds(self) -> float:
        """Share of right backgrounds among the pictures whose prompt named one."""
        named = [v for v in self.verdicts if v.asked.background is not None]
        return sum(v.background_right for v in named) / len(named) if named else 1.0

    @property
    def misses(self) -> tuple[Verdict, ...]:
        """The pictures in which something is wrong."""
        return tuple(v for v in self.verdicts if not (v.glyphs_right and v.background_right))


def boxes(width: int, height: int, count: int) -> list[tuple[int, int, int]]:
    """Where one or two glyphs sit, as (left, top, side) in pixels: the layout of the training pictures."""
    if count == 1:
        side = int(0.8 * min(width, height))
        middles = [(width / 2, height / 2)]
    elif count == 2:
        side = int(0.9 * min(width, height, max(width, height) / 2)) // 2 * 2
        if height > width:
            middles = [(width / 2, height / 4), (width / 2, 3 * height / 4)]
        else:
            middles = [(width / 4, height / 2), (3 * width / 4, height / 2)]
    else:
        raise ValueError(f"a picture shows 1 or 2 glyphs, not {count}")
    return [(int(x - side / 2), int(y - side / 2), side) for x, y in middles]


def ring_colour(picture: Pixels) -> NDArray[np.float32]:
    """The median colour (3,) of the outer 4 pixels of a picture (height, width, 3)."""
    ring = np.ones(picture.shape[:2], dtype=bool)
    ring[RING:-RING, RING:-RING] = False
    return np.median(picture[ring].astype(np.float32), axis=0)


def see(picture: Image.Image | Pixels, vocabulary: Vocabulary, count: int = 1) -> Seen:
    """Name the background and the `count` glyphs of one picture, by the formula of this module."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    colour = ring_colour(np.asarray(image))
    names = list(vocabulary.backgrounds)
    distances = np.linalg.norm(np.array(list(vocabulary.backgrounds.values())) - colour, axis=1)
    premultiplied, alpha = vocabulary.small
    targets = (premultiplied + (1.0 - alpha) * colour).reshape(len(alpha), -1)
    seen, errors = [], []
    for left, top, side in boxes(image.width, image.height, count):
        cuts = []
        for dx in SHIFTS:
            for dy in SHIFTS:
                box = (left + dx, top + dy, left + dx + side, top + dy + side)
                # A cut may reach over the edge; Pillow fills black there, so clamp it to the picture.
                moved = _inside(box, image.size)
                cut = image.resize((GRID, GRID), Image.Resampling.BOX, box=moved)
                cuts.append(np.asarray(cut, dtype=np.float32).ravel())
        found = np.stack(cuts)
        squared = (
            (targets**2).sum(axis=1)[:, None] + (found**2).sum(axis=1)[None] - 2.0 * targets @ found.T
        ).min(axis=1) / targets.shape[1]
        best = int(squared.argmin())
        seen.append(vocabulary.glyphs[best])
        errors.append(float(np.sqrt(max(float(squared[best]), 0.0))))
    red, green, blue = (float(c) for c in colour)
    return Seen(tuple(seen), names[int(distances.argmin())], (red, green, blue), tuple(errors))


def judge(pictures: Iterable[Image.Image | Pixels], asked: Sequence[Asked], vocabulary: Vocabulary) -> Report:
    """Judge pictures against what was asked, in the same order."""
    listed = list(pictures)
    if len(listed) != len(asked):
        raise ValueError(f"{len(listed)} pictures but {len(asked)} prompts")
    for wish in asked:
        unknown = set(wish.glyphs) - set(vocabulary.glyphs)
        if unknown:
            raise ValueError(f"not in the vocabulary: {', '.join(sorted(unknown))}")
    return Report(
        tuple(
            Verdict(wish, see(picture, vocabulary, len(wish.glyphs)))
            for picture, wish in zip(listed, asked, strict=True)
        )
    )


def _inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Move a box, not cut it, so that it lies within a picture of `size` (width, height)."""
    left, top, right, bottom = box
    dx = max(0, -left) - max(0, right - size[0])
    dy = max(0, -top) - max(0, bottom - size[1])
    return left + dx, top + dy, right + dx, bottom + dy
