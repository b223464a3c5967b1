"""Where a long text is parted, and what of it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.backends.windows import read_windows, words_in_fragments
from mezzotint.emphasis import Piece, parse_emphasis
from mezzotint.models.locations import find_model


@pytest.fixture(scope="module")
def letters(tiny_sdxl: Path) -> Any:
    """A tokenizer of 14 tokens a window beside the marks; a letter is a token."""
    return transformers.CLIPTokenizer.from_pretrained(tiny_sdxl / "tokenizer")


@pytest.fixture(scope="module")
def words() -> Any:
    """The demo model's: 30 tokens, and a word is one."""
    return transformers.CLIPTokenizer.from_pretrained(find_model("demo") / "tokenizer")


def texts(tokenizer: Any, pieces: list[Piece], most: int = 4) -> list[str]:
    [windows] = read_windows([tokenizer], pieces, most)
    return [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in windows.ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("abcdefghijklmn", ["abcdefghijklmn"]),
        ("abcdefghijklmn o", ["abcdefghijklmn", "o"]),
        # After a comma that is near the end, else after a word, else where the window is full.
        ("ab, cdefghi, k lm no", ["ab,cdefghi,", "klmno"]),
        ("abcdefghijk, lmn op q", ["abcdefghijk,", "lmnopq"]),
        ("ab, cdefghi jkl mnopq", ["ab,cdefghijkl", "mnopq"]),
        ("abcdefgh ijklmnopqrst", ["abcdefghijklmn", "opqrst"]),
        # A comma that has no room goes with what follows.
        ("abcdefgh, ijklm, op", ["abcdefgh,ijklm", ",op"]),
        # What would fit is not cut for the sake of a comma: of the second no window can be left unfilled.
        (
            "abcdefghij, klm nopqrstuvw, xyz abcdefghij, klm nopqrst",
            ["abcdefghij,", "klmnopqrstuvw,", "xyzabcdefghij,", "klmnopqrst"],
        ),
        (
            "abcdefghij, klm nopqrstuvw, xyz abcdefghij, klm nopqrstuvwxyz",
            ["abcdefghij,klm", "nopqrstuvw,xyz", "abcdefghij,klm", "nopqrstuvwxyz"],
        ),
        # A BREAK begins a window, and does not if there is nothing before or after it.
        ("ab BREAK cd BREAK BREAK ef BREAK", ["ab", "cd", "ef"]),
        ("BREAK ab", ["ab"]),
        ("abcdefghijklmn BREAK o", ["abcdefghijklmn", "o"]),
        # The last window is filled, whatever comes.
        ("a BREAK b BREAK c BREAK d BREAK efghijklmno pqr", ["a", "b", "c", "defghijklmnopq"]),
    ],
)
def test_where_a_text_is_parted(letters: Any, text: str, expected: list[str]) -> None:
    assert texts(letters, parse_emphasis(text)) == expected


def test_a_long_rest_is_not_read_to_be_quoted(letters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, tokenize = [], type(letters).__call__

    def counted(self: Any, text: str, **options: Any) -> Any:
        read.append(text)
        return tokenize(self, text, **options)

    monkeypatch.setattr(type(letters), "__call__", counted)
    [windows] = read_windows([letters], parse_emphasis("(a)b" * 5000), 4)
    assert (windows.read, len(windows.cut)) == (56, 200)
    assert 56 + 200 <= len(read) < 1000


def test_one_window_is_filled_to_its_end_and_a_break_is_nothing(letters: Any) -> None:
    [windows] = read_windows([letters], parse_emphasis("ab, cd ef BREAK gh ij klm nop"), 1)
    assert texts(letters, parse_emphasis("ab, cd ef BREAK gh ij klm nop"), 1) == ["ab,cdefghijklm"]
    assert (windows.cut, windows.read) == ("nop", 14)


def test_weights_are_where_their_tokens_are(letters: Any) -> None:
    [windows] = read_windows([letters], parse_emphasis("ab (c:2) BREAK (d:3) e"), 4)
    assert windows.weights is not None
    assert windows.weights.shape == (2, 16, 1)
    assert windows.weights[0, :5, 0].tolist() == [1, 1, 1, 2, 1]
    assert windows.weights[1, :5, 0].tolist() == [1, 3, 1, 1, 1]
    assert read_windows([letters], parse_emphasis("ab BREAK (d:1) e"), 4)[0].weights is None


def test_tokenizers_that_part_differently_have_as_many_windows(letters: Any, words: Any) -> None:
    by_letters, by_words = read_windows([letters, words], [Piece("a strawberry and a rocket")], 4)
    assert by_letters.ids.shape == (2, 16)
    assert by_words.ids.shape == (2, 32)
    # The other's second window is that of the empty text.
    [empty] = read_windows([words], [], 4)
    assert by_words.ids[1].tolist() == empty.ids[0].tolist()


@given(st.lists(st.sampled_from(["fox", ",", "strawberry", "BREAK", "🦊", "xylophone!"]), max_size=300))
def test_any_text_is_in_its_windows_in_order_or_cut(words: Any, parts: list[str]) -> None:
    text = " ".join(parts)
    pieces = parse_emphasis(text)
    everything = [
        id for piece in pieces for id in words(piece.text, add_special_tokens=False, verbose=False).input_ids
    ]
    for most in (1, 2, 4):
        [windows] = read_windows([words], pieces, most)
        assert 1 <= len(windows.ids) <= most
        marks = {words.bos_token_id, words.eos_token_id}
        read = [id for window in windows.ids.tolist() for id in window if id not in marks]
        assert read == [id for id in everything[: windows.read] if id not in marks]
        assert windows.read == len(everything) or (windows.cut and len(windows.ids) == most)
        assert windows.read == len(everything) or len(everything) > most * 30 or "BREAK" in parts


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("", ()),
        ("a fox, on 12 blue eggs!!! (it's night) – “owl”…", ()),
        ("two cats in a Lighthouse, by cats", ("cats", "lighthouse")),
        ("très joli: 🦊", ("très", "joli", "🦊")),
        # What is an embedding's name is a word.
        ("a fox by quixote", ()),
    ],
)
def test_words_that_have_no_token_are_told_each_once(words: Any, text: str, unknown: tuple[str, ...]) -> None:
    quixote = {"quixote": [torch.zeros(3, 8)]}
    assert words_in_fragments(words, [Piece(text)], 100, quixote) == unknown
    assert words_in_fragments(words, [Piece(f"a fox. {text}")], 3, quixote) == ()
