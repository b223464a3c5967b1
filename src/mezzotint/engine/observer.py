"""Who is told what the engine does, for metrics and traces. Knows none of them."""

from __future__ import annotations

from collections.abc import Sequence

from mezzotint.core import Event
from mezzotint.engine.rows import BatchKey
from mezzotint.engine.ticket import Ticket

__all__ = ["Observer"]


class Observer:
    """Does nothing; what a subclass does must be quick, for the engine's threads wait for it.

    Called under the engine's lock: the engine must not be called back.
    """

    def passed(self, key: BatchKey, tenants: Sequence[str], seconds: float) -> None:
        """A pass ran, with one image of each of `tenants`; `key` is guided, and has
        controls, if any of them is and has."""

    def ended(self, ticket: Ticket, event: Event) -> None:
        """The request has ended with `event`."""
