"""Weights in a prompt: A1111's grammar, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint import resolving
from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import GenerationRequest
from mezzotint.emphasis import MAX_WEIGHT, Piece, has_marks, parse_emphasis
from mezzotint.errors import InvalidRequest, MezzotintError, NotSupported


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a fox", [("a fox", 1)]),
        ("a (red) fox", [("a ", 1), ("red", 1.1), (" fox", 1)]),
        ("a ((red)) fox", [("a ", 1), ("red", 1.21), (" fox", 1)]),
        ("a [red] fox", [("a ", 1), ("red", 1 / 1.1), (" fox", 1)]),
        ("a (red:1.5) fox", [("a ", 1), ("red", 1.5), (" fox", 1)]),
        ("(red : .5 )fox", [("red ", 0.5), ("fox", 1)]),
        ("(red:-2)", [("red", -2)]),
        ("(red:0)", [("red", 0)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("([a] b)", [("a", 1), (" b", 1.1)]),
        # Brackets may cross.
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        # Never closed, it reaches to the end; never opened, it is text.
        ("a (b c", [("a ", 1), ("b c", 1.1)]),
        ("a [b (c", [("a ", 1), ("b ", 1 / 1.1), ("c", 1)]),
        ("a) b] c:2) d", [("a) b] c:2) d", 1)]),
        # Only what is a number is a weight.
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("10:30", [("10:30", 1)]),
        ("()", []),
        # What weighs the same is one piece.
        ("a (b:1) c", [("a b c", 1)]),
        (r"a \(b\) \[c\] \\ \d", [(r"a (b) [c] \ \d", 1)]),
        (r"(a\)b)", [("a)b", 1.1)]),
        (r"\[a|b] \[a:2]", [("[a|b] [a:2]", 1)]),
        ("[a|b", [("a|b", 1 / 1.1)]),
        ("BREAKS and AND", [("BREAKS and AND", 1)]),
    ],
)
def test_the_grammar(text: str, expected: list[tuple[str, float]]) -> None:
    pieces = parse_emphasis(text)
    assert [piece.text for piece in pieces] == [text for text, _ in expected]
    assert [piece.weight for piece in pieces] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [("a ", 1, 0), (" b", 1, 1)]),
        ("BREAK,BREAK", [(",", 1, 1)]),
        ("(a BREAK b:2) c", [("a ", 2, 0), (" b", 2, 1), (" c", 1, 1)]),
        ("break BREAKER", [("break BREAKER", 1, 0)]),
    ],
)
def test_parts(text: str, expected: list[tuple[str, float, int]]) -> None:
    assert parse_emphasis(text) == [Piece(*each) for each in expected]
    assert has_marks(text) is ("BREAK" in text.replace("BREAKER", ""))


@pytest.mark.parametrize(
    "text", ["(a:10.5)", "(a:-11)", "((a:5):5)", "(" * 25 + "a", "(a:1" + "0" * 400 + ")"]
)
def test_a_weight_that_no_picture_survives_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"weighs .*accepted is -10…10") as refused:
        parse_emphasis(text, "negative_prompt")
    assert refused.value.param == "negative_prompt"


def test_depth_is_bounded() -> None:
    assert [piece.weight for piece in parse_emphasis("(" * 50 + "a" + ":1)" * 50)] == [1]
    with pytest.raises(InvalidRequest, match="prompt: brackets are nested more than 50 deep"):
        parse_emphasis("(" * 51 + "a" + ":1)" * 51)


@pytest.mark.parametrize("text", ["[cow|horse]", "a [b:c:0.5] d", "[b:5]", "[b::3]", "([a (b)|c])"])
def test_words_that_change_with_the_steps_are_refused(text: str) -> None:
    with pytest.raises(NotSupported, match="change with the steps") as refused:
        parse_emphasis(text)
    assert refused.value.param == "prompt"


LONG = """
from contextlib import suppress
from mezzotint.emphasis import parse_emphasis
from mezzotint.errors import MezzotintError
for text in (":1", "(a:1", "[:1", ": ", "[|", "[:", ":1.", "[", "(a)", "BREAK "):
    for long in (text[:-1] + text[-1] * 300_000, text * 100_000):
        with suppress(MezzotintError):
            parse_emphasis(long)
"""


def test_no_text_is_read_again_from_each_of_its_characters_on() -> None:
    # That would take hours, and nothing in the same process can break a search off.
    subprocess.run([sys.executable, "-c", LONG], check=True, timeout=120)


@given(st.lists(st.sampled_from([*"ab ()[]\\:.|015-", " BREAK "]), max_size=60).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        pieces = parse_emphasis(text)
    except MezzotintError:
        return
    assert all(piece.text and abs(piece.weight) <= MAX_WEIGHT for piece in pieces)
    assert all((one.part, one.weight) != (other.part, other.weight) for one, other in pairwise(pieces))
    # Nothing is made up, and what is left out are brackets, backslashes and weights.
    left = iter(text)
    assert all(letter in left for piece in pieces for letter in piece.text)


@given(st.text(alphabet="ab :.,|015-é😀", max_size=60))
def test_a_text_without_marks_is_itself(text: str) -> None:
    assert not has_marks(text)
    assert [(piece.text, piece.weight) for piece in parse_emphasis(text)] == ([(text, 1)] if text else [])


def test_the_pictures_of_a_request_have_their_texts_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(resolving, "parse_emphasis", lambda text, _: checked.append(text) or [])
    resolving._pieces.cache_clear()
    for seed in range(10):
        request = GenerationRequest("a (b)", negative_prompt="[c]", emphasis=True, seed=seed)
        assert resolving.resolve(request, FAKE_LIMITS).emphasis
    resolving._pieces.cache_clear()
    assert checked == ["a (b)", "[c]"]
