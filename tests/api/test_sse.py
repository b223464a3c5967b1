"""Server-sent events: what is sent, when it stops, and that nobody waits for somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from starlette.types import Message

from mezzotint.errors import PayloadTooLarge, QueueFull
from mezzotint.serve.api import sse
from mezzotint.serve.api.sse import DONE, EventStream, ServerEvent, opened
from mezzotint.serve.disconnects import CancelOnDisconnect
from tests.waiting import until

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "path": "/", "headers": []}
LIMIT_SECONDS = 60.0


async def answered(stream: EventStream, sent: list[Message] | None = None) -> bytes:
    """The body that a client that stays is sent; `sent` has the messages as they come."""
    sent = [] if sent is None else sent

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await CancelOnDisconnect(stream)(SCOPE, receive, send)
    return b"".join(message.get("body", b"") for message in sent)


async def test_an_event_is_its_id_its_name_and_one_line_of_json() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        yield ServerEvent({"text": "two\nlines"}, "told", "7")

    assert await answered(EventStream(events())) == b'id: 7\nevent: told\ndata: {"text":"two\\nlines"}\n\n'


async def test_nothing_between_proxy_and_browser_keeps_events_back() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        yield None

    headers = EventStream(events()).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-type"].startswith("text/event-stream")


async def test_an_idle_stream_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.01)
    more = asyncio.Event()

    async def events() -> AsyncGenerator[ServerEvent | None]:
        await more.wait()
        yield ServerEvent({})

    sent: list[Message] = []
    body = asyncio.create_task(answered(EventStream(events()), sent))
    await until(lambda: any(message.get("body") for message in sent))
    more.set()
    assert (await body).startswith(b": ping\n\n")


async def test_an_error_is_the_last_event_and_the_end_still_comes() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        yield ServerEvent({"step": 1})
        raise QueueFull("the server is full", retry_after_s=3)

    body = await answered(EventStream(events(), end=DONE))
    assert body.startswith(
        b'data: {"step":1}\n\nevent: error\ndata: {"error":{"message":"the server is full"'
    )
    assert body.endswith(DONE)


async def test_a_fault_in_a_stream_is_told_as_an_internal_error_without_a_traceback() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        yield ServerEvent({"step": 1})
        raise ZeroDivisionError("secret")

    body = await answered(EventStream(events()))
    assert b'"code":"internal_error"' in body
    assert b"secret" not in body


async def test_a_cancellation_that_nobody_asked_for_is_a_fault_and_no_wait_without_end() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        yield ServerEvent({"step": 1})
        raise asyncio.CancelledError

    body = await asyncio.wait_for(answered(EventStream(events(), end=DONE)), LIMIT_SECONDS)
    assert b'"code":"internal_error"' in body
    assert body.endswith(DONE)


async def test_an_error_before_the_first_event_is_raised_by_opened() -> None:
    async def events() -> AsyncGenerator[ServerEvent | None]:
        if sse.PING_SECONDS:
            raise QueueFull("the server is full")
        yield None

    with pytest.raises(QueueFull):
        await opened(events())


async def test_the_clients_leaving_closes_the_events_where_they_wait() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[ServerEvent | None]:
        try:
            yield ServerEvent({"step": 1})
            await asyncio.Event().wait()
        finally:
            closed.set()

    left = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    stream = EventStream(await opened(events()))
    answering = asyncio.create_task(CancelOnDisconnect(stream)(SCOPE, receive, send))
    await until(lambda: len(sent) == 2)
    left.set()
    await asyncio.wait_for(answering, LIMIT_SECONDS)
    assert closed.is_set()


async def test_the_clients_leaving_closes_events_that_nobody_takes() -> None:
    closed, hanging, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[ServerEvent | None]:
        try:
            while True:
                yield ServerEvent({"picture": "x" * 1000})
        finally:
            closed.set()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            hanging.set()
            await asyncio.Event().wait()

    answering = asyncio.create_task(CancelOnDisconnect(EventStream(events()))(SCOPE, receive, send))
    await asyncio.wait_for(hanging.wait(), LIMIT_SECONDS)
    left.set()
    await asyncio.wait_for(answering, LIMIT_SECONDS)
    assert closed.is_set()


async def test_a_slow_reader_is_sent_no_more_than_it_takes_and_keeps_nobody_waiting() -> None:
    told = 0

    async def endless() -> AsyncGenerator[ServerEvent | None]:
        nonlocal told
        while True:
            told += 1
            yield ServerEvent({"n": told})

    async def three() -> AsyncGenerator[ServerEvent | None]:
        for number in range(3):
            yield ServerEvent({"n": number})

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def stuck(message: Message) -> None:
        await asyncio.Event().wait()

    slow = asyncio.create_task(EventStream(endless())(SCOPE, never, stuck))
    try:
        assert (await asyncio.wait_for(answered(EventStream(three())), LIMIT_SECONDS)).count(b"data:") == 3
        assert told <= 3
    finally:
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_a_handler_is_cancelled_when_its_client_leaves() -> None:
    cancelled = asyncio.Event()

    async def app(scope: object, receive: Callable[[], object], send: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, receive, send), LIMIT_SECONDS)
    assert cancelled.is_set()


async def test_a_body_that_nobody_reads_does_not_hide_that_the_client_has_left() -> None:
    read: list[Message] = []

    async def app(scope: object, receive: Callable[[], Awaitable[Message]], send: object) -> None:
        read.append(await receive())
        await asyncio.Event().wait()

    parts = [{"type": "http.request", "body": b"x", "more_body": True} for _ in range(9)]
    messages = [*parts, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, receive, send), LIMIT_SECONDS)
    assert read == [{"type": "http.request", "body": b"", "more_body": False}]


async def test_a_body_that_is_refused_while_it_is_read_is_told_to_whoever_refused_it() -> None:
    async def app(scope: object, receive: Callable[[], object], send: object) -> None:
        await asyncio.Event().wait()

    async def receive() -> Message:
        raise PayloadTooLarge("the body is too large")

    async def send(message: Message) -> None:
        raise AssertionError(message)

    with pytest.raises(PayloadTooLarge):
        await asyncio.wait_for(CancelOnDisconnect(app)(SCOPE, receive, send), LIMIT_SECONDS)
