"""The HTTP application: every surface's routes in front of one gateway. Any ASGI server runs it."""

from __future__ import annotations

from fastapi import FastAPI

from mezzotint import __version__
from mezzotint.serve.api import imagine, ops
from mezzotint.serve.api.errors import install_error_handlers
from mezzotint.serve.gateway import Gateway

__all__ = ["build_http"]


def build_http(gateway: Gateway) -> FastAPI:
    # A redirect to or from a trailing slash would repeat the prompt in a header, which is logged.
    app = FastAPI(title="Mezzotint", version=__version__, redirect_slashes=False, redoc_url=None)
    app.state.gateway = gateway
    app.include_router(imagine.router)
    app.include_router(ops.router)
    install_error_handlers(app)
    return app
