"""`python -m tests.api.lone_server FOLDER PASS_SECONDS`: prints its address and serves until it is killed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from mezzotint.backends.fake import FakeBackend
from tests.api.live import live

if __name__ == "__main__":
    with live(Path(sys.argv[1]), FakeBackend(pass_seconds=float(sys.argv[2]))) as server:
        print(server.url, flush=True)
        threading.Event().wait()
