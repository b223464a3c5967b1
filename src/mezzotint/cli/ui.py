"""`mezzotint ui`: the page people draw with, in front of a service that runs here or elsewhere."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from mezzotint.errors import SettingInvalid, os_error_text

__all__ = ["EXTRA_MISSING", "is_installed", "ui"]

EXTRA_MISSING = "the page needs the [ui] extra: pip install 'mezzotint[ui]'"


def ui(
    api: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The service. [default: $MEZZOTINT_API, or http://127.0.0.1:8000]"),
    ] = None,
    key: Annotated[
        str, typer.Option(envvar="MEZZOTINT_API_KEY", help="An API key; everyone on the page draws with it.")
    ] = "",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 takes a free one.")
    ] = 7860,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
) -> None:
    """Serve the page people draw with until Ctrl-C.

    SERVICE_NAME and MODEL_ENDPOINT, the variables of earlier pages, name the service too.
    """
    if not is_installed():
        raise SettingInvalid(EXTRA_MISSING)
    from mezzotint.ui.settings import UiSettings, service_address

    # From a file, a key ends with a line.
    settings = UiSettings(service_address(api, os.environ), key.strip())
    listener = _listen(host, port)
    from mezzotint.ui.running import run_page

    run_page(settings, listener, until_stdin_ends=until_stdin_ends)


def is_installed() -> bool:
    return find_spec("gradio") is not None and find_spec("httpx") is not None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        # The second, of a name with an empty label or one too long.
        raise SettingInvalid(
            f"cannot listen on {host} port {port}: {os_error_text(error)}; choose another with --port, "
            "or with MEZZOTINT_UI_PORT for the page beside a server",
            param="port",
        ) from None
