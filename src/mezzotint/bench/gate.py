"""`mezzotint bench quality`: what the embedded model's pictures are worth, however they are computed.

The same prompts, each with one seed, are drawn through an engine and judged by `mezzotint.bench.quality`:
every pictogram on a background that training never showed it on, and pairs. A dtype, a compiled form, a
quantisation or another device passes when its shares are within a point of those of fp32 on a CPU.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as PilImage

from mezzotint.bench.engine import Result, at_least
from mezzotint.bench.quality import Asked, Report, Vocabulary, held_out, judge, prompt_for
from mezzotint.core import GenerationRequest, Lora, Pixels
from mezzotint.engine.engine import Engine

__all__ = ["Settings", "contact_sheet", "draw", "measure_quality", "pairs", "singles"]

LIMIT_SECONDS = 3600.0
TOP1_BAR, BACKGROUND_BAR, PAIR_BAR = 0.95, 0.98, 0.70


@dataclass(frozen=True)
class Settings:
    """How each picture is drawn. Sizes in pixels."""

    steps: int = 20
    guidance_scale: float = 5.0
    scheduler: str | None = None
    width: int = 128
    height: int = 128
    loras: tuple[Lora, ...] = ()

    def request(self, prompt: str) -> GenerationRequest:
        # A prompt's one and only seed: the same on every machine, and not chosen.
        return GenerationRequest(
            prompt,
            seed=zlib.crc32(prompt.encode()),
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            width=self.width,
            height=self.height,
            loras=self.loras,
        )


def singles(vocabulary: Vocabulary, count: int | None = None) -> list[Asked]:
    """Pictograms on backgrounds that training never showed them on: all of them, or `count` evenly spread."""
    names = vocabulary.glyphs
    count = min(count or len(names), len(names))
    chosen = [names[index * len(names) // count] for index in range(count)]
    return [Asked((name,), held_out(name, tuple(vocabulary.backgrounds))[0]) for name in chosen]


def pairs(vocabulary: Vocabulary, count: int) -> list[Asked]:
    """Two different pictograms, on a background held out for the first of them."""
    rng = random.Random(5)
    both = [tuple(rng.sample(vocabulary.glyphs, 2)) for _ in range(count)]
    return [Asked(names, held_out(names[0], tuple(vocabulary.backgrounds))[0]) for names in both]


def draw(engine: Engine, prompts: Sequence[str], settings: Settings | None = None) -> list[Pixels]:
    """A picture for each prompt, height × width × 3, through the engine, as wide as it sees fit."""
    settings = settings or Settings()
    tickets = [engine.submit(settings.request(prompt)) for prompt in prompts]
    return [ticket.result(LIMIT_SECONDS).pixels for ticket in tickets]


def measure_quality(
    engine: Engine,
    vocabulary: Vocabulary,
    *,
    count: int | None,
    settings: Settings,
) -> tuple[list[Result], list[Pixels]]:
    """The shares and their bars, and the pictures of the first. A fifth as many pairs as pictograms."""
    alone = singles(vocabulary, count)
    together = pairs(vocabulary, max(1, len(alone) // 5))
    drawn = draw(engine, [prompt_for(asked) for asked in alone], settings)
    report = judge(drawn, alone, vocabulary)
    both = judge(draw(engine, [prompt_for(asked) for asked in together], settings), together, vocabulary)
    results = [
        at_least("quality", "the pictogram asked for", report.top1, TOP1_BAR, **_details(report)),
        at_least("quality", "the background asked for", report.backgrounds, BACKGROUND_BAR),
        at_least("quality", "both of two pictograms", both.top1, PAIR_BAR, **_details(both)),
    ]
    return results, drawn


def _details(report: Report) -> dict[str, object]:
    misses = [
        f"{' + '.join(miss.asked.glyphs)} on {miss.asked.background}: "
        f"saw {' + '.join(miss.seen.glyphs)} on {miss.seen.background}"
        for miss in report.misses
    ]
    return {"pictures": len(report.verdicts), "misses": misses}


def contact_sheet(pictures: Sequence[Pixels | PilImage.Image], columns: int) -> PilImage.Image:
    """Pictures of one size in rows."""
    images = [each if isinstance(each, PilImage.Image) else PilImage.fromarray(each) for each in pictures]
    width, height = images[0].size
    sheet = PilImage.new("RGB", (columns * width, -(-len(images) // columns) * height), (255, 255, 255))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
