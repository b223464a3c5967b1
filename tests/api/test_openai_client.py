"""The official `openai` client, unmodified, against a real server."""

from __future__ import annotations

import base64
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image as PilImage

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.errors import GenerationFailed, MezzotintError
from mezzotint.imaging.metadata import read_receipt
from mezzotint.serve.stores.keys import NewKey
from tests.api.live import Live, live
from tests.waiting import wait_until

FAULT_PROMPT = "break the device"
STEP_BY_STEP_PROMPT = "step"
STEPS = 20
LIMIT_SECONDS = 60.0
# Passes of that prompt wait each for one of these.
passes = threading.Semaphore(0)


def let_through(count: int) -> None:
    for _ in range(count):
        passes.release()


def fault(where: str, request: ResolvedRequest, done: int) -> MezzotintError | None:
    if where == "step" and request.prompt == STEP_BY_STEP_PROMPT:
        assert passes.acquire(timeout=LIMIT_SECONDS)
    failing = request.prompt == FAULT_PROMPT and where == "step"
    return GenerationFailed("the device is lost") if failing else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("openai"), FakeBackend(fault=fault, pass_seconds=0.002)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def decoded(b64: str | None) -> PilImage.Image:
    assert b64 is not None
    return PilImage.open(io.BytesIO(base64.b64decode(b64)))


def a_file(width: int = 128, height: int = 128, mode: str = "RGB") -> io.BytesIO:
    """A PNG as a client opens it; its right half is transparent where `mode` has that."""
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    if mode == "RGBA":
        pixels[:, : width // 2, 3] = 255
        pixels[:, width // 2 :, 3] = 0
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, "PNG")
    buffer.seek(0)
    buffer.name = "picture.png"
    return buffer


def test_generate_gives_a_picture_with_its_receipt_and_usage(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a red circle", model="fake", extra_body={"seed": 7})
    assert answer.data is not None
    (image,) = answer.data
    assert decoded(image.b64_json).size == (128, 128)
    assert read_receipt(base64.b64decode(image.b64_json or "")).seed == 7
    assert image.revised_prompt == "a red circle"
    assert image.url is None
    assert (answer.size, answer.quality, answer.output_format) == ("128x128", "medium", "png")
    assert answer.background == "opaque"
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert answer.usage.input_tokens == 3
    assert answer.usage.output_tokens == 64
    assert answer.usage.total_tokens == 67


def test_the_answers_headers_tell_the_seed_and_the_times(client: OpenAI) -> None:
    raw = client.images.with_raw_response.generate(prompt="a", extra_body={"seed": 7})
    assert raw.headers["x-mezzotint-seed"] == "7"
    assert float(raw.headers["x-mezzotint-queue-ms"]) >= 0
    assert float(raw.headers["x-mezzotint-compute-ms"]) >= 0


def test_n_pictures_have_seeds_in_a_row_and_each_can_be_drawn_alone(client: OpenAI) -> None:
    several = client.images.generate(prompt="a", n=3, extra_body={"seed": 5}).data or []
    assert [image.model_extra["seed"] for image in several if image.model_extra] == [5, 6, 7]
    (alone,) = client.images.generate(prompt="a", extra_body={"seed": 7}).data or []
    assert several[2].b64_json == alone.b64_json


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_size_and_format_are_those_that_were_asked_for(client: OpenAI, format: str, kind: str) -> None:
    answer = client.images.generate(prompt="a", size="256x64", output_format=format)  # type: ignore[call-overload]
    picture = decoded(answer.data[0].b64_json)
    assert (picture.size, picture.format) == ((256, 64), kind)


def test_a_lower_compression_level_makes_a_smaller_jpeg(client: OpenAI) -> None:
    sizes = [
        len(
            client.images.generate(
                prompt="a", output_format="jpeg", output_compression=level, extra_body={"seed": 1}
            )
            .data[0]  # type: ignore[index]
            .b64_json  # type: ignore[arg-type]
        )
        for level in (10, 90)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("quality", "steps"),
    [("low", 10), ("medium", 20), ("standard", 20), ("high", 30), ("hd", 30), ("auto", 20)],
)
def test_quality_is_a_share_of_the_models_steps(client: OpenAI, quality: str, steps: int) -> None:
    answer = client.images.generate(prompt="a", quality=quality)  # type: ignore[call-overload]
    assert answer.data[0].model_extra["receipt"]["steps"] == steps


def test_extensions_reach_the_picture(client: OpenAI) -> None:
    extensions = {
        "negative_prompt": "blurry",
        "num_inference_steps": 3,
        "guidance_scale": 2,
        "seed": 9,
        "scheduler": "DPM++ 2M Karras",
        "style_preset": "line-art",
        "deadline_s": 30,
        "priority": "low",
        "deterministic": False,
    }
    (image,) = client.images.generate(prompt="a cat", extra_body=extensions).data or []
    receipt = (image.model_extra or {})["receipt"]
    assert receipt["steps"] == 3
    assert receipt["guidance_scale"] == 2.0
    assert receipt["seed"] == 9
    assert receipt["scheduler"] == "DPM++ 2M Karras"
    assert receipt["negative_prompt"].startswith("blurry, ")
    assert image.revised_prompt == receipt["prompt"]
    assert image.revised_prompt.startswith("a cat, line art")


def test_a_url_is_served_without_a_key_until_it_expires(client: OpenAI) -> None:
    (image,) = client.images.generate(prompt="a", response_format="url").data or []
    assert image.url is not None
    assert image.b64_json is None
    with urllib.request.urlopen(image.url) as answer:
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        data = answer.read()
    assert PilImage.open(io.BytesIO(data)).size == (128, 128)
    with urllib.request.urlopen(urllib.request.Request(image.url, method="HEAD")) as answer:
        assert int(answer.headers["content-length"]) == len(data)


@pytest.mark.parametrize("partial_images", [0, 1, 3])
def test_a_stream_has_its_partial_pictures_and_then_the_picture(client: OpenAI, partial_images: int) -> None:
    # Of two that a client has not read the older is not sent: the next is drawn once it has read this one.
    between = STEPS // (partial_images + 1)
    let_through(between)
    events = []
    with client.images.generate(
        prompt=STEP_BY_STEP_PROMPT,
        stream=True,
        partial_images=partial_images,
        extra_body={"seed": 3, "num_inference_steps": STEPS},
    ) as stream:
        for event in stream:
            events.append(event)
            let_through(between)
    *partial, completed = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * partial_images
    assert [event.partial_image_index for event in partial] == list(range(partial_images))
    assert all(decoded(event.b64_json).size == (128, 128) for event in partial)
    assert completed.type == "image_generation.completed"
    assert completed.usage.total_tokens == 65
    assert completed.size == "128x128"
    while passes.acquire(blocking=False):
        pass
    let_through(STEPS)
    (alone,) = client.images.generate(prompt=STEP_BY_STEP_PROMPT, extra_body={"seed": 3}).data or []
    assert completed.b64_json == alone.b64_json


def test_a_stream_of_several_pictures_completes_each(client: OpenAI) -> None:
    with client.images.generate(prompt="a", stream=True, n=3, extra_body={"seed": 3}) as stream:
        events = list(stream)
    assert sorted(event.model_extra["seed"] for event in events if event.model_extra) == [3, 4, 5]


def test_a_picture_that_fails_in_a_stream_raises_in_the_client(client: OpenAI) -> None:
    with (
        client.images.generate(prompt=FAULT_PROMPT, stream=True) as stream,
        pytest.raises(openai.APIError, match="the device is lost"),
    ):
        list(stream)


def test_what_is_refused_before_the_stream_begins_is_an_answer_of_its_own(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a", stream=True, size="7x7")


def test_edit_redraws_a_picture_as_far_as_strength_says(client: OpenAI) -> None:
    edited = client.images.edit(
        image=a_file(192, 64), prompt="a cat", extra_body={"seed": 1, "strength": 0.5}
    )
    (image,) = edited.data or []
    assert decoded(image.b64_json).size == (192, 64)
    receipt = (image.model_extra or {})["receipt"]
    assert receipt["strength"] == 0.5
    assert receipt["image_sha256"]
    assert receipt["mask_sha256"] is None
    assert edited.usage is not None
    assert edited.usage.input_tokens_details.image_tokens == 48


def test_edit_with_a_mask_redraws_what_is_transparent(client: OpenAI) -> None:
    edited = client.images.edit(
        image=a_file(), mask=a_file(mode="RGBA"), prompt="a cat", n=2, size="128x128", extra_body={"seed": 1}
    )
    receipts = [(image.model_extra or {})["receipt"] for image in edited.data or []]
    assert [receipt["seed"] for receipt in receipts] == [1, 2]
    assert all(receipt["mask_sha256"] for receipt in receipts)


def test_edit_takes_a_list_of_one_picture_and_refuses_two(client: OpenAI) -> None:
    assert client.images.edit(image=[a_file()], prompt="a cat").data
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=[a_file(), a_file()], prompt="a cat")
    assert refused.value.code == "not_supported"
    assert refused.value.param == "image"


def test_edit_streams(client: OpenAI) -> None:
    with client.images.edit(image=a_file(), prompt="a cat", stream=True, partial_images=1) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variation_needs_no_prompt(client: OpenAI) -> None:
    answer = client.images.create_variation(image=a_file(), n=2, size="256x256", response_format="b64_json")
    assert len(answer.data or []) == 2
    receipt = (answer.data[0].model_extra or {})["receipt"]  # type: ignore[index]
    assert (receipt["strength"], receipt["guidance_scale"], receipt["prompt"]) == (0.6, 1.0, "")


def test_models_lists_the_served_one_and_its_aliases(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["fake", "dall-e-2", "dall-e-3", "gpt-image-1"]
    assert client.models.retrieve("dall-e-3").id == "dall-e-3"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("an/other model")


@pytest.mark.parametrize("alias", ["dall-e-2", "dall-e-3", "gpt-image-1"])
def test_the_models_that_clients_hard_code_mean_the_served_one(client: OpenAI, alias: str) -> None:
    (image,) = client.images.generate(prompt="a", model=alias).data or []
    assert (image.model_extra or {})["receipt"]["model"] == "fake"


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt="a", model="sdxl-turbo")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_model_that_fails_is_an_internal_error_that_is_not_sent_again(server: Live) -> None:
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=2) as client,
        pytest.raises(openai.InternalServerError) as failed,
    ):
        client.images.generate(prompt=FAULT_PROMPT)
    assert failed.value.code == "generation_failed"
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_a_deadline_that_passes_is_told_and_not_sent_again(tmp_path: Path) -> None:
    go_on = threading.Event()

    def hold(where: str, request: ResolvedRequest, done: int) -> None:
        if where == "decode":
            go_on.wait(LIMIT_SECONDS)

    backend = FakeBackend(fault=hold)
    with (
        live(tmp_path, backend) as slow,
        OpenAI(base_url=f"{slow.url}/v1", api_key="any", max_retries=2) as client,
    ):
        began = time.monotonic()
        try:
            with pytest.raises(openai.InternalServerError) as failed:
                client.images.generate(prompt="a", extra_body={"deadline_s": 0.5, "num_inference_steps": 1})
        finally:
            answered = time.monotonic()
            go_on.set()
        assert failed.value.status_code == 504
        # Once, and without waiting for the decoder.
        assert backend.passes <= 1
        assert answered - began < LIMIT_SECONDS / 2


def test_a_full_server_says_when_to_come_back_and_the_client_does(tmp_path: Path) -> None:
    with live(tmp_path, FakeBackend(pass_seconds=0.2, max_batch=1), max_queue=2) as full:
        others = [full.engine.submit(GenerationRequest("a", steps=150)) for _ in range(2)]
        wait_until(lambda: full.engine.status().running == 1)
        others.append(full.engine.submit(GenerationRequest("a", steps=150)))
        with OpenAI(base_url=f"{full.url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                client.images.generate(prompt="a", n=10, extra_body={"num_inference_steps": 4})
            assert refused.value.code == "queue_full"
            headers = refused.value.response.headers
            assert headers["x-should-retry"] == "true"
            assert 0 < int(headers["retry-after-ms"]) <= 120_000

        for ticket in others:
            ticket.cancel()
        wait_until(lambda: full.engine.status().running + full.engine.status().queued == 0)
        tickets = [full.engine.submit(GenerationRequest("a", steps=4)) for _ in range(2)]
        with OpenAI(base_url=f"{full.url}/v1", api_key="any", max_retries=8) as patient:
            assert patient.images.generate(prompt="a", extra_body={"num_inference_steps": 2}).data
        for ticket in tickets:
            ticket.cancel()


def test_what_a_key_may_not_do_is_told_by_the_clients_own_error_classes(tmp_path: Path) -> None:
    with live(tmp_path, FakeBackend(pass_seconds=0.01), auth="on") as server:

        def client_of(new: NewKey) -> OpenAI:
            return OpenAI(base_url=f"{server.url}/v1", api_key=server.create_key(new), max_retries=0)

        wrong = OpenAI(base_url=f"{server.url}/v1", api_key="mk-wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError) as unknown:
            wrong.images.generate(prompt="a")
        assert unknown.value.code == "invalid_api_key"
        with client_of(NewKey("anyone")) as client:
            assert client.images.generate(prompt="a").data
            with pytest.raises(openai.PermissionDeniedError):
                client.images.generate(prompt="a", extra_body={"priority": "high"})
        other = client_of(NewKey("of another model", models=("another",)))
        with other, pytest.raises(openai.PermissionDeniedError):
            other.images.generate(prompt="a")
        with client_of(NewKey("once a minute", requests_per_minute=1)) as client:
            assert client.images.generate(prompt="a").data
            with pytest.raises(openai.RateLimitError) as limited:
                client.images.generate(prompt="a")
        assert limited.value.code == "rate_limit_exceeded"
        assert 0 < int(limited.value.response.headers["retry-after"]) <= 60


def test_a_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    # By itself it would be idle after 30 s.
    with live(tmp_path, FakeBackend(pass_seconds=0.2)) as server:
        impatient = OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=0.3)
        with impatient, pytest.raises(openai.APITimeoutError):
            impatient.images.generate(prompt="a", n=2, extra_body={"num_inference_steps": 150})
        assert_idle_within(server, 20.0)
        with OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            stream = client.images.generate(
                prompt="a", stream=True, partial_images=3, extra_body={"num_inference_steps": 150}
            )
            next(iter(stream))
            stream.close()
        assert_idle_within(server, 20.0)


def assert_idle_within(server: Live, seconds: float) -> None:
    def idle() -> bool:
        status = server.engine.status()
        return not (status.queued or status.running)

    wait_until(idle, "nobody waits or is drawn for", seconds=seconds)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_the_asynchronous_client_does_the_same(server: Live) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        (image,) = (await client.images.generate(prompt="a", extra_body={"seed": 1})).data or []
        assert decoded(image.b64_json).size == (128, 128)
        stream = await client.images.generate(prompt="a", stream=True, partial_images=1)
        assert [event.type async for event in stream] == [
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        edited = await client.images.edit(image=a_file(), mask=a_file(mode="RGBA"), prompt="a cat")
        assert edited.data
        assert (await client.images.create_variation(image=a_file())).data
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(prompt="")
