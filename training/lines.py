"""Stage 8: judge how pictures follow lines. ``python -m training.lines [--model FOLDER]``.

Every case is a glyph on a background that training never showed it on: its lines and its prompt are given. It
stands in the usual place, or anywhere. Drawn by diffusers' own pipelines with the lines and without, from one
seed, fixed by the prompt: Euler, 20 steps, guidance 5, in float32. Figures go to ``lines.json`` in the output
folder, ``controlnets.png`` to the model folder.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from PIL import Image

from mezzotint.bench.gate import contact_sheet, singles
from mezzotint.bench.quality import Asked, Report, Vocabulary, boxes, judge, prompt_for
from mezzotint.imaging.edges import canny
from mezzotint.models.manifest import write_manifest
from training import captions, controlnet, data, vae
from training.config import MODEL, OUT
from training.controlnet import Placed, Spot, to_condition
from training.evaluate import save_small

SIZE = (128, 128)
STEPS, GUIDANCE = 20, 5.0
#: Pictures that are drawn at once.
TOGETHER = 10
#: What counts as the same place, in pixels.
NEAR = 2.0
#: Columns of the sheet.
ROW = 8


@dataclass(frozen=True)
class Pipelines:
    """The same model with its ControlNet and without."""

    lined: StableDiffusionXLControlNetPipeline
    plain: StableDiffusionXLPipeline

    @classmethod
    def load(cls, model: Path) -> Pipelines:
        guide = ControlNetModel.from_pretrained(model / controlnet.PLACE, torch_dtype=torch.float32)
        plain = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)
        lined = StableDiffusionXLControlNetPipeline(**plain.components, controlnet=guide)
        for each in (plain, lined):
            each.set_progress_bar_config(disable=True)
        return cls(lined, plain)

    def draw(self, prompts: Sequence[str], lines: Sequence[data.Picture] | None = None) -> list[data.Picture]:
        """A picture for each prompt, along its ``lines`` (height, width, 3) where there are some."""
        found: list[data.Picture] = []
        for at in range(0, len(prompts), TOGETHER):
            part = list(prompts[at : at + TOGETHER])
            asked: dict[str, Any] = {
                "prompt": part,
                "generator": [torch.Generator().manual_seed(zlib.crc32(p.encode())) for p in part],
                "num_inference_steps": STEPS,
                "guidance_scale": GUIDANCE,
                "width": SIZE[0],
                "height": SIZE[1],
                "output_type": "np",
            }
            if lines is None:
                drawn = self.plain(**asked).images
            else:
                stacked = torch.from_numpy(np.stack(lines[at : at + TOGETHER])[..., :1]).permute(0, 3, 1, 2)
                drawn = self.lined(**asked, image=to_condition(stacked, "cpu")).images
            found += [(each * 255 + 0.5).astype(np.uint8) for each in drawn]
        return found


# -- cases ------------------------------------------------------------------------------------------


def usual(asked: Asked) -> Placed:
    """Where training pictures of the model itself have it."""
    ((left, top, side),) = boxes(*SIZE, 1)
    return _held_out(asked, Spot(left, top, side))


def elsewhere(asked: Sequence[Asked]) -> list[Placed]:
    """Half to four fifths of the picture wide, wherever it is whole; neither turned nor mirrored."""
    rng = np.random.default_rng(21)
    found = []
    for each in asked:
        side = int(rng.uniform(0.5, 0.8) * SIZE[0])
        x, y = (int(at) for at in rng.integers(0, SIZE[0] - side + 1, 2))
        found.append(_held_out(each, Spot(x, y, side)))
    return found


def _held_out(asked: Asked, spot: Spot) -> Placed:
    background = asked.background or "white"
    return Placed(captions.Scene(asked.glyphs, background), SIZE, spots=(spot,))


def framed(picture: data.Picture, spot: Spot) -> data.Picture:
    """The picture moved and scaled so that what is at ``spot`` is where the judge looks for it."""
    ((left, top, side),) = boxes(*SIZE, 1)
    scale = spot.side / side
    corner = (spot.x - left * scale + SIZE[0], spot.y - top * scale + SIZE[1])
    # Beyond the edge it goes on as at the edge.
    wide = np.pad(picture, ((SIZE[1],) * 2, (SIZE[0],) * 2, (0, 0)), "edge")
    box = (*corner, corner[0] + SIZE[0] * scale, corner[1] + SIZE[1] * scale)
    return np.asarray(Image.fromarray(wide).resize(SIZE, Image.Resampling.BILINEAR, box=box))


# -- figures ----------------------------------------------------------------------------------------


def near(lines: NDArray[np.uint8], others: NDArray[np.uint8]) -> tuple[int, int]:
    """How many pixels of ``lines`` (height, width, 3) have one of ``others`` near, and how many there are."""
    here = lines[..., 0] > 0
    if not others.any():
        return 0, int(here.sum())
    distance = cv2.distanceTransform(np.where(others[..., 0] > 0, 0, 255).astype(np.uint8), cv2.DIST_L2, 5)
    return int((here & (distance <= NEAR)).sum()), int(here.sum())


def followed(pictures: Sequence[data.Picture], lines: Sequence[data.Picture]) -> dict[str, float]:
    """Of the lines, the share that was drawn; of what was drawn, the share that the lines have."""
    edges = [canny(picture) for picture in pictures]
    given = np.array([near(line, edge) for line, edge in zip(lines, edges, strict=True)]).sum(axis=0)
    drawn = np.array([near(edge, line) for line, edge in zip(lines, edges, strict=True)]).sum(axis=0)
    return {
        "lines_drawn": round(float(given[0] / given[1]), 4),
        "drawn_on_lines": round(float(drawn[0] / max(drawn[1], 1)), 4),
    }


def shares(report: Report) -> dict[str, float]:
    return {"glyphs_right": round(report.top1, 4), "background_right": round(report.backgrounds, 4)}


@torch.no_grad()
def returned(model: Path, pictures: Sequence[data.Picture]) -> list[data.Picture]:
    """What the autoencoder makes of them: no ControlNet could do better."""
    coder = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    found: list[data.Picture] = []
    for at in range(0, len(pictures), TOGETHER):
        part = vae.to_tensor(np.stack(pictures[at : at + TOGETHER]))
        decoded = coder.decode(coder.encode(part).latent_dist.mode()).sample
        bytes_ = ((decoded.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
        found += list(bytes_.permute(0, 2, 3, 1).numpy())
    return found


# -- by hand ----------------------------------------------------------------------------------------


def stroke(*points: tuple[float, float]) -> NDArray[np.int32]:
    return np.array(points, dtype=np.float64).round().astype(np.int32)


def arc(cx: float, cy: float, rx: float, ry: float, start: float = 0, end: float = 360) -> NDArray[np.int32]:
    """Of an ellipse, in degrees clockwise from the right; as unsteady as a hand."""
    angles = np.radians(np.linspace(start, end, 24))
    wobble = 1 + 0.03 * np.sin(3 * angles + cx)
    return stroke(*zip(cx + rx * wobble * np.cos(angles), cy + ry * wobble * np.sin(angles), strict=True))


def by_hand() -> dict[str, data.Picture]:
    """Lines that nobody's picture gave, by the prompts that go with them."""
    star = [
        (64 + r * np.sin(np.pi * i / 5), 68 - r * np.cos(np.pi * i / 5))
        for i, r in enumerate([54, 24] * 5 + [54])
    ]
    sketches = {
        "a star on a purple background": [stroke(*star)],
        "a fried egg on a grey background": [arc(62, 66, 52, 40), arc(74, 60, 17, 16)],
        "a house on a teal background": [
            stroke((20, 118), (20, 62), (64, 22), (108, 62), (108, 118), (20, 118)),
            stroke((54, 118), (54, 84), (76, 84), (76, 118)),
        ],
        "a snowman on a blue background": [arc(82, 90, 32, 30), arc(80, 40, 20, 20)],
    }
    found = {}
    for prompt, strokes in sketches.items():
        canvas = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        cv2.polylines(canvas, strokes, isClosed=False, color=255)
        found[prompt] = np.repeat(canvas[..., None], 3, axis=2)
    return found


def other_prompts(texts: dict[str, str]) -> list[tuple[str, data.Picture]]:
    """Lines of one glyph with the prompt of another, or with one that names none."""
    fox = Placed(captions.Scene(("fox",), "white"), SIZE, spots=(Spot(6, 20, 100),))
    teapot = Placed(captions.Scene(("teapot",), "blue"), SIZE, spots=(Spot(24, 10, 96),))
    pictures = {"fox": canny(fox.draw(texts)), "teapot": canny(teapot.draw(texts))}
    return [
        ("a tiger on a teal background", pictures["fox"]),
        ("a picture", pictures["fox"]),
        ("a tomato on a yellow background", pictures["teapot"]),
        ("", pictures["teapot"]),
    ]


# -- evaluation -------------------------------------------------------------------------------------


def evaluate(model: Path = MODEL, out: Path = OUT, count: int = 100) -> dict[str, Any]:
    """Draw, judge, write figures and the sheet."""
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.load(model)
    texts = {glyph.name: glyph.text for glyph in data.glyphs()}
    asked = singles(vocabulary, count)
    prompts = [prompt_for(each) for each in asked]
    pipelines = Pipelines.load(model)
    without = pipelines.draw(prompts)
    result: dict[str, Any] = {"pictures": len(asked)}
    sheets = {}
    for name, cases in (("usual", [usual(each) for each in asked]), ("elsewhere", elsewhere(asked))):
        pictures = [case.draw(texts) for case in cases]
        lines = [canny(picture) for picture in pictures]
        drawn = {"with": pipelines.draw(prompts, lines), "without": without}
        drawn["autoencoder"] = returned(model, pictures)
        result[name] = {}
        for how, each in drawn.items():
            seen = [framed(p, case.spots[0]) for p, case in zip(each, cases, strict=True)]
            result[name][how] = followed(each, lines) | shares(judge(seen, asked, vocabulary))
        print(name, json.dumps(result[name], indent=1), flush=True)
        every = max(len(cases) // ROW, 1)
        sheets[name] = [*lines[::every][:ROW], *drawn["with"][::every][:ROW], *without[::every][:ROW]]
        contact_sheet([*lines, *drawn["with"], *without], 25).save(out / f"lines-{name}.png")
    harder = [*by_hand().items(), *other_prompts(texts)]
    asked_for, lines = [prompt for prompt, _ in harder], [line for _, line in harder]
    with_lines = pipelines.draw(asked_for, lines)
    hand = len(by_hand())
    result["by_hand"] = followed(with_lines[:hand], lines[:hand])
    result["other_prompts"] = followed(with_lines[hand:], lines[hand:])
    sheets["harder"] = [*lines, *with_lines, *pipelines.draw(asked_for)]
    (out / "lines.json").write_text(json.dumps(result, indent=1) + "\n")
    save_small(contact_sheet([*sheets["elsewhere"], *sheets["harder"]], ROW), model / "controlnets.png")
    write_manifest(model)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--count", type=int, default=100, help="glyphs, evenly spread over the list")
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.model, arguments.out, arguments.count), indent=1))


if __name__ == "__main__":
    main()
