"""What the routes of several surfaces ask of a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from mezzotint.errors import InvalidRequest
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.services import Services

__all__ = ["CallerOf", "KeyedRoute", "ServicesOf", "caller_of", "one_value_each"]


# FastAPI runs what is no coroutine in a thread of its own, which costs more than any of these.
async def services_of(request: Request) -> Services:
    """The process's services, which `build_http` put on the application."""
    services: Services = request.app.state.services
    return services


async def caller_of(request: Request) -> Caller:
    """Who sends the request, by its key. Asked once for each request.

    Raises:
        Unauthenticated: no key, or one that is wrong, revoked or expired.
        StoreUnavailable: the key is not known here yet, and the database does not answer.
    """
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    headers = request.headers
    access = (await services_of(request)).access
    request.state.caller = caller = await access.authenticate(
        headers.get("authorization"), headers.get("x-api-key")
    )
    return caller


ServicesOf = Annotated[Services, Depends(services_of)]
CallerOf = Annotated[Caller, Depends(caller_of)]


class KeyedRoute(APIRoute):
    """A route that knows its caller before it reads any of the body.

    FastAPI reads and parses a body before it asks a dependency: a stranger could have it take megabytes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_known(request: Request) -> Response:
            await caller_of(request)
            return await handle(request)

        return handle_known


async def one_value_each(request: Request) -> None:
    """Refuse `seed=1&seed=2`, of which a parser would silently take one."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidRequest(f"{name} is given more than once", param=name)
        seen.add(name)
