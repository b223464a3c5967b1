"""Prompts to embeddings, as diffusers' SDXL pipeline makes them, remembered for the next request.

Follows `StableDiffusionXLPipeline.encode_prompt`: both text encoders read the same text, their last but one
hidden states are joined, and the second encoder's projection is the pooled embedding. Knows no requests.

Emphasis multiplies the hidden states of a word's tokens by its weight, and leaves the pooled embedding alone:
what A1111 calls "No norm", and says of it that it suits SDXL better than its default, which then scales all
tokens so that their mean stays.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from mezzotint.backends.loras import AdaptedModule, LoraWeights
from mezzotint.backends.transfers import to_device
from mezzotint.core import Lora
from mezzotint.emphasis import Piece, parse_emphasis

__all__ = ["Embedding", "PromptEncoder"]

MAX_CACHED_ENTRIES = 512
MAX_CACHED_BYTES = 256 * 2**20
MAX_QUOTED_CHARACTERS = 200
EMPTY: Mapping[str, LoraWeights] = MappingProxyType({})

# The text, whether brackets in it weigh words, and what each encoder wears for it.
_Key = tuple[str, bool, tuple[tuple[Lora, ...], ...]]


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the UNet reads of a text: `hidden` 1 × tokens × width, `pooled` 1 × projection width.

    `cut` is the end of the text that did not fit into `window` tokens, empty if all did.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    cut: str = ""
    window: int = 0

    @property
    def bytes(self) -> int:
        return self.hidden.nbytes + self.pooled.nbytes

    def warning(self, field: str) -> tuple[str, ...]:
        """The receipt's sentence about what was cut from `field`, if anything was."""
        if not self.cut:
            return ()
        return (f'{field}: the part after {self.window} tokens was cut: "{self.cut}"',)


class PromptEncoder:
    """Encodes texts and keeps the latest embeddings, bounded in number and bytes. Not thread-safe."""

    def __init__(
        self,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        *,
        zeros_without_negative: bool,
        loras: Mapping[str, LoraWeights] = EMPTY,
        max_entries: int = MAX_CACHED_ENTRIES,
        max_bytes: int = MAX_CACHED_BYTES,
    ) -> None:
        self._tokenizers = tokenizers
        self._text_encoders = text_encoders
        self._adapted = [
            AdaptedModule(encoder, {name: lora.text_encoders[number] for name, lora in loras.items()})
            for number, encoder in enumerate(text_encoders)
        ]
        self._zeros_without_negative = zeros_without_negative
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._cache: OrderedDict[_Key, Embedding] = OrderedDict()
        self._bytes = 0
        self._zeros: Embedding | None = None
        self.hits = 0
        self.misses = 0
        # Both libraries log what is cut; the receipt already says so, to the one whom it concerns.
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)

    @property
    def cached_bytes(self) -> int:
        """Memory that the remembered embeddings take."""
        return self._bytes

    def encode(self, text: str, loras: Sequence[Lora] = (), *, emphasis: bool = False) -> Embedding:
        """The embedding of `text`, on the encoders' device and in their dtype.

        emphasis: whether brackets in it weigh words.
        """
        key = (text, emphasis, tuple(adapted.affected_by(loras) for adapted in self._adapted))
        known = self._cache.get(key)
        if known is not None:
            self.hits += 1
            self._cache.move_to_end(key)
            return known
        self.misses += 1
        for adapted in self._adapted:
            adapted.activate(loras)
        embedding = self._encode(parse_emphasis(text) if emphasis else [Piece(text)])
        self._remember(key, embedding)
        return embedding

    def encode_negative(
        self, text: str | None, loras: Sequence[Lora] = (), *, emphasis: bool = False
    ) -> Embedding:
        """As `encode`; no text at all is all zeros where the model was trained so, else the empty text."""
        if text is not None or not self._zeros_without_negative:
            return self.encode(text or "", loras, emphasis=emphasis)
        if self._zeros is None:
            empty = self.encode("")
            self._zeros = Embedding(torch.zeros_like(empty.hidden), torch.zeros_like(empty.pooled))
        return self._zeros

    def _encode(self, pieces: Sequence[Piece]) -> Embedding:
        hidden, cut, window = [], "", 0
        pooled: torch.Tensor | None = None
        for tokenizer, encoder in zip(self._tokenizers, self._text_encoders, strict=True):
            tokens = _tokenize(tokenizer, pieces)
            # One word of warning serves both tokenizers.
            if not cut:
                cut, window = tokens.cut, tokenizer.model_max_length - 2
            output = encoder(to_device(tokens.ids, encoder.device), output_hidden_states=True)
            # The first encoder's first output is its last hidden state, the second's its projection.
            if pooled is None and output[0].ndim == 2:
                pooled = output[0]
            states = output.hidden_states[-2]
            if tokens.weights is not None:
                states = states * to_device(tokens.weights.to(states.dtype), states.device)
            hidden.append(states)
        if pooled is None:
            raise ValueError("no text encoder with a projection")
        joined = torch.concat(hidden, dim=-1).to(self._text_encoders[-1].dtype)
        return Embedding(joined, pooled, cut, window)

    def _remember(self, key: _Key, embedding: Embedding) -> None:
        if embedding.bytes > self._max_bytes:
            return
        self._cache[key] = embedding
        self._bytes += embedding.bytes
        while self._bytes > self._max_bytes or len(self._cache) > self._max_entries:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.bytes


@dataclass(frozen=True, eq=False)
class _Tokens:
    """`ids` 1 × length, with the marks of beginning and end; `weights` 1 × length × 1, unless all are 1.

    `cut`: the text that did not fit into the window, shortened to what a receipt can hold.
    """

    ids: torch.Tensor
    weights: torch.Tensor | None
    cut: str


def _tokenize(tokenizer: Any, pieces: Sequence[Piece]) -> _Tokens:
    length = tokenizer.model_max_length
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        found = tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
        ids += found
        weights += [piece.weight] * len(found)
    kept = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    padded = kept + [tokenizer.pad_token_id] * (length - len(kept))
    weighed = None
    if any(weight != 1 for weight in weights):
        weighed = torch.ones(1, length, 1)
        weighed[0, 1 : len(kept) - 1, 0] = torch.tensor(weights[: length - 2])
    cut = str(tokenizer.decode(ids[length - 2 :])).strip()
    if len(cut) > MAX_QUOTED_CHARACTERS:
        cut = cut[: MAX_QUOTED_CHARACTERS - 1] + "…"
    return _Tokens(torch.tensor([padded]), weighed, cut)
