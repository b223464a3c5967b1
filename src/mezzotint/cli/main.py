"""The commands' common root, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from mezzotint import __version__
from mezzotint.cli import compile, config, deploy, doctor, draw, keys, models, serve, top, ui
from mezzotint.errors import MezzotintError, ModelInvalid, OutputUnwritable, SettingInvalid, os_error_text

__all__ = ["app", "main"]

BAD_INPUT = 2
FAILURE = 1
INTERRUPTED = 130

# Of the errors that a server answers with 5xx, those that whoever types the command can mend.
CORRECTABLE = (ModelInvalid, OutputUnwritable, SettingInvalid)

app = typer.Typer(
    name="mezzotint",
    help="Draw with Stable Diffusion XL, here or as a server.",
    add_completion=False,
    # In the other mode `[default: demo]` is a tag, and is not shown.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("draw")(draw.draw)
app.command("serve")(serve.serve)
app.command("compile")(compile.compile_)
app.command("ui")(ui.ui)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
app.add_typer(deploy.app, name="deploy")
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
if find_spec("mezzotint.bench.cli") is not None:
    from mezzotint.bench.cli import app as bench_app

    app.add_typer(bench_app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mezzotint {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version_wanted: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # What the terminal's encoding lacks is written as an escape, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        result = app(arguments, standalone_mode=False, prog_name="mezzotint")
        # Whether all of it could be written is found out here, where it can still be told.
        print(end="", flush=True)
    except MezzotintError as error:
        return _complain(error.message, _exit_code(error))
    except TyperException as error:
        return _complain(error.format_message(), error.exit_code)
    except (Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _drop_output()
        return FAILURE
    except OSError as error:
        _drop_output()
        # The last resort: of what goes wrong with a file or the network, most has an error of its own.
        reason = os_error_text(error)
        return _complain(reason if error.filename is None else f"{error.filename}: {reason}", FAILURE)
    return result if isinstance(result, int) else 0


def _drop_output() -> None:
    # What could not be written may still be kept; the interpreter's last flush must not complain again.
    try:
        print(end="", flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


def _exit_code(error: MezzotintError) -> int:
    correctable = error.status < 500 or isinstance(error, CORRECTABLE)
    return BAD_INPUT if correctable else FAILURE


def _complain(message: str, code: int) -> int:
    # One line, whatever the message holds; none where the help has said it all.
    if message:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
