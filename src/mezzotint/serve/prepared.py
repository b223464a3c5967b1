"""What the gateway has agreed to draw, and the name of the picture that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mezzotint.backends.base import BackendInfo
from mezzotint.core import ADDED, GenerationRequest, Pixels, ResolvedRequest, has_pictures
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.wire import Drawn, Order

__all__ = ["PreparedRequest", "draw_the_same", "with_pictures_of"]

# What makes the picture beside the request, as the receipt tells it.
MADE_BY = ("model", "revision", "backend", "dtype", "versions")


def draw_the_same(one: BackendInfo, other: BackendInfo) -> bool:
    """Whether the same request is the same picture on both."""
    same_added = all(getattr(one.limits, kind) == getattr(other.limits, kind) for kind in ADDED)
    return _made_by(one) == _made_by(other) and one.device == other.device and same_added


@dataclass(frozen=True)
class PreparedRequest:
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
        """Names the picture that would follow from it, weakly (RFC 9110, 8.8.1): drawn in a batch, a channel
        may differ by 1/255 from the same picture drawn alone. Of a request with images, reads them all."""
        hashes = {each.name: each.sha256 for each in self.info.limits.embeddings}
        read = [{"name": name, "sha256": hashes[name]} for name in self.request.embeddings]
        return _etag(self.order, {**_made_by(self.info), "embeddings": read}, self.info.device)

    def etag_of(self, drawn: Drawn) -> str:
        """Names the picture that did follow: by whatever replica drew it, which its receipt tells."""
        # A replica of a version without embeddings tells of none.
        made_by = {name: drawn.receipt[name] for name in MADE_BY}
        made_by["embeddings"] = drawn.receipt.get("embeddings", [])
        return _etag(self.order, made_by, self.info.device)

    def with_previews(self, every: int) -> PreparedRequest:
        """The same with a preview at every so many-th step; with 0, none."""
        return replace(self, order=replace(self.order, request=replace(self.request, preview_every=every)))


def with_pictures_of(first: ResolvedRequest, asked: GenerationRequest) -> GenerationRequest:
    """`asked` with the pictures of the first of several, which were brought to size once for all of them."""
    if not has_pictures(first):
        return asked
    return replace(
        asked,
        width=first.width,
        height=first.height,
        image=first.image,
        mask=first.mask,
        controls=first.controls,
        image_prompts=first.image_prompts,
    )


def _made_by(info: BackendInfo) -> dict[str, Any]:
    return {**{name: getattr(info, name) for name in MADE_BY}, "versions": dict(info.versions)}


def _etag(order: Order, made_by: Mapping[str, Any], device: str) -> str:
    request = order.request
    drawn = {
        **{field.name: getattr(request, field.name) for field in fields(request)},
        **dict.fromkeys(("deadline_s", "preview_every", "tenant", "priority"), None),
        **{name: _digest(getattr(request, name)) for name in ("image", "mask")},
    }
    told = json.dumps(
        [drawn, order.format, order.compression, made_by, device], sort_keys=True, default=asdict
    )
    return f'W/"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _digest(pixels: Pixels | None) -> str | None:
    if pixels is None:
        return None
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
