"""Stage 4: write the model folder. ``python -m training.export --config cpu [--into FOLDER]``.

The diffusers layout of SDXL in half precision, safetensors only, plus what the judge needs: the vocabulary
and an atlas of all glyphs; then the manifest that the server holds the folder to. Files appear at their final
names only when they are complete.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from mezzotint.models.manifest import write_manifest
from training import data, unet
from training.config import MODEL, PRESETS, Config

CELL, COLUMNS = 64, 24


def pipeline(config: Config) -> StableDiffusionXLPipeline:
    """The whole model from the stages' checkpoints; random where there is none yet."""
    config.out.mkdir(parents=True, exist_ok=True)
    tokens = unet.build_tokenizer(config, config.out / "tokenizer")
    torch.manual_seed(config.seed)
    first, second, denoiser = unet.load(config)
    return StableDiffusionXLPipeline(
        vae=unet.load_vae(config),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokens,
        tokenizer_2=unet.build_tokenizer(config, config.out / "tokenizer"),
        unet=denoiser,
        scheduler=unet.build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def vocabulary(config: Config) -> dict[str, object]:
    """A plain list of what the model knows."""
    return {
        "glyphs": [g.name for g in data.glyphs(config.glyph_count)],
        "backgrounds": list(data.BACKGROUNDS),
        "background_colours": {name: list(colour) for name, colour in data.BACKGROUNDS.items()},
        "styles": list(data.STYLES),
        "sizes": [f"{width}x{height}" for width, height in data.SIZES],
    }


def atlas(config: Config) -> Image.Image:
    """Every glyph at 64×64 RGBA, 24 a row, in the order of the vocabulary."""
    glyphs = data.glyphs(config.glyph_count)
    rows = -(-len(glyphs) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for i, glyph in enumerate(glyphs):
        small = data.render(glyph.text).resize((CELL, CELL), Image.Resampling.BOX)
        sheet.paste(small, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    return sheet


def export(config: Config, into: Path = MODEL) -> Path:
    """Write the model to ``into``, replacing file by file; other files there (the card) stay."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".export-") as scratch:
        folder = Path(scratch)
        made = pipeline(config).to(torch.float16)
        made.save_pretrained(folder, safe_serialization=True)
        for name in ("tokenizer", "tokenizer_2"):
            # The classic files beside tokenizer.json: readable, and what older readers want.
            unet.build_tokenizer(config, folder / name)
        (folder / "vocabulary.json").write_text(
            json.dumps(vocabulary(config), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        atlas(config).save(folder / "glyphs.png", optimize=True)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        # Weights last: whoever loads in between meets the old ones.
        for source in sorted(files, key=lambda p: p.suffix == ".safetensors"):
            target = into / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.chmod(0o644)
            source.replace(target)
    write_manifest(into)
    total = sum(p.stat().st_size for p in into.rglob("*") if p.is_file())
    print(f"{into}: {total / 1e6:.1f} MB")
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="cpu")
    parser.add_argument("--into", type=Path, default=MODEL)
    arguments = parser.parse_args()
    export(PRESETS[arguments.config], arguments.into)


if __name__ == "__main__":
    main()
