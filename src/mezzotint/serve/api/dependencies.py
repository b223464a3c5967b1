"""What the routes of several surfaces ask of a request."""

from __future__ import annotations

from fastapi import Request

from mezzotint.errors import InvalidRequest
from mezzotint.serve.gateway import Gateway

__all__ = ["gateway_of", "one_value_each"]


def gateway_of(request: Request) -> Gateway:
    """The process's one gateway, which `build_http` put on the application."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def one_value_each(request: Request) -> None:
    """Refuse `seed=1&seed=2`, of which a parser would silently take one."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidRequest(f"{name} is given more than once", param=name)
        seen.add(name)
