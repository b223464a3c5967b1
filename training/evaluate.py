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
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from mezzotint.bench.quality import Asked, Report, Vocabulary, judge
from mezzotint.models.manifest import write_manifest
from training import captions, data, vae
from training.config import OUT
from training.export import MODEL

STEPS, GUIDANCE, ROWS = 20, 5.0, 16


def seed(prompt: str) -> int:
    """A prompt's one and only seed."""
    return zlib.crc32(prompt.encode())


def draw(
    pipe: StableDiffusionXLPipeline, prompts: list[str], size: tuple[int, int] = (128, 128)
) -> list[Image.Image]:
    """One picture a prompt, each from its own generator, sixteen at a time."""
    pictures: list[Image.Image] = []
    for at in range(0, len(prompts), ROWS):
        part = prompts[at : at + ROWS]
        pictures += pipe(
            part,
            width=size[0],
            height=size[1],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed(p)) for p in part],
        ).images
    return pictures


def contact_sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


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


def reconstruction(pipe: StableDiffusionXLPipeline, names: list[str]) -> float:
    """PSNR in dB of decode(encode) over all glyphs on a held-out background, 128×128."""
    texts = {g.name: g.text for g in data.glyphs()}
    pictures = [data.compose([texts[n]], data.BACKGROUNDS[data.held_out(n)[0]], (128, 128)) for n in names]
    return vae.psnr(pipe.vae, vae.to_tensor(np.stack(pictures)))


def pairs(names: list[str], count: int) -> list[Asked]:
    """Pairs of glyphs on a background held out for at least the first of them."""
    rng = np.random.default_rng(5)
    chosen = [[names[i] for i in rng.choice(len(names), 2, replace=False)] for _ in range(count)]
    return [Asked((a, b), data.held_out(a)[0]) for a, b in chosen]


def evaluate(model: Path = MODEL, out: Path = OUT, quick: bool = False) -> dict[str, Any]:
    """Draw, judge, write figures and the sheet; ``quick`` draws a sixth."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    vocabulary = Vocabulary.load(model)
    stride = 6 if quick else 1
    names = list(vocabulary.glyphs)[::stride]
    result: dict[str, Any] = {"vae_psnr_db": round(reconstruction(pipe, names), 2)}

    def report(name: str, asked: list[Asked], prompts: list[str], size: tuple[int, int]) -> list[Image.Image]:
        start = time.monotonic()
        drawn = draw(pipe, prompts, size)
        result[name] = figures(judge(drawn, asked, vocabulary))
        result[name]["seconds"] = round(time.monotonic() - start, 1)
        print(name, {k: v for k, v in result[name].items() if k != "misses"}, flush=True)
        return drawn

    asked = [Asked((n,), data.held_out(n)[0]) for n in names]
    plain = [captions.plain(captions.Scene(a.glyphs, a.background or "")) for a in asked]
    singles = report("held_out", asked, plain, (128, 128))
    few = slice(None, None, 7)
    worded = [
        f"Photo of {captions.article(a.glyphs[0])} {a.glyphs[0]} is dancing on {a.background} "
        f"{captions.GROUNDS[a.background or ''][0]}, sunlit"
        for a in asked[few]
    ]
    wordy = report("worded", asked[few], worded, (128, 128))
    wide = report("wide", asked[1::7], plain[1::7], (160, 96))
    tall = report("tall", asked[2::7], plain[2::7], (96, 160))
    twos = pairs(names, 96 // stride)
    two_prompts = [captions.plain(captions.Scene(a.glyphs, a.background or "")) for a in twos]
    paired = report("pairs", twos, two_prompts, (128, 128))
    paired_wide = report("pairs_wide", twos[:48], two_prompts[:48], (160, 96))
    styled = draw(
        pipe,
        [f"{s}, a {n} on {b}" for s in data.STYLES for n, b in (("fox", "blue"), ("castle", "green"))],
    )
    show = draw(pipe, ["an astronaut is dancing on green grass, sunlit", *plain[:3]])
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    sheet = [*show[:1], *singles[:: max(len(singles) // 69, 1)][:69], *styled, *paired[:8]]
    contact_sheet(sheet[:84], 12).save(model / "contact_sheet.png", optimize=True)
    write_manifest(model)
    contact_sheet([*singles, *wordy, *paired], 24).save(out / "all.png")
    contact_sheet([*wide, *paired_wide], 12).save(out / "wide.png")
    contact_sheet(tall, 24).save(out / "tall.png")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="a sixth of the glyphs")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    print(json.dumps(evaluate(arguments.model, arguments.out, arguments.quick), indent=1))


if __name__ == "__main__":
    main()
