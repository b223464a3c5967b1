"""What Ray Serve's proxy answers by itself reaches the client in the shape of every other error."""

from __future__ import annotations

import json

import httpx
import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.serve.middleware import SecureHeaders
from mezzotint.serve.proxy import LOST_HEADER, TellErrors


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """As the proxy leaves a request whose gateway was lost."""


async def ask(app: ASGIApp, path: str = "/imagine?prompt=a") -> httpx.Response:
    transport = httpx.ASGITransport(TellErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    "app",
    [
        PlainTextResponse("Path '/imagine' not found.", 404),
        PlainTextResponse("unavailable", 503),
        PlainTextResponse("timeout", 408),
        nothing,
    ],
)
async def test_when_no_gateway_answers_the_client_is_told_to_come_back(app: ASGIApp) -> None:
    response = await ask(app)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_loading"
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["x-should-retry"] == "true"
    # So that an edge in front knows that no gateway had the request to its end.
    assert response.headers[LOST_HEADER] == "gateway"


async def test_a1111s_clients_are_told_in_a1111s_shape() -> None:
    response = await ask(nothing, "/sdapi/v1/txt2img")
    assert (response.status_code, set(response.json())) == (503, {"error", "detail", "body", "errors"})


async def test_options_of_no_route_is_not_found_and_nothing_to_wait_for() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "OPTIONS", "path": "*", "headers": []}
    await TellErrors(PlainTextResponse("Path '*' not found.", 404))(scope, receive, send)
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["error"]["code"] == "not_found"


@pytest.mark.parametrize(("sent", "told"), [({"retry-after": "7"}, 7), ({}, 2)])
async def test_when_every_gateway_is_full_the_client_is_told_so_and_when_to_come_back(
    sent: dict[str, str], told: int
) -> None:
    response = await ask(PlainTextResponse("too many requests", 429, sent))
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) == told
    assert LOST_HEADER not in response.headers


@pytest.mark.parametrize(
    "answer",
    [JSONResponse({"error": {"code": "job_not_found"}}, 404), PlainTextResponse("mezzotint_up 1", 200)],
)
async def test_what_the_application_answers_is_left_alone(answer: JSONResponse | PlainTextResponse) -> None:
    response = await ask(answer)
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


async def test_a_page_that_may_not_ask_is_told_so() -> None:
    """In plain text, by Starlette itself."""
    app = SecureHeaders(CORSMiddleware(nothing, allow_origins=["https://a.example"], allow_methods=["POST"]))
    transport = httpx.ASGITransport(TellErrors(app))
    headers = {"origin": "https://b.example", "access-control-request-method": "POST"}
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        response = await client.options("/imagine", headers=headers)
    assert (response.status_code, response.text) == (400, "Disallowed CORS origin")
