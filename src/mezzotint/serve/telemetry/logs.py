"""Log lines on stderr: one JSON object each, or plain text, with the id of the request they belong to.

An exception is logged by its type and where it came from. Its message may repeat what a client sent, a prompt
among it, and stays out.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from mezzotint.config import Settings
from mezzotint.serve.telemetry.record import current

__all__ = ["JsonLines", "TextLines", "set_up_logs"]

Facts = dict[str, Any]


def set_up_logs(settings: Settings, process: str, replica: str = "") -> None:
    """Let everything that this package logs go to stderr, as the settings say."""
    # Not `sys.stderr`, which Ray Serve turns into log records of its own level and form.
    handler = logging.StreamHandler(sys.__stderr__)
    formatter = JsonLines if settings.log_format == "json" else TextLines
    handler.setFormatter(formatter(process, replica))
    logger = logging.getLogger("mezzotint")
    logger.handlers[:] = [handler]
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False


class JsonLines(logging.Formatter):
    def __init__(self, process: str, replica: str = "") -> None:
        super().__init__()
        self._where = {"process": process, "replica": replica}

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({**facts_of(record), **self._where}, default=str)


class TextLines(logging.Formatter):
    def __init__(self, process: str, replica: str = "") -> None:
        super().__init__()
        self._where = " ".join(filter(None, (process, replica)))

    def format(self, record: logging.LogRecord) -> str:
        facts = facts_of(record)
        head = " ".join(str(facts.pop(name)) for name in ("time", "level", "logger", "message"))
        rest = " ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, ""))
        return " ".join(filter(None, (head, f"[{self._where}]", rest)))


def facts_of(record: logging.LogRecord) -> Facts:
    """What a line says, in order. `extra={"facts": …}` of the call is taken as it is."""
    facts: Facts = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        "request_id": getattr(record, "request_id", "") or current().request_id,
    }
    facts.update(getattr(record, "facts", {}))
    if record.exc_info and record.exc_info[1] is not None:
        facts["exception"] = _traceback_lines(record.exc_info[1])
    return facts


def _traceback_lines(error: BaseException) -> list[str]:
    """The exception and its causes, the last first: type, then the calls that led to it."""
    told = []
    seen: BaseException | None = error
    while seen is not None:
        told.append(type(seen).__qualname__)
        frames = traceback.extract_tb(seen.__traceback__)
        told += [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return told
