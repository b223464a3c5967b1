"""Prompts to embeddings, as diffusers' SDXL pipeline makes them, remembered for the next request.

Follows `StableDiffusionXLPipeline.encode_prompt`: both text encoders read the same text, their last but one
hidden states are joined, and the second encoder's projection is the pooled embedding. Knows no requests.

A text of several windows has the hidden states of all, one after the other, and the pooled embedding of the
first, as in A1111 and ComfyUI.

Emphasis multiplies the hidden states of a word's tokens by its weight, and leaves the pooled embedding alone:
what A1111 calls "No norm", and says of it that it suits SDXL better than its default, which then scales all
tokens so that their mean stays.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mezzotint.backends.loras import AdaptedModule, LoraWeights
from mezzotint.backends.transfers import to_device
from mezzotint.backends.windows import read_windows, words_in_fragments
from mezzotint.core import Lora
from mezzotint.emphasis import Piece, parse_emphasis

__all__ = ["PromptEmbedding", "PromptEncoder"]

# Of those that a receipt names.
MAX_WORDS = 6
MAX_WORD_CHARACTERS = 40
MAX_CACHED_ENTRIES = 512
MAX_CACHED_BYTES = 256 * 2**20

# The text, whether it is read in A1111's grammar, and what each encoder wears for it.
_Key = tuple[str, bool, tuple[tuple[Lora, ...], ...]]


@dataclass(frozen=True, eq=False)
class PromptEmbedding:
    """What the UNet reads of a text: `hidden` 1 × tokens × width, `pooled` 1 × projection width.

    Tokens are a number of windows. `cut` is the end of the text that they had no room for, empty if there is
    none; `read` counts the tokens before. `unknown`: the words before that the model does not know.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    cut: str = ""
    read: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return self.hidden.nbytes + self.pooled.nbytes

    def warnings(self, field: str) -> tuple[str, ...]:
        """The receipt's sentences about what was not read of `field`, if anything was not."""
        told = []
        if self.unknown:
            words = ", ".join(f'"{word[:MAX_WORD_CHARACTERS]}"' for word in self.unknown[:MAX_WORDS])
            more = len(self.unknown) - MAX_WORDS
            told.append(f"{field}: the model does not know {words}{f' and {more} more' if more > 0 else ''}")
        if self.cut:
            told.append(f'{field}: the part after {self.read} tokens was cut: "{self.cut}"')
        return tuple(told)


class PromptEncoder:
    """Encodes texts and keeps what came of the latest, bounded in number and bytes. Not thread-safe."""

    def __init__(
        self,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        *,
        zeros_without_negative: bool,
        max_windows: int,
        loras: Mapping[str, LoraWeights],
        embeddings: Mapping[str, Sequence[torch.Tensor]],
        knows_tokens_alone: bool,
    ) -> None:
        """`max_windows`: what a text has beyond so many is cut.

        embeddings: textual inversions, as `read_windows` has them.
        knows_tokens_alone: the model was trained on words of one token, and knows no others.
        """
        self._tokenizers = tokenizers
        self._text_encoders = text_encoders
        self._adapted = [
            AdaptedModule(encoder, {name: lora.text_encoders[number] for name, lora in loras.items()})
            for number, encoder in enumerate(text_encoders)
        ]
        self._zeros_without_negative = zeros_without_negative
        self._max_windows = max_windows
        self._embeddings = embeddings
        self._knows_tokens_alone = knows_tokens_alone
        self._cache: OrderedDict[_Key, PromptEmbedding] = OrderedDict()
        self._bytes = 0
        self._zeros: PromptEmbedding | None = None
        self.hits = 0
        self.misses = 0
        # Both libraries log what is cut; the receipt already says so, to the one whom it concerns.
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)

    @property
    def max_tokens(self) -> int:
        """How much of a text is read at most."""
        # Two of each window mark its beginning and end.
        return self._max_windows * min(int(each.model_max_length) - 2 for each in self._tokenizers)

    def encode(self, text: str, loras: Sequence[Lora] = (), *, emphasis: bool = False) -> PromptEmbedding:
        """What the UNet reads of `text`, on the encoders' device and in their dtype.

        emphasis: whether it is read in A1111's grammar (`mezzotint.emphasis`).
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

    def encode_negative(self, text: str | None, loras: Sequence[Lora], *, emphasis: bool) -> PromptEmbedding:
        """As `encode`; no text at all is all zeros where the model was trained so, else the empty text."""
        if text is not None or not self._zeros_without_negative:
            return self.encode(text or "", loras, emphasis=emphasis)
        if self._zeros is None:
            empty = self.encode("")
            self._zeros = PromptEmbedding(torch.zeros_like(empty.hidden), torch.zeros_like(empty.pooled))
        return self._zeros

    def _encode(self, pieces: Sequence[Piece]) -> PromptEmbedding:
        texts = read_windows(self._tokenizers, pieces, self._max_windows, self._embeddings)
        hidden = []
        pooled: torch.Tensor | None = None
        for text, encoder in zip(texts, self._text_encoders, strict=True):
            with _putting(text.vectors, encoder):
                output = encoder(to_device(text.ids, encoder.device), output_hidden_states=True)
            # The first encoder's first output is its last hidden state, the second's its projection.
            if pooled is None and output[0].ndim == 2:
                pooled = output[0][:1]
            states = output.hidden_states[-2]
            if text.weights is not None:
                states = states * to_device(text.weights.to(states.dtype), states.device)
            hidden.append(states.flatten(0, 1))
        if pooled is None:
            raise ValueError("no text encoder with a projection")
        joined = torch.concat(hidden, dim=-1).to(self._text_encoders[-1].dtype).unsqueeze(0)
        # One word of warning serves both tokenizers.
        first = max(texts, key=lambda text: bool(text.cut))
        unknown: tuple[str, ...] = ()
        if self._knows_tokens_alone:
            unknown = words_in_fragments(self._tokenizers[0], pieces, texts[0].read, self._embeddings)
        return PromptEmbedding(joined, pooled, first.cut, first.read, unknown)

    def _remember(self, key: _Key, embedding: PromptEmbedding) -> None:
        if embedding.bytes > MAX_CACHED_BYTES:
            return
        self._cache[key] = embedding
        self._bytes += embedding.bytes
        while self._bytes > MAX_CACHED_BYTES or len(self._cache) > MAX_CACHED_ENTRIES:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.bytes


@contextmanager
def _putting(vectors: Sequence[tuple[int, int, torch.Tensor]], encoder: Any) -> Iterator[None]:
    """Within, the encoder reads these in the place of what its ids stand for, by window and place."""
    if not vectors:
        yield
        return

    def put(_: Any, __: Any, read: torch.Tensor) -> torch.Tensor:
        read = read.clone()
        for window, place, vector in vectors:
            read[window, place] = vector
        return read

    hook = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
