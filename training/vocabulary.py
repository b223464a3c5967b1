"""The vocabulary: which pictograms, by which names. ``python -m training.vocabulary``.

Reads the font and Unicode's names and keywords of emoji (CLDR; Debian's `unicode-cldr-core`), and extends
what everything else reads: ``glyphs.txt`` by whatever has a name, ``keywords.txt`` by the other words that
mean one of them alone. What is listed already keeps its place, its name and its words: a model that knows the
beginning of the list can learn more of it.

What comes next is always the pictogram that looks least like all before it: a short list of pictures that are
easily told apart is worth more than a long one of twins. Flags, clocks, buttons and persons' variants come
after everything else.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from training import captions, data

CLDR = Path("/usr/share/unicode/cldr/common")
HERE = Path(__file__).parent
SIDE = 24
MAX_WORDS, MAX_KEYWORDS = 5, 5
SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")
#: Kinds that differ by a letter, a hand or a hair, and would crowd out everything else if they came with it.
KINDS = re.compile(
    r"^(flag|family|keycap|kiss|couple with heart|person)\b|o’clock|-thirty|facing right"
    r"|\b(button|square|circle|arrow|triangle|hair|beard|sign|input|man|men|woman|women|boy|girl)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Named:
    """A pictogram with Unicode's short name and keywords for it."""

    text: str
    name: str
    keywords: tuple[str, ...]


@cache
def annotations(language: str = "en") -> list[Named]:
    """All of them, joined sequences included, skin tones not; in CLDR's order."""
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for part in ("annotations", "annotationsDerived"):
        for entry in ElementTree.parse(CLDR / part / f"{language}.xml").iter("annotation"):
            text, words = str(entry.get("cp")), str(entry.text)
            if entry.get("type") == "tts":
                names[text] = words
            else:
                keywords[text] = tuple(plain(word) for word in words.split("|"))
    return [
        Named(text, name, keywords.get(text, ())) for text, name in names.items() if not SKIN.search(text)
    ]


def plain(words: str) -> str:
    """As captions have them: lower case, no accents, no punctuation."""
    bare = unicodedata.normalize("NFKD", words.lower()).encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", re.sub(r"['.]", "", bare)).split())


def is_one_picture(text: str) -> bool:
    """Whether the font has a picture for it, a single one."""
    font = ImageFont.truetype(str(data.FONT), data.FONT_SIZE)
    if round(font.getlength(text)) != round(font.getlength("\U0001f98a")):
        return False
    try:
        data.render(text)
    except ValueError:
        return False
    return True


def reserved() -> frozenset[str]:
    """Words that say something else in a caption: colours, styles, what joins two things."""
    colours = {spelling for spellings in captions.SPELLINGS.values() for spelling in spellings}
    styles = {word for style in captions.STYLE_WORDS for word in style.split()}
    return frozenset({"and", "background", *captions.GROUNDS, *colours, *styles})


def is_sayable(phrase: str) -> bool:
    """Whether captions can have it: a few words that are tokens, none of which says something else."""
    words = phrase.split()
    # CLIP's tokenizer parts letters from digits.
    return 1 <= len(words) <= MAX_WORDS and phrase.replace(" ", "").isalpha() and not reserved() & set(words)


def newcomers(known: tuple[data.Glyph, ...]) -> list[Named]:
    """What could be added: one picture, a short name of its own that says nothing else."""
    taken = {word for glyph in known for word in (glyph.name, *captions.synonyms(glyph.name))}
    listed = {bare(glyph.text) for glyph in known}
    found = []
    for each in annotations():
        name = plain(each.name.replace("flag: ", "flag of "))
        if bare(each.text) in listed or name in taken:
            continue
        if not is_sayable(name) or not is_one_picture(each.text):
            continue
        taken.add(name)
        found.append(Named(each.text, name, each.keywords))
    return found


def bare(text: str) -> str:
    """Without the sign that asks for a coloured picture, which lists have or leave out."""
    return text.replace("\ufe0f", "")


def by_difference(known: Iterable[str], others: list[Named]) -> list[Named]:
    """`others`, each time the one whose least distance to all before it is greatest; of twins only one."""
    if not others:
        return []
    pictures = np.stack([_small(each.text) for each in others])
    distance = np.full(len(others), np.inf)

    def compare(picture: NDArray[np.float32]) -> None:
        for rows in (-1, 0, 1):
            for columns in (-1, 0, 1):
                moved = np.roll(picture, (rows, columns), (0, 1))
                np.minimum(distance, np.abs(moved - pictures).mean((1, 2, 3)), out=distance)

    for text in known:
        compare(_small(text))
    order = []
    for _ in others:
        latest = int(distance.argmax())
        # What looks the same to within a shade can not be asked for by name.
        if distance[latest] < 1.0:
            break
        order.append(others[latest])
        compare(pictures[latest])
        distance[latest] = -1.0
    return order


def _small(text: str) -> NDArray[np.float32]:
    colour, alpha = data.scaled(text, SIDE)
    small: NDArray[np.float32] = colour + (1 - alpha) * 128
    return small


def keywords(
    glyphs: Iterable[data.Glyph], kept: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> dict[str, tuple[str, ...]]:
    """Other words for the glyphs of a list: Unicode's keywords, where only one of the list has them.

    Names in `kept` keep the words that they have there.
    """
    glyphs = tuple(glyphs)
    own = {bare(glyph.text): glyph.name for glyph in glyphs}
    meant: dict[str, set[str]] = defaultdict(set)
    for each in annotations():
        name = own.get(bare(each.text))
        if name is not None:
            for word in {plain(each.name), *each.keywords}:
                meant[word].add(name)
    said = {glyph.name for glyph in glyphs} | {w for words in captions.SYNONYMS.values() for w in words}
    said |= {word for group in captions.GROUNDS.values() for word in group}
    said |= {
        *captions.ADJECTIVES,
        *captions.ACTIONS,
        *captions.OPENINGS,
        *captions.ENDINGS,
        *captions.ARTICLES,
    }
    said |= {word for words in kept.values() for word in words}
    found: dict[str, list[str]] = defaultdict(list)
    for word, names in meant.items():
        if len(names) == 1 and len(word) > 2 and is_sayable(word) and word not in said:
            found[min(names)].append(word)
    chosen = {name: tuple(sorted(words)[:MAX_KEYWORDS]) for name, words in found.items()}
    return {name: words for name, words in sorted({**chosen, **kept}.items()) if words}


def line(text: str, name: str) -> str:
    return f"{'+'.join(f'{ord(c):X}' for c in text)} {name}"


def write_keywords(words: Mapping[str, tuple[str, ...]]) -> None:
    head = "# Written by training/vocabulary.py: a name of glyphs.txt, then other words for it.\n"
    body = "".join(f"{name}: {'; '.join(others)}\n" for name, others in words.items())
    (HERE / "keywords.txt").write_text(head + body)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    path = HERE / "glyphs.txt"
    known = data.glyphs()
    order: list[Named] = []
    rest, kinds = [], []
    for each in newcomers(known):
        (kinds if KINDS.search(each.name) else rest).append(each)
    for group in (rest, kinds):
        before = (*(glyph.text for glyph in known), *(each.text for each in order))
        order += by_difference(before, group)
    old = path.read_text()
    head = "# -- by Unicode's names, always the one least like all before it (training/vocabulary.py)\n"
    added = "".join(f"{line(each.text, each.name)}\n" for each in order)
    path.write_text(old + (head if added and head not in old else "") + added)
    data.glyphs.cache_clear()
    every = data.glyphs()
    kept = {glyph.name: captions.keywords().get(glyph.name, ()) for glyph in known}
    write_keywords(keywords(every, kept))
    print(f"{len(every)} pictograms, {len(order)} of them new")


if __name__ == "__main__":
    main()
