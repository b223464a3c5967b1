"""What is counted, logged and traced of requests, and what never is: a prompt."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from mezzotint.backends.fake import FakeBackend
from mezzotint.cli.top import read, render, view
from mezzotint.config import Settings
from mezzotint.core import ResolvedRequest
from mezzotint.errors import GenerationFailed, MezzotintError
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.telemetry.exposition import join
from mezzotint.serve.telemetry.logs import JsonLines, TextLines
from mezzotint.serve.telemetry.metrics import BoundedLabel, surface_of
from mezzotint.serve.telemetry.tracing import Tracing
from tests.api.inprocess import gate, replica_of, settings_of

SECRET = "a-very-secret-prompt-of-somebody"
FAULT = f"{SECRET} that breaks"


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    failing = request.prompt == FAULT and where == "step"
    return GenerationFailed(f"the device is lost over {request.prompt}") if failing else None


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def replica(settings: Settings) -> Iterator[EngineReplica]:
    replica = replica_of(settings, FakeBackend(fault=fault, pass_seconds=0.002))
    yield replica
    replica.close()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that the package logs, as JSON lines."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(JsonLines("gateway", "g1"))
    # A server that a session of tests shares lives in a thread of this process, and is asked now and then.
    here = threading.get_ident()
    handler.addFilter(lambda record: record.name != "mezzotint.access" or record.thread == here)
    logger = logging.getLogger("mezzotint")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)
    logger.setLevel(level)


class Spans:
    """A tracing whose spans are kept here."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()

    def of(self, process: str) -> Tracing:
        return Tracing.to("", process, process, SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def spans(replica: EngineReplica, monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    make = Tracing.to
    monkeypatch.setattr(replica, "_tracing", spans.of("engine"))
    monkeypatch.setattr(
        Tracing,
        "to",
        lambda endpoint, process, *rest: make(endpoint, process, *rest) if rest[1:] else spans.of(process),
    )
    return spans


async def exercise(client: httpx.AsyncClient) -> None:
    """A picture, a stream, and every way that this can end otherwise."""
    drawn = await client.get("/imagine", params={"prompt": SECRET, "steps": "4", "seed": "1"})
    assert drawn.status_code == 200
    await client.post("/v1/images/generations", json={"prompt": SECRET, "n": 2, "stream": True})
    await client.post("/v1/images/generations", json={"prompt": SECRET, SECRET: 1})
    await client.post("/v1/images/generations", json={"prompt": SECRET, "size": SECRET})
    await client.post("/sdapi/v1/txt2img", json={"prompt": SECRET, "steps": 2})
    await client.post("/v1/images/jobs", json={"prompt": SECRET})
    assert (await client.get("/imagine", params={"prompt": FAULT, "steps": "2"})).status_code == 500
    await client.get(f"/{SECRET}")
    await client.get(f"/imagine/{SECRET}?{SECRET}=1")


async def series_of(client: httpx.AsyncClient) -> str:
    response = await client.get("/metrics")
    assert response.status_code == 200
    return response.text


async def test_no_log_metric_or_span_holds_a_prompt(
    settings: Settings, replica: EngineReplica, lines: io.StringIO, spans: Spans
) -> None:
    async with gate(settings, replica) as opened:
        await exercise(opened.client)
        series = await series_of(opened.client)
    told = lines.getvalue()
    assert '"prompt_characters": 32' in told
    assert spans.all
    for text in (told, series, "".join(span.to_json() for span in spans.all)):
        assert SECRET not in text


async def test_the_series_are_well_formed_and_tell_what_happened(
    settings: Settings, replica: EngineReplica
) -> None:
    async with gate(settings, replica) as opened:
        await exercise(opened.client)
        text = await series_of(opened.client)
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(name.startswith("mezzotint_") for name in names)
    assert all({"process", "replica"} <= set(each.labels) for family in families for each in family.samples)
    look = read(text)
    assert look.total("mezzotint_requests_total", surface="imagine", outcome="ok", status="200") == 1
    assert look.total("mezzotint_requests_total", surface="imagine", outcome="failed", status="500") == 1
    assert look.total("mezzotint_requests_total", surface="none", status="404") == 1
    assert look.total("mezzotint_requests_total", surface="openai", outcome="refused", status="400") == 2
    assert look.total("mezzotint_images_total") >= 4
    assert look.total("mezzotint_images_failed_total", reason="generation_failed") == 1
    assert look.total("mezzotint_queue_wait_seconds_count") >= 5
    assert look.total("mezzotint_time_to_first_step_seconds_count") >= 4
    assert look.total("mezzotint_decode_seconds_count") >= 4
    assert look.total("mezzotint_encode_seconds_count", format="png") >= 4
    assert look.total("mezzotint_step_seconds_count", width="1", guided="true") > 0
    assert look.total("mezzotint_compute_seconds_total", key="none") > 0
    assert look.total("mezzotint_event_loop_lag_seconds_count") > 0
    assert look.total("mezzotint_requests_in_flight", surface="imagine") == 0


async def test_a_picture_that_shows_nothing_is_counted_as_one_that_came_to_nothing(
    settings: Settings,
) -> None:
    replica = replica_of(settings, FakeBackend(blank_after=0))
    try:
        async with gate(settings, replica) as opened:
            before = await series_of(opened.client)
            blank = await opened.client.get("/imagine", params={"prompt": "a", "steps": "3"})
            after = read(await series_of(opened.client))
    finally:
        replica.close()
    assert blank.status_code == 500
    # A rise from nothing is none, to Prometheus.
    assert "generation_failed" in read(before).values_of("mezzotint_images_failed_total", "reason")
    assert after.total("mezzotint_images_failed_total", reason="generation_failed") == 1
    assert after.total("mezzotint_wasted_steps_total") == 3
    assert after.total("mezzotint_images_total") == 0


async def test_a_picture_that_could_not_be_written_is_no_cancelled_one(
    settings: Settings, replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("encoder error -2")

    monkeypatch.setattr("mezzotint.imaging.formats.encode", fail)
    async with gate(settings, replica) as opened:
        failed = await opened.client.get("/imagine", params={"prompt": "a", "steps": "3"})
        after = read(await series_of(opened.client))
    assert failed.status_code == 500
    assert after.total("mezzotint_images_failed_total", reason="internal_error") == 1
    assert after.total("mezzotint_cancelled_total") == 0


async def test_jobs_are_told_by_state_and_of_two_gateways_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, gateways=2)
    slow = replica_of(settings, FakeBackend(pass_seconds=0.1))
    job = {"prompt": "a", "size": "64x64", "num_inference_steps": 150}

    async def cancelled(client: httpx.AsyncClient) -> float:
        return read(await series_of(client)).total("mezzotint_jobs_finished_total", state="cancelled")

    try:
        async with gate(settings, slow) as one, gate(settings, slow) as other:
            made = [await one.client.post("/v1/images/jobs", json=job) for _ in range(2)]
            look = read(await series_of(other.client))
            assert look.total("mezzotint_jobs") == 2
            assert look.total("mezzotint_job_oldest_seconds") > 0
            for each in made:
                await one.client.delete(f"/v1/images/jobs/{each.json()['id']}")
            async with asyncio.timeout(30):
                # By whichever drew it, or was asked to cancel it.
                while sum([await cancelled(each.client) for each in (one, other)]) < 2:
                    await asyncio.sleep(0.05)
            assert read(await series_of(one.client)).total("mezzotint_jobs") == 0
    finally:
        slow.close()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_prometheus_own_linter_finds_nothing(settings: Settings, replica: EngineReplica) -> None:
    async with gate(settings, replica) as opened:
        await exercise(opened.client)
        series = await series_of(opened.client)
    found = subprocess.run(["promtool", "check", "metrics"], input=series, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


async def leave_while_it_is_drawn(client: httpx.AsyncClient, replica: EngineReplica) -> None:
    before = replica._engine.status().passes
    asking = asyncio.create_task(client.get("/imagine", params={"prompt": "a", "steps": "150"}))
    async with asyncio.timeout(30):
        while replica._engine.status().passes == before:
            await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_client_that_leaves_is_counted_with_the_steps_it_wasted(settings: Settings) -> None:
    replica = replica_of(settings, FakeBackend(pass_seconds=0.2))
    try:
        async with gate(settings, replica) as opened:
            await leave_while_it_is_drawn(opened.client, replica)
            async with asyncio.timeout(30):
                while not (look := read(await series_of(opened.client))).total("mezzotint_cancelled_total"):
                    await asyncio.sleep(0.02)
    finally:
        replica.close()
    assert look.total("mezzotint_cancelled_total", phase="running") == 1
    assert look.total("mezzotint_wasted_steps_total") > 0
    assert look.total("mezzotint_requests_total", surface="imagine", outcome="left") == 1


async def test_a_request_is_one_trace_from_its_header_to_the_encoded_file(
    settings: Settings, replica: EngineReplica, spans: Spans
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with gate(settings, replica) as opened:
        await opened.client.get(
            "/imagine",
            params={"prompt": "a", "steps": "4", "scheduler": "Euler"},
            headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "r1"},
        )
    by_name = {span.name: span for span in spans.all}
    assert set(by_name) == {
        "GET /imagine",
        "admission",
        "order",
        "generate",
        "queue",
        "steps",
        "decode",
        "encode",
    }
    assert {f"{span.context.trace_id:032x}" for span in spans.all} == {trace}
    parents = {"admission": "GET /imagine", "order": "GET /imagine", "generate": "order"}
    parents |= dict.fromkeys(("queue", "steps", "decode", "encode"), "generate")
    for child, parent in parents.items():
        assert by_name[child].parent.span_id == by_name[parent].context.span_id
    assert f"{by_name['GET /imagine'].parent.span_id:016x}" == "b7ad6b7169203331"
    assert by_name["steps"].attributes["evaluations"] == 4
    assert by_name["generate"].attributes["mezzotint.request_id"] == "r1"
    ordered = [by_name[name] for name in ("queue", "steps", "decode", "encode")]
    assert all(span.start_time <= span.end_time for span in ordered)
    # Two clocks are compared, so by a millisecond.
    assert all(a.end_time <= b.start_time + 1e6 for a, b in pairwise(ordered))


def test_spans_are_sent_to_the_collector_of_the_setting() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            tracing = Tracing.to(f"http://127.0.0.1:{server.server_port}", "gateway", "g1")
            with tracing.span("admission", {"mezzotint.replica": "e1"}):
                pass
            tracing.close()
        finally:
            server.shutdown()
            thread.join()
    ((path, body),) = received
    assert path == "/v1/traces"
    sent = ExportTraceServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
    (resource,) = sent.resource_spans
    assert resource.scope_spans[0].spans[0].name == "admission"
    names = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert names["service.name"] == "mezzotint-gateway"


def test_a_collector_that_is_silent_holds_no_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the sender waits for an answer; longer than this test does.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing.to(f"http://127.0.0.1:{silent.getsockname()[1]}", "gateway", "g1")
        with tracing.span("admission"):
            pass
        closing = threading.Thread(target=tracing.close, daemon=True)
        closing.start()
        closing.join(30.0)
        assert not closing.is_alive()


async def test_a_stream_has_its_id_and_its_error_is_counted(
    settings: Settings, replica: EngineReplica, lines: io.StringIO
) -> None:
    body = {"prompt": FAULT, "stream": True, "partial_images": 1, "num_inference_steps": 4}
    async with gate(settings, replica) as opened:
        response = await opened.client.post(
            "/v1/images/generations", json=body, headers={"x-request-id": "s1"}
        )
        look = read(await series_of(opened.client))
    assert response.headers["x-request-id"] == "s1"
    assert look.total("mezzotint_requests_total", surface="openai", outcome="failed", status="500") == 1
    told = [json.loads(each) for each in lines.getvalue().splitlines()]
    (line,) = [each for each in told if each.get("surface") == "openai"]
    assert (line["request_id"], line["error"]) == ("s1", "generation_failed")


async def test_each_request_is_one_line_with_its_id(
    settings: Settings, replica: EngineReplica, lines: io.StringIO
) -> None:
    async with gate(settings, replica) as opened:
        ask = {"prompt": "a red apple", "steps": "2", "seed": "5"}
        await opened.client.get("/imagine", params=ask, headers={"x-request-id": "r1"})
        await opened.client.get("/imagine", params={**ask, "steps": "0"}, headers={"x-request-id": "r2"})
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    drawn, refused = [line for line in told if line["logger"] == "mezzotint.access"]
    assert (drawn["request_id"], drawn["surface"], drawn["route"]) == ("r1", "imagine", "/imagine")
    assert (drawn["status"], drawn["outcome"], drawn["images"]) == (200, "ok", 1)
    assert drawn["prompt_characters"] == len("a red apple")
    assert {"seconds", "queue_s", "compute_s", "prompt_hash", "process", "replica"} <= set(drawn)
    assert (refused["request_id"], refused["status"], refused["error"]) == ("r2", 400, "invalid_value")


def test_an_exception_is_logged_by_type_and_place_without_its_message() -> None:
    told = []
    for formatter in (JsonLines("engine", "e1"), TextLines("engine", "e1")):
        try:
            raise ValueError(SECRET)
        except ValueError:
            record = logging.getLogger("x").makeRecord(
                "x", logging.ERROR, __file__, 1, "failed", (), exc_info=__import__("sys").exc_info()
            )
        told.append(formatter.format(record))
    for line in told:
        assert SECRET not in line
        assert "ValueError" in line
        assert "\n" not in line


async def test_a_store_that_does_not_answer_is_counted_by_its_name(
    settings: Settings, replica: EngineReplica
) -> None:
    async with gate(settings, replica) as opened:
        folder = Path(settings.image_store)
        folder.rmdir()
        folder.write_text("in the way")
        ask = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "response_format": "url"}
        answer = await opened.json("POST", "/v1/images/generations", json=ask)
        assert answer["data"][0]["warning"]
        look = read(await series_of(opened.client))
    assert look.total("mezzotint_store_errors_total", store="images") == 1
    assert look.total("mezzotint_store_errors_total", store="database") == 0


def test_labels_stay_few_whatever_is_sent() -> None:
    label = BoundedLabel(2)
    assert [label(each) for each in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]
    assert surface_of(f"/{SECRET}") == "none"
    assert surface_of("/controlnet/model_list") == surface_of("/sdapi/v1/loras") == "a1111"


def test_families_of_several_processes_are_kept_together() -> None:
    text = join([{"a": ("# a\n", "a 1\n"), "b": ("# b\n", "b 1\n")}, {"a": ("# a\n", "a 2\n")}])
    assert text == "# a\na 1\na 2\n# b\nb 1\n"


def test_top_tells_no_rate_of_a_replica_that_did_not_answer_the_look_before() -> None:
    def told(names: str) -> str:
        types = "# TYPE mezzotint_backlog_seconds gauge\n# TYPE mezzotint_images_total counter\n"
        samples = [
            f'{series}{{replica="{name}"}} 9\n'
            for series in ("mezzotint_backlog_seconds", "mezzotint_images_total")
            for name in names
        ]
        return types + "".join(samples)

    seen = view(read(told("a")), read(told("ab")))
    assert [(each["images"], each["images_per_s"]) for each in seen["engines"]] == [(9, 0), (9, 0)]


async def test_top_shows_replicas_and_rates_from_the_metrics_alone(
    settings: Settings, replica: EngineReplica
) -> None:
    from rich.console import Console

    async with gate(settings, replica) as opened:
        before = read(await series_of(opened.client))
        await exercise(opened.client)
        now = read(await series_of(opened.client))
    seen = view(before, now)
    (engine,) = seen["engines"]
    assert engine["images_per_s"] > 0
    assert engine["width"] >= 1
    (gateway,) = seen["gateways"]
    assert gateway["requests_per_s"] > 0
    assert seen["outcomes"]["ok"] >= 1
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(seen))
    shown = console.export_text()
    assert "engine" in shown
    assert "images/s" in shown
