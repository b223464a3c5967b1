"""The HTTP application: every surface's routes in front of one gateway. Any ASGI server runs it."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from mezzotint import __version__
from mezzotint.serve.api import a1111, a1111_controls, imagine, jobs, openai, ops, pictures, reference
from mezzotint.serve.api.dependencies import caller_of, check_query
from mezzotint.serve.api.documented import EVERYWHERE, describe
from mezzotint.serve.api.errors import install_error_handlers
from mezzotint.serve.disconnects import CancelOnDisconnect
from mezzotint.serve.middleware import AnswerOrigins, LimitRequests, SecureHeaders
from mezzotint.serve.services import Services
from mezzotint.serve.telemetry.requests import Observe

__all__ = ["build_http"]

# What a page of another origin may read of an answer's header.
EXPOSED_HEADERS = (
    "etag",
    "location",
    "retry-after",
    "retry-after-ms",
    "x-request-id",
    "x-should-retry",
    "x-mezzotint-seed",
    "x-mezzotint-queue-ms",
    "x-mezzotint-compute-ms",
)


def build_http(services: Services) -> FastAPI:
    # A redirect to or from a trailing slash would repeat the prompt in a header, which is logged.
    app = FastAPI(
        title="Mezzotint",
        version=__version__,
        redirect_slashes=False,
        # FastAPI's own pages ask for no key and load scripts from elsewhere.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        responses=EVERYWHERE,
    )
    app.state.services = services
    for keyed in (imagine, openai, jobs, a1111, a1111_controls, reference):
        app.include_router(keyed.router, dependencies=[Depends(caller_of), Depends(check_query)])
    # Health and the links of pictures need no key; the other routes of these ask for one themselves.
    for open_ in (ops, pictures):
        app.include_router(open_.router)
    install_error_handlers(app)
    describe(app)
    _wrap(app, services)
    return app


def _wrap(app: FastAPI, services: Services) -> None:
    """The last added is the outermost: a preflight, a refused body and an error have an id and a log line."""
    settings = services.settings
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(LimitRequests, max_body_bytes=int(settings.max_body_mb * 1e6))
    if settings.cors_origins:
        app.add_middleware(
            AnswerOrigins,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(SecureHeaders)
    app.add_middleware(Observe, metrics=services.metrics, tracing=services.tracing)
