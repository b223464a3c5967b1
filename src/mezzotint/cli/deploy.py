"""`mezzotint deploy`: bring the service up in an AWS account, look at it, draw through it, take it down."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli.options import Json
from mezzotint.errors import MezzotintError, SettingInvalid

if TYPE_CHECKING:
    from mezzotint.deploy.deployment import Deployment

__all__ = ["app"]

app = typer.Typer(help="A cluster on AWS: up, status, verify, down.", no_args_is_help=True)

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="What is deployed, as TOML; see the docs.")
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="The cluster's name. [default: mezzotint]")
]
Region = Annotated[
    str | None, typer.Option("--region", metavar="REGION", help="AWS's region. [default: $AWS_REGION]")
]
Account = Annotated[
    str | None, typer.Option("--account", metavar="ID", help="Refuse to work in any other account.")
]
Source = Annotated[
    Path | None, typer.Option("--source", metavar="PATH", help="A checkout of Mezzotint. [default: this one]")
]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Where it is reached. [default: the load balancer]")
]
Every = Annotated[float, typer.Option(min=0.01, max=300, help="Seconds between two looks while waiting.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be called, and change nothing.")]


@app.command("up")
def up(
    config: Config = None,
    cluster: Cluster = None,
    region: Region = None,
    account: Account = None,
    overlay: Annotated[
        str | None, typer.Option(metavar="NAME", help="What draws: gpu, inf2 or trn1.")
    ] = None,
    instance_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The engines' instances, to ask AWS for.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="URI", help="s3://…, as models push or compile left it.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=REFERENCE", help="An image by digest; may be repeated."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="The load balancer: internal or internet-facing.")
    ] = None,
    cidr: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Who may reach it; may be repeated.")
    ] = None,
    certificate: Annotated[str | None, typer.Option(metavar="ARN", help="ACM's, for HTTPS.")] = None,
    url: Url = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop behind this stage.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask terraform even where nothing changed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply without asking.")] = False,
    dry_run: DryRun = False,
    source: Source = None,
    every: Every = 10.0,
) -> None:
    """Make everything, or go on where the last run stopped."""
    from mezzotint.deploy.up import bring_up

    flags = {
        "cluster": cluster,
        "region": region,
        "account": account,
        "overlay": overlay,
        "instance_type": instance_type,
        "model": model,
        "scheme": scheme,
        "cidrs": tuple(cidr) if cidr else None,
        "certificate": certificate,
        "url": url,
        "images": _images(image),
    }
    with _deployment(config, flags, source, every, yes=yes, dry_run=dry_run) as d:
        bring_up(d, until, again)
        _say("dry run: nothing was changed" if dry_run else f"done: {d.cluster} is up to {until or 'verify'}")


@app.command("status")
def status(
    config: Config = None,
    cluster: Cluster = None,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """What was done, and what runs now."""
    from mezzotint.deploy.status import as_text, status_of

    flags = {"cluster": cluster, "region": region}
    with _deployment(config, flags, None, 1.0, reads_source=False) as d:
        found = status_of(d)
        typer.echo(json.dumps(found, indent=2) if as_json else as_text(found))


@app.command("verify")
def verify(
    config: Config = None,
    cluster: Cluster = None,
    region: Region = None,
    url: Url = None,
    every: Every = 10.0,
    as_json: Json = False,
) -> None:
    """Draw a picture through the load balancer, and see what is not to be reached.

    The key is MEZZOTINT_API_KEY, or else the page's own.
    """
    from mezzotint.deploy.up import run_stage, verified_text, verify_service

    flags = {"cluster": cluster, "region": region, "url": url}
    with _deployment(config, flags, None, every, reads_source=False) as d:

        def work() -> None:
            if not (d.config.url and os.environ.get("MEZZOTINT_API_KEY")):
                d.check_account()
                d.enter_cluster()
            typer.echo(verified_text(verify_service(d), as_json))

        run_stage(d, "verify", work)


@app.command("down")
def down(
    config: Config = None,
    cluster: Cluster = None,
    region: Region = None,
    account: Account = None,
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="The buckets' objects and the database's snapshot too.")
    ] = False,
    skip_kubernetes: Annotated[
        bool,
        typer.Option("--skip-kubernetes", help="Ask the cluster for nothing: it does not answer any more."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: DryRun = False,
    source: Source = None,
    every: Every = 10.0,
) -> None:
    """Remove everything, and show that nothing billable is left."""
    from mezzotint.deploy.down import take_down

    flags = {"cluster": cluster, "region": region, "account": account}
    with _deployment(config, flags, source, every, yes=yes, dry_run=dry_run) as d:
        take_down(d, delete_data=delete_data, skip_kubernetes=skip_kubernetes)
        _say("dry run: nothing was changed" if dry_run else f"done: {d.cluster} is removed")


@contextmanager
def _deployment(
    config: Path | None,
    flags: dict[str, Any],
    source: Path | None,
    every: float,
    *,
    yes: bool = False,
    dry_run: bool = False,
    reads_source: bool = True,
) -> Iterator[Deployment]:
    """What a command works with; says how to go on when it stops."""
    from mezzotint.deploy.checkout import find_source
    from mezzotint.deploy.config import read_config
    from mezzotint.deploy.deployment import Answers, Deployment, environment_of
    from mezzotint.deploy.folder import Folder, folder_of
    from mezzotint.deploy.interrupts import Interrupts
    from mezzotint.deploy.pace import Pace
    from mezzotint.deploy.processes import Processes
    from mezzotint.deploy.redaction import Redaction
    from mezzotint.deploy.runner import Runner

    asked = read_config(config, **flags)
    kept = Folder(folder_of(asked.cluster))
    if not asked.region:
        asked = read_config(config, **{**flags, "region": kept.state.get("region")})
    if not asked.region:
        raise SettingInvalid("region is not given: --region, AWS_REGION, or the file", param="region")
    found = find_source(source) if reads_source else kept.source
    pace, redaction = Pace(every_s=every), Redaction()
    environment = environment_of(asked.region, os.environ)
    ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
    # Those that only look do not wait for one that works, nor change what it reads.
    looks = dry_run or not reads_source
    with Interrupts() as interrupts, Folder.for_trial(kept.path) if looks else kept.locked() as copy:
        folder = copy or kept
        launch = Processes(interrupts, environment, grace_s=pace.grace_s, progress_s=pace.progress_s)
        runner = Runner(launch, pace, redaction, _say, log=folder.logs / "deploy.log", dry_run=dry_run)
        answers = Answers(yes=yes, ask=ask)
        try:
            yield Deployment(asked, found, folder, runner, pace, lambda line: _say(redaction(line)), answers)
        except (MezzotintError, KeyboardInterrupt) as error:
            _say_how_to_go_on(error, redaction)
            raise


def _say_how_to_go_on(error: BaseException, redaction: Any) -> None:
    if isinstance(error, MezzotintError) and "\n" in error.message:
        # The one line that every error becomes would not show which line is which.
        _say(redaction(error.message))
        error.message = error.message.partition("\n")[0].rstrip(":")
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
    if not isinstance(error, SettingInvalid):
        _say(f"to go on: {shlex.join(['mezzotint', *sys.argv[1:]])}")


def _images(given: list[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in given or []]
    if any(not equals for _, equals, _ in pairs):
        raise SettingInvalid("--image takes NAME=REFERENCE", param="--image")
    return {name: reference for name, _, reference in pairs}


def _ask(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
