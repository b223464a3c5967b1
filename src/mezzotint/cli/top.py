"""`mezzotint top`: a running server's replicas, slots and backlog in the terminal, from its metrics alone."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.errors import MezzotintError, PermissionDenied, SettingInvalid, Unauthenticated

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["top"]

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 10_000
# Which of these there are tells which processes have answered.
ENGINES, GATEWAYS = "mezzotint_backlog_seconds", "mezzotint_event_loop_lag_seconds_count"
STATES = ("queued", "running", "decoding")
NAME_CHARACTERS = 12
REFUSED_SHOWN = 4


def top(
    api: Annotated[
        str, typer.Option(metavar="URL", envvar="MEZZOTINT_API", help="The server.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="MEZZOTINT_API_KEY", help="A key made with --admin.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: as JSON.")] = False,
) -> None:
    """Watch a server: its replicas, what waits and runs on each, throughput, refusals."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    before = _scrape(api, key)
    if once or as_json:
        time.sleep(every)
        seen = view(before, _scrape(api, key))
        if as_json:
            typer.echo(json.dumps(seen, indent=2))
        else:
            Console().print(render(seen))
        return
    shown = render(view(before, before))
    with Live(shown, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every)
            try:
                now = _scrape(api, key)
            except SettingInvalid as error:
                # One that is just being restarted is what is watched for.
                live.update(Group(shown, Text(error.message)), refresh=True)
                continue
            shown = render(view(before, now))
            live.update(shown, refresh=True)
            before = now


@dataclass
class Scrape:
    """The samples of one moment: by name, then by labels."""

    at: float
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        wanted = labels.items()
        found = self.samples.get(name, {}).items()
        return sum(value for own, value in found if wanted <= set(own))

    def values_of(self, name: str, label: str, **labels: str) -> list[str]:
        """What `label` is, of the samples that have `labels`."""
        wanted = labels.items()
        found = [dict(own) for own in self.samples.get(name, {}) if wanted <= set(own)]
        return sorted({own[label] for own in found if label in own})


def read(text: str) -> Scrape:
    """Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    scrape = Scrape(time.monotonic())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            scrape.samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return scrape


def _scrape(api: str, key: str | None) -> Scrape:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{api.rstrip('/')}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return read(response.read().decode())
    except urllib.error.HTTPError as error:
        raise _refusal(api, error) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # The last of them: what answers speaks no HTTP, or broke off.
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise SettingInvalid(f"--api {api}: no server answers: {reason}", param="--api") from None


def _refusal(api: str, answer: urllib.error.HTTPError) -> MezzotintError:
    if answer.code == 401:
        return Unauthenticated(f"{api} asks for a key; give one with --key or MEZZOTINT_API_KEY")
    if answer.code == 403:
        return PermissionDenied("the metrics tell of every key; they take a key made with --admin")
    try:
        why = f": {json.loads(answer.read(MAX_ANSWER_BYTES))['error']['message']}"
    except (OSError, ValueError, TypeError, KeyError, http.client.HTTPException):
        # Not of ours, or broken off.
        why = ""
    return SettingInvalid(f"--api {api}: answers /metrics with status {answer.code}{why}", param="--api")


def view(before: Scrape, now: Scrape) -> dict[str, Any]:
    """What the screen shows. Rates are per second between the two scrapes."""
    seconds = max(now.at - before.at, 1e-9)
    seen_before = {replica for name in (ENGINES, GATEWAYS) for replica in before.values_of(name, "replica")}

    def rate(name: str, replica: str) -> float:
        # One that did not answer then has counted for longer than since then.
        if replica not in seen_before:
            return 0.0
        # A restarted process counts from zero again.
        return max(0.0, now.total(name, replica=replica) - before.total(name, replica=replica)) / seconds

    engines = [
        {
            "replica": name,
            **{
                state: int(now.total("mezzotint_images_in_engine", replica=name, state=state))
                for state in STATES
            },
            "backlog_s": round(now.total("mezzotint_backlog_seconds", replica=name), 3),
            "images_per_s": rate("mezzotint_images_total", replica=name),
            "steps_per_s": rate("mezzotint_image_steps_total", replica=name),
            "width": _ratio(
                rate("mezzotint_batch_width_images_sum", replica=name),
                rate("mezzotint_batch_width_images_count", replica=name),
            ),
            "busy": min(1.0, rate("mezzotint_busy_seconds_total", replica=name)),
            "images": int(now.total("mezzotint_images_total", replica=name)),
            "cancelled": int(now.total("mezzotint_cancelled_total", replica=name)),
            "failed": int(now.total("mezzotint_images_failed_total", replica=name)),
            "wasted_steps": int(now.total("mezzotint_wasted_steps_total", replica=name)),
        }
        for name in now.values_of(ENGINES, "replica")
    ]
    gateways = [
        {
            "replica": name,
            "in_flight": int(now.total("mezzotint_requests_in_flight", replica=name)),
            "requests_per_s": rate("mezzotint_requests_total", replica=name),
            "retries": int(now.total("mezzotint_retries_total", replica=name)),
            "loop_lag_p99_s": _quantile(now, "mezzotint_event_loop_lag_seconds", 0.99, name),
        }
        for name in now.values_of(GATEWAYS, "replica")
    ]
    reasons = now.values_of("mezzotint_rejected_total", "reason")
    outcomes = now.values_of("mezzotint_requests_total", "outcome")
    return {
        "engines": engines,
        "gateways": gateways,
        "outcomes": {each: int(now.total("mezzotint_requests_total", outcome=each)) for each in outcomes},
        "rejected": {each: int(now.total("mezzotint_rejected_total", reason=each)) for each in reasons},
    }


def _ratio(sum_: float, count: float) -> float | None:
    return sum_ / count if count else None


def _quantile(scrape: Scrape, name: str, quantile: float, replica: str) -> float | None:
    """The least bucket that holds so much of what was seen since the process began."""
    samples = scrape.samples.get(f"{name}_bucket", {}).items()
    buckets = sorted((float(dict(own)["le"]), value) for own, value in samples if ("replica", replica) in own)
    if not buckets or not buckets[-1][1]:
        return None
    least = next(bound for bound, count in buckets if count >= quantile * buckets[-1][1])
    return None if least == float("inf") else least


def render(seen: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    engines = _table(
        (
            "engine", "queued", "running", "decode", "backlog", "images/s", "width", "busy", "drawn", "lost",
        ),
        (
            (
                _short(each["replica"]), each["queued"], each["running"], each["decoding"],
                f"{each['backlog_s']:.1f} s", f"{each['images_per_s']:.2f}", _number(each["width"], 1),
                f"{each['busy']:.0%}", each["images"], each["failed"] + each["cancelled"],
            )
            for each in seen["engines"]
        ),
    )  # fmt: skip
    gateways = _table(
        ("gateway", "in flight", "requests/s", "retries", "loop lag p99"),
        (
            (
                _short(each["replica"]),
                each["in_flight"],
                f"{each['requests_per_s']:.1f}",
                each["retries"],
                "–" if each["loop_lag_p99_s"] is None else f"≤{each['loop_lag_p99_s'] * 1000:g} ms",
            )
            for each in seen["gateways"]
        ),
    )
    lines = [
        f"{name}: " + (", ".join(f"{reason} {count}" for reason, count in most) or "none")
        for name, most in (
            ("requests", seen["outcomes"].items()),
            ("refused", sorted(seen["rejected"].items(), key=lambda each: -each[1])[:REFUSED_SHOWN]),
        )
    ]
    steps, wasted = (sum(each[name] for each in seen["engines"]) for name in ("steps_per_s", "wasted_steps"))
    lines.append(f"steps: {steps:.1f} a second, {wasted} wasted on pictures that were never finished")
    return Group(engines, gateways, Text("\n".join(lines)))


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
