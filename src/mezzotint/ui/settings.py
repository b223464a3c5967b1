"""Where the service is, and with which key it is asked. Knows nothing of it beyond that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from mezzotint.errors import SettingInvalid

__all__ = ["DEFAULT_API", "UiSettings", "service_address"]

DEFAULT_API = "http://127.0.0.1:8000"
API_VARIABLE = "MEZZOTINT_API"
# What the container of an earlier page took: the service's address, and the route it asked.
OLD_VARIABLES = ("SERVICE_NAME", "MODEL_ENDPOINT")


@dataclass(frozen=True)
class UiSettings:
    """api: the service's address. key: sent with every request to it, and never to a browser.

    Raises:
        SettingInvalid: the key cannot be sent.
    """

    api: str = DEFAULT_API
    key: str = ""

    def __post_init__(self) -> None:
        # Such as the ellipsis of an example: no header holds it.
        if not self.key.isascii() or not self.key.isprintable():
            raise SettingInvalid("the page's key takes letters, digits, - and _", param="key")


def service_address(given: str | None, environment: Mapping[str, str]) -> str:
    """The service's address, without a slash at its end.

    The first of these that is there: `given`, `MEZZOTINT_API`, `SERVICE_NAME` and `MODEL_ENDPOINT`, the
    default. Either of the two old variables may hold the address; a route that `MODEL_ENDPOINT` names is left
    aside.

    Raises:
        SettingInvalid: it is no http:// or https:// URL, or it carries a password.
    """
    if given:
        return _checked(given, "--api")
    if environment.get(API_VARIABLE):
        return _checked(environment[API_VARIABLE], API_VARIABLE)
    service, endpoint = (environment.get(name, "").strip() for name in OLD_VARIABLES)
    if "://" in endpoint:
        return _checked(_without_route(endpoint), "MODEL_ENDPOINT")
    if service:
        return _checked(service if "://" in service else f"http://{service}", "SERVICE_NAME")
    if endpoint and not endpoint.startswith("/"):
        return _checked(_without_route(f"http://{endpoint}"), "MODEL_ENDPOINT")
    return DEFAULT_API


def _without_route(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/imagine"), "", ""))


def _checked(url: str, source: str) -> str:
    try:
        parts = urlsplit(url.strip())
        # `port` raises where it is no number.
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingInvalid(f"{source} takes the service's http:// or https:// URL", param=source)
    return url.strip().rstrip("/")
