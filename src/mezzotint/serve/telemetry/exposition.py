"""Prometheus' text format, from several processes in one answer.

Each process gives its families as text, its own labels already in them; joining them is then only a matter of
keeping the lines of a family together, as the format asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "Families", "families_of", "join"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Families = Mapping[str, tuple[str, str]]
"""By name of the family: its HELP and TYPE lines, and its samples' lines."""


@dataclass(frozen=True)
class _One(Collector):
    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


def families_of(registry: CollectorRegistry, labels: Mapping[str, str]) -> Families:
    """What the registry holds now, `labels` added to each sample."""
    found = {}
    for metric in registry.collect():
        # When a series began is of no use here, and doubles the answer.
        kept = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        metric.samples = [sample._replace(labels={**labels, **sample.labels}) for sample in kept]
        text = generate_latest(_One(metric)).decode()
        lines = text.splitlines(keepends=True)
        head = "".join(line for line in lines if line.startswith("#"))
        found[metric.name] = (head, "".join(line for line in lines if not line.startswith("#")))
    return found


def join(sources: Iterable[Families]) -> str:
    """One text of all; a family is described as the first that has it describes it."""
    heads: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for families in sources:
        for name, (head, lines) in families.items():
            heads.setdefault(name, head)
            samples.setdefault(name, []).append(lines)
    return "".join(heads[name] + "".join(samples[name]) for name in sorted(heads))
