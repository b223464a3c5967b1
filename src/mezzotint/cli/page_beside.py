"""The page people draw with, as a process beside `mezzotint serve`. It ends with it, and never ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mezzotint.cli.ui import EXTRA_MISSING, is_installed

if TYPE_CHECKING:
    from mezzotint.config import Settings

__all__ = ["page_beside"]

COMMAND = (sys.executable, "-m", "mezzotint", "ui", "--until-stdin-ends")
STOP_SECONDS = 5.0


@contextmanager
def page_beside(settings: Settings, api: str) -> Iterator[None]:
    """Within, the page is served, unless `ui` is off. It prints its address, or why there is none."""
    if not settings.ui:
        yield
        return
    if not is_installed():
        print(f"no page: {EXTRA_MISSING}", file=sys.stderr)
        yield
        return
    where = ("--api", api, "--host", settings.ui_host, "--port", str(settings.ui_port))
    # The key goes by the environment: a command line is everybody's to read.
    environment = {name: value for name, value in os.environ.items() if name != "MEZZOTINT_API_KEY"}
    if settings.ui_key:
        environment["MEZZOTINT_API_KEY"] = settings.ui_key
    # It reads until this process has gone, however it goes: a pipe's other end outlives nobody.
    page = subprocess.Popen((*COMMAND, *where), stdin=subprocess.PIPE, env=environment)
    try:
        yield
    finally:
        _end(page)


def _end(page: subprocess.Popen[bytes]) -> None:
    assert page.stdin is not None
    with suppress(BrokenPipeError):
        page.stdin.close()
    try:
        page.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        page.kill()
        page.wait()
