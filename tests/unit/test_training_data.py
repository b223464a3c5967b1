"""The training data keep their promises: distinct names, honest held-out pairs, one layout for all."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from mezzotint.bench import quality

DEMO = Path(__file__).parents[2] / "src/mezzotint/models/demo"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

captions = pytest.importorskip("training.captions", reason="needs the repository root on the path")
data = pytest.importorskip("training.data", reason="needs the repository root on the path")
vocabulary = pytest.importorskip("training.vocabulary", reason="needs the repository root on the path")
needs_font = pytest.mark.skipif(not FONT.exists(), reason="needs fonts-noto-color-emoji")


def test_every_name_and_every_glyph_is_listed_once() -> None:
    glyphs = data.glyphs()
    assert len(glyphs) >= 1250
    assert len({g.name for g in glyphs}) == len(glyphs)
    assert len({g.text for g in glyphs}) == len(glyphs)


def test_the_shipped_model_knows_the_beginning_of_the_list() -> None:
    shipped = quality.Vocabulary.load(DEMO).glyphs
    assert tuple(shipped) == tuple(glyph.name for glyph in data.glyphs(len(shipped)))
    assert data.glyphs(3) == data.glyphs()[:3]


def test_another_word_means_one_pictogram_and_is_the_name_of_none() -> None:
    names = [glyph.name for glyph in data.glyphs()]
    others = [word for name in names for word in captions.keywords().get(name, ())]
    assert len(others) > 500
    assert len(set(others)) == len(others)
    assert set(others).isdisjoint(names)
    assert not {word for other in others for word in other.split()} & vocabulary.reserved()


def test_another_word_stands_for_its_pictogram_in_captions() -> None:
    words = captions.vocabulary_words(("owl",))
    assert "wise" in captions.synonyms("owl")
    assert "wise" in words
    texts = [
        captions.caption(np.random.default_rng(i), captions.Scene(("owl",), "blue"), words)
        for i in range(300)
    ]
    assert any("wise" in text and "owl" not in text for text in texts)


def test_names_are_written_as_captions_have_them() -> None:
    assert vocabulary.plain("Piñata") == "pinata"
    assert vocabulary.plain("rescue worker’s helmet") == "rescue workers helmet"
    assert vocabulary.plain("Mrs. Claus, non-potable") == "mrs claus non potable"


def test_a_list_that_grows_keeps_the_words_of_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    unicode = [
        vocabulary.Named("🦊", "fox", ("canine", "sly")),
        vocabulary.Named("🐺", "wolf", ("canine", "howl")),
        vocabulary.Named("🐕", "dog", ("canine", "sly", "pet")),
    ]
    monkeypatch.setattr(vocabulary, "annotations", lambda: unicode)
    glyphs = [data.Glyph(each.name, each.text) for each in unicode]
    assert vocabulary.keywords(glyphs) == {"dog": ("pet",), "wolf": ("howl",)}
    kept = {"fox": ("sly",), "wolf": ()}
    assert vocabulary.keywords(glyphs, kept) == {"dog": ("pet",), "fox": ("sly",)}


@needs_font
def test_of_pictograms_that_look_the_same_only_the_first_comes() -> None:
    fox, fox_again, wolf, rocket = (vocabulary.Named(text, text, ()) for text in "🦊🦊🐺🚀")
    order = vocabulary.by_difference(["🐺"], [fox, wolf, rocket, fox_again])
    assert sorted(each.text for each in order) == sorted("🦊🚀")


@needs_font
def test_the_font_has_one_picture_for_a_joined_sequence_and_none_for_letters() -> None:
    assert vocabulary.is_one_picture("\U0001f9d1\u200d\U0001f680")
    assert not vocabulary.is_one_picture("ab")


def test_a_longer_vocabulary_begins_with_what_the_model_knows() -> None:
    unet = pytest.importorskip("training.unet")
    more = len(quality.Vocabulary.load(DEMO).glyphs) + 9
    config = replace(pytest.importorskip("training.config").GROWN, glyph_count=more)
    with tempfile.TemporaryDirectory() as folder:
        tokens = unet.build_tokenizer(config, Path(folder))
    first, second = unet.build_text(config, tokens)
    built = unet.build_unet(config)
    new = first.get_input_embeddings().weight.detach().clone()
    unet.begin_with(DEMO, tokens, first, second, built)
    shipped = CLIPTextModel.from_pretrained(DEMO / "text_encoder", torch_dtype=torch.float32)
    old_ids, ids = CLIPTokenizer.from_pretrained(DEMO / "tokenizer").get_vocab(), tokens.get_vocab()
    weights = first.get_input_embeddings().weight
    for word in ("fox</w>", "astronaut</w>", "<|endoftext|>"):
        assert torch.equal(weights[ids[word]], shipped.get_input_embeddings().weight[old_ids[word]])
    unknown = sorted(ids.keys() - old_ids.keys())
    assert unknown
    for word in unknown:
        assert torch.equal(weights[ids[word]], new[ids[word]])


def test_a_preset_that_grows_another_model_than_is_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = pytest.importorskip("training.unet")
    presets = pytest.importorskip("training.config")
    monkeypatch.setattr(presets, "OUT", tmp_path)
    with pytest.raises(ValueError, match=r"knows \d+ pictograms; grown begins with 7"):
        unet.train(replace(presets.GROWN, known=7, threads=torch.get_num_threads()))


def test_a_glyph_is_never_allowed_on_its_held_out_backgrounds() -> None:
    for glyph in data.glyphs():
        assert set(data.held_out(glyph.name)).isdisjoint(data.allowed(glyph.name))
        assert len(data.held_out(glyph.name)) == quality.HELD_OUT


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


def test_the_shipped_merges_are_those_of_the_words_that_the_model_knows() -> None:
    tokenizer = pytest.importorskip("training.tokenizer")
    shipped = quality.Vocabulary.load(DEMO).glyphs
    merges = tokenizer.learn_merges(captions.vocabulary_words(tuple(shipped)))
    lines = (DEMO / "tokenizer/merges.txt").read_text().splitlines()[1:]
    assert [f"{one} {other}" for one, other in merges] == lines


@needs_font
def test_the_judge_names_every_true_picture_even_shifted() -> None:
    known = quality.Vocabulary.load(DEMO)
    rng = np.random.default_rng(0)
    pictures, asked = [], []
    for glyph in data.glyphs(len(known.glyphs))[::8]:
        background = data.held_out(glyph.name)[0]
        shift = (int(rng.integers(-4, 5)), int(rng.integers(-4, 5)))
        pictures.append(data.compose([glyph.text], data.BACKGROUNDS[background], (128, 128), shift))
        asked.append(quality.Asked((glyph.name,), background))
    report = quality.judge(pictures, asked, known)
    assert (report.top1, report.backgrounds) == (1.0, 1.0)


@needs_font
def test_the_judge_does_not_see_a_glyph_that_is_not_there() -> None:
    known = quality.Vocabulary.load(DEMO)
    texts = {g.name: g.text for g in data.glyphs()}
    picture = data.compose([texts["fox"]], data.BACKGROUNDS["red"], (128, 128))
    report = quality.judge([picture], [quality.Asked(("koala",), "blue")], known)
    assert (report.top1, report.backgrounds) == (0.0, 0.0)
    assert report.verdicts[0].seen.glyphs == ("fox",)


def test_the_judge_refuses_names_that_it_does_not_know() -> None:
    known = quality.Vocabulary.load(DEMO)
    with pytest.raises(ValueError, match="not in the vocabulary: quokka"):
        quality.judge([np.zeros((8, 8, 3), np.uint8)], [quality.Asked(("quokka",))], known)
