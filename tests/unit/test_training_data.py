"""The training data keep their promises: distinct names, honest held-out pairs, one layout for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mezzotint.bench import quality

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

captions = pytest.importorskip("training.captions", reason="needs the repository root on the path")
data = pytest.importorskip("training.data", reason="needs the repository root on the path")
needs_font = pytest.mark.skipif(not FONT.exists(), reason="needs fonts-noto-color-emoji")


def test_every_name_and_every_glyph_is_listed_once() -> None:
    glyphs = data.glyphs()
    assert len(glyphs) >= 300
    assert len({g.name for g in glyphs}) == len(glyphs)
    assert len({g.text for g in glyphs}) == len(glyphs)


def test_the_full_vocabulary_begins_with_the_small_one() -> None:
    small, full = data.glyphs(), data.glyphs("glyphs-full.txt")
    assert full[: len(small)] == small
    assert len({g.name for g in full}) == len(full) >= 1000


def test_a_glyph_is_never_allowed_on_its_held_out_backgrounds() -> None:
    for glyph in data.glyphs():
        assert set(data.held_out(glyph.name)).isdisjoint(data.allowed(glyph.name))
        assert len(data.held_out(glyph.name)) == data.HELD_OUT


def test_held_out_backgrounds_are_spread_over_all_colours() -> None:
    first = [data.held_out(g.name)[0] for g in data.glyphs()]
    assert set(first) == set(data.BACKGROUNDS)


def test_the_judge_and_the_training_pictures_agree_where_glyphs_sit() -> None:
    for width, height in (*data.SIZES, (192, 128), (256, 256)):
        for count in (1, 2):
            side = data.glyph_side(width, height, count)
            expected = [
                (int(x - side / 2), int(y - side / 2), side) for x, y in data.centres(width, height, count)
            ]
            assert quality.boxes(width, height, count) == expected


def test_no_training_example_shows_a_held_out_pair() -> None:
    unet = pytest.importorskip("training.unet")
    config = pytest.importorskip("training.config").CPU
    every = unet.examples(config)
    assert len(every) > 10_000
    for example in every:
        for name in example.scene.names:
            assert example.scene.background not in data.held_out(name)


def test_an_invented_word_is_never_one_that_means_something() -> None:
    words = captions.vocabulary_words(tuple(g.name for g in data.glyphs()))
    rng = np.random.default_rng(1)
    pieces = {captions.invented(rng, words) for _ in range(2000)}
    assert not {p for p in pieces if len(p) > 2} & set(words)


def test_every_caption_names_every_glyph_and_nearly_every_one_the_background() -> None:
    words = captions.vocabulary_words(tuple(g.name for g in data.glyphs()))
    rng = np.random.default_rng(2)
    scene = captions.Scene(("koala", "rocket"), "green")
    texts = [captions.caption(rng, scene, words) for _ in range(500)]
    assert all("koala" in text and "rocket" in text for text in texts)
    # "on the grass" says green without the word; a few captions say nothing at all.
    assert sum("green" in text for text in texts) > 400


@pytest.mark.parametrize("text", ["An Astronaut, dancing!", "a fox on green grass"])
def test_caption_words_are_single_tokens_whatever_their_case(text: str, tmp_path: Path) -> None:
    tokenizer = pytest.importorskip("training.tokenizer")
    words = captions.vocabulary_words(tuple(g.name for g in data.glyphs()))
    tokens = tokenizer.write(words, tmp_path, 32)
    pieces = tokens.tokenize(text)
    assert [p.removesuffix("</w>") for p in pieces if p[0].isalpha()] == [
        w.strip(",!") for w in text.lower().split()
    ]
    assert all(len(tokens(w).input_ids) == 3 for w in words if w not in ("4k", "8k"))


@needs_font
def test_the_judge_names_every_true_picture_even_shifted() -> None:
    folder = Path(__file__).parents[2] / "src/mezzotint/models/demo"
    vocabulary = quality.Vocabulary.load(folder)
    rng = np.random.default_rng(0)
    pictures, asked = [], []
    for glyph in data.glyphs()[::8]:
        background = data.held_out(glyph.name)[0]
        shift = (int(rng.integers(-4, 5)), int(rng.integers(-4, 5)))
        pictures.append(data.compose([glyph.text], data.BACKGROUNDS[background], (128, 128), shift))
        asked.append(quality.Asked((glyph.name,), background))
    report = quality.judge(pictures, asked, vocabulary)
    assert (report.top1, report.backgrounds) == (1.0, 1.0)


@needs_font
def test_the_judge_does_not_see_a_glyph_that_is_not_there() -> None:
    folder = Path(__file__).parents[2] / "src/mezzotint/models/demo"
    vocabulary = quality.Vocabulary.load(folder)
    texts = {g.name: g.text for g in data.glyphs()}
    picture = data.compose([texts["fox"]], data.BACKGROUNDS["red"], (128, 128))
    report = quality.judge([picture], [quality.Asked(("koala",), "blue")], vocabulary)
    assert (report.top1, report.backgrounds) == (0.0, 0.0)
    assert report.verdicts[0].seen.glyphs == ("fox",)


def test_the_judge_refuses_names_that_it_does_not_know() -> None:
    folder = Path(__file__).parents[2] / "src/mezzotint/models/demo"
    vocabulary = quality.Vocabulary.load(folder)
    with pytest.raises(ValueError, match="not in the vocabulary: quokka"):
        quality.judge([np.zeros((8, 8, 3), np.uint8)], [quality.Asked(("quokka",))], vocabulary)
