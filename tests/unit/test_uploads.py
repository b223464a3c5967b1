"""Uploads: read as what their bytes say, upright and opaque, or refused in one sentence."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from mezzotint.errors import InvalidRequest, MezzotintError, PayloadTooLarge, UnsupportedImage
from mezzotint.imaging.uploads import _is_endless_jpeg, decode_base64, read_mask, read_upload
from tests.pictures import endless_png

MAX_PIXELS = 1_000_000
HALVES = np.zeros((24, 40, 3), np.uint8)
HALVES[:, :20] = (200, 40, 10)
HALVES[:12, 20:] = (10, 60, 220)


def file(picture: PilImage.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return read_upload(data, param="image", max_pixels=MAX_PIXELS)


def mask(data: bytes, **options: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return read_mask(data, param="mask", max_pixels=MAX_PIXELS, **options)


def halves(mode: str = "RGB") -> PilImage.Image:
    return PilImage.fromarray(HALVES).convert(mode)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def webp_bomb() -> bytes:
    data = bytearray(file(halves("RGBA"), "WEBP", exif=PilImage.Exif().tobytes() + b"x" * 30))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\x00" * 2
    return bytes(data)


SAMPLES = {
    "png": file(halves(), "PNG"),
    "png palette": file(halves().convert("P", palette=PilImage.Palette.ADAPTIVE), "PNG"),
    "png alpha": file(halves("RGBA"), "PNG"),
    "png interlaced grey": file(halves("L"), "PNG"),
    "png one bit": file(halves("1"), "PNG"),
    "jpeg": file(halves(), "JPEG", quality=95),
    "jpeg progressive": file(halves(), "JPEG", progressive=True),
    "jpeg cmyk": file(halves("CMYK"), "JPEG"),
    "webp": file(halves(), "WEBP"),
    "webp lossless": file(halves("RGBA"), "WEBP", lossless=True),
    "webp animated": file(halves(), "WEBP", save_all=True, append_images=[halves().rotate(180)]),
    "png animated": file(halves(), "PNG", save_all=True, append_images=[halves().rotate(180)]),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_kind_of_png_jpeg_and_webp_is_read(name: str) -> None:
    pixels = read(SAMPLES[name])
    assert pixels.shape == HALVES.shape
    assert pixels.dtype == np.uint8
    if "grey" not in name and "bit" not in name:
        assert np.abs(pixels[18, 5].astype(int) - HALVES[18, 5]).max() < 30


def test_sixteen_bits_are_scaled_to_eight() -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    data = file(PilImage.fromarray(grey), "PNG")
    assert np.array_equal(read(data)[..., 1], np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(mask(data), np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize("key", [1, 256, 1000, 65_535])
def test_a_grey_of_sixteen_bits_that_is_declared_transparent_is_that_one_alone(key: int) -> None:
    greys = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    greys[0, 0] = key
    plain = file(PilImage.fromarray(greys), "PNG")
    # After the header, whose length is fixed.
    declared = plain[:33] + png_chunk(b"tRNS", struct.pack(">H", key)) + plain[33:]
    expected = np.where(greys == key, 255, greys // 257)
    assert np.array_equal(read(declared)[..., 0], expected)
    assert np.array_equal(mask(declared, redraw="transparent"), np.where(greys == key, 255, 0))


def png(depth: int, kind: int, width: int, row: bytes, clear: bytes) -> bytes:
    """One row of pixels, as they stand in the file, and what it declares to be transparent."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = png_chunk(b"tRNS", clear) + png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("clear", [0, 1, 2])
def test_a_colour_of_sixteen_bits_that_is_declared_transparent_is_that_one(clear: int) -> None:
    # The second has in its upper bytes what the first has in its lower ones, and the third is all low.
    colours = [(0x1234, 0x5678, 0x9ABC), (0x3402, 0x7803, 0xBC04), (0x0012, 0x0056, 0x009A)]
    words = [struct.pack(">HHH", *colour) for colour in colours]
    data = png(16, 2, 3, b"".join(words), words[clear])
    assert mask(data, redraw="transparent").tolist() == [[255 * (at == clear) for at in range(3)]]
    shown = [[255] * 3 if at == clear else [value >> 8 for value in each] for at, each in enumerate(colours)]
    assert read(data).tolist() == [shown]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_of_few_bits_that_is_declared_transparent_is_that_one(depth: int) -> None:
    greys, most = [0b00, 0b01, 0b10, 0b11], (1 << depth) - 1
    for clear in {grey & most for grey in greys}:
        values = "".join(f"{grey & most:0{depth}b}" for grey in greys)
        row = int(values.ljust(32, "0"), 2).to_bytes(4)
        data = png(depth, 0, 4, row, struct.pack(">H", clear))
        expected = [255 * (grey & most == clear) for grey in greys]
        assert mask(data, redraw="transparent").tolist() == [expected]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation: int) -> None:
    from PIL import ImageOps

    exif = PilImage.Exif()
    exif[0x0112] = orientation
    for format in ("JPEG", "PNG", "WEBP"):
        data = file(halves(), format, exif=exif.tobytes())
        with PilImage.open(io.BytesIO(data)) as picture:
            expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        assert np.array_equal(read(data), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_spoil_the_picture() -> None:
    data = file(halves(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 20)
    assert read(data).shape == HALVES.shape


def test_transparency_lies_over_white() -> None:
    clear = HALVES.copy()
    data = np.dstack([clear, np.full(clear.shape[:2], 0, np.uint8)])
    assert (read(file(PilImage.fromarray(data), "PNG")) == 255).all()
    half = np.dstack([np.zeros_like(clear), np.full(clear.shape[:2], 128, np.uint8)])
    assert abs(int(read(file(PilImage.fromarray(half), "PNG"))[0, 0, 0]) - 127) <= 1


def test_openai_masks_redraw_what_is_transparent() -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[2:5, 3:7, 3] = 0
    found = mask(file(PilImage.fromarray(pixels), "PNG"), redraw="transparent")
    assert (found[2:5, 3:7] == 255).all()
    assert (found > 127).sum() == 12


def test_a1111_masks_redraw_what_is_white_or_painted() -> None:
    grey = np.zeros((8, 8), np.uint8)
    grey[2:5, 3:7] = 255
    assert np.array_equal(mask(file(PilImage.fromarray(grey), "PNG")), grey)
    assert np.array_equal(mask(file(PilImage.fromarray(grey).convert("RGBA"), "PNG")), grey)
    # Whole, for what is blurred of half a stroke would be less than its middle.
    for alpha, painted in ((255, True), (129, True), (128, False)):
        strokes = np.dstack([np.zeros((8, 8, 3), np.uint8), np.where(grey > 0, np.uint8(alpha), np.uint8(0))])
        assert np.array_equal(mask(file(PilImage.fromarray(strokes), "PNG")), grey if painted else grey * 0)


def test_a_mask_without_transparency_says_what_is_missing() -> None:
    with pytest.raises(InvalidRequest, match="transparen") as refused:
        mask(file(halves(), "PNG"), redraw="transparent")
    assert refused.value.param == "mask"


@pytest.mark.parametrize("data", [bomb(1_001, 1_000), bomb(60_000, 60_000), bomb(2**31 - 1, 1), webp_bomb()])
def test_a_bomb_is_refused_before_it_is_decoded(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="1,000,000 pixels") as refused:
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert refused.value.param == "image"


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = SAMPLES["jpeg progressive"]
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(UnsupportedImage):
        read(data[:-2] + data[scan:-2] * 100 + data[-2:])


@pytest.mark.parametrize(
    "hiding", [b"\xff\x02\xff\xff", b"\xff\xd0\xff\xff", b"\xff\x01\xff\xff", b"\xff" * 9]
)
def test_a_jpegs_scans_are_not_hidden_by_what_is_no_segment(hiding: bytes) -> None:
    data = SAMPLES["jpeg progressive"]
    scan = data.rindex(b"\xff\xda")
    assert _is_endless_jpeg(data[:-2] + hiding + data[scan:-2] * 100 + data[-2:])


def test_a_jpeg_of_endless_segments_is_refused() -> None:
    data = SAMPLES["jpeg"]
    with pytest.raises(UnsupportedImage):
        read(data[:2] + b"\xff\xfe\x00\x02" * 10_000 + data[2:])


def test_a_png_of_endless_chunks_is_refused() -> None:
    with pytest.raises(UnsupportedImage):
        read(endless_png(SAMPLES["png"]))


def test_a_png_of_many_chunks_is_read_whatever_comes_after_its_end() -> None:
    many = endless_png(SAMPLES["png"], 1000) + bytes(2_000_000)
    assert np.array_equal(read(many), read(SAMPLES["png"]))


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive"])
def test_what_phones_append_to_a_jpeg_does_not_spoil_it(name: str) -> None:
    film = np.random.default_rng(1).bytes(5_000_000)
    # As many bytes hold by chance more of what would begin a scan than a picture may have.
    assert film.count(b"\xff\xda") > 64
    assert np.array_equal(read(SAMPLES[name] + film), read(SAMPLES[name]))


def test_a_thumbnail_within_a_jpeg_is_not_taken_for_its_scans() -> None:
    data, thumbnail = SAMPLES["jpeg"], b"\xff\xda" * 1000
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    assert np.array_equal(read(data[:2] + segment + data[2:]), read(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        file(halves(), "GIF"),
        file(halves(), "BMP"),
        file(halves(), "TIFF"),
        *(data[: len(data) // 2] for name, data in SAMPLES.items() if "animated" not in name),
    ],
)
def test_what_is_no_whole_picture_of_the_three_formats_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImage) as refused:
        read(data)
    assert (refused.value.status, refused.value.param) == (415, "image")


def test_a_polyglot_is_what_its_first_bytes_say() -> None:
    for name in ("png", "jpeg", "webp"):
        assert read(SAMPLES[name] + b"PK\x03\x04<script>alert(1)</script>").shape == HALVES.shape


@pytest.mark.filterwarnings("default")  # Pillow warns of much that it reads all the same.
@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=8),
    cut=st.floats(0.2, 1),
    kind=st.sampled_from(["image", "white", "transparent"]),
)
def test_a_mutated_file_is_a_picture_or_one_sentence(
    name: str, edits: list[tuple[float, bytes]], cut: float, kind: Any
) -> None:
    data = bytearray(SAMPLES[name])
    for place, replacement in edits:
        at = int(place * len(data))
        data[at : at + len(replacement)] = replacement
    del data[int(cut * len(data)) :]
    refused: MezzotintError | None = None
    try:
        found = read(bytes(data)) if kind == "image" else mask(bytes(data), redraw=kind)
    except MezzotintError as error:
        refused = error
    if refused is None:
        assert found.dtype == np.uint8
        assert 0 < found.shape[0] * found.shape[1] <= MAX_PIXELS
    else:
        assert refused.status in (400, 413, 415)
        assert "\n" not in refused.message


def test_base64_comes_plain_or_in_a_data_url() -> None:
    data = SAMPLES["png"]
    text = base64.b64encode(data).decode()
    broken = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    spread = " \t\r\n\f\v".join(text)[: len(text) * 7]
    for given_ in (text, broken, spread, f"data:image/png;base64,{text}", f"DATA:;BASE64,{text}"):
        assert decode_base64(given_, "image", 10_000) == data


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com/a.png",
        "https://169.254.169.254/",
        "file:///etc/passwd",
        "data:image/png,abc",
        "é",
        "a",
    ],
)
def test_anything_else_is_no_base64_and_nothing_is_fetched(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_base64(text, "image", 10_000)
    assert refused.value.param == "image"


def test_base64_of_blanks_takes_a_few_times_its_size() -> None:
    text = "AA " * 1_000_000
    tracemalloc.start()
    try:
        assert len(decode_base64(text, "image", 10_000_000)) == 1_500_000
        assert tracemalloc.get_traced_memory()[1] < 5 * len(text)
    finally:
        tracemalloc.stop()


def test_a_side_beyond_any_jpegs_is_refused_however_few_pixels_it_makes() -> None:
    wide = io.BytesIO()
    PilImage.new("L", (65_536, 1)).save(wide, "png")
    with pytest.raises(PayloadTooLarge, match="wider or higher than 65,535 pixels"):
        read_upload(wide.getvalue(), param="image", max_pixels=100_000)


@pytest.mark.parametrize("size", [101, 100_000])
def test_base64_of_too_many_bytes_is_refused(size: int) -> None:
    with pytest.raises(PayloadTooLarge, match="100 bytes"):
        decode_base64(base64.b64encode(bytes(size)).decode(), "image", 100)
