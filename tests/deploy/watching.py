"""What the monitoring component holds, and which series a PromQL expression asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["COMPONENT", "ROOT", "Asked", "asked", "dashboard", "objects", "panels", "queries", "rules"]

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "deploy/kubernetes/components/monitoring"

SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^{}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
WORD = re.compile(r"(?<![\w:$])([a-zA-Z_:][\w:]*)(\s*\()?")
KEYWORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Asked:
    """series: each with its matchers, by label: operator and value. grouped_by: of all of the expression."""

    series: tuple[tuple[str, dict[str, tuple[str, str]]], ...]
    grouped_by: frozenset[str]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.series}


def asked(expression: str) -> Asked:
    """Enough of PromQL's grammar for expressions that a real Prometheus has accepted."""
    found: list[tuple[str, dict[str, tuple[str, str]]]] = []

    def take(match: re.Match[str]) -> str:
        matchers = {label: (operator, value) for label, operator, value in MATCHER.findall(match[2])}
        found.append((match[1], matchers))
        return " 1 "

    rest = SELECTOR.sub(take, expression)
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', " ", rest)
    rest = re.sub(r"\[[^\]]*\]", " ", rest)
    labels: set[str] = set()
    for _, inside in GROUPING.findall(rest):
        labels |= {label.strip() for label in inside.split(",") if label.strip()}
    rest = GROUPING.sub(" ", rest)
    for word, called in WORD.findall(rest):
        if not called and word not in KEYWORDS and word not in ("by", "on"):
            found.append((word, {}))
    return Asked(tuple(found), frozenset(labels))


@cache
def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((COMPONENT / name).read_text()))


def rules() -> dict[str, Any]:
    """The rule's spec, which is what a file of rules for Prometheus holds."""
    (rule,) = objects("rules.yaml")
    spec: dict[str, Any] = rule["spec"]
    return spec


@cache
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """A panel's title and each of its expressions, the annotations' among them."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
