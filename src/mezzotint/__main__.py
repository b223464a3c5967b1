"""Where the command `mezzotint` begins: it must be possible to interrupt it before it can say so."""

from __future__ import annotations

import signal
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    # Importing takes a second, in which Ctrl-C would show a traceback: until then it ends the process.
    # Where it is ignored, as behind nohup, it stays so.
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mezzotint.cli import main as run

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
