"""Finished pictures and previews, fetched from the service for browsers that may not reach it themselves."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import PlainTextResponse, Response

from mezzotint.core import Image
from mezzotint.errors import MezzotintError
from mezzotint.imaging.formats import CONTENT_TYPES, encode
from mezzotint.imaging.metadata import read_receipt
from mezzotint.ui.names import FILE_NAME, JOB_ID
from mezzotint.ui.sentences import notice_of
from mezzotint.ui.service import Refused, Service, ServiceError

__all__ = ["pictures_of"]

# A picture never changes, and its address cannot be guessed.
HEADERS = {"Cache-Control": "private, max-age=3600, immutable"}
FORMATS = "|".join(CONTENT_TYPES)


def pictures_of(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/pictures/{id}/{n}.{format}")
    async def picture(
        id: Annotated[str, Path(pattern=f"^{JOB_ID.pattern}$")],
        n: Annotated[int, Path(ge=0, le=9)],
        format: Annotated[str, Path(pattern=f"^({FORMATS})$")],
    ) -> Response:
        try:
            data, content_type = await service.picture(id, n)
        except ServiceError as error:
            return _failure(error)
        if content_type != CONTENT_TYPES[format]:
            data = await asyncio.to_thread(converted, data, format)
        return Response(data, 200, HEADERS, CONTENT_TYPES[format])

    @router.get("/previews/{name}")
    async def preview(name: Annotated[str, Path(pattern=f"^{FILE_NAME.pattern}$")]) -> Response:
        try:
            data, content_type = await service.file(name)
        except ServiceError as error:
            return _failure(error)
        if content_type not in CONTENT_TYPES.values():
            return PlainTextResponse("no picture", 502)
        return Response(data, 200, HEADERS, content_type)

    return router


def converted(data: bytes, format: str) -> bytes:
    """The picture in another format, with its receipt."""
    import numpy as np
    from PIL import Image as PilImage

    with PilImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    try:
        return encode(Image(pixels, read_receipt(data)), format)
    except MezzotintError:
        # Without a receipt it is still a picture.
        buffer = io.BytesIO()
        PilImage.fromarray(pixels).save(buffer, format)
        return buffer.getvalue()


def _failure(error: ServiceError) -> Response:
    status = error.status if isinstance(error, Refused) else 502
    return PlainTextResponse(notice_of(error).text, status)
