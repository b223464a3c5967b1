"""Stage 5: judge the exported model. ``python -m training.evaluate [--model FOLDER]``.

Every picture shows a glyph on a background that training never showed it on; each prompt has one seed, fixed
by its text. Euler, 20 steps, guidance 5. The judge is :mod:`mezzotint.bench.quality`. Figures go to
``evaluation.json`` in the output folder and a contact sheet of the first pictures to the model folder.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from mezzotint import Engine
from mezzotint.bench.gate import Settings, contact_sheet, draw, pairs, singles
from mezzotint.bench.quality import Asked, Report, Vocabulary, article, judge, prompt_for
from mezzotint.core import Pixels
from mezzotint.models.manifest import write_manifest
from training import captions, data, vae
from training.config import OUT
from training.export import MODEL


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


def evaluate(model: Path = MODEL, out: Path = OUT, quick: bool = False) -> dict[str, Any]:
    """Draw, judge, write figures and the sheet; ``quick`` draws a sixth."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    write_manifest(model)
    vocabulary = Vocabulary.load(model)
    asked = singles(vocabulary, len(vocabulary.glyphs) // 6 if quick else None)
    result: dict[str, Any] = {"vae_psnr_db": round(reconstruction(model, [a.glyphs[0] for a in asked]), 2)}
    with Engine.load(str(model), max_queue=10_000) as engine:

        def report(
            name: str, asked: list[Asked], prompts: list[str], size: tuple[int, int] = (128, 128)
        ) -> list[Pixels]:
            start = time.monotonic()
            drawn = draw(engine, prompts, Settings(width=size[0], height=size[1]))
            result[name] = figures(judge(drawn, asked, vocabulary))
            result[name]["seconds"] = round(time.monotonic() - start, 1)
            print(name, {k: v for k, v in result[name].items() if k != "misses"}, flush=True)
            return drawn

        plain = [prompt_for(each) for each in asked]
        alone = report("held_out", asked, plain)
        few = slice(None, None, 7)
        worded = [
            f"Photo of {article(a.glyphs[0])} {a.glyphs[0]} is dancing on {a.background} "
            f"{captions.GROUNDS[a.background or ''][0]}, sunlit"
            for a in asked[few]
        ]
        wordy = report("worded", asked[few], worded)
        others = [
            Asked((name,), data.held_out(name)[0]) for name in vocabulary.glyphs if captions.synonyms(name)
        ]
        others = others[:: 6 if quick else 2]
        by_keyword = [
            prompt_for(Asked((captions.synonyms(each.glyphs[0])[-1],), each.background)) for each in others
        ]
        report("other_words", others, by_keyword)
        wide = report("wide", asked[1::7], plain[1::7], (160, 96))
        tall = report("tall", asked[2::7], plain[2::7], (96, 160))
        twos = pairs(vocabulary, 96 // (6 if quick else 1))
        paired = report("pairs", twos, [prompt_for(each) for each in twos])
        paired_wide = report("pairs_wide", twos[:48], [prompt_for(each) for each in twos[:48]], (160, 96))
        styled = draw(
            engine,
            [f"{s}, a {n} on {b}" for s in data.STYLES for n, b in (("fox", "blue"), ("castle", "green"))],
        )
        show = draw(engine, ["an astronaut is dancing on green grass, sunlit"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    shown = alone[:: max(len(alone) // 69, 1)][:69]
    sheet = [*show, *shown, *styled, *paired[: 84 - len(show) - len(shown) - len(styled)]]
    contact_sheet(sheet, 12).save(model / "contact_sheet.png", optimize=True)
    write_manifest(model)
    contact_sheet([*alone, *wordy, *paired], 24).save(out / "all.png")
    contact_sheet([*wide, *paired_wide], 12).save(out / "wide.png")
    contact_sheet(tall, 24).save(out / "tall.png")
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
