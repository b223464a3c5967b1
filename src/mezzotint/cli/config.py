"""`mezzotint config`: what the settings are, and what would be used here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mezzotint.core import ADDED

if TYPE_CHECKING:
    from mezzotint.config import Settings

__all__ = ["app"]

app = typer.Typer(help="Check and document the settings.", no_args_is_help=True)

HEAD = """# Settings

<!-- Written by `make settings`, from `mezzotint config schema`; change `src/mezzotint/config.py` instead. -->

A setting comes from the first of these that has it:

1. a flag of `mezzotint serve` (`--port 9000`), for those that have one;
2. an environment variable, `MEZZOTINT_` and the name in capitals (`MEZZOTINT_PORT=9000`);
3. the settings file, TOML or YAML by its suffix, named by `--config PATH` or `MEZZOTINT_CONFIG`: one
   flat table (`port = 9000`, `port: 9000`);
4. the default.

A name that is no setting, a name given twice, a value that is not accepted: `mezzotint serve` stops with one
line that says where and what is accepted, exit code 2. `mezzotint config check [PATH]` does that much without
starting anything, and prints what would be used and where each value comes from. A list is a list in a file,
and one line with commas elsewhere. `MEZZOTINT_HOME` is no setting of the server alone: it is where models and
the default stores are kept.

| setting | default | accepted |
|---|---|---|
"""


@app.command("check")
def check(
    path: Annotated[
        Path | None, typer.Argument(help="A settings file. [default: $MEZZOTINT_CONFIG]", show_default=False)
    ] = None,
) -> None:
    """Check file and environment as `serve` would, and print what it would use, and from where."""
    from mezzotint.config import Settings, find_settings, shown

    found = find_settings(path)
    rows = [
        (name, shown(name, _plain(getattr(found.settings, name))), found.origins.get(name, "default"))
        for name in Settings.model_fields
    ]
    wide, wider = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, origin in rows:
        typer.echo(f"{name:<{wide}}  {value:<{wider}}  {origin}")
    for name, absent in _absent(found.settings):
        typer.echo(f"warning: {name}: {absent} is not here; it must be where the engines run", err=True)


def _absent(settings: Settings) -> list[tuple[str, str]]:
    """Settings and their paths that are not on this machine, which may not be the engines'."""
    named = [(name, each.partition("=")[2] or each) for name in ADDED for each in getattr(settings, name)]
    folders = ("preview_vae", "image_encoder")
    named += [(name, getattr(settings, name)) for name in folders if getattr(settings, name)]
    return [(name, path) for name, path in named if not Path(path).expanduser().exists()]


@app.command("schema")
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the reference page instead.")] = False,
) -> None:
    """Print the JSON schema of a settings file."""
    from mezzotint.config import Settings

    if markdown:
        typer.echo(reference(Settings), nl=False)
    else:
        typer.echo(json.dumps(Settings.model_json_schema(), indent=2, ensure_ascii=False))


def reference(settings: type[Settings]) -> str:
    """The page docs/settings.md."""
    rows = [
        f"| `{name}` | {_default(field.default)} | {field.description} |"
        for name, field in settings.model_fields.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _default(value: object) -> str:
    return "–" if value in (None, "", ()) else f"`{_plain(value)}`"


def _plain(value: object) -> object:
    """A value as a file would hold it."""
    if isinstance(value, bool):
        return str(value).lower()
    return list(value) if isinstance(value, tuple) else value
