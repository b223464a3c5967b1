"""Who sent a request, as the gateway and the surfaces see it."""

from __future__ import annotations

from dataclasses import dataclass

from mezzotint.core import PRIORITIES, Priority
from mezzotint.errors import PermissionDenied

__all__ = ["ANYONE", "Caller"]


@dataclass(frozen=True)
class Caller:
    """A key's holder; `ANYONE` on an open server. `None` means no limit.

    id: the key's public id, also the tenant whose share of the engines is used.
    requests_per_minute, concurrent_images: at most so many.
    compute_s_per_day: seconds of an engine, as admission estimates them, in any 24 hours.
    models: the models the key may use.
    max_priority: who asks for a higher one is refused.
    """

    id: str
    name: str = ""
    requests_per_minute: int | None = None
    concurrent_images: int | None = None
    compute_s_per_day: float | None = None
    models: tuple[str, ...] | None = None
    max_priority: Priority = "normal"
    is_admin: bool = False

    @property
    def usual_priority(self) -> Priority:
        """Of a request that asks for none: normal, or the highest that the key may have below it."""
        return min("normal", self.max_priority, key=PRIORITIES.index)

    def check(self, model: str, priority: Priority) -> None:
        """Whether the key may have a picture of this model at this priority.

        Raises:
            PermissionDenied: it may not.
        """
        if self.models is not None and model not in self.models:
            raise PermissionDenied(f"the key may not use {model}", param="model")
        if PRIORITIES.index(priority) > PRIORITIES.index(self.max_priority):
            raise PermissionDenied(
                f"the key's priority is at most {self.max_priority}, not {priority}", param="priority"
            )


ANYONE = Caller("", "anyone", max_priority="high", is_admin=True)
