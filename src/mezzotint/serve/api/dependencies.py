"""What the routes of several surfaces ask of a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.responses import Response
from fastapi.routing import APIRoute

from mezzotint.errors import InvalidRequest
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.services import Services

__all__ = ["CallerOf", "KeyedRoute", "ServicesOf", "caller_of", "check_query"]


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


async def check_query(request: Request) -> None:
    """Refuse what a parser would silently let fall or replace: a field that the route does not know, of
    `seed=1&seed=2` one of the two, and bytes that are no UTF-8."""
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the address has what is no UTF-8 in its query") from None
    known = _known_fields(request.scope["route"].dependant)
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise InvalidRequest(f"unknown field {name!r}", param=name)
        if name in seen:
            raise InvalidRequest(f"{name} is given more than once", param=name)
        seen.add(name)


def _known_fields(dependant: Dependant) -> set[str]:
    """The query's, those of models of a whole query too, and what the dependencies ask for."""
    own = {
        name
        for field in dependant.query_params
        for name in (getattr(field.field_info.annotation, "model_fields", None) or (field.alias,))
    }
    return own.union(*(_known_fields(each) for each in dependant.dependencies))
