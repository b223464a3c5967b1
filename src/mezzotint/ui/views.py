"""What one open page looks at: whose drawings, the words it searches for, how many it shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

from mezzotint.ui.browsers import Browser
from mezzotint.ui.drawing import Drawing
from mezzotint.ui.offer import Offer

__all__ = ["View", "Views"]

MAX_VIEWS = 5_000
PAGE = 12
DAY_MINUTES = 24 * 60


@dataclass
class View:
    """offer: what its form was last filled with. opening: job and number of the picture pressed last."""

    query: str = ""
    browser_id: str = ""
    offer: Offer | None = None
    opening: tuple[str, int] | None = None
    shown: int = PAGE
    zone: tzinfo = UTC

    def note(self, page: Mapping[str, Any]) -> None:
        """What the page's script tells of its browser."""
        minutes = page.get("minutes")
        if isinstance(minutes, int) and abs(minutes) < DAY_MINUTES:
            self.zone = timezone(-timedelta(minutes=minutes))

    def found(self, browser: Browser) -> list[Drawing]:
        """Those of the browser's drawings whose prompt has every word, newest first."""
        words = self.query.casefold().split()
        newest = sorted(browser.shown, key=lambda drawing: drawing.at, reverse=True)
        return [each for each in newest if all(word in each.prompt.casefold() for word in words)]

    def search(self, query: str) -> None:
        self.query, self.shown = query[:200], PAGE

    def show_more(self) -> None:
        self.shown += PAGE


class Views:
    """By the page's session. A page that comes back after long begins with none."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, View] = OrderedDict()

    def of(self, session: str | None) -> View:
        view = self._known.setdefault(session or "", View())
        self._known.move_to_end(session or "")
        if len(self._known) > MAX_VIEWS:
            self._known.popitem(last=False)
        return view
