"""The judge's sums; what it sees in pictures is held by `tests/parity/test_demo_pictures.py`."""

from __future__ import annotations

from mezzotint.bench.quality import Asked, Report, Seen, Verdict


def verdict(asked: str, seen: str) -> Verdict:
    return Verdict(Asked((asked,), "blue"), Seen((seen,), "blue", (0.0, 0.0, 255.0), (1.0,)))


def test_the_shares_are_of_the_pictures_judged() -> None:
    report = Report((verdict("fox", "fox"), verdict("fox", "owl")))
    assert (report.top1, report.backgrounds, len(report.misses)) == (0.5, 1.0, 1)


def test_a_report_on_nothing_vouches_for_nothing() -> None:
    assert Report(()).top1 == 0.0
