"""Our PNG files: to the bit what Pillow reads, and hardly larger than Pillow's own."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from mezzotint.core import Image, Pixels, Receipt
from mezzotint.errors import InvalidRequest
from mezzotint.imaging.formats import encode
from mezzotint.imaging.png import FILTERS, encode_png

RECEIPT = Receipt("红 fox", None, 1, "Euler", 2, 5.0, 8, 8, "demo", "1", "fake", "none")


def decoded(data: bytes) -> Pixels:
    with PilImage.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def smooth(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width] / 40
    return (np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128).astype(np.uint8)


def grainy(height: int, width: int, sigma: float = 3) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, (height, width, 3))
    return np.clip(smooth(height, width) + noise, 0, 255).astype(np.uint8)


def half_and_half(height: int, width: int) -> Pixels:
    """A band of each kind, so that runs of both kinds follow one another."""
    pixels = grainy(height, width)
    pixels[: height // 3] = 250
    pixels[2 * height // 3 :] = smooth(height, width)[2 * height // 3 :]
    return pixels


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 200),
    kind=st.sampled_from([smooth, grainy, half_and_half]),
    effort=st.sampled_from([None, None, 0, 50, 100]),
)
def test_pillow_reads_every_pixel(
    width: int, height: int, kind: Callable[[int, int], Pixels], effort: int | None
) -> None:
    pixels = kind(height, width)
    assert np.array_equal(decoded(encode_png(pixels, effort=effort)), pixels)


@given(st.binary(min_size=12 * 12 * 3, max_size=12 * 12 * 3), st.sampled_from(sorted(FILTERS)))
def test_each_filter_is_undone_by_the_decoder(data: bytes, number: int) -> None:
    pixels = np.frombuffer(data, np.uint8).reshape(12, 12, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.imaging.png.FILTERS", {number: FILTERS[number]})
        assert np.array_equal(decoded(encode_png(pixels)), pixels)


def test_bands_of_either_kind_share_one_sound_stream() -> None:
    pixels = half_and_half(600, 64)
    data = encode_png(pixels)
    assert np.array_equal(decoded(data), pixels)
    with PilImage.open(io.BytesIO(data)) as picture:
        picture.verify()
    # Python's own zlib checks the header and the checksum at the end.
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert len(zlib.decompress(data[start : start + length])) == 600 * (1 + 64 * 3)


def flat(height: int, width: int) -> Pixels:
    """Discs of one colour each, with soft edges."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.full((height, width, 3), (235, 230, 215), float)
    for index in range(12):
        distance = np.hypot(x - index * 97 % width, y - index * 61 % height)
        cover = np.clip(40 + index * 5 - distance, 0, 1)[..., None]
        pixels = pixels * (1 - cover) + cover * ((index * 53) % 256, (index * 101) % 256, 90)
    return pixels.astype(np.uint8)


@pytest.mark.parametrize(
    "kind", [flat, grainy, lambda h, w: grainy(h, w, 0.4), lambda h, w: grainy(h, w, 20)]
)
def test_the_file_of_a_flat_or_grainy_picture_is_at_most_a_tenth_larger_than_pillows(
    kind: Callable[[int, int], Pixels],
) -> None:
    pixels = kind(512, 512)
    theirs = io.BytesIO()
    PilImage.fromarray(pixels).save(theirs, "PNG")
    assert len(encode_png(pixels)) <= 1.1 * len(theirs.getvalue())


def test_more_effort_makes_no_larger_file() -> None:
    pixels = smooth(256, 256)
    least, most = (len(encode_png(pixels, effort=effort)) for effort in (0, 100))
    assert most < least


def test_pictures_of_other_memory_layouts_are_the_same_file() -> None:
    pixels = grainy(40, 30)
    assert encode_png(np.asfortranarray(pixels)) == encode_png(pixels)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    assert encode_png(read_only) == encode_png(pixels)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_less_quality_makes_a_smaller_file(format: str) -> None:
    picture = Image(grainy(64, 64), RECEIPT)
    sizes = [len(encode(picture, format, quality)) for quality in (5, 50, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("value", [-1, 101])
def test_a_compression_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode(Image(grainy(8, 8), RECEIPT), "png", value)
    assert refused.value.param == "compression"
