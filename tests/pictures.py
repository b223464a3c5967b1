"""Picture files that no encoder makes."""

from __future__ import annotations

import struct
import zlib

__all__ = ["endless_png"]

HEADER_BYTES = 33
# More than any encoder writes; to read as many takes Pillow half a second.
CHUNKS = 70_000


def endless_png(file: bytes, chunks: int = CHUNKS) -> bytes:
    """The PNG file with so many chunks of nothing after its header."""
    chunk = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    return file[:HEADER_BYTES] + chunk * chunks + file[HEADER_BYTES:]
