"""A quick PNG writer for 8-bit RGB pictures (PNG specification, third edition; RFC 1950 and 1951).

A diffusion model's pictures are grainy: after PNG's row filters few strings repeat, and to search for them
is most of what a PNG costs. So the rows of a grainy band are only Huffman coded, and the search is kept for
the bands that the filters leave mostly zero. Both kinds end up in one deflate stream, each closed at a
byte's border.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from mezzotint.core import Pixels

__all__ = ["encode_png"]

_Bytes = NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Rows that share a filter and a way to be compressed, and the step between those that are tried to find it.
BAND_ROWS = 64
SAMPLE_STEP = 16
# A Huffman code takes a bit for every byte at least; where this share of bytes is zero, strings are shorter.
SPARSE_ZEROS = 0.7
SPARSE_LEVEL = 4
# zlib-ng at its highest levels takes several times as long, for a percent.
MAX_LEVEL = 6
MAX_WINDOW_BITS = 15
MEMORY_LEVEL = 9


def encode_png(
    pixels: Pixels, chunks: Iterable[tuple[bytes, bytes]] = (), effort: int | None = None
) -> bytes:
    """The picture, height × width × 3, as a PNG file with `chunks` (type, content) before its pixels.

    effort: 0…100, from the quickest search for repeated strings to Pillow's; None decides by the picture.
    """
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    filtered = _filtered(pixels)
    body = b"".join(_zlib_stream(filtered, effort))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib_ng.crc32(content, zlib_ng.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _filtered(pixels: Pixels) -> _Bytes:
    """Each row behind its filter's number: height × (1 + 3 · width).

    For each band the filter with the smallest sum of absolute differences is chosen, the rule of
    the specification's section 12.7, by a few of the rows.
    """
    height, width, _ = pixels.shape
    bordered = np.zeros((height + 1, (width + 1) * 3), np.uint8)
    bordered[1:, 3:] = pixels.reshape(height, width * 3)
    around = (bordered[1:, 3:], bordered[1:, :-3], bordered[:-1, 3:], bordered[:-1, :-3])
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    for top in range(0, height, BAND_ROWS):
        rows = slice(top, top + BAND_ROWS)
        sample = [each[rows][::SAMPLE_STEP] for each in around]
        number = min(FILTERS, key=lambda number: _magnitude(FILTERS[number](*sample)))
        filtered[rows, 0] = number
        filtered[rows, 1:] = FILTERS[number](*(each[rows] for each in around))
    return filtered


def _magnitude(differences: _Bytes) -> int:
    # A byte stands for itself or for itself less 256, whichever is nearer to zero.
    return int(np.minimum(differences, -differences).sum(dtype=np.uint64))


# The filters: each byte less what its neighbours of the same channel foretell, modulo 256.


def _sub(here: _Bytes, left: _Bytes, above: _Bytes, corner: _Bytes) -> _Bytes:
    return here - left


def _up(here: _Bytes, left: _Bytes, above: _Bytes, corner: _Bytes) -> _Bytes:
    return here - above


def _average(here: _Bytes, left: _Bytes, above: _Bytes, corner: _Bytes) -> _Bytes:
    # ⌊(left + above) / 2⌋ within eight bits.
    return here - ((left & above) + ((left ^ above) >> 1))


def _paeth(here: _Bytes, left: _Bytes, above: _Bytes, corner: _Bytes) -> _Bytes:
    """The neighbour nearest to left + above - corner, without leaving eight bits and without branches.

    The estimate is as far from `left` as `above` is from `corner`, and the other way round. When both differ
    from the corner to the same side, the estimate lies beyond both, and the corner is never the nearest.
    """
    from_left = np.maximum(above, corner) - np.minimum(above, corner)
    from_above = np.maximum(left, corner) - np.minimum(left, corner)
    from_corner = np.maximum(from_left, from_above) - np.minimum(from_left, from_above)
    from_corner |= _mask((above >= corner) == (left >= corner))
    nearest = corner ^ ((above ^ corner) & _mask(from_above <= from_corner))
    nearest ^= (left ^ nearest) & _mask((from_left <= from_above) & (from_left <= from_corner))
    return here - nearest


def _mask(condition: NDArray[np.bool_]) -> _Bytes:
    """255 where the condition holds."""
    return -condition.view(np.uint8)


FILTERS: dict[int, Callable[[_Bytes, _Bytes, _Bytes, _Bytes], _Bytes]] = {
    1: _sub,
    2: _up,
    3: _average,
    4: _paeth,
}


def _zlib_stream(filtered: _Bytes, effort: int | None) -> Iterator[bytes]:
    yield b"\x78\x01"
    runs = list(_runs(filtered, effort))
    for index, (rows, level, strategy) in enumerate(runs):
        compressor = zlib_ng.compressobj(level, zlib_ng.DEFLATED, -MAX_WINDOW_BITS, MEMORY_LEVEL, strategy)
        yield compressor.compress(filtered[rows])
        yield compressor.flush(zlib_ng.Z_FINISH if index == len(runs) - 1 else zlib_ng.Z_SYNC_FLUSH)
    yield struct.pack(">I", zlib_ng.adler32(filtered))


def _runs(filtered: _Bytes, effort: int | None) -> Iterator[tuple[slice, int, int]]:
    """The rows that are compressed alike, and at which level and strategy."""
    height = len(filtered)
    if effort is not None:
        yield slice(0, height), 1 + effort * (MAX_LEVEL - 1) // 100, zlib_ng.Z_DEFAULT_STRATEGY
        return
    for sparse, tops in groupby(range(0, height, BAND_ROWS), lambda top: _is_sparse(filtered, top)):
        first, *more = tops
        rows = slice(first, (more[-1] if more else first) + BAND_ROWS)
        if sparse:
            yield rows, SPARSE_LEVEL, zlib_ng.Z_DEFAULT_STRATEGY
        else:
            yield rows, 1, zlib_ng.Z_HUFFMAN_ONLY


def _is_sparse(filtered: _Bytes, top: int) -> bool:
    band = filtered[top : top + BAND_ROWS]
    return bool(np.count_nonzero(band) < (1 - SPARSE_ZEROS) * band.size)
