"""A text's tokens, in the windows that a text encoder reads one at a time. Knows no encoders.

CLIP's window is 77 tokens, two of which mark beginning and end. A longer text goes on in another, after
a comma, as A1111's, or, where none is near, after a word, as ComfyUI's. A BREAK begins a new window too. The
last window that there may be is filled to its end, and what is left is cut: with one window, as diffusers
cuts. What would fit is not cut for the sake of a comma.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from mezzotint.embeddings import parts_of
from mezzotint.emphasis import Piece

__all__ = ["MAX_WINDOWS", "Windows", "read_windows", "words_in_fragments"]

# 300 tokens are a page's paragraph; rows of 3 and 4 windows meet in 12 (`backends.conditioning`).
MAX_WINDOWS = 4
# How much of a window may be left empty for a better place to part the text: of 75 tokens the 20 that are
# A1111's `comma_padding_backtrack`.
LOOK_BACK = 20 / 75
# As CLIP's tokenizer writes the last token of a word; a comma is a word.
END_OF_WORD = "</w>"
END_OF_PHRASE = ",</w>"
# What the id of an embedding's token is, where a vector takes the place of the id's own: no mark of an end,
# by which encoders find the token that stands for the whole.
PLACEHOLDER = 0
NONE: Mapping[str, Sequence[torch.Tensor]] = MappingProxyType({})
MAX_QUOTED_CHARACTERS = 200
# A character is up to four tokens.
MAX_QUOTED_TOKENS = 4 * MAX_QUOTED_CHARACTERS


@dataclass(frozen=True, eq=False)
class Windows:
    """`ids` windows × length, with the marks of beginning and end; `weights` windows × length × 1, unless all
    are 1.

    vectors: what stands in the place of an id's own embedding, by window and place.
    cut: the end of the text that did not fit, shortened to what a receipt can hold. read: the tokens before.
    """

    ids: torch.Tensor
    weights: torch.Tensor | None
    vectors: Sequence[tuple[int, int, torch.Tensor]]
    cut: str
    read: int


class _Token(NamedTuple):
    id: int
    weight: float
    part: int
    text: str
    # Of an embedding; whether it is one of its later ones.
    vector: torch.Tensor | None = None
    goes_on: bool = False


def read_windows(
    tokenizers: Sequence[Any],
    pieces: Sequence[Piece],
    most: int,
    embeddings: Mapping[str, Sequence[torch.Tensor]] = NONE,
) -> list[Windows]:
    """The text as each of the tokenizers has it, all in the same number of windows, 1…`most`.

    embeddings: for each name that is one, n vectors for each of the encoders, n × its width; so many tokens
        it takes.
    """
    rooms = [tokenizer.model_max_length - 2 for tokenizer in tokenizers]
    texts = [
        _tokenize(
            tokenizer,
            pieces,
            most * room + MAX_QUOTED_TOKENS,
            {name: vectors[number] for name, vectors in embeddings.items()},
        )
        for number, (tokenizer, room) in enumerate(zip(tokenizers, rooms, strict=True))
    ]
    divided = [_divide(tokens, room, most) for tokens, room in zip(texts, rooms, strict=True)]
    # The same, unless their vocabularies differ.
    count = max(map(len, divided))
    return [
        _windows(tokenizer, tokens, [*windows, *([[]] * (count - len(windows)))])
        for tokenizer, tokens, windows in zip(tokenizers, texts, divided, strict=True)
    ]


def words_in_fragments(
    tokenizer: Any,
    pieces: Sequence[Piece],
    most: int,
    embeddings: Mapping[str, Sequence[torch.Tensor]] = NONE,
) -> tuple[str, ...]:
    """The words of the first `most` tokens that the tokenizer has no token of their own for, each once."""
    words: list[str] = []
    ids: list[int] = []
    vectors = {name: each[0] for name, each in embeddings.items()}
    for token in _tokenize(tokenizer, pieces, most, vectors):
        ids.append(token.id)
        if token.text.endswith(END_OF_WORD):
            if len(ids) > 1 and token.vector is None:
                words.append(str(tokenizer.decode(ids)).strip())
            ids = []
    return tuple(dict.fromkeys(word for word in words if _names_something(word)))


def _names_something(word: str) -> bool:
    """In any script, or by a symbol; no mark does, nor what an apostrophe adds to a word."""
    kinds = {unicodedata.category(character) for character in word}
    return not word.startswith("'") and any(kind[0] in "LN" or kind == "So" for kind in kinds)


def _tokenize(
    tokenizer: Any, pieces: Sequence[Piece], most: int, embeddings: Mapping[str, torch.Tensor]
) -> list[_Token]:
    """The first `most` of the text's tokens."""
    tokens: list[_Token] = []
    for piece in pieces:
        for text, is_name in parts_of(piece.text, embeddings.keys()):
            if len(tokens) >= most:
                return tokens
            if is_name:
                tokens += _of_embedding(text, embeddings[text], piece)
                continue
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: most - len(tokens)]
            texts = tokenizer.convert_ids_to_tokens(ids)
            tokens += [
                _Token(id, piece.weight, piece.part, text) for id, text in zip(ids, texts, strict=True)
            ]
    return tokens


def _of_embedding(name: str, vectors: torch.Tensor, piece: Piece) -> list[_Token]:
    """Its tokens, which are one word."""
    texts = [name, *[""] * (len(vectors) - 1)]
    texts[-1] += END_OF_WORD
    return [
        _Token(PLACEHOLDER, piece.weight, piece.part, text, vector, goes_on=number > 0)
        for number, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]


def _divide(tokens: Sequence[_Token], room: int, most: int) -> list[Sequence[_Token]]:
    """The tokens in windows of at most `room`. Without any, one that is empty."""
    windows: list[Sequence[_Token]] = []
    start = 0
    while len(windows) < most - 1 and start < len(tokens):
        spare = (most - len(windows)) * room - (len(tokens) - start)
        end = _whole(tokens, start, _end(tokens, start, room, spare))
        windows.append(tokens[start:end])
        start = end
    if start < len(tokens) or not windows:
        windows.append(tokens[start : _whole(tokens, start, min(start + room, len(tokens)))])
    return windows


def _whole(tokens: Sequence[_Token], start: int, end: int) -> int:
    """The end, or that before an embedding that it would part. One longer than a window cannot be whole."""
    before = end
    while start < before < len(tokens) and tokens[before].goes_on:
        before -= 1
    return end if before == start else before


def _end(tokens: Sequence[_Token], start: int, room: int, spare: int) -> int:
    """Where the window that begins at `start` ends. spare: what may stay empty with all of the text read."""
    full = start + room
    part = tokens[start].part
    end_of_part = next((i for i in range(start, min(full + 1, len(tokens))) if tokens[i].part != part), None)
    if end_of_part is not None:
        return end_of_part
    if full >= len(tokens):
        return len(tokens)
    if tokens[full].text.endswith(END_OF_PHRASE):
        # As A1111: what the comma ends is whole, and the comma goes with what follows.
        return full
    places = round(room * LOOK_BACK) if spare < 0 else min(round(room * LOOK_BACK), spare + 1)
    for mark in (END_OF_PHRASE, END_OF_WORD):
        for end in range(full, full - places, -1):
            if tokens[end - 1].text.endswith(mark):
                return end
    return full


def _windows(tokenizer: Any, tokens: Sequence[_Token], windows: Sequence[Sequence[_Token]]) -> Windows:
    length = tokenizer.model_max_length
    ids = torch.full((len(windows), length), tokenizer.pad_token_id)
    weights = torch.ones(len(windows), length, 1)
    vectors = []
    for number, window in enumerate(windows):
        after = 1 + len(window)
        ids[number, 0] = tokenizer.bos_token_id
        ids[number, 1:after] = torch.tensor([token.id for token in window])
        ids[number, after] = tokenizer.eos_token_id
        weights[number, 1:after, 0] = torch.tensor([token.weight for token in window])
        vectors += [
            (number, place, token.vector) for place, token in enumerate(window, 1) if token.vector is not None
        ]
    read = sum(map(len, windows))
    cut = _text_of(tokenizer, tokens[read:])
    if len(cut) > MAX_QUOTED_CHARACTERS:
        cut = cut[: MAX_QUOTED_CHARACTERS - 1] + "…"
    weighed = any(token.weight != 1 for token in tokens[:read])
    return Windows(ids, weights if weighed else None, vectors, cut, read)


def _text_of(tokenizer: Any, tokens: Sequence[_Token]) -> str:
    """What the tokens say."""
    said = []
    for is_name, alike in groupby(tokens, key=lambda token: token.vector is not None):
        if is_name:
            said.append("".join(token.text for token in alike).replace(END_OF_WORD, " "))
        else:
            said.append(str(tokenizer.decode([token.id for token in alike])))
    return " ".join(part.strip() for part in said).strip()
