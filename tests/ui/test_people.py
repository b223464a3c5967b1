"""Several people on one page's server. `make people` is the long form, with twenty and the demo model."""

from __future__ import annotations

from playwright.sync_api import Browser

from tests.ui.people import gather

PEOPLE = 5


def test_nobody_sees_anothers_drawings(chromium: Browser, address: str) -> None:
    people = gather(chromium, address, PEOPLE, ["an owl", "a fox"])
    try:
        for person in people:
            assert person.sees() == sorted(person.asked)
            assert len(person.waits_ms("card")) == len(person.waits_ms("job")) == 2
    finally:
        for person in people:
            person.context.close()
