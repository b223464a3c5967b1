"""What the page's buttons do, without a widget in sight: asks the service, changes the browser's list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mezzotint.ui.browsers import Browser, Browsers
from mezzotint.ui.drawing import WORDLESS, Drawing
from mezzotint.ui.form import JobRequest
from mezzotint.ui.monitor import Monitor
from mezzotint.ui.receipts import recipe_of_told
from mezzotint.ui.sentences import Notice, notice_of
from mezzotint.ui.service import Refused, Service, ServiceError
from mezzotint.ui.views import View, Views

__all__ = ["Controller"]

NO_PROMPT = Notice("Say what to draw first, then press Enter.")

# How far a variation goes from its picture.
VARY_STRENGTH = 0.6


class Controller:
    """Everything behind the page. One for the process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.monitor = Monitor(service)
        self.browsers = Browsers(service)
        self.views = Views()
        self.is_closing = False

    def close(self) -> None:
        """Whoever waits for news hears that there will be none."""
        self.is_closing = True
        self.browsers.tell_all()

    def visit(self, kept: object, session: str | None) -> tuple[Browser, View]:
        """Whose page this is, by what its storage holds and by the page's session, and what it looks at."""
        view = self.views.of(session)
        browser = self.browsers.of(kept, view.browser_id)
        view.browser_id = browser.id
        return browser, view

    async def draw(self, browser: Browser, request: JobRequest) -> Notice | None:
        """Begin a drawing; what was wrong, if anything."""
        if request.is_wordless:
            return NO_PROMPT
        return await self._ask(browser, request)

    async def cancel(self, browser: Browser, id: str) -> Notice | None:
        try:
            await browser.cancel(id)
        except ServiceError as error:
            return notice_of(error)
        return None

    async def receipt(self, browser: Browser, id: str, n: int) -> dict[str, Any]:
        """The receipt of a finished picture.

        Raises:
            ServiceError: the service does not know it, or does not answer.
        """
        with _noticing(browser, id):
            job = await self.service.job(id)
        for image in job.get("images") or ():
            if image["index"] == n:
                return dict(image["receipt"])
        raise Refused(404, "image_not_found", "", None)

    async def vary(self, browser: Browser, id: str, n: int, receipt: Mapping[str, Any]) -> Notice | None:
        """Begin a drawing like that one, with another seed."""
        recipe = recipe_of_told(receipt)
        if recipe is None:
            return None
        try:
            with _noticing(browser, id):
                data, _ = await self.service.picture(id, n)
        except ServiceError as error:
            return notice_of(error)
        request = JobRequest(
            recipe.prompt,
            recipe.negative_prompt,
            emphasis=bool(recipe.emphasis),
            steps=recipe.steps,
            guidance=recipe.guidance,
            scheduler=recipe.scheduler or "",
            loras=recipe.loras,
            strength=VARY_STRENGTH,
            image=data,
        )
        return await self._ask(browser, request)

    async def _ask(self, browser: Browser, request: JobRequest) -> Notice | None:
        prompt = request.prompt.strip() or WORDLESS
        with browser.asking(Drawing.asked_for(prompt, request.n, request.drawn_size)):
            try:
                job = await self.service.create_job(request.body())
            except ServiceError as error:
                return notice_of(error)
            browser.add(Drawing.of_job(job, prompt))
        return None


@contextmanager
def _noticing(browser: Browser, id: str) -> Iterator[None]:
    """What the service turns out not to keep any more is told as lost by the list too."""
    try:
        yield
    except Refused as error:
        if error.code == "job_not_found":
            browser.lose(id)
        raise
