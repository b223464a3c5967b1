"""The command line; `main` has its commands.

A failure is one line, `error: …`, on stderr; the exit code is 2 for what the caller can correct and 1 for
what the machine could not do. Commands import what they need when they run, so that `--help` stays quick.
"""

from __future__ import annotations

from mezzotint.cli.main import app, main

__all__ = ["app", "main"]
