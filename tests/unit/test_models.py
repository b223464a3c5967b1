"""Models: what has a name, what is refused before it is read, and what a pull leaves on the disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint.engine.engine import Engine
from mezzotint.errors import InvalidRequest, ModelInvalid, ModelNotFound, OutputUnwritable, SettingInvalid
from mezzotint.models import pulling
from mezzotint.models.catalogue import CATALOGUE
from mezzotint.models.loading import load_backend
from mezzotint.models.locations import check, describe, find_model, limits_of, list_models
from mezzotint.models.manifest import fingerprint, write_manifest
from mezzotint.models.pulling import pull
from mezzotint.samplers import SAMPLERS
from mezzotint.threads import default_threads

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models' home."""
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "home"))
    return tmp_path / "home/models"


@pytest.fixture
def folder(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A tiny SDXL of this test's own, without a manifest."""
    return Path(shutil.copytree(tiny_sdxl, tmp_path / "mine"))


@pytest.fixture
def installed_sdxl(tiny_sdxl: Path, home: Path) -> Path:
    """A tiny SDXL in the place of the real one, with its manifest."""
    path = Path(shutil.copytree(tiny_sdxl, home / "sdxl"))
    for weights in path.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    write_manifest(path)
    return path


def load(model: object) -> Any:
    return load_backend(str(model), device="cpu", threads=1)


# The catalogue and its answers


def test_every_pin_is_a_commit_and_every_default_within_its_limits() -> None:
    for entry in CATALOGUE.values():
        limits = entry.limits
        assert limits.min_size <= limits.default_width <= limits.max_size
        assert limits.default_width * limits.default_height <= limits.max_pixels
        assert limits.default_steps <= limits.max_steps
        assert entry.source is None or len(entry.source.revision) == 40
        assert entry.base is None or entry.base in CATALOGUE


def test_the_list_names_what_is_installed_and_how_large_it_is(installed_sdxl: Path) -> None:
    listed = {model.name: model for model in list_models()}
    assert list(listed) == list(CATALOGUE)
    assert listed["sdxl"].installed
    assert listed["sdxl"].path == installed_sdxl
    assert listed["sdxl"].bytes > 1_000_000
    assert not listed["sdxl-turbo"].installed


def test_a_description_is_plain_json_with_limits_and_samplers(home: Path) -> None:
    described = describe("sdxl-turbo")
    assert json.loads(json.dumps(described)) == described
    assert described["installed"] is False
    assert described["limits"]["default_guidance_scale"] == 0.0
    assert described["samplers"] == [sampler.name for sampler in SAMPLERS]


def test_the_demo_states_its_vocabulary() -> None:
    described = describe("demo")
    assert described["installed"] is True
    assert described["vocabulary"]


def test_the_demo_does_not_say_in_which_folder_it_was_made() -> None:
    for file in find_model("demo").rglob("*.json"):
        assert "_name_or_path" not in file.read_text(encoding="utf-8")


def test_a_folders_limits_follow_from_its_sample_size(tiny_sdxl: Path) -> None:
    limits = limits_of(str(tiny_sdxl))
    assert (limits.default_width, limits.max_size) == (64, 128)
    assert limits.default_scheduler == "Euler"


def test_a_sample_size_may_be_height_and_width(folder: Path) -> None:
    _change(folder / "unet/config.json", sample_size=[8, 16])
    limits = limits_of(str(folder))
    assert (limits.default_width, limits.default_height) == (128, 64)
    assert (limits.min_size, limits.max_size, limits.max_pixels) == (16, 256, 128 * 64 * 9 // 4)
    assert replace(load(folder).info.limits, prompt_tokens=None) == limits


@pytest.mark.parametrize("size", [0, -8, 1.5, "8", True, [8], [8, 8, 8], [8, "8"], 10**9, {}])
def test_a_sample_size_that_is_none_is_refused(folder: Path, size: object) -> None:
    _change(folder / "unet/config.json", sample_size=size)
    with pytest.raises(ModelInvalid, match="sample_size must be"):
        limits_of(str(folder))


def test_a_folder_that_cannot_be_looked_into_is_not_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def refuse(path: Path, **options: Any) -> bool:
        # Other threads of this process look at files of their own.
        if not path.is_relative_to(folder):
            return is_file(path, **options)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelNotFound, match="permission denied"):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["nothing", "", "../sdxl", "/nowhere/at/all", "https://example.com/x"])
def test_an_unknown_model_is_not_found_and_the_accepted_ones_are_named(name: str, home: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"demo, sdxl, .*diffusers folder, or a single \.safetensors"):
        find_model(name or "nothing")


def test_a_model_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="mezzotint models pull sdxl-turbo"):
        load("sdxl-turbo")


@pytest.mark.parametrize("name", [".", "unet/..", "../mine/"])
def test_a_model_is_called_as_its_folder_however_that_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    assert find_model(name) == folder
    assert load(name).info.model == "mine"


def test_a_folder_that_is_no_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"model_index\.json"):
        load(tmp_path)


# Loading


def test_the_demo_loads_without_touching_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # Servers that a session of tests shares live in threads that are there already, and go on.
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def refused(original: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() in others:
                return original(*arguments, **options)
            raise AssertionError("the network was used")

        return refuse

    monkeypatch.setattr(socket.socket, "connect", refused(socket.socket.connect))
    monkeypatch.setattr(socket, "getaddrinfo", refused(socket.getaddrinfo))
    info = load("demo").info
    assert (info.model, info.backend, info.dtype) == ("demo", "diffusers", "fp32")
    assert info.limits.default_width == 128
    assert set(info.versions) == {"mezzotint", "torch", "diffusers", "transformers"}


def test_loading_leaves_the_libraries_logging_as_it_was(tiny_sdxl: Path) -> None:
    from diffusers.utils import logging

    logging.set_verbosity_info()
    try:
        load(tiny_sdxl)
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


def test_a_catalogue_model_loads_from_its_variants_files(installed_sdxl: Path) -> None:
    info = load("sdxl").info
    assert info.model == "sdxl"
    assert info.revision == "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.mark.parametrize("names", [["unet"], ["text_encoder", "text_encoder_2"], ["vae"]])
def test_some_modules_may_be_there_as_a_variant_alone(folder: Path, names: list[str]) -> None:
    for name in names:
        for weights in (folder / name).glob("*.safetensors"):
            weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load(folder).info.model == "mine"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_one_module(folder: Path, variant: str | None) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="400KB", variant=variant)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert load(folder).info.model == "mine"


def test_a_folder_without_a_manifest_loads_unverified_and_with_one_is_known_by_it(folder: Path) -> None:
    assert re.fullmatch("unverified-[0-9a-f]{16}", load(folder).info.revision)
    write_manifest(folder)
    assert len(load(folder).info.revision) == 16


@pytest.mark.parametrize("name", ["", WEIGHTS])
def test_unverified_weights_of_the_same_size_are_told_apart_wherever_they_lie(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    os.utime(copy / WEIGHTS, (0, 0))
    assert fingerprint(copy / name) == fingerprint(folder / name)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(weights[:8], "little")
    # As in a fine-tune: the same header, and every weight a little different.
    weights[header::2] = bytes(value ^ 1 for value in weights[header::2])
    (copy / WEIGHTS).write_bytes(weights)
    assert fingerprint(copy / name) != fingerprint(folder / name)


def test_a_folder_with_a_renamed_file_is_another_model(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (copy / WEIGHTS).rename((copy / WEIGHTS).with_name("other.safetensors"))
    assert fingerprint(copy) != fingerprint(folder)


def test_a_unet_of_its_own_takes_the_place_of_its_bases(installed_sdxl: Path, home: Path) -> None:
    (home / "sdxl-lightning").mkdir()
    unet = home / "sdxl-lightning/sdxl_lightning_4step_unet.safetensors"
    shutil.copy(installed_sdxl / "unet/diffusion_pytorch_model.fp16.safetensors", unet)
    write_manifest(home / "sdxl-lightning")
    backend = load("sdxl-lightning")
    assert backend.info.limits.default_steps == 4
    assert backend._samplings._config["timestep_spacing"] == "trailing"


def test_a_single_file_needs_a_pulled_sdxl(tiny_sdxl: Path, home: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_sdxl / WEIGHTS, tmp_path / "merge.safetensors")
    with pytest.raises(ModelNotFound, match="mezzotint models pull sdxl"):
        load(tmp_path / "merge.safetensors")


def test_the_fake_model_needs_no_files() -> None:
    with Engine.load("fake") as engine:
        assert engine.info.backend == "fake"
    with pytest.raises(InvalidRequest):
        Engine.load("fake:colour=1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "fp16", "device": "cpu"}, "dtype fp16 is not for a CPU"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"device": "tpu"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"device": "cuda:99"}, "no CUDA device"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_a_setting_this_machine_cannot_meet_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingInvalid, match=words):
        load_backend("demo", **options)


@pytest.mark.parametrize(
    ("said", "threads"),
    [(None, 8), ("2", 2), ("2,1", 2), ("64", 8), ("", 8), ("0", 8), ("many", 8), ("-1", 8)],
)
def test_threads_are_the_physical_cores_or_what_the_environment_allows(
    said: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if said is None else {"OMP_NUM_THREADS": said}
    machine = SimpleNamespace(environ=environment, sched_getaffinity=lambda _: set(range(12)))
    monkeypatch.setattr("mezzotint.threads.os", machine)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    assert default_threads() == threads


# Refusals before anything is deserialised


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _remove(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _add(folder: Path) -> None:
    (folder / "vae/notes.txt").write_text("hello")


def _dangle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("nowhere")


def _loop(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)


def _pickle(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def _code(folder: Path) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit")


def _garbled_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"a": 1}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip_a_byte, "is not the file that its manifest lists"),
        (_truncate, "is not the file that its manifest lists"),
        (_remove, "lacks unet/diffusion_pytorch_model.safetensors"),
        (_add, "holds vae/notes.txt"),
        (_dangle, "diffusion_pytorch_model.safetensors cannot be read: no such file"),
        (_loop, "diffusion_pytorch_model.safetensors cannot be read: too many levels"),
        (_pickle, "only safetensors weights are read"),
        (_code, "only safetensors weights are read"),
        (_garbled_manifest, "is not a manifest"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_refused_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], words: str
) -> None:
    write_manifest(folder)
    damage(folder)
    monkeypatch.setattr("mezzotint.models.loading.load_parts", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ModelInvalid, match=words):
        load(folder)


def test_a_catalogue_model_without_a_manifest_is_not_installed(installed_sdxl: Path) -> None:
    (installed_sdxl / "manifest.json").unlink()
    with pytest.raises(ModelNotFound):
        load("sdxl")


def test_a_manifest_is_not_written_over_code(folder: Path) -> None:
    _code(folder)
    with pytest.raises(ModelInvalid):
        write_manifest(folder)
    assert not (folder / "manifest.json").exists()


def test_a_manifest_written_twice_is_the_same(folder: Path) -> None:
    first = write_manifest(folder).read_bytes()
    assert write_manifest(folder).read_bytes() == first
    assert check(str(folder)).verified


# Refusals of files that are wrong in themselves


def _cut_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 64)


def _empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def _swap_weights(folder: Path) -> None:
    shutil.copy(folder / "vae/diffusion_pytorch_model.safetensors", folder / WEIGHTS)


def _other_shape(folder: Path) -> None:
    _change(folder / "unet/config.json", block_out_channels=[32, 32])


def _not_json(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def _no_scheduler(folder: Path) -> None:
    (folder / "scheduler/scheduler_config.json").unlink()


def _lost_text_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder/model.safetensors"
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})


def _unscaled_latents(folder: Path) -> None:
    _change(folder / "vae/config.json", scaling_factor=None)


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "truncated or no safetensors"),
        (_cut_header, "truncated or no safetensors"),
        (_empty, "truncated or no safetensors"),
        (_remove, "lacks unet's weights"),
        (_swap_weights, "unet"),
        (_other_shape, "unet"),
        (_not_json, r"unet/config\.json is not JSON"),
        (_no_scheduler, r"lacks scheduler/scheduler_config\.json"),
        (_lost_text_weight, "text_encoder: its weights do not fit"),
        (_unscaled_latents, "its VAE's scaling_factor is no number"),
    ],
)
def test_a_corrupt_model_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(ModelInvalid, match=words) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"_class_name": "EDMEulerScheduler", "sigma_max": 80.0, "prediction_type": "epsilon"},
            "noise levels",
        ),
        (
            {"beta_schedule": "scaled_linear", "prediction_type": "flow_prediction"},
            "neither noise, v nor latents",
        ),
        (
            {"beta_schedule": "scaled_linear", "timestep_spacing": "even"},
            r"scheduler_config\.json cannot be loaded: even is not supported",
        ),
    ],
)
def test_a_scheduler_that_no_sampler_is_made_for_is_refused(
    folder: Path, config: dict[str, Any], words: str
) -> None:
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelInvalid, match=words):
        load(folder)


def test_a_tokenizer_that_tells_of_no_window_has_its_encoders(folder: Path) -> None:
    read = load(folder).info.limits.prompt_tokens
    for name in ("tokenizer", "tokenizer_2"):
        path = folder / name / "tokenizer_config.json"
        told = json.loads(path.read_text())
        del told["model_max_length"]
        path.write_text(json.dumps(told))
    assert load(folder).info.limits.prompt_tokens == read


def test_a_unet_that_is_not_sdxls_is_refused(tmp_path: Path, build_tiny: Callable[..., Path]) -> None:
    edited_by_words = build_tiny(tmp_path / "edited", in_channels=8)
    with pytest.raises(
        ModelInvalid, match="reads 8 channels, neither latents alone nor what inpainting adds"
    ):
        load(edited_by_words)


# Pulling


@pytest.fixture
def hub(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub whose every repository is the tiny SDXL; returns the repositories that were asked for."""
    asked: list[str] = []

    def download(source: Any, folder: Path) -> None:
        asked.append(source.repository)
        shutil.copytree(tiny_sdxl, folder, dirs_exist_ok=True)
        (folder / ".cache/huggingface").mkdir(parents=True)

    monkeypatch.setattr(pulling, "_download", download)
    monkeypatch.setattr(pulling, "_total_bytes", lambda source: 5_000_000)
    return asked


def test_a_pulled_model_has_a_manifest_and_loads(home: Path, hub: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    path = pull("sdxl-turbo", lambda done, total: seen.append((done, total)))
    assert path == home / "sdxl-turbo"
    assert seen[-1] == (5_000_000, 5_000_000)
    assert [item.name for item in home.iterdir()] == ["sdxl-turbo"]
    assert check("sdxl-turbo").verified


def test_a_whole_model_is_not_pulled_again_and_a_damaged_one_is(home: Path, hub: list[str]) -> None:
    pull("sdxl")
    pull("sdxl")
    assert len(hub) == 1
    _flip_a_byte(home / "sdxl")
    pull("sdxl")
    assert len(hub) == 2
    assert check("sdxl").verified


def test_what_builds_on_a_base_pulls_it_too(home: Path, hub: list[str]) -> None:
    pull("sdxl-lightning")
    assert hub == ["stabilityai/stable-diffusion-xl-base-1.0", "ByteDance/SDXL-Lightning"]


def test_the_demo_needs_no_pulling() -> None:
    assert pull("demo") == find_model("demo")


def test_a_model_outside_the_catalogue_cannot_be_pulled(home: Path) -> None:
    with pytest.raises(ModelNotFound, match="the catalogue has demo"):
        pull("somebody/something")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionError("no route to host"), ModelNotFound, "no route to host"),
        (RuntimeError("401"), ModelNotFound, "could not be fetched"),
        (OSError(errno.ENOSPC, "No space left on device"), OutputUnwritable, "No space left"),
        (PermissionError(errno.EACCES, "Permission denied"), OutputUnwritable, "MEZZOTINT_HOME"),
    ],
)
def test_an_interrupted_pull_leaves_nothing(
    home: Path,
    hub: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    def fail(source: object, folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"\0" * 10)
        raise error

    monkeypatch.setattr(pulling, "_download", fail)
    with pytest.raises(kind, match=words):
        pull("sdxl")
    assert list(home.iterdir()) == []


def test_a_full_disk_is_noticed_before_the_download(
    home: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "_total_bytes", lambda source: 10**18)
    with pytest.raises(OutputUnwritable, match="too little room"):
        pull("sdxl")
    assert hub == []


def test_a_home_that_cannot_be_a_folder_is_refused(
    tmp_path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputUnwritable, match="MEZZOTINT_HOME"):
        pull("sdxl")


def test_pickled_weights_from_the_hub_are_refused(
    home: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = pulling._download

    def with_pickle(source: Any, folder: Path) -> None:
        copy(source, folder)
        _pickle(folder)

    monkeypatch.setattr(pulling, "_download", with_pickle)
    with pytest.raises(ModelInvalid, match="safetensors"):
        pull("sdxl")
    assert list(home.iterdir()) == []
