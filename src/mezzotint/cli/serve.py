"""`mezzotint serve`: the HTTP server on Ray Serve."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mezzotint.cli.known import limits_of_installed
from mezzotint.cli.options import StandIn
from mezzotint.cli.page_beside import page_beside
from mezzotint.errors import SettingInvalid

if TYPE_CHECKING:
    from mezzotint.config import Settings

__all__ = ["serve"]

EXAMPLE = "/imagine?prompt=a+red+apple"


def serve(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="A model's name, folder or file. [default: demo]"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on; 0 takes a free one. [default: 8000]")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Engines, each with the model in memory. [default: 1]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or neuron. [default: auto]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="auto, fp32, bf16 or fp16. [default: auto]"),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="A LoRA that requests may name, or NAME=PATH; beside the model's own."
        ),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="A ControlNet that requests may name, or NAME=PATH; beside the model's own."
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A textual inversion that prompts may name, or NAME=PATH."),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="An IP-Adapter that requests may name, or NAME=PATH."),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="What IP-Adapters read pictures by. [default: the model's own]"),
    ] = None,
    stand_in: StandIn = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A settings file, TOML or YAML. [default: $MEZZOTINT_CONFIG]"),
    ] = None,
    no_ui: Annotated[bool, typer.Option("--no-ui", help="Without the page people draw with.")] = False,
) -> None:
    """Serve pictures over HTTP until Ctrl-C.

    Each setting is also an environment variable, MEZZOTINT_PORT for --port and so on, and a line of the
    settings file. A flag goes before the variable, the variable before the file.
    """
    from mezzotint.config import load_settings

    settings = load_settings(
        config,
        model=model,
        host=host,
        port=port,
        replicas=replicas,
        device=device,
        dtype=dtype,
        loras=tuple(lora) if lora else None,
        controlnets=tuple(controlnet) if controlnet else None,
        embeddings=tuple(embedding) if embedding else None,
        ip_adapters=tuple(ip_adapter) if ip_adapter else None,
        image_encoder=image_encoder,
        # Not given, it leaves the variable's and the file's alone.
        stand_in=stand_in or None,
        ui=False if no_ui else None,
    )
    _check_installed()
    from mezzotint.serve.local import StartInterrupted, running, stop_signals
    from mezzotint.serve.ports import choose_port
    from mezzotint.serve.telemetry.logs import set_up_logs

    # An unknown model is refused now, not after Ray has started.
    limits_of_installed(
        settings.model,
        settings.loras,
        settings.controlnets,
        settings.embeddings,
        settings.ip_adapters,
        settings.image_encoder,
    )
    settings = settings.model_copy(update={"port": choose_port(settings.host, settings.port)})
    _check_stores(settings)
    set_up_logs(settings, "serve")
    with stop_signals() as signals:
        print(f"starting {settings.model} on Ray Serve …", file=sys.stderr, flush=True)
        with (
            suppress(StartInterrupted),
            running(settings, signals),
            page_beside(settings, _announce(settings)),
        ):
            signals.get()
        print("stopped", file=sys.stderr, flush=True)
        # Where it was not closed in order, Ray would wait at the interpreter's end, for processes long gone.
        sys.stdout.flush()
        os._exit(0)


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None or find_spec("fastapi") is None:
        raise SettingInvalid("serving needs the [serve] extra: pip install 'mezzotint[serve]'")


def _check_stores(settings: Settings) -> None:
    from mezzotint.serve.access.access import requires_keys
    from mezzotint.serve.stores.checking import check_stores

    # A cluster's stores may be reached from the cluster alone; its gateways say what is wrong.
    if os.environ.get("RAY_ADDRESS"):
        return
    has_key = asyncio.run(check_stores(settings))
    if requires_keys(settings) and not has_key:
        print("there is no API key yet; make one with: mezzotint keys create NAME", file=sys.stderr)


def _announce(settings: Settings) -> str:
    """Says where it serves; the address from this machine."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = f"http://{host}:{settings.port}"
    reachable = f"http://127.0.0.1:{settings.port}" if settings.host in ("0.0.0.0", "::") else base
    print(f"ready: {base}")
    print(f"try:   {reachable}{EXAMPLE}", flush=True)
    return reachable
