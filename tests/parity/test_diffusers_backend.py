"""The backend, with modules and with graphs, apart from its pictures: whose failure it is, prompts,
previews, dtypes.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.backends.conditioning import guidance_embedding
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import GenerationRequest, ResolvedRequest
from mezzotint.errors import GenerationFailed, InvalidRequest
from mezzotint.resolving import resolve
from mezzotint.tuning import Tuning

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Make = Callable[..., DiffusersBackend]
NAN = float("nan")


def request_for(backend: DiffusersBackend, **fields: Any) -> ResolvedRequest:
    fields = {"prompt": "a fox", "seed": 1, "width": 64, "height": 64, "steps": 3, **fields}
    return resolve(GenerationRequest(**fields), backend.info.limits)


def finish(backend: DiffusersBackend, request_id: str, request: ResolvedRequest) -> bytes:
    backend.start(request_id, request)
    for _ in range(request.evaluations):
        assert backend.step([request_id]) == {}
    pixels = backend.decode(request_id).tobytes()
    backend.release(request_id)
    return pixels


def spoil(backend: DiffusersBackend, request_id: str) -> None:
    row = backend._rows[request_id]
    row.latents = torch.where(torch.arange(row.latents.shape[-1]) == 0, NAN, row.latents)


def test_a_row_that_is_no_longer_finite_fails_alone(fresh_backend: Make) -> None:
    backend = fresh_backend()
    request = request_for(backend)
    alone = finish(backend, "alone", request)
    backend.start("sound", request)
    backend.start("broken", request_for(backend, seed=2))
    backend.step(["sound", "broken"])
    spoil(backend, "broken")
    failed = backend.step(["sound", "broken"])
    assert list(failed) == ["broken"]
    assert isinstance(failed["broken"], GenerationFailed)
    assert backend.step(["sound"]) == {}
    difference = np.abs(backend.decode("sound").astype(int).ravel() - np.frombuffer(alone, np.uint8))
    assert difference.max() <= 1


def test_an_exception_of_one_sampler_fails_its_row_alone(
    fresh_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = fresh_backend()
    for request_id in ("sound", "broken"):
        backend.start(request_id, request_for(backend))

    def fail(*_: object) -> None:
        raise RuntimeError("no such sigma")

    monkeypatch.setattr(backend._rows["broken"].sampling, "advance", fail)
    assert list(backend.step(["broken", "sound"])) == ["broken"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("shape mismatch"), "failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "ran out of memory"),
        (RuntimeError('nrt_tensor_allocate status=4 message="Allocation Failure"'), "ran out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "ran out of memory"),
    ],
)
def test_a_failing_pass_raises_and_moves_no_row(
    fresh_backend: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    backend = fresh_backend()
    request = request_for(backend)
    expected = finish(backend, "before", request)
    backend.start("a", request)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(backend, "_unet", fail)
        with pytest.raises(GenerationFailed, match=words):
            backend.step(["a"])
    for _ in range(request.evaluations):
        backend.step(["a"])
    assert backend.decode("a").tobytes() == expected


def test_a_pass_that_fails_after_its_rows_have_moved_fails_all_and_is_not_run_again(
    fresh_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = fresh_backend()
    for request_id in ("a", "b"):
        backend.start(request_id, request_for(backend))

    def fail(*_: object) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patched:
        patched.setattr(backend._passes, "end", fail)
        failed = backend.step(["a", "b"])
    assert [*failed] == ["a", "b"]
    assert all(isinstance(error, GenerationFailed) for error in failed.values())


def test_latents_that_are_not_finite_are_no_picture(fresh_backend: Make) -> None:
    backend = fresh_backend()
    backend.start("a", request_for(backend))
    spoil(backend, "a")
    with pytest.raises(GenerationFailed, match="finite"):
        backend.decode("a")


def test_released_requests_leave_nothing_behind_and_unknown_ones_are_ignored(fresh_backend: Make) -> None:
    backend = fresh_backend()
    backend.start("a", request_for(backend))
    backend.step(["a"])
    backend.release("a")
    backend.release("a")
    assert backend._rows == {}
    assert backend._batch is None


def test_an_id_used_again_is_not_taken_for_the_request_before_it(fresh_backend: Make) -> None:
    backend = fresh_backend()
    first, second = (request_for(backend, prompt=prompt) for prompt in ("a fox", "an owl"))
    drawn = [finish(backend, "same id", request) for request in (first, second, first)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_decoding_in_another_thread_changes_neither_picture(fresh_backend: Make) -> None:
    backend = fresh_backend()
    requests = {name: request_for(backend, prompt=name, steps=6) for name in ("finished", "running")}
    expected = {name: finish(backend, name, request) for name, request in requests.items()}
    for name, request in requests.items():
        backend.start(name, request)
    for _ in range(6):
        backend.step(["finished"])
    decoded: list[bytes] = []
    thread = threading.Thread(target=lambda: decoded.append(backend.decode("finished").tobytes()))
    thread.start()
    for _ in range(6):
        backend.step(["running"])
    thread.join(60)
    assert decoded == [expected["finished"]]
    assert backend.decode("running").tobytes() == expected["running"]


def test_a_prompt_is_encoded_once_and_shared_with_negative_prompts(fresh_backend: Make) -> None:
    backend = fresh_backend()
    backend.start("a", request_for(backend, prompt="owl", negative_prompt="fox"))
    backend.start("b", request_for(backend, prompt="fox", negative_prompt="owl"))
    assert (backend.prompts.hits, backend.prompts.misses) == (2, 2)


def test_the_prompt_cache_is_bounded_in_entries_and_bytes(
    fresh_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = fresh_backend().prompts
    size = prompts.encode("a").bytes
    monkeypatch.setattr("mezzotint.backends.prompts.MAX_CACHED_ENTRIES", 3)
    for letter in "bcdef":
        prompts.encode(letter)
    assert len(prompts._cache) == 3
    assert prompts._bytes == 3 * size
    monkeypatch.setattr("mezzotint.backends.prompts.MAX_CACHED_BYTES", 2 * size)
    prompts.encode("g")
    assert prompts._bytes == 2 * size


def test_emphasis_multiplies_the_hidden_states_of_its_words_and_nothing_else(fresh_backend: Make) -> None:
    prompts = fresh_backend().prompts
    # The tiny model's tokens are letters; the first place is the mark of the beginning.
    plain = prompts.encode("a b c d")
    weighed = prompts.encode("a (b:1.5) [(c:0) d]", emphasis=True)
    expected = torch.ones(16)
    expected[2], expected[3], expected[4] = 1.5, 0.0, 1 / 1.1
    torch.testing.assert_close(weighed.hidden, plain.hidden * expected[None, :, None])
    torch.testing.assert_close(weighed.pooled, plain.pooled, rtol=0, atol=0)


@pytest.mark.parametrize("text", ["ab cd", r"a\(b\)", "", "a (b:1) c", "a: b", "ab cd ef gh ij kl mn op"])
def test_what_weighs_one_is_encoded_as_it_is_without_emphasis(fresh_backend: Make, text: str) -> None:
    prompts = fresh_backend().prompts
    plain = prompts.encode(text.replace("\\", "").replace("(b:1)", "b"))
    weighed = prompts.encode(text, emphasis=True)
    torch.testing.assert_close(weighed.hidden, plain.hidden, rtol=0, atol=0)
    assert weighed.cut == plain.cut


def test_brackets_are_text_without_emphasis_and_marks_with_it(fresh_backend: Make) -> None:
    backend = fresh_backend()
    requests = [
        request_for(backend, prompt=prompt, emphasis=emphasis)
        for prompt, emphasis in (
            ("a (fox:0.2)", False),
            ("a (fox:0.2)", True),
            ("a fox", False),
            ("a (fox:1.0)", True),
        )
    ]
    as_text, weighed, plain, as_it_is = (finish(backend, "one", request) for request in requests)
    assert len({as_text, weighed, plain}) == 3
    assert as_it_is == plain
    negative = {"prompt": "an owl", "negative_prompt": "a (fox:0.2)"}
    steered = [
        finish(backend, "one", request_for(backend, **negative, emphasis=emphasis))
        for emphasis in (False, True)
    ]
    assert steered[0] != steered[1]


def test_what_is_cut_from_a_prompt_with_emphasis_is_named_without_its_marks(fresh_backend: Make) -> None:
    backend = fresh_backend()
    fits = backend.prompts.max_tokens
    request = request_for(backend, prompt="a" * (fits - 6) + " (ijklmn [opq 2] r)", emphasis=True)
    assert backend.start("a", request) == (f'prompt: the part after {fits} tokens was cut: "opq 2 r"',)


def test_what_is_cut_from_a_prompt_is_named_once(
    fresh_backend: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = fresh_backend()
    # A window of the tiny model has 16 tokens, two of which mark start and end, and every letter is one.
    fits = "a" * 14 * (1 if backend.info.limits.served else 4)
    assert backend.info.limits.prompt_tokens == backend.prompts.max_tokens == len(fits)
    long = fits + " opq"
    assert backend.start("a", request_for(backend, prompt=fits)) == ()
    warnings = backend.start("b", request_for(backend, prompt=long, negative_prompt=long))
    assert warnings == (
        f'prompt: the part after {len(fits)} tokens was cut: "opq"',
        f'negative_prompt: the part after {len(fits)} tokens was cut: "opq"',
    )
    unguided = request_for(backend, prompt="x", negative_prompt=long, guidance_scale=1.0)
    assert backend.start("c", unguided) == ()
    assert not caplog.records
    assert "longer than" not in capfd.readouterr().err


def test_the_longest_prompt_is_drawn_and_its_warning_stays_short(fresh_backend: Make) -> None:
    backend = fresh_backend()
    (warning,) = backend.start("a", request_for(backend, prompt="ab " * 3000))
    assert len(warning) < 300
    assert warning.endswith('…"')


@pytest.mark.parametrize("prompt", ["🦊 狐", "a\x00b\x1b[31m", "<|endoftext|><|startoftext|>", "\u202eabc"])
def test_strange_prompts_are_drawn(fresh_backend: Make, prompt: str) -> None:
    backend = fresh_backend()
    assert finish(backend, "a", request_for(backend, prompt=prompt, steps=1))


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras", "DDIM", "Heun"])
def test_previews_come_to_look_like_the_picture(demo_studio: Any, name: str) -> None:
    backend = demo_studio.backend
    request = demo_studio.request(prompt="a red apple", scheduler=name, steps=6, preview_every=1)
    backend.start("a", request)
    assert backend.preview("a")().shape == (16, 16, 3)
    for _ in range(request.evaluations):
        backend.step(["a"])
        preview = backend.preview("a")()
        assert preview.shape == (request.height // 8, request.width // 8, 3)
        assert preview.dtype == np.uint8
    row = backend._rows["a"]
    with torch.inference_mode():
        clean = row.sampling.predict_clean(*row.last)
    backend_latents = row.latents
    backend.release("a")
    # At the last evaluation little noise is left: the prediction is the picture's latents.
    assert float((clean - backend_latents).abs().mean()) < 0.1 * float(backend_latents.std())


def test_a_preview_reads_v_prediction_too(fresh_backend: Make) -> None:
    backend = fresh_backend()
    backend._samplings._config["prediction_type"] = "v_prediction"
    backend.start("a", request_for(backend, preview_every=1, steps=2, scheduler="DDIM"))
    backend.step(["a"])
    sampling = backend._rows["a"].sampling
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alpha = float(sampling._scheduler.alphas_cumprod[501])
    signal, disturbance = alpha**0.5, (1 - alpha) ** 0.5
    scaled, velocity = signal * clean + disturbance * noise, signal * noise - disturbance * clean
    torch.testing.assert_close(sampling.predict_clean(scaled, velocity, 501.0), clean, atol=1e-4, rtol=1e-4)


def test_nothing_is_kept_for_previews_nobody_asked_for(fresh_backend: Make) -> None:
    backend = fresh_backend()
    backend.start("a", request_for(backend))
    backend.step(["a"])
    assert backend._rows["a"].last is None


@pytest.mark.parametrize(("steps", "fewer"), [(61, 60), (122, 120)])
def test_steps_that_the_timesteps_cannot_be_divided_into_are_refused(
    fresh_backend: Make, steps: int, fewer: int
) -> None:
    backend = fresh_backend()
    backend._samplings._config["timestep_spacing"] = "trailing"
    with pytest.raises(InvalidRequest, match=f"try {fewer}$") as refusal:
        backend.start("a", request_for(backend, steps=steps))
    assert refusal.value.param == "steps"
    assert backend._rows == {}
    backend.start("a", request_for(backend, steps=fewer))


def test_the_guidance_embedding_is_the_one_of_diffusers(tiny_studio: Any) -> None:
    expected = tiny_studio.pipeline.get_guidance_scale_embedding(torch.tensor([6.5]), embedding_dim=32)
    torch.testing.assert_close(guidance_embedding(7.5, 32), expected)


def test_bf16_draws_a_picture(fresh_modules: Make) -> None:
    backend = fresh_modules(dtype="bf16")
    assert backend.info.dtype == "bf16"
    assert len(finish(backend, "a", request_for(backend))) == 64 * 64 * 3


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile on a CPU needs a C++ compiler, and there is none here",
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, of many kinds
def test_compiled_blocks_draw_the_same_picture(fresh_modules: Make) -> None:
    plain = fresh_modules()
    compiled = fresh_modules(tuning=Tuning(compile="blocks", channels_last="on"))
    request = request_for(plain, steps=2)
    drawn = [np.frombuffer(finish(each, "a", request), np.uint8).astype(int) for each in (plain, compiled)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 2
