"""The jobs that wait or run, as the database has them: the same for whichever gateway is asked, which alone
tells them, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.telemetry.exposition import Families, families_of

__all__ = ["JobMetrics"]


class JobMetrics:
    def __init__(self, store: JobStore) -> None:
        self._store = store
        registry = self._registry = CollectorRegistry()
        self._jobs = Gauge(
            "mezzotint_jobs", "Jobs that have not ended, by state", ("state",), registry=registry
        )
        self._oldest = Gauge(
            "mezzotint_job_oldest_seconds",
            "Since the oldest of them was made, by state; 0 when there is none",
            ("state",),
            registry=registry,
        )

    async def families(self) -> Sequence[Families]:
        """Asked anew; nothing while the database does not answer."""
        try:
            found = await self._store.unfinished()
        except StoreUnavailable:
            return []
        for state, (count, oldest_s) in found.items():
            self._jobs.labels(state).set(count)
            self._oldest.labels(state).set(oldest_s)
        return [families_of(self._registry, {"process": "jobs", "replica": "all"})]
