"""What the gateway has agreed to draw, and the name of the picture that follows from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

from mezzotint.backends.base import BackendInfo
from mezzotint.core import Pixels, ResolvedRequest
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.wire import Order

__all__ = ["Plate"]


@dataclass(frozen=True)
class Plate:
    """A complete order, who it is for, by whom it is drawn, and until when on `time.monotonic`'s clock."""

    order: Order
    caller: Caller
    info: BackendInfo
    deadline: float

    @property
    def request(self) -> ResolvedRequest:
        return self.order.request

    @property
    def etag(self) -> str:
        """Names the picture that follows from it, weakly (RFC 9110, 8.8.1): drawn in a batch, a channel may
        differ by 1/255 from the same picture drawn alone. Of a plate with images, reads them all."""
        return _etag(self.order, self.info)


def _etag(order: Order, info: BackendInfo) -> str:
    request = order.request
    drawn = {
        **{field.name: getattr(request, field.name) for field in fields(request)},
        **dict.fromkeys(("deadline_s", "preview_every", "tenant", "priority"), None),
        **{name: _digest(getattr(request, name)) for name in ("image", "mask")},
    }
    made_by = [info.model, info.revision, info.backend, info.device, info.dtype, dict(info.versions)]
    told = json.dumps([drawn, order.format, order.compression, made_by], sort_keys=True)
    return f'W/"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _digest(pixels: Pixels | None) -> str | None:
    if pixels is None:
        return None
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
