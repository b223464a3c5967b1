"""The tokenizer: CLIP's own kind, with merges learned until every caption word is a single token.

Merges are learned by byte-pair encoding on the word list alone, so replaying them in order always rebuilds
each listed word; other words fall apart into fragments and letters.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE (Radford et al., 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in printable}
    for b in range(256):
        letters.setdefault(b, chr(256 + len(letters) - len(printable)))
    return [letters[b] for b in range(256)]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges until each word is one token; ties go to the alphabetically first pair."""
    split = [[*w[:-1], w[-1] + "</w>"] for w in words]
    counts = Counter(p for s in split for p in pairwise(s))
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, symbols in enumerate(split):
        for pair in pairwise(symbols):
            places[pair].add(i)
    # What counts no longer say is passed over when it comes up.
    order = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(order)
    merges: list[tuple[str, str]] = []
    while order:
        count, best = heapq.heappop(order)
        if not count or counts[best] != -count:
            continue
        merges.append(best)
        changed = set()
        for i in places.pop(best):
            before, split[i] = split[i], _join(split[i], best)
            counts.subtract(pairwise(before))
            counts.update(pairwise(split[i]))
            changed.update(pairwise(before), pairwise(split[i]))
            for pair in pairwise(split[i]):
                places[pair].add(i)
        for pair in changed:
            heapq.heappush(order, (-counts[pair], pair))
    return merges


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    joined, j = [], 0
    while j < len(symbols):
        if tuple(symbols[j : j + 2]) == pair:
            joined.append(symbols[j] + symbols[j + 1])
            j += 2
        else:
            joined.append(symbols[j])
            j += 1
    return joined


def write(words: tuple[str, ...], folder: Path, positions: int) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the configuration to ``folder``; return the tokenizer read back."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": positions,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "errors": "replace",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)
