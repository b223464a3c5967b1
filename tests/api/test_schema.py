"""The OpenAPI document against the service: a sample of what `make fuzz` tries."""

from __future__ import annotations

from pathlib import Path

from tests.api.fuzz import fuzz


def test_generated_requests_get_no_5xx_and_no_status_that_the_document_does_not_name(tmp_path: Path) -> None:
    told = fuzz(tmp_path, cases=200, seed=1, phases="fuzzing")
    assert told["passed"], told["report"]
