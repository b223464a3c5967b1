"""What the page asks the service: one method for each route. Knows nothing of pages or pictures.

A refusal comes back as `Refused` with the service's own words, silence as `Unreachable`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from mezzotint import __version__
from mezzotint.ui.names import JOB_ID

__all__ = ["Happening", "Refused", "Service", "ServiceError", "Unreachable"]

JOBS = "/v1/images/jobs"
# The service sends a line at least every five seconds while a stream is open.
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# Idle ones end before the service ends them, after five seconds, which it may do as one is used again.
CONNECTIONS = httpx.Limits(max_connections=1_000, max_keepalive_connections=20, keepalive_expiry=2.0)


class ServiceError(Exception):
    """The root of the two below."""


class Unreachable(ServiceError):
    """No answer, or none that is the service's."""


class Refused(ServiceError):
    """An answer that is no success. `message` is the service's: to be escaped like anything from outside."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Happening:
    """One event of a job's stream."""

    id: str
    kind: str
    data: Mapping[str, Any]


class Service:
    """A client of one service. Used and closed on one event loop."""

    def __init__(self, api: str, key: str = "", transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"User-Agent": f"mezzotint-ui/{__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # What the environment says of proxies is for the world outside, not for the service beside the page.
        self._client = httpx.AsyncClient(
            base_url=api, headers=headers, timeout=TIMEOUT, limits=CONNECTIONS, trust_env=False,
            transport=transport,
        )  # fmt: skip

    async def close(self) -> None:
        await self._client.aclose()

    async def ready(self) -> None:
        """Raises: Refused, Unreachable: it cannot draw now."""
        try:
            await self._json("GET", "/readyz", timeout=5.0)
        except Refused as error:
            # Full is no reason to say that it is gone.
            if error.status != 429:
                raise

    async def capabilities(self) -> dict[str, Any]:
        return await self._json("GET", "/v1/capabilities")

    async def create_job(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The new job. Asked a second time where the first answer was lost: it is the same job."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        try:
            return await self._json("POST", JOBS, json=body, headers=headers)
        except Unreachable:
            return await self._json("POST", JOBS, json=body, headers=headers)

    async def job(self, id: str) -> dict[str, Any]:
        return await self._json("GET", _job(id))

    async def cancel(self, id: str) -> dict[str, Any]:
        return await self._json("DELETE", _job(id))

    async def picture(self, id: str, n: int) -> tuple[bytes, str]:
        """A finished picture's file and its content type."""
        return await self._bytes(f"{_job(id)}/images/{n}")

    async def file(self, name: str) -> tuple[bytes, str]:
        """A linked picture, such as a preview, by the last part of its link."""
        return await self._bytes(f"/v1/images/files/{name}")

    async def happenings(self, id: str, after: str) -> AsyncGenerator[Happening]:
        """The job's events from its beginning, or from `after` on, to its last or until the line breaks."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        try:
            async with self._client.stream("GET", f"{_job(id)}/events", headers=headers) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(response)
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        yield event
        except (httpx.HTTPError, ValueError) as error:
            raise Unreachable(str(error)) from error

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = await self._send(method, path, **options)
        try:
            answer = response.json()
        except ValueError as error:
            raise Unreachable(f"{path} answers with no JSON") from error
        if not isinstance(answer, dict):
            raise Unreachable(f"{path} answers with no JSON object")
        return answer

    async def _bytes(self, path: str) -> tuple[bytes, str]:
        response = await self._send("GET", path)
        return response.content, response.headers.get("content-type", "")

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if not response.is_success:
            raise _refusal(response)
        return response


def _job(id: str) -> str:
    """The job's route. A name that is none could lead to any other: there is no such job."""
    if not JOB_ID.fullmatch(id):
        raise Refused(404, "job_not_found", "", None)
    return f"{JOBS}/{id}"


def _refusal(response: httpx.Response) -> ServiceError:
    """What the answer says went wrong. A proxy's own page in front of the service is `Unreachable`."""
    try:
        told = response.json()["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return Unreachable(f"status {response.status_code}")
    return Refused(response.status_code, code, message, _retry_after_s(response.headers))


def _retry_after_s(headers: httpx.Headers) -> float | None:
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        return None


async def _events(response: httpx.Response) -> AsyncGenerator[Happening]:
    """Server-sent events: blocks of `field: value` lines, ended by an empty one."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            # A line that begins with a colon is a comment, sent so that the connection lives.
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields:
                data = json.loads(fields["data"])
                yield Happening(fields.get("id", ""), fields.get("event", "message"), data)
            fields = {}
