"""What comes in is bounded, and what goes out carries its id and what browsers must know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from mezzotint.backends.fake import FakeBackend
from mezzotint.config import Settings
from mezzotint.serve.middleware import MAX_HEADERS, LimitRequests
from mezzotint.serve.replica import EngineReplica
from tests.api.inprocess import Gate, gate, replica_of, settings_of

ORIGIN = "https://a.example"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(tmp_path_factory.mktemp("stores"), max_body_mb=0.1, cors_origins=(ORIGIN,))


@pytest.fixture(scope="module")
def replica(settings: Settings) -> Iterator[EngineReplica]:
    replica = replica_of(settings, FakeBackend())
    yield replica
    replica.close()


@pytest.fixture
async def client(settings: Settings, replica: EngineReplica) -> AsyncIterator[httpx.AsyncClient]:
    async with gate(settings, replica) as opened:
        yield opened.client


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


@pytest.mark.parametrize("path", ["/imagine?prompt=a&steps=1", "/imagine?steps=no", "/nowhere", "/healthz"])
async def test_every_answer_has_an_id_and_the_headers_for_browsers(
    client: httpx.AsyncClient, path: str
) -> None:
    first, second = [await client.get(path) for _ in range(2)]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["referrer-policy"] == "no-referrer"
    assert first.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in first.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3_4", True), ("a" * 129, False), ("a b", False), ("{x}", False), ("", False)],
)
async def test_a_clients_own_id_is_kept_when_it_is_short_and_plain(
    client: httpx.AsyncClient, given: str, kept: bool
) -> None:
    response = await client.get("/healthz", headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) == kept
    assert response.headers["x-request-id"]


async def test_a_body_is_refused_by_its_announced_length_before_any_of_it_is_read(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/v1/images/generations", content=b"x" * 100_001)
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert response.headers["connection"] == "close"
    assert response.headers["x-request-id"]


async def test_a_body_without_a_length_is_read_no_further_than_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 10_000

    response = await client.post("/v1/images/generations", content=endless())
    assert (response.status_code, code_of(response)) == (413, "payload_too_large")
    assert sent <= 12


async def test_too_many_header_fields_are_refused(client: httpx.AsyncClient) -> None:
    many = {f"x-{number}": "1" for number in range(MAX_HEADERS)}
    response = await client.get("/healthz", headers=many)
    assert (response.status_code, code_of(response)) == (431, "headers_too_large")
    response = await client.get("/healthz", headers={"x-long": "a" * 40_000})
    assert (response.status_code, code_of(response)) == (431, "headers_too_large")


async def test_a_header_that_two_readers_could_take_differently_is_refused(client: httpx.AsyncClient) -> None:
    for name, values in (("authorization", ("Bearer a", "Bearer b")), ("content-length", ("-1",))):
        response = await client.get("/healthz", headers=[(name, value) for value in values])
        assert response.status_code == 400
        assert name in response.json()["error"]["message"]


class Sent:
    """An ASGI client whose body comes in parts, with pauses."""

    def __init__(self, *parts: tuple[float, bytes]) -> None:
        self._parts = list(parts)
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        pause, body = self._parts.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": body, "more_body": bool(self._parts)}

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    async def through(self, pause_s: float) -> int:
        """The status with which an application that reads the body answers."""
        limit = LimitRequests(read_and_answer, max_body_bytes=100, pause_s=pause_s)
        await limit({"type": "http", "headers": []}, self.receive, self.send)
        return int(self.messages[0]["status"])


async def read_and_answer(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_a_body_that_stalls_or_trickles_is_given_up() -> None:
    assert await Sent((0, b"a"), (0, b"b")).through(pause_s=60) == 200
    stalled = Sent((0, b"a"), (60, b"b"))
    assert await stalled.through(pause_s=0.05) == 408
    # Nothing was begun: it may be sent again.
    assert (b"x-should-retry", b"true") in stalled.messages[0]["headers"]
    trickle = [(0.03, b"a")] * 50
    assert await Sent(*trickle).through(pause_s=0.2) == 408


async def test_whatever_an_application_makes_of_a_broken_body_the_refusal_is_the_answer() -> None:
    async def swallow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except Exception:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    client = Sent((0, b"a" * 101))
    await LimitRequests(swallow, max_body_bytes=100)(
        {"type": "http", "headers": []}, client.receive, client.send
    )
    assert [message["status"] for message in client.messages if "status" in message] == [413]


async def test_only_the_listed_origins_may_call_from_a_browser(client: httpx.AsyncClient) -> None:
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = await client.options("/v1/images/generations", headers={"origin": ORIGIN, **ask})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["x-request-id"]
    other = await client.options("/v1/images/generations", headers={"origin": "https://b.example", **ask})
    assert "access-control-allow-origin" not in other.headers
    assert (other.status_code, code_of(other)) == (400, "invalid_value")
    assert other.json()["error"]["message"] == "disallowed cors origin"
    # A page must be able to read why it was refused.
    refused = await client.post("/v1/images/generations", content=b"x" * 100_001, headers={"origin": ORIGIN})
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in refused.headers["access-control-expose-headers"]


async def test_the_reference_is_one_page_without_scripts(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    assert response.status_code == 200
    page = response.text.lower()
    assert not any(mark in page for mark in ("<script", "javascript:", "onload=", "onclick=", "<iframe"))
    assert "http://" not in response.text.replace("http://server", "")
    for path in (await client.get("/openapi.json")).json()["paths"]:
        assert path in response.text
    assert "'sha256-" in response.headers["content-security-policy"]


async def test_without_a_key_the_metrics_and_the_reference_are_closed(
    replica: EngineReplica, tmp_path: Path
) -> None:
    opened: Gate
    async with gate(settings_of(tmp_path, auth="on"), replica) as opened:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert (await opened.client.get(path)).status_code == 401
