"""Refusals in the words of whoever asked: each surface has its own names for the fields of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mezzotint.core import GenerationRequest, ModelLimits
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.size import fitting_size

__all__ = ["named_as_sent"]


@contextmanager
def named_as_sent(
    request: GenerationRequest, limits: ModelLimits, sent_as: Mapping[str, str]
) -> Iterator[None]:
    """What is refused within is told in the names of `sent_as`, which has core's names for its keys."""
    try:
        yield
    except InvalidRequest as error:
        sent = sent_as.get(error.param or "", error.param)
        if error.param in ("size", "width", "height"):
            where = "" if sent == error.param else f"{sent}: "
            message = f"{where}{error.message}{_nearest(request, limits)}"
            raise InvalidRequest(message, param=sent) from None
        if sent is not None and sent != error.param:
            raise InvalidRequest(error.message.replace(error.param or "", sent, 1), param=sent) from None
        raise


def _nearest(request: GenerationRequest, limits: ModelLimits) -> str:
    # A side that was left out is the model's.
    width = limits.default_width if request.width is None else request.width
    height = limits.default_height if request.height is None else request.height
    width, height = fitting_size(width, height, limits)
    return f"; the nearest that is served is {width}x{height}"
