"""The HTTP contract, on the application itself: no Ray, the replica in this process, the fake backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant

from mezzotint.backends.base import BackendInfo
from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.config import Settings
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import (
    DeadlineUnreachable,
    GenerationFailed,
    MezzotintError,
    ModelLoading,
    QueueFull,
    ShuttingDown,
)
from mezzotint.imaging.metadata import read_receipt
from mezzotint.resolving import resolve
from mezzotint.serve.access.caller import ANYONE
from mezzotint.serve.gateway import Gateway
from mezzotint.serve.http import build_http
from mezzotint.serve.prepared import PreparedRequest, draw_the_same
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.services import open_services
from mezzotint.serve.wire import Drawn, Order, Refused, Report, WireEvent
from tests.api.inprocess import InProcessReplicas

FAULT_PROMPT = "break the device"
SETTINGS = Settings(deadline_s=60.0)


class OneReplica(InProcessReplicas):
    """A replica in this process that can be lost, loading, full or closing."""

    def __init__(self, replica: EngineReplica) -> None:
        super().__init__(replica)
        self.lost = 0
        self.loading = False
        self.full = False
        self.closing = 0
        self.requests: list[ResolvedRequest] = []
        self.others: list[EngineReplica] = []
        self.drawing: EngineReplica | None = None

    async def reports(self) -> list[Report]:
        return [await each.report() for each in (self.replica, *self.others)]

    async def info(self) -> BackendInfo:
        if self.loading:
            raise ModelLoading("the model is loading", retry_after_s=2)
        if self.full:
            raise QueueFull("the server is full", retry_after_s=2)
        return await super().info()

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        self.requests.append(order.request)
        if self.lost:
            self.lost -= 1
            raise ModelLoading("the replica was lost", retry_after_s=2)
        if self.closing:
            self.closing -= 1
            yield Refused.from_error(ShuttingDown("the engine is closing"))
            return
        async for event in (self.drawing or self.replica).generate(order):
            yield event


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    failing = request.prompt == FAULT_PROMPT and where == "step"
    return GenerationFailed("the device is lost") if failing else None


@pytest.fixture(scope="module")
def replica() -> AsyncIterator[EngineReplica]:
    replica = EngineReplica(Settings(), Engine(FakeBackend(fault=fault)))
    yield replica
    replica.close()


@pytest.fixture
def replicas(replica: EngineReplica) -> OneReplica:
    return OneReplica(replica)


@pytest.fixture
async def client(replicas: OneReplica) -> AsyncIterator[httpx.AsyncClient]:
    async with open_services(SETTINGS, replicas) as services:
        transport = httpx.ASGITransport(build_http(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


def order_of(*, steps: int = 20, progress: bool = False) -> Order:
    request = resolve(GenerationRequest("a", steps=steps, seed=1), FAKE_LIMITS)
    return Order(request, progress=progress)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, whose shape is the same everywhere."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return dict(body["error"])


@pytest.mark.parametrize(
    ("format", "kind"),
    [("png", "image/png"), ("jpeg", "image/jpeg"), ("jpg", "image/jpeg"), ("webp", "image/webp")],
)
async def test_imagine_answers_with_the_picture(client: httpx.AsyncClient, format: str, kind: str) -> None:
    fields = {"prompt": "a cat", "size": "64x96", "steps": "2", "seed": "5", "format": format}
    response = await client.get("/imagine", params=fields)
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    receipt = read_receipt(response.content)
    assert (receipt.prompt, receipt.width, receipt.height) == ("a cat", 64, 96)
    assert (receipt.steps, receipt.seed) == (2, 5)
    assert response.headers["x-mezzotint-seed"] == "5"
    assert float(response.headers["x-mezzotint-queue-ms"]) >= 0
    assert float(response.headers["x-mezzotint-compute-ms"]) > 0


async def test_every_field_reaches_the_picture(client: httpx.AsyncClient) -> None:
    fields = {"width": "96", "height": "64", "guidance_scale": "2.5", "negative_prompt": "blue"}
    response = await client.get("/imagine", params={"prompt": "a", "scheduler": "euler A", **fields})
    receipt = read_receipt(response.content)
    assert (receipt.width, receipt.height, receipt.guidance_scale) == (96, 64, 2.5)
    assert (receipt.negative_prompt, receipt.scheduler) == ("blue", "Euler a")


async def test_an_empty_negative_prompt_in_a_url_means_none(client: httpx.AsyncClient) -> None:
    response = await client.get("/imagine", params={"prompt": "a", "negative_prompt": ""})
    assert read_receipt(response.content).negative_prompt is None


REFUSALS = {
    "no prompt": ({}, "prompt"),
    "an empty prompt": ({"prompt": " "}, "prompt"),
    "an over-long prompt": ({"prompt": "a" * 10_001}, "prompt"),
    "an unknown field": ({"prompt": "a", "stepz": "3"}, "stepz"),
    "a width off the grid": ({"prompt": "a", "width": "100"}, "width"),
    "a width in words": ({"prompt": "a", "width": "wide"}, "width"),
    "too large": ({"prompt": "a", "size": "8192x8192"}, "size"),
    "too many pixels by the sides": ({"prompt": "a", "width": "2048", "height": "2048"}, "width"),
    "a size off the grid": ({"prompt": "a", "size": "100x100"}, "size"),
    "a width of hundreds of digits": ({"prompt": "a", "width": "9" * 400, "height": "64"}, "width"),
    "no size": ({"prompt": "a", "size": "big"}, "size"),
    "two ways to say the size": ({"prompt": "a", "size": "64x64", "width": "64"}, "size"),
    "no steps": ({"prompt": "a", "steps": "0"}, "steps"),
    "half a step": ({"prompt": "a", "steps": "1.5"}, "steps"),
    "NaN guidance": ({"prompt": "a", "guidance_scale": "nan"}, "guidance_scale"),
    "infinite guidance": ({"prompt": "a", "guidance_scale": "-inf"}, "guidance_scale"),
    "a seed beyond 63 bits": ({"prompt": "a", "seed": str(2**63)}, "seed"),
    "a seed of a thousand digits": ({"prompt": "a", "seed": "9" * 1000}, "seed"),
    "an unknown scheduler": ({"prompt": "a", "scheduler": "fastest"}, "scheduler"),
    "an unknown format": ({"prompt": "a", "format": "gif"}, "format"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_bad_field_is_400_and_named(client: httpx.AsyncClient, case: str) -> None:
    fields, param = REFUSALS[case]
    response = await client.get("/imagine", params=fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == param
    assert param in error["message"]


async def test_one_side_that_is_wrong_is_answered_with_the_nearest_size_too(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/imagine", params={"prompt": "a", "height": "100"})
    assert response.json()["error"]["message"].endswith("the nearest that is served is 128x96")


@pytest.mark.parametrize("fields", [{"size": "100x60"}, {"width": "100", "height": "60"}])
async def test_a_size_that_is_not_served_is_answered_with_the_nearest_that_is(
    client: httpx.AsyncClient, fields: dict[str, str]
) -> None:
    error = error_of(await client.get("/imagine", params={"prompt": "a", **fields}))
    assert error["message"].endswith("the nearest that is served is 104x64")


async def test_another_model_than_the_served_one_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/imagine", params={"prompt": "a", "model": "fake"})).status_code == 200
    response = await client.get("/imagine", params={"prompt": "a", "model": "sdxl"})
    assert response.status_code == 404
    assert (error_of(response)["code"], error_of(response)["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/imagine?prompt=a&seed=1&seed=2", "seed"),
        ("GET", "/imagine?prompt=a&api-version=1", "api-version"),
        ("POST", "/v1/images/generations?seed=1", "seed"),
        ("POST", "/v1/images/edits?n=2", "n"),
        ("GET", "/v1/models?limit=2", "limit"),
        ("GET", "/v1/models?api-version=1&api-version=2", "api-version"),
        ("GET", "/v1/images/jobs?stat=done", "stat"),
        ("GET", "/v1/images/jobs?limit=2&limit=3", "limit"),
        ("POST", "/v1/images/jobs?n=2", "n"),
        ("GET", "/v1/images/jobs/a/images/0?format=png", "format"),
        ("GET", "/v1/images/files/a.png?format=png", "format"),
        ("GET", "/v1/capabilities?model=a", "model"),
        ("GET", "/metrics?name=a", "name"),
        ("GET", "/openapi.json?v=1", "v"),
    ],
)
async def test_a_field_of_a_query_that_is_not_known_or_given_twice_is_refused(
    client: httpx.AsyncClient, method: str, path: str, param: str
) -> None:
    body = {"json": {"prompt": "a"}} if method == "POST" else {}
    response = await client.request(method, path, **body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_a_query_that_is_no_utf_8_is_refused_and_not_drawn_as_something_else(
    client: httpx.AsyncClient,
) -> None:
    for prompt, status in (("%E7%8B%90", 200), ("%BA%FC", 400), ("%ED%A0%80", 400)):
        response = await client.get(f"/imagine?prompt=a+{prompt}")
        assert response.status_code == status
    assert "UTF-8" in error_of(response)["message"]


async def test_a1111s_routes_refuse_an_unknown_field_of_a_query_in_their_own_shape(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/sdapi/v1/progress?skip_image=1")
    assert (response.status_code, response.json()["detail"]) == (400, "unknown field 'skip_image'")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models?api-version=2025-04-01",
        "/v1/images/jobs?limit=2&state=done",
        "/sdapi/v1/progress?skip_current_image=true",
        "/healthz?probe=1",
        "/readyz?probe=1",
    ],
)
async def test_a_known_field_of_a_query_and_whatever_a_probe_adds_are_let_pass(
    client: httpx.AsyncClient, path: str
) -> None:
    assert (await client.get(path)).status_code == 200


async def test_open_web_ui_may_add_its_version_to_an_edit(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/images/edits?api-version=2025-04-01", data={"prompt": "a"}, files={"image": b"no picture"}
    )
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/imagine/", 404, "not_found"),
        ("POST", "/imagine", 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_route_or_method_has_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/images/jobs", "GET, POST"),
        ("/v1/images/jobs/a", "DELETE, GET"),
        ("/v1/images/generations", "POST"),
        ("/sdapi/v1/options", "GET, POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_all_that_the_path_takes(
    client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    response = await client.put(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_a_failure_of_the_device_is_500_and_not_to_be_repeated(client: httpx.AsyncClient) -> None:
    response = await client.get("/imagine", params={"prompt": FAULT_PROMPT})
    assert (response.status_code, error_of(response)["code"]) == (500, "generation_failed")
    assert response.headers["x-should-retry"] == "false"


async def test_an_unforeseen_exception_is_a_bare_500(
    client: httpx.AsyncClient, replicas: OneReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> BackendInfo:
        raise RuntimeError("secret")

    monkeypatch.setattr(replicas, "info", broken)
    response = await client.get("/readyz")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (QueueFull("full", retry_after_s=3.2), "4"),
        (QueueFull("full", retry_after_s=9_000), "120"),
        (ShuttingDown("closing"), "2"),
    ],
)
async def test_a_refusal_that_will_pass_says_when_to_come_back(
    client: httpx.AsyncClient, replicas: OneReplica, error: MezzotintError, retry_after: str
) -> None:
    async def refuse(order: Order) -> AsyncGenerator[WireEvent]:
        yield Refused.from_error(error)

    replicas.generate = refuse  # type: ignore[method-assign]
    response = await client.get("/imagine", params={"prompt": "a"})
    assert (response.status_code, error_of(response)["code"]) == (error.status, error.code)
    assert response.headers["retry-after"] == retry_after
    assert response.headers["x-should-retry"] == "true"


async def test_a_picture_that_no_wait_brings_into_its_deadline_is_not_to_be_asked_for_again(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    async def refuse(order: Order) -> AsyncGenerator[WireEvent]:
        yield Refused.from_error(DeadlineUnreachable("it takes longer alone", param="deadline_s"))

    replicas.generate = refuse  # type: ignore[method-assign]
    response = await client.get("/imagine", params={"prompt": "a"})
    assert (response.status_code, error_of(response)["code"]) == (429, "deadline_unreachable")
    assert response.headers["x-should-retry"] == "false"
    assert not {"retry-after", "retry-after-ms"} & set(response.headers)


async def test_ready_is_503_until_a_model_is_loaded(client: httpx.AsyncClient, replicas: OneReplica) -> None:
    replicas.loading = True
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    response = await client.get("/readyz")
    assert (response.status_code, error_of(response)["code"]) == (503, "model_loading")
    assert response.headers["retry-after"] == "2"
    replicas.loading = False
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["model"]) == (200, "fake")


async def test_a_full_server_says_so_when_asked_whether_it_is_ready(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    replicas.full = True
    response = await client.get("/readyz")
    assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_load_balancer_may_ask_with_head(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.head(path)).status_code == 200


async def test_the_description_for_machines_names_the_routes(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert {"/imagine", "/healthz", "/readyz"} <= set(described["paths"])


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompt": "a", "x" * 5_000: "1"}, "/imagine"),
        ({"prompt": "a", "scheduler": "x" * 5_000}, "/imagine"),
        ({"prompt": "a", "model": "x" * 5_000}, "/imagine"),
        ({"prompt": "a", "size": "x" * 5_000}, "/imagine"),
        ({}, "/" + "x" * 5_000),
    ],
)
async def test_an_error_repeats_no_more_than_a_line_of_what_was_sent(
    client: httpx.AsyncClient, fields: dict[str, str], path: str
) -> None:
    error = error_of(await client.get(path, params=fields))
    assert len(error["message"]) <= 500
    assert len(error["param"] or "") <= 100


async def test_a_gateway_has_started_once_a_replica_has_told_what_it_serves(
    replicas: OneReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.serve.gateway.RETRY_AFTER_SECONDS", 0.01)
    replicas.loading = True
    gateway = Gateway(replicas, deadline_s=60.0)
    starting = asyncio.create_task(gateway.start())
    done, _ = await asyncio.wait([starting], timeout=0.05)
    assert not done
    replicas.loading = False
    await asyncio.wait_for(starting, timeout=10)
    replicas.loading = True
    assert (await gateway.prepare(GenerationRequest("a"))).request.steps == 20


async def test_a_given_seed_makes_the_answer_cacheable_and_304_without_drawing(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    fields = {"prompt": "a", "seed": "5", "steps": "2"}
    first = await client.get("/imagine", params=fields)
    assert "max-age" in first.headers["cache-control"]
    again = await client.get("/imagine", params=fields)
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    drawn = len(replicas.requests)
    etag = first.headers["etag"]
    # Weak, for the picture may differ by 1/255 in another batch.
    assert etag.startswith('W/"')
    for named in (etag, f'"x", {etag}', etag.removeprefix("W/"), "*"):
        known = await client.get("/imagine", params=fields, headers={"If-None-Match": named})
        assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    several = [("If-None-Match", '"x"'), ("If-None-Match", etag)]
    assert (await client.get("/imagine", params=fields, headers=several)).status_code == 304
    assert len(replicas.requests) == drawn


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; q=0.5, image/png", True),
        ("image/*;q=0.8,text/event-stream;q=1.0", True),
        ("text/event-stream;q=0, image/png", False),
        ("text/event-stream; Q=0.000", False),
        ("text/event-streams", False),
        ("*/*", False),
    ],
)
async def test_events_are_answered_where_accept_names_them_and_wants_them(
    client: httpx.AsyncClient, accept: str, events: bool
) -> None:
    fields = {"prompt": "a", "steps": "1"}
    response = await client.get("/imagine", params=fields, headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream" if events else "image/png")


@pytest.mark.parametrize("change", [{"seed": "6"}, {"steps": "3"}, {"format": "webp"}, {"prompt": "b"}])
async def test_another_picture_has_another_etag(client: httpx.AsyncClient, change: dict[str, str]) -> None:
    fields = {"prompt": "a", "seed": "5", "steps": "2"}
    first = await client.get("/imagine", params=fields)
    other = await client.get("/imagine", params=fields | change)
    assert first.headers["etag"] != other.headers["etag"]


PREPARED = PreparedRequest(
    Order(resolve(GenerationRequest("a", seed=1), FAKE_LIMITS)), ANYONE, FakeBackend().info, 0.0
)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": "2"},
        {"backend": "other"},
        {"device": "cuda:0"},
        {"dtype": "bf16"},
        {"versions": {"torch": "99"}},
    ],
)
def test_whatever_makes_another_picture_makes_another_etag(change: dict[str, Any]) -> None:
    other = replace(PREPARED, info=replace(PREPARED.info, **change))
    assert other.etag != PREPARED.etag
    assert not draw_the_same(other.info, PREPARED.info)


@pytest.mark.parametrize("change", [{"compression": 5}, {"format": "webp"}])
def test_the_same_picture_in_another_file_has_another_etag(change: dict[str, Any]) -> None:
    assert replace(PREPARED, order=replace(PREPARED.order, **change)).etag != PREPARED.etag


@pytest.mark.parametrize("change", [{"limits": replace(FAKE_LIMITS, max_steps=9)}, {"max_batch": 1}])
def test_what_makes_the_same_picture_makes_the_same_etag(change: dict[str, Any]) -> None:
    other = replace(PREPARED, info=replace(PREPARED.info, **change))
    assert other.etag == PREPARED.etag
    assert draw_the_same(other.info, PREPARED.info)


@pytest.fixture
def next_replica() -> Iterator[EngineReplica]:
    """Another revision of the model."""
    backend = FakeBackend()
    backend._info = replace(backend.info, revision="2")
    replica = EngineReplica(Settings(), Engine(backend), name="next")
    yield replica
    replica.close()


async def test_once_the_replicas_are_of_another_model_the_old_etag_is_drawn_anew(
    replicas: OneReplica, next_replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.serve.gateway.REPORT_SECONDS", 3600)
    fields = {"prompt": "a", "seed": "5", "steps": "2"}
    async with open_services(SETTINGS, replicas) as services:
        transport = httpx.ASGITransport(build_http(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            first = await client.get("/imagine", params=fields)
            old = {"If-None-Match": first.headers["etag"]}
            assert (await client.get("/imagine", params=fields, headers=old)).status_code == 304

            # Both are there: whose picture it would be is not known.
            replicas.others = [next_replica]
            await services.gateway.look()
            mixed = await client.get("/imagine", params=fields, headers=old)
            assert mixed.status_code == 200
            revision = read_receipt(mixed.content).revision
            assert (mixed.headers["etag"] == first.headers["etag"]) == (revision == "1")

            replicas.replica, replicas.others = next_replica, []
            services.gateway._fleet.forget("here")
            await services.gateway.look()
            anew = await client.get("/imagine", params=fields, headers=old)
            assert (anew.status_code, read_receipt(anew.content).revision) == (200, "2")
            new = {"If-None-Match": anew.headers["etag"]}
            assert (await client.get("/imagine", params=fields, headers=new)).status_code == 304


async def test_an_etag_names_what_was_drawn_and_not_what_was_expected(
    client: httpx.AsyncClient, replicas: OneReplica, next_replica: EngineReplica
) -> None:
    fields = {"prompt": "a", "seed": "5", "steps": "2"}
    first = await client.get("/imagine", params=fields)
    # Before the gateway has heard of it.
    replicas.drawing = next_replica
    second = await client.get("/imagine", params=fields)
    assert first.headers["etag"] != second.headers["etag"]


async def test_without_a_seed_nothing_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert response.headers["cache-control"] == "no-store"
    assert "etag" not in response.headers


async def test_a_lost_replica_is_made_up_for_once_with_the_same_picture(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    replicas.lost = 1
    response = await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert response.status_code == 200
    first, second = (replace(request, deadline_s=None) for request in replicas.requests)
    assert first == second
    assert first.seed == int(response.headers["x-mezzotint-seed"])
    replicas.lost = 2
    response = await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert (response.status_code, error_of(response)["code"]) == (503, "model_loading")


async def test_a_closing_replica_is_made_up_for_once_with_the_same_picture(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    replicas.closing = 1
    response = await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert response.status_code == 200
    first, second = (replace(request, deadline_s=None) for request in replicas.requests)
    assert first == second
    replicas.closing = 2
    response = await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert (response.status_code, error_of(response)["code"]) == (503, "shutting_down")
    assert len(replicas.requests) == 4


async def test_every_request_carries_the_servers_deadline(
    client: httpx.AsyncClient, replicas: OneReplica
) -> None:
    await client.get("/imagine", params={"prompt": "a", "steps": "1"})
    assert replicas.requests[-1].deadline_s == pytest.approx(SETTINGS.deadline_s, abs=30)


async def test_with_progress_a_replica_tells_each_step_and_ends_once(replica: EngineReplica) -> None:
    events = [event async for event in replica.generate(order_of(steps=3, progress=True))]
    assert isinstance(events[-1], Drawn)
    assert len(events) > 1
    assert not any(isinstance(event, Drawn | Refused) for event in events[:-1])


async def test_closing_a_replicas_stream_cancels_in_the_engine() -> None:
    backend = FakeBackend(pass_seconds=0.2)
    engine = Engine(backend)
    replica = EngineReplica(Settings(), engine)
    try:
        events = replica.generate(order_of(steps=150, progress=True))
        await anext(events)
        await events.aclose()
        async with asyncio.timeout(30):
            while backend.held or engine.status().running:
                await asyncio.sleep(0.01)
        assert backend.passes < 150
    finally:
        replica.close()


async def test_a_replica_whose_loop_has_ended_is_unhealthy() -> None:
    replica = EngineReplica(Settings(), Engine(FakeBackend()))
    await replica.check_health()
    replica.close()
    with pytest.raises(RuntimeError, match="loop has ended"):
        await replica.check_health()
    (refused,) = [event async for event in replica.generate(order_of())]
    assert isinstance(refused, Refused)
    assert isinstance(refused.to_error(), ShuttingDown)


async def test_no_route_waits_for_a_thread_before_it_begins(replicas: OneReplica) -> None:
    def calls(dependant: Dependant) -> list[object]:
        return [dependant.call, *(call for each in dependant.dependencies for call in calls(each))]

    async with open_services(SETTINGS, replicas) as services:
        routers = [getattr(each, "original_router", None) for each in build_http(services).routes]
    routes = [route for router in routers if router is not None for route in router.routes]
    assert {"/imagine", "/v1/images/generations"} <= {route.path for route in routes}
    # FastAPI hands what is no coroutine to its threads, of which there are forty.
    blocking = {call for route in routes for call in calls(route.dependant) if not iscoroutinefunction(call)}
    assert not blocking


def test_an_error_crosses_as_data_and_comes_back_as_itself() -> None:
    error = QueueFull("full", param="x", retry_after_s=1.5)
    back = Refused.from_error(error).to_error()
    assert (type(back), back.message, back.param, back.retry_after_s) == (QueueFull, "full", "x", 1.5)
    unknown = replace(Refused.from_error(error), code="of_a_later_version").to_error()
    assert unknown.status == 500
