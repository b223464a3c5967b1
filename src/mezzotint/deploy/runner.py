"""A call of a tool as the stages make it: a limit, a bounded number of tries, no secret in what it says.

Only what may be different the next time is tried again: throttling, a lost connection. In a dry run what
would change anything is printed instead.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mezzotint.deploy.pace import Pace
from mezzotint.deploy.processes import Ended, Launch
from mezzotint.deploy.redaction import Redaction

__all__ = ["TRIES", "CallFailed", "Runner"]

TRIES = 4
SHOWN_LINES = 15
MAX_LINE = 400

WORTH_ANOTHER_TRY = re.compile(
    r"Throttl|Rate exceeded|RequestLimitExceeded|TooManyRequests|SlowDown|RequestTimeout|ServiceUnavailable"
    r"|Service Unavailable|InternalFailure|connection reset|Connection was closed|Could not connect to the"
    r"|connection refused|TLS handshake timeout|i/o timeout|unexpected EOF|request timed out|read timeout"
    r"|Temporary failure in name resolution|no such host|too many requests|lost connection",
    re.IGNORECASE,
)


class CallFailed(Exception):
    """A tool did not do what it was asked to. `why` is one line, `lines` the end of what it said; `may_pass`,
    whether it may be different the next time.
    """

    def __init__(self, argv: Sequence[str], why: str, said: str, *, may_pass: bool = False) -> None:
        super().__init__(why)
        self.argv = tuple(argv)
        self.why = why
        self.said = said
        self.may_pass = may_pass

    @property
    def lines(self) -> list[str]:
        told = [line.rstrip()[:MAX_LINE] for line in self.said.splitlines() if line.strip()]
        return told[-SHOWN_LINES:]


class Runner:
    """print_only: nothing is called at all, as there is nothing yet that could be asked."""

    def __init__(
        self,
        launch: Launch,
        pace: Pace,
        redaction: Redaction,
        say: Callable[[str], None],
        *,
        log: Path | None = None,
        dry_run: bool = False,
    ) -> None:
        self._launch = launch
        self._pace = pace
        self._say = say
        self._log = log
        self.redaction = redaction
        self.dry_run = dry_run
        self.print_only = False

    def run(
        self,
        argv: Sequence[str],
        *,
        limit_s: float,
        changes: bool = False,
        tries: int = TRIES,
        stdin: str | None = None,
        log: Path | None = None,
        accepted: tuple[int, ...] = (0,),
        before_retry: Callable[[], None] | None = None,
    ) -> Ended:
        """What the tool answered. `stdin` is never shown. `before_retry` is called before each further try.

        Raises:
            CallFailed: it is missing, ended with a code that is not `accepted`, or not within `limit_s`.
        """
        if self.print_only or (self.dry_run and changes):
            self._say(f"  would run: {self.shown(argv)}")
            return Ended(0, "")
        for attempt in range(1, tries + 1):
            ended = self._once(argv, limit_s, stdin, log)
            if ended.code in accepted and not ended.timed_out:
                return ended
            # What a tool prints on its standard output is its answer, which may be a secret.
            said = self.redaction(ended.err if log is None else ended.out)
            may_pass = not ended.timed_out and WORTH_ANOTHER_TRY.search(said) is not None
            if attempt == tries or not may_pass:
                break
            wait_s = self._pace.retry_s * 2 ** (attempt - 1)
            self._say(f"  {argv[0]}: {_last(said)}; again in {wait_s:g} s")
            time.sleep(wait_s)
            if before_retry is not None:
                before_retry()
        if ended.timed_out:
            raise CallFailed(argv, f"did not end within {limit_s:g} s and was stopped", said)
        times = f" at the {attempt}th try" if attempt > 1 else ""
        how = f"exit code {ended.code}" if ended.code >= 0 else f"ended by signal {-ended.code}"
        raise CallFailed(argv, f"{how}{times}", said, may_pass=may_pass)

    def _once(self, argv: Sequence[str], limit_s: float, stdin: str | None, log: Path | None) -> Ended:
        began = time.monotonic()

        def progress(line: str) -> None:
            self._say(f"  {time.monotonic() - began:.0f} s: {self.redaction(line)[:MAX_LINE]}")

        try:
            ended = self._launch(argv, stdin=stdin, limit_s=limit_s, log=log, progress=progress)
        except FileNotFoundError:
            raise CallFailed(argv, f"{argv[0]} is not on the PATH", "") from None
        self._note(f"{time.monotonic() - began:.1f}s exit={ended.code} {self.shown(argv)}")
        return ended

    def shown(self, argv: Sequence[str]) -> str:
        """The call as one could type it."""
        return self.redaction(shlex.join(argv))

    def _note(self, line: str) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MAX_LINE] if lines else "no word"
