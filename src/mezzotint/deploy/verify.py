"""Whether the service does what it is for, seen from outside: through the load balancer, as a client.

A picture is drawn and looked at, events come one by one, and what must not be reachable is not.
"""

from __future__ import annotations

import http.client
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.deploy.pace import Pace
from mezzotint.errors import DeployFailed

__all__ = ["Verified", "verify", "wait_until_reachable"]

PNG = b"\x89PNG\r\n\x1a\n"
PROMPT = "a red apple"
SEED = 1
# Of Ray, which runs whatever it is sent there, and of the gateways. Only the edge stands before them.
HIDDEN_PATHS = (
    "/dashboard",
    "/api/jobs/",
    "/api/serve/applications/",
    "/serve/dashboard",
    "/-/routes",
    "/metrics",
)
EVENTS = "text/event-stream"
MAX_SHOWN = 200


@dataclass(frozen=True)
class Verified:
    """What was found. Seconds are from sending to the last byte; the first event's, to its first."""

    url: str
    size: str
    picture_s: float
    first_event_s: float
    events_s: float
    events: int


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes


def wait_until_reachable(url: str, wait: Callable[[str, str, Callable[[], str]], None]) -> None:
    """A load balancer's name is known minutes before DNS and its targets are."""

    def look() -> str:
        try:
            answer = _get(f"{url}/readyz", None, timeout_s=10)
        except (OSError, http.client.HTTPException) as error:
            return f"{url} is not reached: {getattr(error, 'reason', error)}"
        return "" if answer.status == 200 else f"{url}/readyz answers {answer.status}"

    wait("the load balancer", "reachable", look)


def verify(url: str, key: str, pace: Pace, say: Callable[[str], None]) -> Verified:
    """Raises DeployFailed: something is not as it should be; says what."""
    try:
        return _verified(url.rstrip("/"), key, pace.limit("picture"), say)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DeployFailed(f"{url} does not answer as it should: {reason}") from None


def _verified(url: str, key: str, limit_s: float, say: Callable[[str], None]) -> Verified:
    for path in HIDDEN_PATHS:
        status = _get(url + path, key, limit_s).status
        _require(status in (404, 405), f"{path} answers {status}; it must not be there")
    status = _get(f"{url}/imagine?prompt=x", None, limit_s).status
    _require(status == 401, f"/imagine without a key answers {status}, not 401")
    size = _size(url, key, limit_s)
    query = urllib.parse.urlencode({"prompt": PROMPT, "size": size, "seed": SEED})
    began = time.monotonic()
    picture = _get(f"{url}/serve/imagine?{query}", key, limit_s)
    picture_s = time.monotonic() - began
    _require(picture.status == 200, f"/serve/imagine answers {picture.status}: {_answer_text(picture)}")
    _check_picture(picture.body, size)
    say(f"  drew {size} in {picture_s:.1f} s")
    first_s, events_s, events = _check_events(f"{url}/imagine?{query}", key, limit_s)
    say(f"  the first of {events} events after {first_s:.1f} s, the picture after {events_s:.1f} s")
    return Verified(url, size, round(picture_s, 3), round(first_s, 3), round(events_s, 3), events)


def _size(url: str, key: str, limit_s: float) -> str:
    """The model's own; where only some are compiled, that is one of them."""
    answer = _get(f"{url}/v1/capabilities", key, limit_s)
    _require(answer.status == 200, f"/v1/capabilities answers {answer.status}: {_answer_text(answer)}")
    return str(json.loads(answer.body)["sizes"]["default"])


def _check_picture(data: bytes, size: str) -> None:
    _require(data.startswith(PNG) and len(data) > 24, "what was drawn is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    _require(f"{width}x{height}" == size, f"the picture is {width}x{height}, not {size}")


def _check_events(url: str, key: str, limit_s: float) -> tuple[float, float, int]:
    began = time.monotonic()
    request = urllib.request.Request(url, headers={**_headers(key), "Accept": EVENTS})
    first_s, names = 0.0, []
    with urllib.request.urlopen(request, timeout=limit_s) as response:
        kind = response.headers.get_content_type()
        _require(kind == EVENTS, f"with Accept: {EVENTS} the answer is {kind}")
        for name, data in _events(response):
            first_s = first_s or time.monotonic() - began
            names.append(name)
            _require(name != "error", f"the events end with an error: {data[:MAX_SHOWN]}")
            if name == "done":
                break
    _require(names[-1:] == ["done"], f"the events end with {names[-1:] or 'nothing'}, not with done")
    _require("progress" in names, "no progress among the events")
    return first_s, time.monotonic() - began, len(names)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    name, data = "message", ""
    for raw in response:
        line = raw.decode(errors="replace").rstrip("\r\n")
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data += value.strip()
        elif not line and (data or name != "message"):
            yield name, data
            name, data = "message", ""


def _get(url: str, key: str | None, timeout_s: float) -> Answer:
    request = urllib.request.Request(url, headers=_headers(key))
    try:
        with _opener().open(request, timeout=timeout_s) as response:
            return Answer(response.status, response.headers.get_content_type(), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers.get_content_type(), error.read())


def _headers(key: str | None) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


class _Staying(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer here, and would take the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Staying)


def _answer_text(answer: Answer) -> str:
    return " ".join(answer.body[:MAX_SHOWN].decode(errors="replace").split())


def _require(fine: bool, otherwise: str) -> None:
    if not fine:
        raise DeployFailed(otherwise)
