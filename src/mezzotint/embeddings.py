"""Where a text names embeddings (textual inversions): as words of their own, in any case. Pure text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache

__all__ = ["names_in", "parts_of"]


def names_in(names: Collection[str], *texts: str | None) -> tuple[str, ...]:
    """Those of the names that any of the texts holds, in one order."""
    found = {part for text in texts if text for part, is_name in parts_of(text, names) if is_name}
    return tuple(sorted(found))


def parts_of(text: str, names: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The text in its order: what is no name, and each name as `names` has it."""
    if not names:
        yield text, False
        return
    pattern, as_served = _pattern(tuple(names))
    for number, part in enumerate(pattern.split(text)):
        if number % 2:
            yield as_served[part.casefold()], True
        elif part:
            yield part, False


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    # Of two that begin alike the longer goes first.
    choices = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    # Names are of ASCII's letters, which in the rest of Unicode have other capitals: ı and İ of an i.
    pattern = re.compile(rf"(?<![\w-])(?a:({choices}))(?![\w-])", re.IGNORECASE)
    return pattern, {name.casefold(): name for name in names}
