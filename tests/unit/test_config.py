"""Settings: parsed once, from flags before variables, and refused by name."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mezzotint import config
from mezzotint.cli.main import run
from mezzotint.config import OTHER_VARIABLES, Settings, find_settings, load_settings, shown
from mezzotint.engine.engine import Engine
from mezzotint.errors import SettingInvalid
from mezzotint.serve import replica


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("MEZZOTINT_"):
            monkeypatch.delenv(name)


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEZZOTINT_PORT", "9000")
    monkeypatch.setenv("MEZZOTINT_REPLICAS", "2")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.replicas, settings.host) == (9001, 2, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("MEZZOTINT_PORT", "70000", "0…65535"),
        ("MEZZOTINT_PORT", "http", "0…65535"),
        ("MEZZOTINT_REPLICAS", "0", "1…1024"),
        ("MEZZOTINT_MAX_QUEUE", "2001", "1…2000"),
        ("MEZZOTINT_DTYPE", "int8", "bf16"),
        ("MEZZOTINT_DEADLINE_S", "nan", "seconds"),
        ("MEZZOTINT_DRAIN_S", "inf", "0…3600"),
        ("MEZZOTINT_MODEL", "", "name"),
        ("MEZZOTINT_COMPILE", "true", "none, blocks"),
        ("MEZZOTINT_NEURON_CORES", "0", "1…32"),
        ("MEZZOTINT_STAND_IN", "true", "the device neuron alone"),
        ("MEZZOTINT_DEVICE", "gpu", "auto, cpu, cuda, cuda:N or neuron"),
        ("MEZZOTINT_DEVICE", "cuda:x", "cuda:N"),
        ("MEZZOTINT_DEVICE", "cpu:0", "cuda:N"),
        ("MEZZOTINT_WARM_UP_SIZES", "1024x1024,13x7", "multiples of 8"),
        ("MEZZOTINT_WARM_UP_SIZES", "0x8", "multiples of 8"),
        ("MEZZOTINT_LORAS", "a.ckpt", ".safetensors"),
        ("MEZZOTINT_IMAGE_STORE", "s3://", "s3://bucket/prefix"),
        ("MEZZOTINT_IMAGE_STORE", "s3:///prefix", "s3://bucket/prefix"),
        ("MEZZOTINT_IMAGE_STORE", "gs://bucket", "s3://bucket/prefix"),
        ("MEZZOTINT_DATABASE_URL", "mysql://x", "postgresql+psycopg://"),
        ("MEZZOTINT_DATABASE_URL", "sqlite://", "sqlite+aiosqlite:///FILE"),
        ("MEZZOTINT_DATABASE_URL", "file://relative", "file:///PATH"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingInvalid, match=name) as refused:
        load_settings()
    assert accepted in refused.value.message
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("device", ["auto", "cpu", "cuda", "cuda:1", "neuron"]),
        ("image_store", ["", "/a/folder", "folder", "s3://bucket", "s3://bucket/some/prefix"]),
        ("database_url", ["", "sqlite:///a.db", "postgres://a@b/c", "file:///a/b"]),
    ],
)
def test_the_forms_that_are_accepted(name: str, values: list[str]) -> None:
    for value in values:
        assert getattr(load_settings(**{name: value}), name) == value


def test_a_backlog_to_scale_at_that_is_never_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was set itself, or the most that a replica takes was set below it."""
    monkeypatch.setenv("MEZZOTINT_MAX_REPLICAS", "2")
    assert load_settings(target_backlog_s=119.0).target_backlog_s == 119.0
    with pytest.raises(SettingInvalid, match=r"--target-backlog-s takes .*below max_backlog_s; not 120\.0"):
        load_settings(target_backlog_s=120.0)
    with pytest.raises(
        SettingInvalid, match=r"MEZZOTINT_TARGET_BACKLOG_S takes .*below max_backlog_s; not 60\.0"
    ):
        load_settings(max_backlog_s=5.0)
    monkeypatch.delenv("MEZZOTINT_MAX_REPLICAS")
    assert load_settings(max_backlog_s=5.0).max_backlog_s == 5.0


def test_a_bad_flag_is_refused_by_the_flags_name() -> None:
    with pytest.raises(SettingInvalid, match="--port takes a TCP port"):
        load_settings(port=-1)


def test_a_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_REPLICA", "2")
    with pytest.raises(SettingInvalid, match="MEZZOTINT_REPLICA is no setting"):
        load_settings()


def test_the_models_home_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_HOME", "/somewhere")
    assert load_settings().model == "demo"


def test_settings_are_frozen_and_travel_to_another_process() -> None:
    settings = load_settings(replicas=3)
    with pytest.raises(ValidationError):
        settings.replicas = 4
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_states_what_it_accepts() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_sizes_to_warm_up_are_read_from_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_WARM_UP_SIZES", "1024x1024, 832x1216")
    assert load_settings().warm_up_sizes == ((1024, 1024), (832, 1216))
    monkeypatch.setenv("MEZZOTINT_WARM_UP_SIZES", "1024")
    with pytest.raises(SettingInvalid, match="MEZZOTINT_WARM_UP_SIZES takes sizes"):
        load_settings()


FILES = {
    "settings.toml": 'replicas = 2\nport = 9000\nwarm_up_sizes = ["1024x1024", "832x1216"]\n',
    "settings.yaml": "replicas: 2\nport: 9000\nwarm_up_sizes: [1024x1024, 832x1216]\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_environment_goes_before_the_file_and_a_flag_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    monkeypatch.setenv("MEZZOTINT_PORT", "9001")
    monkeypatch.setenv("MEZZOTINT_MAX_QUEUE", "7")
    found = find_settings(file, max_queue=8)
    settings = found.settings
    assert (settings.replicas, settings.port, settings.max_queue) == (2, 9001, 8)
    assert settings.warm_up_sizes == ((1024, 1024), (832, 1216))
    assert found.origins["replicas"] == f"{file}: replicas"
    assert (found.origins["port"], found.origins["max_queue"]) == ("MEZZOTINT_PORT", "--max-queue")
    assert "host" not in found.origins
    monkeypatch.setenv("MEZZOTINT_CONFIG", str(file))
    assert load_settings() == load_settings(file)


def test_on_and_off_are_written_as_they_are_in_either_kind_of_file(tmp_path: Path) -> None:
    for name, text in (
        ("a.yaml", "auth: on\nchannels_last: off\n"),
        ("a.toml", 'auth = "on"\nchannels_last = "off"\n'),
    ):
        (tmp_path / name).write_text(text)
        settings = load_settings(tmp_path / name)
        assert (settings.auth, settings.channels_last) == ("on", "off")


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
def test_a_file_may_begin_with_the_mark_of_its_encoding(name: str, tmp_path: Path) -> None:
    line = "port = 9000\n" if name.endswith("toml") else "port: 9000\n"
    (tmp_path / name).write_text(line, encoding="utf-8-sig")
    assert load_settings(tmp_path / name).port == 9000


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "replica = 2\n", r"a.toml: replica is no setting; did you mean replicas\?"),
        ("a.toml", "replicas = true\n", "a.toml: replicas takes engine replicas, 1…1024; not True"),
        ("a.toml", 'replicas = "two"\n', "a.toml: replicas takes engine replicas"),
        ("a.toml", "replicas = 1\nreplicas = 2\n", "a.toml: .*overwrite"),
        ("a.yaml", "replicas: 1\nreplicas: 2\n", "a.yaml: replicas is given twice"),
        ("a.yaml", "- 1\n", "a.yaml: must be one table"),
        ("a.yaml", "a: [\n", "a.yaml: "),
        ("a.yaml", "1: 2\n", "a.yaml: 1 is no setting"),
        ("a.yaml", "host: [1]\n", "a.yaml: host takes an address"),
        ("a.toml", "[serve]\nport = 1\n", "a.toml: serve is no setting"),
        (
            "a.toml",
            "replicas = 3\nmax_replicas = 2\n",
            "a.toml: max_replicas takes engine replicas to scale to",
        ),
        ("a.toml", 'public_url = "example.com"\n', "a.toml: public_url takes an http"),
        ("a.toml", 'cors_origins = ["a.example"]\n', "a.toml: cors_origins takes web origins"),
        ("a.json", "{}", "a settings file ends in .toml, .yaml or .yml"),
        ("a.toml", "a = " + "[" * 10_000, "a.toml: is nested too deeply"),
        ("a.yaml", "a: " + "[" * 10_000, "a.yaml: is nested too deeply"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_one_line_with_its_place(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingInvalid, match=told) as refused:
        load_settings(tmp_path / name)
    assert "\n" not in refused.value.message


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"none\.toml: cannot be read: no such file"):
        load_settings(tmp_path / "none.toml")
    (tmp_path / "latin.yaml").write_bytes(b"host: \xe4\n")
    with pytest.raises(SettingInvalid, match=r"latin\.yaml: "):
        load_settings(tmp_path / "latin.yaml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(SettingInvalid, match="cannot be read: is a directory"):
        load_settings(tmp_path / "folder.toml")


def test_what_the_commands_read_from_the_environment_stops_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(config.__file__).parent / "cli"
    read = {name for file in folder.glob("*.py") for name in re.findall(r'envvar="(\w+)"', file.read_text())}
    assert "MEZZOTINT_API_KEY" in read
    assert read <= OTHER_VARIABLES
    for name in read:
        monkeypatch.setenv(name, "anything")
    assert load_settings() == Settings()


def test_a_variable_that_is_set_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_PORT", "1")
    monkeypatch.setenv("mezzotint_port", "2")
    with pytest.raises(SettingInvalid, match="both set"):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:s3cret@host/db",
        "postgresql://host/db?user=u&password=s3cret",
        "user:s3cret@host",
        "postgresql://user:pa/s3cret@host/db",
        "postgresql://user:pa\ns3cret@host/db",
        "postgresql://user:pa?s3cret#s3cret@s3cret@host/db",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    assert "s3cret" not in shown("database_url", url)


def test_config_check_prints_every_setting_with_its_source_and_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 9000\ndatabase_url: postgresql+psycopg://user:s3cret@host/db\n")
    monkeypatch.setenv("MEZZOTINT_REPLICAS", "2")
    assert run(["config", "check", str(file)]) == 0
    told = capsys.readouterr().out
    assert "s3cret" not in told
    lines = {line.split()[0]: line for line in told.splitlines()}
    assert set(lines) == set(Settings.model_fields)
    assert lines["port"].endswith(f"{file}: port")
    assert lines["replicas"].endswith("MEZZOTINT_REPLICAS")
    assert lines["host"].endswith("default")
    file.write_text("port: high\n")
    assert run(["config", "check", str(file)]) == 2
    assert "a TCP port" in capsys.readouterr().err


def test_config_check_warns_of_files_that_may_be_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here.safetensors").touch()
    file = tmp_path / "settings.toml"
    file.write_text(
        f'loras = ["{tmp_path}/here.safetensors", "pencil=/no/pencil.safetensors"]\npreview_vae = "/no/vae"\n'
    )
    assert run(["config", "check", str(file)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: loras: /no/pencil.safetensors is not here; it must be where the engines run",
        "warning: preview_vae: /no/vae is not here; it must be where the engines run",
    ]


def test_the_reference_page_is_that_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema", "--markdown"]) == 0
    page = Path(__file__).parents[2] / "docs/settings.md"
    assert capsys.readouterr().out == page.read_text(), "run `make settings`"


def test_the_schema_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert set(properties) == set(Settings.model_fields)
    assert all("description" in each for each in properties.values())


def test_the_pages_key_is_never_shown() -> None:
    assert shown("ui_key", "mz-s3cret") == "'***'"
    assert shown("ui_key", "") == "''"


def test_a_replicas_engine_is_told_every_setting_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    taken = inspect.signature(Engine.load).parameters.keys() & Settings.model_fields.keys()
    monkeypatch.setattr(Engine, "load", lambda model, **options: given.update(options, model=model))
    settings = Settings(
        model="sdxl",
        loras=("a.safetensors",),
        controlnets=("b",),
        embeddings=("c.safetensors",),
        max_batch=3,
        threads=2,
        warm_up_sizes=((64, 64),),
    )
    replica._load(settings)
    assert {"loras", "controlnets", "embeddings", "max_batch"} <= taken
    assert {name: given[name] for name in taken} == {name: getattr(settings, name) for name in taken}
