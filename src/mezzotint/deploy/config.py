"""What a deployment is asked to be: one TOML file, and the flags over it. Wrong or unknown, it is refused."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mezzotint.config_file import read_table
from mezzotint.errors import SettingInvalid

__all__ = ["NOT_VARIABLES", "OVERLAYS", "QUOTAS", "DeployConfig", "read_config"]

CLUSTER = re.compile(r"(?=.{3,24}$)[a-z][a-z0-9]*(-[a-z0-9]+)*")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
ACCOUNT = re.compile(r"\d{12}")
CERTIFICATE = re.compile(r"arn:[a-z-]+:acm:[a-z0-9-]+:\d{12}:certificate/.+")
IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*@sha256:[0-9a-f]{64}")
SCHEMES = ("internal", "internet-facing")
# Said elsewhere in the file; said again as variables of terraform's, they could differ.
NOT_VARIABLES = (
    "cluster_name",
    "region",
    "account_id",
    "accelerator",
    "lb_scheme",
    "lb_cidrs",
    "certificate_arn",
    "model_uri",
)
BACKEND = ("bucket", "key_prefix", "region", "kms_key_id")


IMAGES = ("mezzotint/cpu", "mezzotint/cuda", "mezzotint/neuron", "mezzotint/ui")
# Each with its engines' instances, unless said otherwise.
OVERLAYS = {"gpu": "g6e.xlarge", "inf2": "inf2.8xlarge", "trn1": "trn1.2xlarge"}
# By what an instance type begins with: AWS's code and name of the limit on that family's vCPUs, on demand.
QUOTAS = {
    "g": ("L-DB2E81BA", "G and VT"),
    "p": ("L-417A185B", "P"),
    "inf": ("L-1945791B", "Inf"),
    "trn": ("L-2C3B7624", "Trn"),
}


@dataclass(frozen=True)
class DeployConfig:
    """url: where the service is looked for by `verify`; empty: the load balancer's own name, by HTTP.
    component: a folder with a kustomize component that is laid over the overlay; empty for none.
    """

    cluster: str = "mezzotint"
    region: str = ""
    account: str = ""
    overlay: str = ""
    component: str = ""
    instance_type: str = ""
    model: str = ""
    url: str = ""
    scheme: str = "internal"
    cidrs: tuple[str, ...] = ()
    certificate: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    terraform: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, str] = field(default_factory=dict)


# Where each key stands in the file; what is in no table stands at its top.
TABLES = {"load_balancer": ("scheme", "cidrs", "certificate", "url")}
FREE_TABLES = ("images", "terraform", "backend")
TOP = tuple(
    each.name
    for each in fields(DeployConfig)
    if each.name not in FREE_TABLES and not any(each.name in keys for keys in TABLES.values())
)


def read_config(path: Path | None, **flags: Any) -> DeployConfig:
    """The file, with the flags that are not `None` over it. `images` of the flags go over the file's.

    Raises:
        SettingInvalid: a name or a value is not accepted; says which is.
    """
    given = {} if path is None else _flattened(path)
    images = {**given.get("images", {}), **(flags.pop("images", None) or {})}
    given |= {name: value for name, value in flags.items() if value is not None}
    given["region"] = given.get("region") or os.environ.get("AWS_REGION") or ""
    given["cidrs"] = _listed("cidrs", given.get("cidrs", ()))
    return _checked(replace(DeployConfig(**given), images=images))


def _listed(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise SettingInvalid(f"{name} takes a list; not {value!r}", param=name)
    return tuple(value)


def _flattened(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".toml":
        raise SettingInvalid(f"{path}: a deployment's file ends in .toml", param="config")
    table = read_table(path)
    accepted = (*TOP, *TABLES, *FREE_TABLES)
    _refuse_unknown(path, "", table, accepted)
    flat: dict[str, Any] = {name: table[name] for name in TOP if name in table}
    if isinstance(component := flat.get("component"), str) and component:
        # Whoever runs the command from elsewhere means the same folder.
        flat["component"] = str(path.parent / Path(component).expanduser())
    for name, keys in TABLES.items():
        inner = _table(path, name, table.get(name, {}))
        _refuse_unknown(path, name, inner, keys)
        flat |= inner
    for name in FREE_TABLES:
        flat[name] = _table(path, name, table.get(name, {}))
    return flat


def _table(path: Path, name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingInvalid(f"{path}: {name} takes a table, [{name}]", param=name)
    return value


def _refuse_unknown(path: Path, table: str, given: Mapping[str, Any], accepted: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in accepted]
    if unknown:
        where = f" in [{table}]" if table else ""
        raise SettingInvalid(
            f"{path}: no setting {', '.join(unknown)}{where}; there are {', '.join(accepted)}",
            param=unknown[0],
        )


def _checked(config: DeployConfig) -> DeployConfig:
    for name in (*TOP, "scheme", "certificate", "url"):
        _require(isinstance(getattr(config, name), str), name, "text", getattr(config, name))
    _require(
        bool(CLUSTER.fullmatch(config.cluster)),
        "cluster",
        "3 to 24 of a-z, 0-9 and single hyphens",
        config.cluster,
    )
    if config.region:
        _require(bool(REGION.fullmatch(config.region)), "region", "one such as us-west-2", config.region)
    if config.account:
        _require(bool(ACCOUNT.fullmatch(config.account)), "account", "12 digits in quotes", config.account)
    if config.overlay:
        _require(config.overlay in OVERLAYS, "overlay", " or ".join(OVERLAYS), config.overlay)
    _check_load_balancer(config)
    for name, image in config.images.items():
        _require(name in IMAGES, "images", f"the names {', '.join(IMAGES)}", name)
        whole = isinstance(image, str) and IMAGE.fullmatch(image)
        _require(bool(whole), f"images.{name}", "a reference by digest, REGISTRY/NAME@sha256:…", image)
    for name in config.terraform:
        _require(name not in NOT_VARIABLES, "terraform", "variables that have no setting of their own", name)
    for name, value in config.backend.items():
        _require(name in BACKEND and isinstance(value, str), "backend", f"texts: {', '.join(BACKEND)}", name)
    return config


def _check_load_balancer(config: DeployConfig) -> None:
    _require(config.scheme in SCHEMES, "scheme", " or ".join(SCHEMES), config.scheme)
    for cidr in config.cidrs:
        _require(_is_network(cidr), "cidrs", "networks such as 203.0.113.7/32, not everybody", cidr)
    if config.scheme == "internet-facing":
        _require(bool(config.cidrs), "cidrs", "who may reach an internet-facing load balancer", "nobody")
    if config.certificate:
        _require(
            bool(CERTIFICATE.fullmatch(config.certificate)),
            "certificate",
            "an ARN of ACM",
            config.certificate,
        )
        # The load balancer's own name is not the certificate's.
        _require(config.url.startswith("https://"), "url", "https://… of the certificate's name", config.url)
        # A load balancer takes those of its own region alone, and without one never gets an address.
        own = not config.region or config.certificate.split(":")[3] == config.region
        _require(own, "certificate", f"one of the region, {config.region}", config.certificate)
    if config.url:
        _require(_is_address(config.url), "url", "an address such as https://draw.example.com", config.url)


def _is_network(cidr: object) -> bool:
    """One with its prefix's length, which terraform wants too, and not everybody, however that is written."""
    try:
        network = ipaddress.ip_network(cidr if isinstance(cidr, str) else "")
    except ValueError:
        return False
    return "/" in str(cidr) and network.prefixlen > 0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # The port is read when it is asked for, and may be none.
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(whole) and url.isascii() and url.isprintable() and " " not in url


def _require(fine: bool, name: str, accepted: str, value: object) -> None:
    if not fine:
        raise SettingInvalid(f"{name} takes {accepted}; not {value!r}", param=name)
