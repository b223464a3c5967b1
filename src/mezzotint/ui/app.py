"""The page's own server: Gradio kept to itself, and the pictures, fetched from the service."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.routing import Mount

from mezzotint import __version__
from mezzotint.ui.controller import Controller
from mezzotint.ui.headers import PageHeaders
from mezzotint.ui.pictures import pictures_of
from mezzotint.ui.service import Service
from mezzotint.ui.settings import UiSettings

__all__ = ["build_app", "end_pages"]

MAX_UPLOAD = "50mb"
# Of any request: an upload and what is written round it.
MAX_BODY_BYTES = 56_000_000
# Gradio reads these when it is imported and when a page is built.
GRADIO = {
    # It tells nobody of its use.
    "GRADIO_ANALYTICS_ENABLED": "False",
    # It sums up all events after each, for a page of statistics that is off here.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62),
}


def build_app(settings: UiSettings) -> FastAPI:
    # What is sent to it lies here for a while, and not beside what other programs keep.
    uploads = tempfile.TemporaryDirectory(prefix="mezzotint-page-", ignore_cleanup_errors=True)
    os.environ.update({**GRADIO, "GRADIO_TEMP_DIR": uploads.name})
    import gradio as gr

    from mezzotint.ui.look import CSS, HEAD, theme
    from mezzotint.ui.page import build_page

    controller = Controller(Service(settings.api, settings.key))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        looking = asyncio.create_task(controller.monitor.run())
        yield
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await controller.browsers.close()
        await controller.service.close()
        uploads.cleanup()

    app = FastAPI(
        title="Mezzotint",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
        lifespan=lifespan,
    )
    app.state.controller = controller
    app.add_middleware(PageHeaders)
    app.include_router(pictures_of(controller.service))
    page = build_page(controller)
    # A page that Gradio has not launched itself takes any path for an upload's, whichever file lies there.
    page.has_launched = True

    @app.get("/healthz")
    async def health() -> PlainTextResponse:
        """503 once no button works: Gradio's queue ends for good at an error of its own; its server stays."""
        return PlainTextResponse("no answers\n", 503) if page._queue.stopped else PlainTextResponse("ok\n")

    gr.mount_gradio_app(
        app,
        page,
        path="/",
        app_kwargs={"openapi_url": None},
        theme=theme(),
        css=CSS,
        head=HEAD,
        # No file of this machine may be asked for, and none may be sent that is larger.
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        # No page that describes the calls, none of its settings, no record of runs, no statistics.
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
    )
    return app


def end_pages(app: Any) -> None:
    """End the answers that pages listen to. app: what `build_app` made."""
    app.state.controller.close()
    for route in app.routes:
        stop = getattr(route.app, "stop_event", None) if isinstance(route, Mount) else None
        if stop is not None:
            stop.set()
