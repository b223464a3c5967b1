"""Jobs outlive what draws them: a real process, killed for real."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
JOB = {"prompt": "a lighthouse", "size": "64x64", "num_inference_steps": 100, "seed": 11, "n": 3}
FINAL = ("done", "failed", "cancelled")
WAIT_SECONDS = 60.0


@contextmanager
def server(folder: Path, pass_seconds: float) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-m", "tests.api.lone_server", str(folder), str(pass_seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout, httpx.Client(base_url=process.stdout.readline().strip(), timeout=30) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def wait_for(client: httpx.Client, job: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The job, once it is in the state, or has taken a step for `begun`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        told = dict(client.get(f"/v1/images/jobs/{job['id']}").raise_for_status().json())
        if told["state"] == wanted or (wanted == "begun" and told["progress"]):
            return told
        assert told["state"] not in FINAL, told
        time.sleep(0.05)
    raise AssertionError(f"not {wanted} within {WAIT_SECONDS} s")


def pictures(client: httpx.Client, job: dict[str, Any]) -> list[bytes]:
    paths = [f"/v1/images/jobs/{job['id']}/images/{number}" for number in range(JOB["n"])]
    return [client.get(path).raise_for_status().content for path in paths]


def test_jobs_of_a_killed_service_resume_and_give_the_same_pictures(tmp_path: Path) -> None:
    # Jobs of a minute: none is done before the service is killed.
    with server(tmp_path, pass_seconds=0.6) as (process, client):
        running = client.post("/v1/images/jobs", json=JOB).raise_for_status().json()
        waiting = client.post("/v1/images/jobs", json=JOB).raise_for_status().json()
        wait_for(client, running, "begun")
        process.kill()
        process.wait()
    with server(tmp_path, pass_seconds=0.01) as (_, client):
        undisturbed = client.post("/v1/images/jobs", json=JOB).raise_for_status().json()
        wait_for(client, undisturbed, "done")
        expected = pictures(client, undisturbed)
        for job in (running, waiting):
            told = wait_for(client, job, "done")
            assert (told["error"], told["seeds"]) == (None, [11, 12, 13])
            assert pictures(client, job) == expected
        # Its whole life is told, the part before the loss too.
        events = client.get(f"/v1/images/jobs/{running['id']}/events").text
        assert events.count("event: running") == 2
        assert events.count("event: done") == 1
