"""Settings: parsed once, from flags before variables, and refused by name."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from mezzotint.config import Settings, load_settings
from mezzotint.errors import SettingInvalid


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
        ("MEZZOTINT_COMPILE", "perhaps", "true or false"),
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
