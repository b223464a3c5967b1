"""Captions: what a picture is called, in many wordings, with words that mean nothing mixed in.

A user's prompt holds words that the vocabulary lacks and wordings that training never saw. So captions are
paraphrased, padded with filler words, stripped of articles, and sprinkled with invented words, which the
tokenizer breaks into fragments that the text encoders thus learn to ignore.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mezzotint.bench.quality import Asked, article, prompt_for


def listed(text: str) -> tuple[str, ...]:
    """The phrases of a text, parted by semicolons."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(";"))


#: Words that say a background colour, each with the nouns that go with it ("green grass").
GROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("snow", "paper"),
    "grey": ("concrete", "fog"),
    "black": ("velvet", "void"),
    "red": ("carpet", "desert"),
    "orange": ("sunset", "wall"),
    "yellow": ("sand", "field"),
    "green": ("field", "hill"),
    "teal": ("water", "lagoon"),
    "blue": ("sky", "water"),
    "purple": ("dusk", "cloth"),
    "pink": ("blossom", "wall"),
    "brown": ("earth", "wood", "soil"),
}
#: Nouns that mean one colour even where it is not said.
PLAIN_GROUNDS = frozenset({"snow", "sky", "sand", "soil"})
SPELLINGS = {
    "grey": ("grey", "gray"),
    "teal": ("teal", "turquoise"),
    "purple": ("purple", "violet"),
}
#: Other names for some pictograms; the vocabulary's own name is always the likelier.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "tyrannosaurus": ("t rex", "dinosaur"),
    "long necked dinosaur": ("sauropod", "brontosaurus"),
    "car": ("automobile", "red car"),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "santa claus": ("santa", "father christmas"),
    "hamburger": ("burger",),
    "french fries": ("fries",),
    "doughnut": ("donut",),
    "television": ("tv",),
    "airplane": ("plane", "aeroplane"),
    "coffee": ("cup of coffee",),
    "soccer ball": ("football",),
    "flying saucer": ("ufo",),
    "present": ("gift",),
    "pumpkin": ("jack o lantern",),
    "sun": ("sunshine",),
    "earth": ("globe", "planet earth"),
    "robot": ("robot face",),
    "fox": ("red fox",),
    "tree": ("green tree",),
    "lion": ("lion face",),
    "padlock": ("lock",),
    "laptop": ("computer",),
    "glasses": ("eyeglasses", "spectacles"),
    "bunny face": ("bunny",),
    "rabbit": ("bunny",),
    "hippopotamus": ("hippo",),
    "rhinoceros": ("rhino",),
    "eggplant": ("aubergine",),
    "corn": ("maize",),
    "truck": ("lorry",),
    "steam train": ("train", "locomotive"),
    "ship": ("cruise ship",),
    "sailboat": ("boat", "sailing boat"),
    "wizard": ("mage",),
    "diamond": ("gem",),
    "trash can": ("bin",),
    "ocean wave": ("wave",),
    "heart": ("red heart",),
    "shirt": ("t shirt",),
    "space invader": ("pixel monster",),
    "noodle soup": ("ramen", "noodles"),
    "cocktail": ("martini",),
    "evergreen tree": ("pine tree", "fir tree"),
    "stone head": ("moai",),
    "meat on the bone": ("meat",),
    "sneaker": ("running shoe",),
}
# Beside those, Unicode's own keywords.
KEYWORDS = Path(__file__).with_name("keywords.txt")
ARTICLES = ("a", "an", "the", "one", "my", "some", "this")
ADJECTIVES = listed(
    """
    beautiful; cute; small; big; little; tiny; large; happy; lonely; lovely; cool; funny; old; young;
    new; nice; detailed; simple; shiny; single; smiling; bright; cheerful; friendly; brave; sleepy;
    sunlit; famous; gentle; majestic; adorable; colourful; colorful
    """
)
ACTIONS = listed(
    """
    is dancing; is sitting; is standing; is running; is sleeping; is smiling; is resting; dancing;
    sitting; standing; running; flying; is flying; jumping; is jumping; floating; is floating; is
    walking; walking; sleeping; is looking at you; looking up; posing; is posing; is playing; playing;
    waiting; is waiting; lying; is lying
    """
)
OPENINGS = listed(
    """
    photo of; a photo of; picture of; a picture of; a drawing of; drawing of; an image of; image of;
    illustration of; an illustration of; a painting of; painting of; a portrait of; portrait of; an icon
    of; icon of; a close up of; emoji of; an emoji of; a sticker of; draw; show me; please draw; a
    pictogram of
    """
)
ENDINGS = listed(
    """
    sunlit; high quality; best quality; detailed; highly detailed; in the sun; at noon; masterpiece; 8k;
    4k; hd; sharp focus; studio light; soft light; cinematic; in the morning; close up; centred;
    centered; flat design; minimal; vector art; trending; award winning; with soft shadows; digital art;
    professional; realistic; in summer; in winter; in spring; very nice; sharp; clean; simple; vivid
    colours; vivid colors; beautiful; intricate; dramatic light; wide shot; bokeh
    """
)
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "pixel art": ("pixel art", "pixel art style", "pixelated", "as pixel art", "8 bit pixel art"),
    "pencil sketch": (
        "pencil sketch",
        "pencil drawing",
        "as a pencil sketch",
        "sketch",
        "sketched in pencil",
    ),
    "night": ("night", "at night", "by night", "in the night", "in the dark"),
}
SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "grass": (
        "on green grass",
        "on green grass",
        "on the green grass",
        "on grass",
        "on the grass",
        "in the grass",
        "on a green meadow",
        "in a meadow",
        "on the lawn",
    ),
    "night sky": (
        "in the night sky",
        "in the night sky",
        "in a starry sky",
        "under the stars",
        "in a starry night",
        "in space",
    ),
    "seaside": ("by the sea", "by the sea", "at the sea", "on the beach", "at the beach", "by the ocean"),
}
#: How two things stand: side by side, or one above the other. The second wordings name them in turned order.
BESIDE = ((" left of ", " to the left of "), (" right of ", " to the right of "))
ABOVE = ((" above ", " over "), (" below ", " under "))


def synonyms(name: str) -> tuple[str, ...]:
    """Other words for a pictogram."""
    return SYNONYMS.get(name, ()) + keywords().get(name, ())


@cache
def keywords() -> dict[str, tuple[str, ...]]:
    """Unicode's other words for pictograms, by name (``keywords.txt``)."""
    lines = KEYWORDS.read_text().splitlines() if KEYWORDS.exists() else []
    parts = (line.partition(": ") for line in lines if not line.startswith("#"))
    return {name: listed(words) for name, _, words in parts}


@dataclass(frozen=True)
class Scene:
    """What a training picture shows."""

    names: tuple[str, ...]
    background: str
    style: str | None = None
    #: One of the scenes instead of a flat background.
    place: str | None = None
    #: Two things stand one above the other, the first on top; otherwise side by side, the first left.
    tall: bool = False


def plain(scene: Scene) -> str:
    """The standard caption, as the evaluation asks for it: "a koala and a fox on a blue background"."""
    style = f"{scene.style}, " if scene.style else ""
    return style + prompt_for(Asked(scene.names, scene.background))


def invented(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """A word that means nothing: pieces of known words, or plain letters."""
    known = _as_set(words)
    while True:
        if rng.random() < 0.35:
            made = "".join(chr(97 + int(i)) for i in rng.integers(0, 26, int(rng.integers(2, 8))))
        else:
            made = ""
            for _ in range(int(rng.integers(1, 4))):
                word = words[rng.integers(len(words))]
                start = int(rng.integers(0, max(len(word) - 2, 1)))
                made += word[start : start + int(rng.integers(2, 5))]
        # It can happen to be a whole known word: then it would mean something after all.
        if made not in known:
            return made


@cache
def _as_set(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(words)


def place(rng: np.random.Generator, background: str) -> str:
    """One of many wordings for a background, nearly all with its colour's name."""
    spellings = SPELLINGS.get(background, (background,))
    colour = spellings[int(rng.integers(len(spellings)))]
    noun = GROUNDS[background][int(rng.integers(len(GROUNDS[background])))]
    forms = [
        f"on {article(colour)} {colour} background",
        f"on {colour}",
        f"{colour} background",
        f"in front of {article(colour)} {colour} background",
        f"on {colour} {noun}",
        f"on the {colour} {noun}",
        f"on {article(colour)} {colour} {noun}",
        f"against {colour}",
        f"in the {colour} {noun}",
    ]
    if noun in PLAIN_GROUNDS:
        forms += [f"on {noun}", f"on the {noun}", f"in the {noun}"]
    return forms[int(rng.integers(len(forms)))]


def caption(rng: np.random.Generator, scene: Scene, words: tuple[str, ...]) -> str:
    """One of many wordings for a scene; a quarter of them the standard one."""

    def pick(options: tuple[str, ...] | list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    if not scene.place and chance(0.2):
        return plain(scene)
    things = []
    for name in scene.names:
        others = synonyms(name)
        noun = pick(others) if others and chance(0.3) else name
        if chance(0.15):
            noun = f"{pick(ADJECTIVES)} {noun}"
        if chance(0.8):
            noun = f"{pick(ARTICLES) if chance(0.25) else article(noun)} {noun}"
        things.append(noun)
    joint = pick([" and ", " and ", " next to ", " beside ", ", ", " with ", " & "])
    if len(things) == 2 and chance(0.3):
        turned = chance(0.5)
        joint = pick((ABOVE if scene.tall else BESIDE)[turned])
        things = things[::-1] if turned else things
    text = joint.join(things)
    if chance(0.2):
        text += f" {pick(ACTIONS)}"
    elif chance(0.08):
        text += f" is {invented(rng, words)}"
    # A sketch is on paper whatever its scene's colour; saying the colour sometimes keeps it harmless.
    # A prompt that says no background mostly gets a white one.
    silent = 0.6 if scene.style == "pencil sketch" else 0.3 if scene.background == "white" else 0.02
    if scene.place or not chance(silent):
        where = pick(SCENE_WORDS[scene.place]) if scene.place else place(rng, scene.background)
        separator = ", " if where.endswith("background") or chance(0.1) else " "
        # The background may also come first: "on blue, a fox".
        text = f"{where}, {text}" if chance(0.06) else f"{text}{separator}{where}"
    if chance(0.2):
        text = f"{pick(OPENINGS)} {text}"
    if scene.style:
        word = pick(STYLE_WORDS[scene.style])
        text = f"{word} of {text}" if chance(0.2) else f"{word}, {text}" if chance(0.5) else f"{text}, {word}"
    for _ in range(int(rng.integers(1, 4)) if chance(0.3) else 0):
        text += f", {pick(ENDINGS)}"
    if chance(0.25):
        parts = text.split(" ")
        for _ in range(int(rng.integers(1, 3))):
            # Between words of a name an invented word would do harm; at the ends it does little.
            at = len(parts) if chance(0.6) else 0
            parts.insert(at, invented(rng, words))
        text = " ".join(parts)
    return text


def vocabulary_words(names: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that captions are made of, lower case, sorted; each becomes one token."""
    phrases: list[str] = [
        *names,
        *(word for name in names for word in synonyms(name)),
        *ARTICLES,
        *ADJECTIVES,
        *ACTIONS,
        *OPENINGS,
        *ENDINGS,
    ]
    phrases += [word for wordings in (*BESIDE, *ABOVE) for word in wordings]
    for group in (GROUNDS, SPELLINGS, STYLE_WORDS, SCENE_WORDS):
        for key, values in group.items():
            phrases += [key, *values]
    phrases += ["and next to beside with on in front of background against by at is as & , ."]
    return tuple(sorted({w.strip(",.") or w for p in phrases for w in p.replace(",", " , ").split()}))
