"""Previews of running pictures: asked of the backend when they are due, shown when the device is done."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from mezzotint.backends.base import Backend, PendingPreview
from mezzotint.core import Pixels

__all__ = ["Previews"]

logger = logging.getLogger(__name__)


class Previews:
    """Those that the device is still at, by request. For the loop's thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pending: dict[str, PendingPreview] = {}

    def collect(self, request_ids: Iterable[str], due: Collection[str]) -> dict[str, Pixels]:
        """What can be shown of a pass's requests. A device that works behind the host has it a pass later.

        due: those of them of which a preview is wanted now.
        """
        shown = {}
        for request_id in request_ids:
            pending = [self._pending.pop(request_id, None)]
            try:
                if request_id in due:
                    pending.append(self._backend.preview(request_id))
                for preview in filter(None, pending):
                    pixels = preview()
                    if pixels is not None:
                        shown[request_id] = pixels
                    else:
                        self._pending[request_id] = preview
            except Exception:
                # A preview is a courtesy; the picture does not hang on it.
                logger.exception("no preview for a request")
        return shown

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._pending.pop(request_id, None)
