"""Whether the service answers and what it offers, asked for once for every page."""

from __future__ import annotations

import asyncio
import logging

from mezzotint.ui.browsers import Changes
from mezzotint.ui.offer import Offer, read_offer
from mezzotint.ui.sentences import Notice, notice_of
from mezzotint.ui.service import Service, ServiceError, Unreachable

__all__ = ["Monitor"]

logger = logging.getLogger(__name__)

# How soon a service that is back is noticed, and how soon one that has gone.
AWAY_SECONDS, HERE_SECONDS = 1.0, 5.0


class Monitor:
    """notice: what is wrong, None while the service draws. offer: the last that was told."""

    def __init__(self, service: Service) -> None:
        self.changes = Changes()
        self.notice: Notice | None = None
        self.offer: Offer | None = None
        self._service = service

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(HERE_SECONDS if self.notice is None else AWAY_SECONDS)

    async def look(self) -> None:
        """Ask now."""
        before = (self.notice, self.offer)
        try:
            await self._service.ready()
            self.offer = read_offer(await self._service.capabilities())
            self.notice = None
        except ServiceError as error:
            self.notice = notice_of(error)
        except (KeyError, TypeError, ValueError):
            logger.exception("the service's capabilities are not understood")
            self.notice = notice_of(Unreachable())
        except Exception:
            # No page would hear of the service again.
            logger.exception("the service is looked at again after an internal error")
            self.notice = notice_of(Unreachable())
        if (self.notice, self.offer) != before:
            self.changes.tell()
