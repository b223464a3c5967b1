"""`mezzotint models`: what can be drawn with, where it lies, and whether its files are whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.options import Json
from mezzotint.errors import InvalidRequest, ModelInvalid

__all__ = ["app"]

MEGABYTE = 10**6

app = typer.Typer(help="The models: list, show, fetch and check them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, folder or .safetensors file.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every model that has a name, and whether it is on this machine."""
    from mezzotint.models.locations import list_models

    models = list_models()
    if as_json:
        print(json.dumps([asdict(model) for model in models], indent=2, default=str))
        return
    from rich import print as rich_print
    from rich.table import Table

    table = Table("name", "what it is", "license", "here", box=None, header_style="bold")
    for model in models:
        here = f"{model.bytes / MEGABYTE:,.0f} MB" if model.installed else "no"
        table.add_row(model.name, model.title, model.license, here)
    rich_print(table)


@app.command("show")
def show(name: Name, as_json: Json = False) -> None:
    """What there is to know of a model: its limits, defaults and samplers."""
    from mezzotint.models.locations import describe

    described = describe(name)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    for key, value in described.items():
        print(f"{key}: {_readable(value)}")


def _readable(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "".join(f"\n  {key}: {_readable(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_readable(inner) for inner in value)
    return str(value)


@app.command("path")
def path(name: Name) -> None:
    """Where a model lies on this machine."""
    from mezzotint.models.locations import find_model

    print(find_model(name))


@app.command("pull")
def pull(
    name: Name,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where a model from s3://… shall lie.")
    ] = None,
) -> None:
    """Fetch a model's pinned revision, or a set of files from s3://…, and check every file of it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from mezzotint.models.artefact_store import download, is_remote, pull_artefact
    from mezzotint.models.pulling import pull as pull_model

    if is_remote(name):
        print(pull_artefact(name) if to is None else download(name, to.absolute()))
        return
    if to is not None:
        raise InvalidRequest(
            "--to is for a model from s3://…; the others have places of their own", param="to"
        )
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        print(pull_model(name, lambda done, total: bar.update(task, completed=done, total=total)))


@app.command("push")
def push(
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/prefix.")],
) -> None:
    """Put a model's files into a bucket, with their manifest, for `pull` to fetch where it is served."""
    from mezzotint.models.artefact_store import is_remote, upload
    from mezzotint.models.catalogue import CATALOGUE
    from mezzotint.models.locations import check as check_model

    if not is_remote(url):
        raise InvalidRequest(f"a model is put into s3://bucket/prefix; not into {url!r}", param="url")
    entry = CATALOGUE.get(name)
    if entry is not None and entry.base is not None:
        raise InvalidRequest(
            f"{name} is a UNet alone, which {entry.base} completes; only whole models are put into a bucket",
            param="name",
        )
    report = check_model(name)
    if not report.verified:
        raise ModelInvalid(
            f"{name} has no manifest to hold its files to: it must be a pulled model, or graphs that "
            "mezzotint compile made or adopted"
        )
    upload(report.path, url)
    print(f"{url}: {report.files} files, {report.bytes / MEGABYTE:,.1f} MB")


@app.command("check")
def check(name: Name) -> None:
    """Hold a model's files to its manifest."""
    from mezzotint.models.locations import check as check_model

    report = check_model(name)
    size = f"{report.files} files, {report.bytes / MEGABYTE:,.1f} MB"
    if report.verified:
        print(f"{report.name} is whole: {size}, each as the manifest has it")
    else:
        print(f"{report.name} has no manifest to hold it to: {size}, none of a refused kind")
