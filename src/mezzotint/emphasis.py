r"""Weights in a prompt, in A1111's grammar.

=================  ==================================
`(words)`          times 1.1; brackets within brackets multiply
`[words]`          divided by 1.1
`(words:1.3)`      times 1.3
`\(` `\[` `\\`     the character itself, `\)` and `\]` too
`BREAK`            what follows is read apart from what is before
=================  ==================================

A bracket that is never closed reaches to the end; one that was never opened is text. What a weight does to
the picture is in `backends.prompts`, how parts are read apart in `backends.windows`. Pure text: no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from mezzotint.errors import InvalidRequest, NotSupported

__all__ = ["MAX_WEIGHT", "Piece", "has_marks", "parse_emphasis"]

STEP = 1.1
MAX_WEIGHT = 10.0
# Reading takes as long as the text times this.
MAX_DEPTH = 50
# Written so that it reads no digit twice: a prompt of digits alone would otherwise take seconds.
MARK = re.compile(
    r"\\(?P<literal>[\\()\[\]])|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|(?P<bracket>[()\[\]])"
    r"|(?P<end_of_part>\bBREAK\b)"
)
MARKS = re.compile(r"[\\()\[\]]|\bBREAK\b")
# A1111's words that come and go with the steps.
EDITING = re.compile(r"(?<!\\)\[(?:[^\[\]|]*\|[^\[\]]*|[^\[\]]*:\s*[\d.]+\s*)\]")
MAX_QUOTED_CHARACTERS = 40


@dataclass
class Piece:
    """A stretch of text, and how much it weighs. Between two of different `part` is a BREAK."""

    text: str
    weight: float = 1.0
    part: int = 0


def has_marks(*texts: str | None) -> bool:
    """Whether it makes a difference to any of them if it is read in this grammar."""
    return any(text and MARKS.search(text) for text in texts)


def parse_emphasis(text: str, field: str = "prompt") -> list[Piece]:
    """The text without its marks, in pieces; what lies side by side and weighs the same is one.

    Raises:
        InvalidRequest: a weight is beyond ±10, or brackets are nested more than 50 deep.
        NotSupported: words that change with the steps, as `[from:to:0.5]` or `[a|b]`.
    """
    if found := EDITING.search(text):
        raise NotSupported(
            f"{field}: words that change with the steps are not served: {_quoted(found[0])}; "
            r"\[ is a bracket that is drawn",
            param=field,
        )
    pieces = _read(text, field)
    for piece in pieces:
        # Written so that what is not finite fails it.
        if not abs(piece.weight) <= MAX_WEIGHT:
            raise InvalidRequest(
                f"{field}: {_quoted(piece.text)} weighs {piece.weight:g}; accepted is "
                f"{-MAX_WEIGHT:g}…{MAX_WEIGHT:g}",
                param=field,
            )
    return [
        Piece("".join(piece.text for piece in alike), weight, part)
        for (part, weight), alike in groupby(pieces, key=lambda piece: (piece.part, piece.weight))
    ]


def _read(text: str, field: str) -> list[Piece]:
    pieces: list[Piece] = []
    # By bracket, where the text begins that each open one weighs.
    begun: dict[str, list[int]] = {"(": [], "[": []}
    end = part = 0
    for mark in MARK.finditer(text):
        _add(pieces, text[end : mark.start()], part)
        end = mark.end()
        bracket = mark["bracket"] or (mark["weight"] and ")")
        if mark["end_of_part"]:
            part += 1
        elif bracket in begun:
            begun[bracket].append(len(pieces))
            if sum(map(len, begun.values())) > MAX_DEPTH:
                raise InvalidRequest(f"{field}: brackets are nested more than {MAX_DEPTH} deep", param=field)
        elif bracket == ")" and begun["("]:
            _weigh(pieces, begun["("].pop(), STEP if mark["weight"] is None else float(mark["weight"]))
        elif bracket == "]" and begun["["]:
            _weigh(pieces, begun["["].pop(), 1 / STEP)
        else:
            _add(pieces, mark["literal"] or mark[0], part)
    _add(pieces, text[end:], part)
    for bracket, factor in (("(", STEP), ("[", 1 / STEP)):
        for start in begun[bracket]:
            _weigh(pieces, start, factor)
    return pieces


def _add(pieces: list[Piece], text: str, part: int) -> None:
    if text:
        pieces.append(Piece(text, part=part))


def _weigh(pieces: list[Piece], start: int, factor: float) -> None:
    for piece in pieces[start:]:
        piece.weight *= factor


def _quoted(text: str) -> str:
    shown = text.strip()
    return repr(shown if len(shown) <= MAX_QUOTED_CHARACTERS else f"{shown[: MAX_QUOTED_CHARACTERS - 1]}…")
