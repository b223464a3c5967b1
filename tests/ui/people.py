"""Many people drawing through the page at once, each in a browser context of their own.

`python -m tests.ui.people` has twenty draw with the demo model, and says how long the page took to answer
each key: from the press, as the browser saw it, to the drawing's card in the list, and to the service's
answer on that card. `make people` runs it.

All but two share a browser that stands still while a key of the two is timed, and has the lowest priority at
other times: in life they would have machines of their own, and twenty tabs take more of two cores than
everything that serves them. What is drawn for them goes on meanwhile, and what the page tells them waits for
them. The two have a browser at the usual priority, on the same cores as the service and its engine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.ui.chromium import ARGUMENTS, PROGRAM

__all__ = ["Person", "gather"]

WAIT_MS = 120_000
LOWEST_PRIORITY = 19
TIMED = 2
SHOWN = 12
ASKED = "li.mz-drawing[data-state=asked]"
# Notes when Enter was pressed, when a card came that was not there before, and when one of a job did.
STOPWATCH = """() => {
  const cards = of => new Set([...document.querySelectorAll(of)].map(card => card.dataset.job));
  const all = 'li.mz-drawing', taken = all + ':not([data-state=asked])';
  window.waits = {card: [], job: []};
  let pressed = null, before, open = [];
  document.addEventListener('keydown', event => {
    if (event.key === 'Enter') {
      [pressed, before, open] = [performance.now(), cards(all), [['card', all], ['job', taken]]];
    }
  }, true);
  new MutationObserver(() => {
    open = open.filter(([name, of]) => {
      if ([...cards(of)].every(job => before.has(job))) return true;
      window.waits[name].push(performance.now() - pressed);
      return false;
    });
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


class Person:
    """Somebody with a browser of their own."""

    def __init__(self, browser: Browser, address: str, name: str) -> None:
        self.name = name
        self.context: BrowserContext = browser.new_context()
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.page.goto(address)
        expect(self.page.get_by_text("Nothing yet.")).to_be_visible(timeout=WAIT_MS)
        self.page.evaluate(STOPWATCH)
        self.asked: list[str] = []

    def ask(self, prompt: str) -> None:
        self.asked.append(prompt)
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_label("Prompt", exact=True).press("Enter")
        expect(self.page.locator("li.mz-drawing")).to_have_count(len(self.asked), timeout=WAIT_MS)
        expect(self.page.locator(ASKED)).to_have_count(0, timeout=WAIT_MS)

    def wait(self) -> None:
        """Until every drawing is done."""
        done = self.page.locator("li.mz-drawing[data-state=done]")
        expect(done).to_have_count(len(self.asked), timeout=WAIT_MS)

    def sees(self) -> list[str]:
        """The prompts on the page, and the receipts' behind its pictures."""
        shown = self.page.locator("li.mz-drawing .mz-prompt").all_inner_texts()
        return sorted(shown)

    def waits_ms(self, until: Literal["card", "job"]) -> list[float]:
        return list(self.page.evaluate("until => window.waits[until]", until))


def gather(browser: Browser, address: str, count: int, prompts: Sequence[str]) -> list[Person]:
    """So many people, each of whom asks for each prompt, all of them at once; until all is drawn."""
    people = [Person(browser, address, f"person {number}") for number in range(count)]
    for prompt in prompts:
        for person in people:
            person.ask(f"{prompt} for {person.name}")
    for person in people:
        person.wait()
    return people


def measure(count: int, model: str) -> dict[str, Any]:
    from tests.servers import Server

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["MEZZOTINT_HOME"] = folder

        def launch() -> Browser:
            return playwright.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)

        others = set(psutil.Process().children(recursive=True))
        crowds = launch()
        crowds_processes = set(psutil.Process().children(recursive=True)) - others
        for process in crowds_processes:
            # What it starts from now on has the same.
            process.nice(LOWEST_PRIORITY)
        with Server(Path(folder), "--model", model, page=True) as server:
            address = server.wait_for_page()
            crowd = [Person(crowds, address, f"person {number}") for number in range(TIMED, count)]
            beside = launch()
            timed = [Person(beside, address, f"person {number}") for number in range(TIMED)]
            turns = itertools.cycle(timed)
            for prompt in ("a fox on a blue background", "an owl on green"):
                for person in crowd:
                    person.ask(f"{prompt} for {person.name}")
                    turn = next(turns)
                    # The page shows a dozen, and more when it is asked to.
                    if len(turn.asked) < SHOWN:
                        with standing_still(crowds_processes):
                            turn.ask(f"{prompt} for {turn.name}, {len(turn.asked)}")
            everybody = [*timed, *crowd]
            for person in everybody:
                person.wait()
        mixed_up = [person.name for person in everybody if person.sees() != sorted(person.asked)]
        heard = _summary([wait for person in timed for wait in person.waits_ms("card")])
        taken = _summary([wait for person in timed for wait in person.waits_ms("job")])
    figures = {"to_the_card": heard, "to_the_services_answer": taken}
    return {"people": count, "mixed_up": mixed_up, **figures, "wall_s": round(time.monotonic() - began, 1)}


@contextmanager
def standing_still(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Within, neither these run nor what they have started."""
    every = {each for process in processes for each in (process, *process.children(recursive=True))}
    stopped = []
    try:
        for each in every:
            with suppress(psutil.NoSuchProcess):
                each.suspend()
                stopped.append(each)
        yield
    finally:
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def _summary(waits: Sequence[float]) -> dict[str, int]:
    """In milliseconds."""
    ordered = sorted(waits)
    return {
        "events": len(ordered),
        "p50_ms": round(statistics.median(ordered)),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]),
        "max_ms": round(ordered[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    if given.people <= TIMED:
        parser.error(f"--people takes {TIMED + 1} or more: {TIMED} are timed beside the others")
    print(json.dumps(measure(given.people, given.model), indent=2))


if __name__ == "__main__":
    main()
