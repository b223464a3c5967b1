"""Links to stored pictures. A name cannot be guessed, so whoever holds a link needs no key."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.serve.api.dependencies import ServicesOf, check_query
from mezzotint.serve.api.documented import OPEN, answers
from mezzotint.serve.services import Services

__all__ = ["link_to", "router"]

ROUTE = "/v1/images/files/"
HEADERS = {
    # Short beside any time to live, so that a picture does not long outlive its store's copy.
    "Cache-Control": "private, max-age=300",
    # Opened as a page of its own it may do nothing.
    "Content-Security-Policy": "default-src 'none'; sandbox",
}

router = APIRouter(dependencies=[Depends(check_query)])


def link_to(name: str, request: Request, services: Services) -> str:
    """Where any gateway serves the stored picture: below `public_url`, or as this request came.

    Raises:
        InvalidRequest: there is no `public_url`, and the request's own address is none.
    """
    try:
        base = services.settings.public_url or str(request.base_url)
    except ValueError:
        raise InvalidRequest("the Host header is no address", param="host") from None
    return base.rstrip("/") + ROUTE + name


@router.head(ROUTE + "{name}", include_in_schema=False)
@router.get(
    ROUTE + "{name}",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}}, **answers(404)},
    openapi_extra=OPEN,
    summary="A picture that a link was given out for",
)
async def picture(name: str, services: ServicesOf) -> Response:
    data, content_type = await services.images.get(name)
    disposition = {"Content-Disposition": f'inline; filename="{name}"'}
    return Response(data, 200, {**HEADERS, **disposition}, content_type)
