"""One frozen object of settings, parsed once and passed in.

A setting comes from the first of these that has it: a flag of the command line, an environment variable
(`MEZZOTINT_` and its name in capitals), the settings file (`--config` or `MEZZOTINT_CONFIG`, one flat table),
the default. A name that is no setting stops the start, as does a value that is not accepted: the error names
the flag, the variable or the file's key, and what it takes.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from mezzotint.config_file import read_table
from mezzotint.errors import SettingInvalid
from mezzotint.tuning import Attention, Compile, Quantisation, Switch, Tuning

__all__ = [
    "OTHER_VARIABLES",
    "PREFIX",
    "SECRETS",
    "Settings",
    "Sourced",
    "find_settings",
    "load_settings",
    "shown",
]

PREFIX = "MEZZOTINT_"
CONFIG_VARIABLE = "MEZZOTINT_CONFIG"
# The home is read where it is used, for it holds for the library too, which takes no Settings; the others by
# the commands that ask a server.
OTHER_VARIABLES = frozenset({"MEZZOTINT_HOME", CONFIG_VARIABLE, "MEZZOTINT_API", "MEZZOTINT_API_KEY"})
# Flags that bear another name than their setting.
FLAGS = {
    "controlnets": "--controlnet",
    "embeddings": "--embedding",
    "ip_adapters": "--ip-adapter",
    "loras": "--lora",
    "ui": "--no-ui",
}
# They hold a password or a key, or may.
SECRETS = ("database_url", "ui_key")
# What each must look like; whether it is there is found out by whoever uses it.
FORMS = {
    "device": re.compile(r"auto|cpu|cuda(:\d+)?|neuron"),
    "database_url": re.compile(r"(sqlite(\+aiosqlite)?:///|postgres(ql(\+psycopg)?)?://|file:///).+"),
    "image_store": re.compile(r"s3://[^/]+(/.*)?|(?!.*://).*"),
}

# The description of each field is the accepted range, for the error and for the reference.
Port = Annotated[int, Field(ge=0, le=65535, description="a TCP port, 0…65535; 0 takes a free one")]


class Settings(BaseSettings):
    """How `mezzotint serve` runs. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field("demo", min_length=1, description="a model's name, folder or .safetensors file")
    host: str = Field("127.0.0.1", min_length=1, description="an address of this machine")
    port: Port = 8000
    replicas: int = Field(1, ge=1, le=1024, description="engine replicas, 1…1024")
    max_replicas: int | None = Field(
        None, ge=1, le=1024, description="engine replicas to scale to, from the setting replicas to 1024"
    )
    max_queue: int = Field(256, ge=1, le=2_000, description="waiting requests of a replica, 1…2000")
    max_backlog_s: float = Field(
        120.0, gt=0, le=86_400, description="seconds of work a replica takes before it refuses more, to 86400"
    )
    target_backlog_s: float = Field(
        # Of several pictures on a slow chip: with less, a burst of three adds replicas that never go.
        60.0,
        gt=0,
        le=3_600,
        validate_default=True,
        description="seconds of backlog a replica above which replicas are added, above 0 to 3600; with more "
        "max_replicas than replicas, below max_backlog_s",
    )
    scale_up_s: float = Field(
        5.0, ge=0, le=3_600, description="seconds a backlog must last before replicas are added, 0…3600"
    )
    scale_down_s: float = Field(
        300.0, ge=0, le=86_400, description="seconds without it before replicas are taken away, 0…86400"
    )
    gateways: int = Field(1, ge=1, le=64, description="gateway replicas, 1…64")
    device: str = Field("auto", min_length=1, description="auto, cpu, cuda, cuda:N or neuron")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto, fp32, bf16 or fp16")
    channels_last: Switch = Field("auto", description="auto (on for CUDA), on or off")
    fused_projections: Switch = Field("auto", description="auto (on for CUDA), on or off")
    attention: Attention = Field(
        "auto", description="auto (torch chooses), flash, cudnn, efficient or math; a CPU has auto and math"
    )
    compile: Compile = Field("none", description="none, blocks (the UNet's repeated ones) or unet")
    compile_cache: str = Field("", description="a folder for what was compiled; empty is torch's own")
    cuda_graphs: Switch = Field("auto", description="auto (on for CUDA), on or off; a CPU has none")
    quantisation: Quantisation = Field(
        "none", description="none, int8 or fp8 (CUDA alone); with the extra quantisation"
    )
    preview_vae: str = Field(
        "", description="a folder with an AutoencoderTiny for previews; empty is a linear map"
    )
    loras: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="LoRAs beside the model's own: PATH.safetensors or NAME=PATH.safetensors, with commas"
    )
    controlnets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="ControlNets beside the model's own, folders or files: PATH or NAME=PATH, with commas",
    )
    embeddings: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="textual inversions that prompts may name, as `loras` has its files"
    )
    ip_adapters: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="IP-Adapters beside the model's own, as `loras` has its files"
    )
    image_encoder: str = Field(
        "",
        description="a folder with the CLIPVisionModelWithProjection that IP-Adapters read by; empty "
        "is the model's own folder `image_encoder`",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of a replica, 1…1024; by default its cores, as Ray shares them out",
    )
    neuron_cores: int = Field(
        2, ge=1, le=32, description="NeuronCores of a replica with the device neuron, 1…32; a chip has 2"
    )
    stand_in: bool = Field(
        False, description="true or false; true with the device neuron alone: a CPU in the chip's place"
    )
    warm_up_sizes: Annotated[tuple[tuple[int, int], ...], NoDecode] = Field(
        (), description="sizes to draw before the first request, multiples of 8: 1024x1024,832x1216"
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="images in one step, from 1 to the device's 8 (CPU), 16 (CUDA) or what was compiled",
    )
    deadline_s: float = Field(600.0, gt=0, le=86_400, description="seconds until a request fails, to 86400")
    drain_s: float = Field(
        60.0, ge=0, le=3_600, description="seconds for running requests at shutdown, 0…3600"
    )
    object_store_mb: int = Field(100, ge=80, le=100_000, description="MB of Ray's object store, 80…100000")

    auth: Literal["auto", "on", "off"] = Field(
        "auto", description="auto (keys are required unless bound to loopback), on or off"
    )
    database_url: str = Field(
        "",
        description="sqlite+aiosqlite:///FILE, postgresql+psycopg://USER:PASSWORD@HOST/NAME, or file:///PATH "
        "of a file that holds such a URL; empty is a local file",
    )
    image_store: str = Field("", description="a folder or s3://bucket/prefix; empty is a local folder")
    public_url: str = Field(
        "",
        description="an http:// or https:// URL of this server as clients reach it, for the links it gives",
    )
    image_ttl_s: float = Field(
        3_600.0, gt=0, le=2_592_000, description="seconds a linked picture is kept, to 30 days"
    )
    job_ttl_s: float = Field(
        604_800.0,
        gt=0,
        le=31_536_000,
        description="seconds a finished job is kept, to a year; a bucket that forgets by itself must keep "
        "pictures 30 days longer",
    )
    max_jobs: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="jobs that wait or run, 1…10000000; each key's at most as many as are left",
    )
    max_body_mb: float = Field(64.0, gt=0, le=1_024, description="MB of a request's body, to 1024")
    model_aliases: bool = Field(
        True, description="true or false: whether OpenAI's names, such as gpt-image-1, mean the model"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web origins that may call this server, such as https://a.example,https://b.example"
    )
    otlp_endpoint: str = Field(
        "", description="an http:// or https:// URL that takes traces by OTLP/HTTP; empty for none"
    )
    ui: bool = Field(True, description="true or false: whether the page people draw with is started beside")
    ui_host: str = Field("127.0.0.1", min_length=1, description="an address of this machine, for the page")
    ui_port: Port = 7860
    ui_key: str = Field("", description="an API key that everyone on the page draws with; empty for none")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error"
    )
    log_format: Literal["json", "text"] = Field("json", description="json or text")

    def tuning(self) -> Tuning:
        """What of these buys speed."""
        return Tuning(**{field.name: getattr(self, field.name) for field in fields(Tuning)})

    @field_validator("*", mode="before")
    @classmethod
    def _read_boolean(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        if not isinstance(value, bool) or kind is bool:
            return value
        if {"on", "off"} <= set(get_args(kind)):
            # YAML 1.1 reads these two words as truth values.
            return "on" if value else "off"
        raise ValueError("a truth value")

    @field_validator("cors_origins", "loras", "controlnets", "embeddings", "ip_adapters", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(each.strip() for each in value.split(",") if each.strip())

    @field_validator("loras", "embeddings", "ip_adapters")
    @classmethod
    def _check_files(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not all(each.endswith(".safetensors") for each in files):
            raise ValueError("no safetensors file")
        return files

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and (not _is_url(origin) or urlsplit(origin).path):
                raise ValueError("no origin")
        return origins

    @field_validator("warm_up_sizes", mode="before")
    @classmethod
    def _read_sizes(cls, value: object) -> object:
        if isinstance(value, str):
            value = [size for size in value.split(",") if size.strip()]
        if not isinstance(value, list | tuple):
            return value
        return tuple(_read_size(size) if isinstance(size, str) else size for size in value)

    @field_validator("warm_up_sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if any(side < 8 or side % 8 for size in sizes for side in size):
            raise ValueError("no size")
        return sizes

    @field_validator("device", "database_url", "image_store")
    @classmethod
    def _check_form(cls, value: str, info: ValidationInfo) -> str:
        if value and not FORMS[str(info.field_name)].fullmatch(value):
            raise ValueError("another form")
        return value

    @field_validator("host", "ui_host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        # As the system's resolver is asked, which raises what is no OSError: an empty label, one too long.
        host.encode("idna")
        return host

    @field_validator("public_url", "otlp_endpoint")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not _is_url(url):
            raise ValueError("no URL")
        return url

    @field_validator("stand_in")
    @classmethod
    def _check_stand_in(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and info.data.get("device") != "neuron":
            raise ValueError("for another device")
        return wanted

    @field_validator("max_replicas")
    @classmethod
    def _check_range_of_replicas(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < info.data.get("replicas", 1):
            raise ValueError("fewer than replicas")
        return most

    @field_validator("target_backlog_s")
    @classmethod
    def _check_target(cls, target_s: float, info: ValidationInfo) -> float:
        # An engine that refuses all beyond its most would never reach the target, and no replica be added.
        is_scaled = (info.data.get("max_replicas") or 0) > info.data.get("replicas", 1)
        if is_scaled and target_s >= info.data.get("max_backlog_s", math.inf):
            raise ValueError("never reached")
        return target_s


def _read_size(size: str) -> tuple[str, ...]:
    return tuple(size.strip().lower().split("x"))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # `port` raises where it is no number.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@dataclass(frozen=True)
class Sourced:
    """The settings, and where each that is not the default comes from: a flag, a variable or the file."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(file: str | Path | None = None, **flags: Any) -> Settings:
    """The settings of `file`, the environment laid over it, and the flags that are not None over both.

    Raises:
        SettingInvalid: a file that cannot be read, a name that is no setting, a value that is not accepted.
    """
    return find_settings(file, **flags).settings


def find_settings(file: str | Path | None = None, **flags: Any) -> Sourced:
    """As `load_settings`, with where each value comes from. `file` goes before `MEZZOTINT_CONFIG`."""
    file = file or os.environ.get(CONFIG_VARIABLE) or None
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for value_of, origin_of in (_of_file(file), _of_environment(), _of_flags(flags)):
        values.update(value_of)
        origins.update(origin_of)
    try:
        return Sourced(Settings(**values), origins)
    except ValidationError as error:
        raise _as_setting_error(error, origins) from None


_Source = tuple[Mapping[str, Any], Mapping[str, str]]


def _of_flags(flags: Mapping[str, Any]) -> _Source:
    given = {name: value for name, value in flags.items() if value is not None}
    return given, {name: FLAGS.get(name, f"--{name.replace('_', '-')}") for name in given}


def _of_environment() -> _Source:
    ours = [name for name in os.environ if name.upper().startswith(PREFIX)]
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(ours):
        if name.upper() not in known:
            raise _unknown(name, name.upper(), known, name)
        twin = next((other for other in ours if other != name and other.upper() == name.upper()), None)
        if twin is not None:
            raise SettingInvalid(f"{name} and {twin} are both set; keep one of them", param=name)
    given = {
        name: value for name, value in EnvSettingsSource(Settings)().items() if name in Settings.model_fields
    }
    return given, {name: PREFIX + name.upper() for name in given}


def _of_file(file: str | Path | None) -> _Source:
    if file is None:
        return {}, {}
    given = read_table(Path(file))
    for key in given:
        if key not in Settings.model_fields:
            raise _unknown(f"{file}: {key}", str(key), set(Settings.model_fields), str(key))
    return given, {name: f"{file}: {name}" for name in given}


def _unknown(told: str, name: str, known: set[str], param: str) -> SettingInvalid:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return SettingInvalid(f"{told} is no setting{hint}; there are {', '.join(sorted(known))}", param=param)


def _as_setting_error(error: ValidationError, origins: Mapping[str, str]) -> SettingInvalid:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    source = origins.get(name, PREFIX + name.upper())
    field = Settings.model_fields.get(name)
    accepted = field.description if field is not None else "no value"
    return SettingInvalid(f"{source} takes {accepted}; not {shown(name, first['input'])}", param=source)


def shown(name: str, value: object) -> str:
    """A setting's value as it may be printed: without the password or token of an address."""
    if not isinstance(value, str):
        return repr(value)
    if name == "ui_key" and value:
        return "'***'"
    # A database's password may hold what ends an address's first part elsewhere.
    password = r"(?s)://.*@" if name == "database_url" else r"://[^/?#]*@"
    hidden = re.sub(password, "://***@", value)
    hidden = re.sub(r"([?&][^=&]*(?:password|token|key|secret)[^=&]*)=[^&]*", r"\1=***", hidden, flags=re.I)
    # Whatever is no address may still hold a password; of what it looks like nothing can be said.
    return "a text without ://" if name == "database_url" and "://" not in hidden and hidden else repr(hidden)
