"""Nothing is answered without a key but health and the links of pictures: asked of the route table itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from mezzotint.backends.fake import FakeBackend
from mezzotint.serve.http import build_http
from mezzotint.serve.services import Services, open_services
from mezzotint.serve.stores.keys import KeyStore, NewKey
from tests.api.inprocess import InProcessReplicas, replica_of, settings_of

OPEN = {"/healthz", "/readyz", "/v1/images/files/{name}"}
# A stranger must not even be told that a body is wrong, or have it read.
BODIES = [b"", b"{}", b"not json", b'{"prompt": "x"}']
SPELLINGS = [
    "/v1/images%2Fjobs",
    "/v1%2fmodels",
    "/%76%31/models",
    "/v1/models/",
    "//v1/models",
    "/v1/./models",
    "/healthz/../v1/models",
    "/healthz/%2e%2e/v1/models",
    "/healthz;/v1/models",
    "/healthz%2f..%2fv1/models",
    "/v1/models%00",
    "/V1/MODELS",
    "/v1/models?x=/healthz",
    "/v1/images/files/../jobs",
    "/v1/images/files/%2e%2e/jobs",
]


@dataclass
class Server:
    app: FastAPI
    services: Services
    client: httpx.AsyncClient
    valid: str
    wrong: dict[str, dict[str, str]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    settings = settings_of(tmp_path, auth="on")
    replica = replica_of(settings, FakeBackend())
    async with open_services(settings, InProcessReplicas(replica)) as services:
        app = build_http(services)
        keys = KeyStore(services.database)
        _, valid = await keys.create(NewKey("valid"))
        revoked, revoked_text = await keys.create(NewKey("revoked"))
        await keys.revoke(revoked.caller.id)
        _, expired = await keys.create(replace(NewKey("expired"), expires_s=0.001))
        wrong = {
            "none": {},
            "wrong": {"Authorization": f"Bearer {valid[:-1]}!"},
            "revoked": {"Authorization": f"Bearer {revoked_text}"},
            "expired": {"Authorization": f"Bearer {expired}"},
            "in the query": {},
            "in a cookie": {"Cookie": f"key={valid}; authorization=Bearer {valid}"},
            "forwarded": {"X-Forwarded-User": "admin", "X-Original-URL": "/healthz"},
        }
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield Server(app, services, client, valid, wrong)
    replica.close()


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for entry in app.routes:
        router = getattr(entry, "original_router", None)
        for route in [entry] if router is None else router.routes:
            for method in sorted(route.methods):
                yield method, route.path


def filled(path: str) -> str:
    return re.sub(r"\{\w+(:\w+)?\}", "1", path)


async def test_every_route_but_the_open_ones_refuses_who_has_no_key_with_the_same_words(
    server: Server,
) -> None:
    keyed = [(method, path) for method, path in routes_of(server.app) if path not in OPEN]
    assert len(keyed) > 20
    told = set()
    for method, path in keyed:
        for case, headers in server.wrong.items():
            query = f"?key={server.valid}&api_key={server.valid}" if case == "in the query" else ""
            response = await server.client.request(method, filled(path) + query, headers=headers)
            assert response.status_code == 401, (method, path, case, response.text)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                told.add(re.search(r"a valid API key is needed[^\"]*", response.text)[0])  # type: ignore[index]
    assert len(told) == 1


async def test_a_strangers_body_is_neither_read_nor_judged(server: Server) -> None:
    posts = [path for method, path in routes_of(server.app) if method == "POST"]
    assert len(posts) >= 6
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 10_000

    for path in posts:
        for kind in ("application/json", "multipart/form-data; boundary=x"):
            read = 0
            headers = {"Content-Type": kind}
            response = await server.client.post(filled(path), content=body(), headers=headers)
            assert response.status_code == 401, path
            # What a server takes in before anyone asks it to.
            assert read <= 4
            for content in BODIES:
                response = await server.client.post(filled(path), content=content, headers=headers)
                assert response.status_code == 401, (path, content)


async def test_no_spelling_of_a_path_gets_round_the_key(server: Server) -> None:
    for path in SPELLINGS:
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            url = httpx.URL("http://server", raw_path=path.encode())
            response = await server.client.send(httpx.Request(method, url))
            assert response.status_code in (401, 404, 405), (method, path, response.text)


async def test_other_methods_tell_nothing(server: Server) -> None:
    for _, path in routes_of(server.app):
        if path in OPEN:
            continue
        for method in ("OPTIONS", "PUT", "PATCH", "TRACE"):
            response = await server.client.request(method, filled(path))
            assert response.status_code in (401, 404, 405), (method, path)


async def test_the_open_routes_ask_for_no_key(server: Server) -> None:
    name = await server.services.images.put(b"picture", "png")
    for path in ("/healthz", "/readyz", f"/v1/images/files/{name}"):
        assert (await server.client.get(path)).status_code == 200


async def test_a_valid_key_is_let_in_by_each_way_of_sending_it(server: Server) -> None:
    for headers in (
        {"Authorization": f"Bearer {server.valid}"},
        {"x-api-key": server.valid},
        {"Authorization": httpx.BasicAuth("any", server.valid)._auth_header},
    ):
        response = await server.client.get("/v1/models", headers=headers)
        assert response.status_code == 200, response.text
