"""The browser that the page is tried in: where it is there, the one that has no windows, which takes less."""

from __future__ import annotations

import shutil

__all__ = ["ARGUMENTS", "PROGRAM"]

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
