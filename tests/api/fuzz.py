"""Send the service what its OpenAPI document allows and forbids: `python -m tests.api.fuzz --cases 20000`.

A real server on loopback, over an engine with the fake backend and small pictures, is sent requests that
schemathesis generates. It fails on any 5xx, and on any status that the document does not name for the route,
and prints what it did as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from tests.api.live import live

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance"
SMALL = replace(FAKE_LIMITS, default_width=64, default_height=64, max_size=128, max_pixels=128 * 128)
REQUEST_SECONDS = 20.0
# The command itself, but for a module that it would import in several threads at once, and then not find.
SCHEMATHESIS = "import schemathesis.transport.asgi; from schemathesis.cli import schemathesis; schemathesis()"


class SmallBackend(FakeBackend):
    """Draws at most 128 × 128, for it is the requests that are tried and not the encoders."""

    def __init__(self) -> None:
        super().__init__()
        self._info = replace(self._info, limits=SMALL)


def fuzz(folder: Path, cases: int, seed: int, phases: str = "coverage,fuzzing") -> dict[str, object]:
    """Try at least `cases` requests; what came of it, with schemathesis' report.

    phases: `coverage` adds every boundary of every field, some 1,600 cases, to those drawn at random.
    """
    with live(folder, SmallBackend()) as server:
        with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
            document = json.load(answer)
        operations = sum(len(path) for path in document["paths"].values())
        before = psutil.Process().memory_info().rss
        began = time.monotonic()
        done, passed, reports = 0, True, ""
        # A route without fields has few cases to offer, so one round makes fewer than it is asked for.
        while passed and done < cases:
            examples = max(1, (cases - done) // operations)
            ran = _round(f"{server.url}/openapi.json", folder, examples, seed, phases)
            found = re.search(r"(\d+) generated", ran.stdout.replace(",", ""))
            passed, reports = ran.returncode == 0 and found is not None, ran.stdout + ran.stderr
            done += int(found[1]) if found else 0
            seed, phases = seed + 1, "fuzzing"
        return {
            "operations": operations,
            "cases": done,
            "passed": passed,
            "seconds": round(time.monotonic() - began, 1),
            "rss_growth_mb": round((psutil.Process().memory_info().rss - before) / 1e6, 1),
            "report": reports,
        }


def _round(url: str, folder: Path, examples: int, seed: int, phases: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCHEMATHESIS, "run", url, "--checks", CHECKS]
    command += [
        "--phases",
        phases,
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        # Python 3.11's parser, which hypothesis asks, miscounts its depth under several threads.
        "--workers",
        "1",
    ]
    command += ["--request-timeout", str(REQUEST_SECONDS), "--continue-on-failure", "--warnings", "off"]
    command += ["--suppress-health-check", "all", "--no-color"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--cases", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = fuzz(Path(folder), asked.cases, asked.seed)
    report = told.pop("report")
    print(json.dumps(told))
    if not told["passed"]:
        sys.exit(str(report))


if __name__ == "__main__":
    main()
