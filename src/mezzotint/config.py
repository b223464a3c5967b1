"""One frozen object of settings, parsed once and passed in.

Each setting is an environment variable, `MEZZOTINT_` and its name in capitals; a flag of the command line
goes before it. A variable of that prefix that is no setting is a mistake and stops the start, as does a
value that is not accepted: the error names the variable and what it takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mezzotint.errors import SettingInvalid

__all__ = ["OTHER_VARIABLES", "PREFIX", "Settings", "load_settings"]

PREFIX = "MEZZOTINT_"
# Read where they are used, for they hold for the library too, which takes no Settings.
OTHER_VARIABLES = frozenset({"MEZZOTINT_HOME"})

# The description of each field is the accepted range, for the error and for the reference.
Port = Annotated[int, Field(ge=0, le=65535, description="a TCP port, 0…65535; 0 takes a free one")]


class Settings(BaseSettings):
    """How `mezzotint serve` runs. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field("demo", min_length=1, description="a model's name, folder or .safetensors file")
    host: str = Field("127.0.0.1", min_length=1, description="an address of this machine")
    port: Port = 8000
    replicas: int = Field(1, ge=1, le=1024, description="engine replicas, 1…1024")
    device: str = Field("auto", min_length=1, description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto, fp32, bf16 or fp16")
    compile: bool = Field(False, description="true or false")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of a replica, 1…1024")
    max_width: int | None = Field(None, ge=1, le=1024, description="images in one step, 1…1024")
    max_queue: int = Field(256, ge=1, le=2_000, description="waiting requests of a replica, 1…2000")
    deadline_s: float = Field(600.0, gt=0, le=86_400, description="seconds until a request fails, to 86400")
    drain_s: float = Field(
        60.0, ge=0, le=3_600, description="seconds for running requests at shutdown, 0…3600"
    )
    object_store_mb: int = Field(100, ge=80, le=100_000, description="MB of Ray's object store, 80…100000")


def load_settings(**flags: Any) -> Settings:
    """The settings of the environment, with the flags that are not None laid over it.

    Raises:
        SettingInvalid: a variable that is no setting, or a value that is not accepted.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    ours = [name for name in os.environ if name.upper().startswith(PREFIX)]
    unknown = sorted(name for name in ours if name.upper() not in known)
    if unknown:
        accepted = ", ".join(sorted(known))
        raise SettingInvalid(f"{unknown[0]} is no setting; there are {accepted}", param=unknown[0])
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _as_setting_error(error, given) from None


def _as_setting_error(error: ValidationError, flags: Mapping[str, Any]) -> SettingInvalid:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    source = f"--{name.replace('_', '-')}" if name in flags else PREFIX + name.upper()
    field = Settings.model_fields.get(name)
    accepted = field.description if field is not None else "no value"
    return SettingInvalid(f"{source} takes {accepted}; not {first['input']!r}", param=source)
