"""Stage 7: judge the exported model. ``python -m training.evaluate [--model FOLDER]``.

Every picture shows a glyph on a background that training never showed it on; each prompt has one seed, fixed
by its text. Euler, 20 steps, guidance 5, if a LoRA is not for fewer. The judge is
:mod:`mezzotint.bench.quality`. Figures go to ``evaluation.json`` in the output folder; contact
sheets of the first pictures, of the LoRAs and of the prompts in ``prompts.txt`` to the model folder.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open

from mezzotint import Engine
from mezzotint.bench.gate import Settings, contact_sheet, draw, pairs, singles
from mezzotint.bench.quality import Asked, Report, Vocabulary, article, judge, prompt_for
from mezzotint.core import Lora, Pixels
from mezzotint.models.manifest import write_manifest
from training import captions, data, vae
from training.config import OUT
from training.export import MODEL

PROMPTS = Path(__file__).with_name("prompts.txt")
#: Pictures of each LoRA on their sheet.
ROW = 8


def figures(report: Report) -> dict[str, Any]:
    """The shares of a report and what was wrong, in words."""
    return {
        "pictures": len(report.verdicts),
        "glyphs_right": round(report.top1, 4),
        "background_right": round(report.backgrounds, 4),
        "misses": [
            f"{' + '.join(v.asked.glyphs)} on {v.asked.background}: "
            f"saw {' + '.join(v.seen.glyphs)} on {v.seen.background}"
            for v in report.misses
        ],
    }


def reconstruction(model: Path, names: list[str]) -> float:
    """PSNR in dB of decode(encode) over all glyphs on a held-out background, 128×128."""
    texts = {g.name: g.text for g in data.glyphs()}
    pictures = [data.compose([texts[n]], data.BACKGROUNDS[data.held_out(n)[0]], (128, 128)) for n in names]
    coder = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    return vae.psnr(coder, vae.to_tensor(np.stack(pictures)))


@dataclass(frozen=True)
class Sitting:
    """One evaluation: draws through the engine, judges, and gathers figures in ``result``."""

    engine: Engine
    vocabulary: Vocabulary
    result: dict[str, Any]

    def report(
        self,
        name: str,
        asked: Sequence[Asked],
        prompts: Sequence[str] | None = None,
        settings: Settings | None = None,
    ) -> tuple[Report, list[Pixels]]:
        """Draw and judge; ``prompts`` are the standard ones where none are given."""
        start = time.monotonic()
        drawn = draw(self.engine, prompts or [prompt_for(each) for each in asked], settings)
        verdict = judge(drawn, asked, self.vocabulary)
        self.result[name] = figures(verdict) | {"seconds": round(time.monotonic() - start, 1)}
        print(name, {k: v for k, v in self.result[name].items() if k != "misses"}, flush=True)
        return verdict, drawn

    def worded(self, asked: Sequence[Asked]) -> list[Pixels]:
        """The same in other words, with some that mean nothing."""
        prompts = [
            f"Photo of {article(a.glyphs[0])} {a.glyphs[0]} is dancing on {a.background} "
            f"{captions.GROUNDS[a.background or ''][0]}, sunlit"
            for a in asked
        ]
        return self.report("worded", asked, prompts)[1]

    def other_words(self, every: int) -> None:
        """Pictograms by another word than their name, one of so many."""
        named = [name for name in self.vocabulary.glyphs if captions.synonyms(name)][::every]
        asked = [Asked((name,), data.held_out(name)[0]) for name in named]
        prompts = [prompt_for(Asked((captions.synonyms(a.glyphs[0])[-1],), a.background)) for a in asked]
        self.report("other_words", asked, prompts)

    def places(
        self,
        name: str,
        twos: Sequence[Asked],
        wordings: tuple[tuple[str, ...], tuple[str, ...]],
        size: tuple[int, int],
    ) -> list[Pixels]:
        """Two things by words for where they stand: the judge names what it sees from the left, from the top.

        ``wordings`` as in :mod:`training.captions`: the second ones name what comes last first.
        """
        prompts = []
        for number, each in enumerate(twos):
            turned = number % 2
            words = wordings[turned]
            wish = replace(each, glyphs=each.glyphs[::-1]) if turned else each
            prompts.append(prompt_for(wish).replace(" and ", words[number // 2 % len(words)], 1))
        verdict, drawn = self.report(name, twos, prompts, Settings(width=size[0], height=size[1]))
        right = sum(v.seen.glyphs == v.asked.glyphs for v in verdict.verdicts)
        self.result[name]["places_right"] = round(right / max(len(twos), 1), 4)
        print(name, "places_right", self.result[name]["places_right"], flush=True)
        return drawn

    def loras(self, model: Path, asked: Sequence[Asked]) -> list[Pixels]:
        """A row of eight for each LoRA of the model. Those for few steps are judged as well.

        Styles change colours on purpose: they are only looked at.
        """
        rows: list[Pixels] = []
        for file in sorted((model / "loras").glob("*.safetensors")):
            with safe_open(file, framework="numpy") as opened:
                told = opened.metadata() or {}
            settings = Settings(loras=(Lora(file.stem),))
            if "mezzotint_steps" in told:
                settings = replace(
                    settings,
                    steps=int(told["mezzotint_steps"]),
                    guidance_scale=float(told["mezzotint_guidance_scale"]),
                    scheduler=told["mezzotint_scheduler"],
                )
                _, drawn = self.report(file.stem.replace("-", "_"), asked, settings=settings)
                rows += drawn[:: max(len(drawn) // ROW, 1)][:ROW]
            else:
                chosen = singles(self.vocabulary, ROW)
                rows += draw(self.engine, [prompt_for(each) for each in chosen], settings)
        return rows

    def shapes(self, asked: Sequence[Asked], twos: Sequence[Asked], out: Path) -> None:
        """Every shape but the square one, a sheet of each."""
        for number, size in enumerate(data.SIZES[1:], 1):
            name = f"{size[0]}x{size[1]}"
            settings = Settings(width=size[0], height=size[1])
            _, single = self.report(name, asked[number::7], settings=settings)
            _, paired = self.report(f"pairs_{name}", twos[:48], settings=settings)
            contact_sheet([*single, *paired], 12).save(out / f"{name}.png")


def save_small(sheet: Image.Image, path: Path, limit: int = 400_000) -> None:
    """As PNG of at most ``limit`` bytes: dithered if they suffice, else in as many colours as they do for."""
    for colours, dither in ((256, Image.Dither.FLOYDSTEINBERG), *((n, None) for n in (256, 128, 64, 32, 16))):
        buffer = io.BytesIO()
        small = sheet.quantize(colours)
        # Pillow only dithers towards a palette that is given.
        small = small if dither is None else sheet.quantize(palette=small, dither=dither)
        small.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= limit:
            break
    path.write_bytes(buffer.getvalue())


def prompts() -> list[str]:
    """What people might ask for, if there is a list of it."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines() if PROMPTS.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


def evaluate(model: Path = MODEL, out: Path = OUT, quick: bool = False) -> dict[str, Any]:
    """Draw, judge, write figures and the sheets; ``quick`` draws a sixth."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(model)
    vocabulary = Vocabulary.load(model)
    asked = singles(vocabulary, len(vocabulary.glyphs) // 6 if quick else None)
    twos = pairs(vocabulary, 96 // (6 if quick else 1))
    result: dict[str, Any] = {"vae_psnr_db": round(reconstruction(model, [a.glyphs[0] for a in asked]), 2)}
    with Engine.load(str(model), max_queue=10_000) as engine:
        sitting = Sitting(engine, vocabulary, result)
        _, alone = sitting.report("held_out", asked)
        wordy = sitting.worded(asked[::7])
        sitting.other_words(6 if quick else 2)
        sitting.shapes(asked, twos, out)
        _, paired = sitting.report("pairs", twos)
        beside = sitting.places("beside", twos, captions.BESIDE, (128, 128))
        above = sitting.places("above", twos, captions.ABOVE, (96, 160))
        styled = draw(
            engine,
            [f"{s}, a {n} on {b}" for s in data.STYLES for n, b in (("fox", "blue"), ("castle", "green"))],
        )
        show = draw(engine, ["an astronaut is dancing on green grass, sunlit"])
        with_loras = sitting.loras(model, asked)
        listed = draw(engine, prompts())
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    shown = alone[:: max(len(alone) // 69, 1)][:69]
    sheet = [*show, *shown, *styled, *paired[: 84 - len(show) - len(shown) - len(styled)]]
    save_small(contact_sheet(sheet, 12), model / "contact_sheet.png", limit=1_000_000)
    for name, pictures, columns in (("loras", with_loras, ROW), ("prompts", listed, 10)):
        if pictures:
            save_small(contact_sheet(pictures, columns), model / f"{name}.png")
    write_manifest(model)
    contact_sheet([*alone, *wordy, *paired, *beside], 24).save(out / "all.png")
    contact_sheet(above, 24).save(out / "above.png")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="a sixth of the glyphs")
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.model, arguments.out, arguments.quick), indent=1))


if __name__ == "__main__":
    main()
