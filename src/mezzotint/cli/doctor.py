"""`mezzotint doctor`: what this machine can do, and how to mend what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from mezzotint.cli.options import Json

__all__ = ["doctor"]

STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do; exit code 1 when something essential is wrong."""
    from mezzotint.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("", "part", "found", "what to do", box=None, header_style="bold")
        for finding in findings:
            style = STYLES[finding.state]
            told = map(escape, (finding.part, finding.found, finding.fix))
            table.add_row(f"[{style}]{finding.state}[/]", *told)
        Console().print(table)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)
