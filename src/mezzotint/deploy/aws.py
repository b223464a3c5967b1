"""The aws command: JSON out, or `None` for what is not there."""

from __future__ import annotations

import json
import re
from typing import Any

from mezzotint.deploy.pace import Pace
from mezzotint.deploy.runner import TRIES, CallFailed, Runner

__all__ = ["Aws", "error_code", "parsed"]

ERROR = re.compile(r"An error occurred \((\w[\w.]*)\)")


class Aws:
    def __init__(self, runner: Runner, pace: Pace, region: str) -> None:
        self._runner = runner
        self._pace = pace
        self.region = region

    def __call__(
        self,
        *arguments: str,
        changes: bool = False,
        missing: tuple[str, ...] = (),
        tries: int = TRIES,
    ) -> Any:
        """What `aws ARGUMENTS` answers. Nothing, or a dry run, is an empty table.

        missing: codes of errors that mean that the thing is not there, which is `None`.

        Raises:
            CallFailed: any other error.
        """
        argv = ["aws", *arguments, "--region", self.region, "--output", "json"]
        limit_s = self._pace.limit("change" if changes else "read")
        try:
            ended = self._runner.run(argv, limit_s=limit_s, changes=changes, tries=tries)
        except CallFailed as error:
            if error_code(error) in missing:
                return None
            raise
        return parsed(argv, ended.out)

    def update_kubeconfig(self, cluster: str, path: str) -> None:
        """Of the aws command itself, not of a service: it answers with a sentence."""
        name = ("--name", cluster, "--kubeconfig", path, "--region", self.region)
        self._runner.run(["aws", "eks", "update-kubeconfig", *name], limit_s=self._pace.limit("read"))


def error_code(error: CallFailed) -> str:
    """AWS's own name of what went wrong."""
    found = ERROR.search(error.said)
    return found[1] if found else ""


def parsed(argv: list[str], text: str) -> Any:
    """Raises CallFailed: it is no JSON. What it was is not repeated: it may be a secret."""
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except ValueError:
        raise CallFailed(argv, "answered something that is no JSON", "") from None
