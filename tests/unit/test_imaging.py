"""Files: whole or not at all, in the format asked for, with a receipt that reads back."""

from __future__ import annotations

import io
import os
import stat
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from mezzotint.core import Hires, Image, Receipt
from mezzotint.errors import InvalidRequest, OutputUnwritable
from mezzotint.imaging.formats import check_output, encode, save
from mezzotint.imaging.metadata import EXIF_IFD, USER_COMMENT, parameters_text, read_receipt
from mezzotint.imaging.size import parse_size

RECEIPT = Receipt(
    prompt="a red circle",
    negative_prompt="blue",
    seed=2**40,
    scheduler="DPM++ 2M Karras",
    steps=20,
    guidance_scale=5.5,
    width=64,
    height=48,
    model="demo",
    revision="0123456789abcdef",
    backend="diffusers",
    dtype="fp32",
    versions={"torch": "2.13.0"},
    warnings=("the prompt was cut",),
)
FORMATS = ("png", "jpeg", "webp")


def image(receipt: Receipt = RECEIPT) -> Image:
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)
    pixels.flags.writeable = False
    return Image(pixels, receipt)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "prompt",
    ["a red circle", "café, naïve", "红色的圆 🔴", 'quotes " \\ and\nlines', "NUL \x00 inside", "é" * 10_000],
)
def test_a_receipt_reads_back_from_every_format(format: str, prompt: str) -> None:
    receipt = replace(RECEIPT, prompt=prompt)
    assert read_receipt(encode(image(receipt), format)) == receipt


def test_an_absent_negative_prompt_stays_absent() -> None:
    receipt = replace(RECEIPT, negative_prompt=None)
    assert read_receipt(encode(image(receipt), "png")).negative_prompt is None


def test_a_jpeg_with_prompts_beyond_its_metadata_says_that_they_are_cut() -> None:
    receipt = replace(RECEIPT, prompt="🔴" * 10_000, negative_prompt="🔵" * 10_000)
    read = read_receipt(encode(image(receipt), "jpeg"))
    assert receipt.prompt.startswith(read.prompt)
    assert "beginning" in read.warnings[-1]
    assert read.seed == receipt.seed
    assert read_receipt(encode(image(receipt), "webp")) == receipt


def test_a_png_keeps_every_pixel_and_carries_the_a1111_text() -> None:
    picture = image()
    with PilImage.open(io.BytesIO(picture.encode())) as read:
        assert np.array_equal(np.asarray(read), picture.pixels)
        assert read.info["parameters"] == (
            "a red circle\nNegative prompt: blue\n"
            "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 5.5, Seed: 1099511627776, "
            "Size: 64x48, Model: demo"
        )


def test_a_quick_png_is_hardly_larger_than_pillows_own() -> None:
    noise = np.random.default_rng(0).normal(0, 2, (256, 256, 3))
    y, x = np.mgrid[0:256, 0:256] / 40
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    picture = Image(np.clip(smooth + noise, 0, 255).astype(np.uint8), RECEIPT)
    default = io.BytesIO()
    picture.to_pil().save(default, "PNG")
    assert len(picture.encode("png")) < 1.1 * len(default.getvalue())


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_exif_carries_the_a1111_text_where_its_readers_look(format: str) -> None:
    with PilImage.open(io.BytesIO(encode(image(), format))) as read:
        comment = read.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\x00"
    assert comment[8:].decode("utf-16-be") == parameters_text(RECEIPT)


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_stage_is_told_in_both_forms(format: str) -> None:
    receipt = replace(RECEIPT, hires=Hires(1.5, 0.3, 20))
    assert read_receipt(encode(image(receipt), format)).hires == receipt.hires
    assert Receipt.from_dict(receipt.to_dict()) == receipt
    told = "Denoising strength: 0.3, Hires upscale: 1.5, Hires steps: 20, Hires upscaler: Lanczos"
    assert told in parameters_text(receipt)
    # 512 pixels times a scale of six digits would be 512 again.
    assert "Hires upscale: 1.015625," in parameters_text(replace(RECEIPT, hires=Hires(520 / 512, 0.3, 20)))


@pytest.mark.parametrize(
    ("prompt", "emphasis", "told"),
    [("a fox: red", False, None), ("a (fox)", False, "None"), ("a (fox:1.3)", True, "No norm")],
)
def test_a1111_is_told_what_brackets_are(prompt: str, emphasis: bool, told: str | None) -> None:
    text = parameters_text(replace(RECEIPT, prompt=prompt, emphasis=emphasis))
    assert text.startswith(f"{prompt}\n")
    assert ("Emphasis: " in text) == (told is not None)
    assert f", Emphasis: {told}" in text or told is None


@pytest.mark.parametrize(
    ("suffix", "format"),
    [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), ("", "PNG")],
)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, format: str) -> None:
    path = image().save(tmp_path / f"plate{suffix}")
    with PilImage.open(path) as read:
        assert read.format == format
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    path = image().save(tmp_path / "plate.png")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_saving_replaces_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "plate.png"
    path.write_bytes(b"old")
    image().save(str(path))
    assert read_receipt(path) == RECEIPT


@pytest.mark.parametrize("name", ["missing/plate.png", "file/plate.png", "folder", "n" * 300 + ".png"])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for attempt in (check_output, lambda path: save(image(), path)):
        with pytest.raises(OutputUnwritable, match="cannot write"):
            attempt(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_is_not_replaced_by_a_picture() -> None:
    with pytest.raises(OutputUnwritable, match="not a file"):
        save(image(), Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


def test_a_checked_output_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(tmp_path / "plate.png")
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_or_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"\.gif") as refused:
        check_output(tmp_path / "plate.gif")
    assert refused.value.param == "output"
    with pytest.raises(InvalidRequest, match="'gif'"):
        encode(image(), "gif")


def _png_without_receipt() -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a PNG"):
        read_receipt(data)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_whatever_is_wrong_with_a_file_its_receipt_is_refused_and_nothing_else_raised(format: str) -> None:
    data, rng = bytearray(encode(image(), format)), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 200), 4):
            broken[at] = rng.integers(0, 256)
        with suppress(InvalidRequest):
            assert read_receipt(bytes(broken)).width >= 0


def test_a_header_of_a_billion_pixels_is_refused() -> None:
    data = bytearray(_png_without_receipt())
    data[16:24] = (32_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    with pytest.raises(InvalidRequest):
        read_receipt(bytes(data))


@pytest.mark.parametrize("compression", [-1, 101, 50.5, True, float("nan")])
def test_a_compression_that_is_no_whole_number_up_to_100_is_refused(compression: object) -> None:
    with pytest.raises(InvalidRequest, match="compression"):
        encode(image(), "png", compression)  # type: ignore[arg-type]


def test_an_image_without_a_receipt_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no receipt"):
        read_receipt(_png_without_receipt())


@pytest.mark.parametrize("text", ["{}", "[1]", "not JSON", '{"prompt": 5}', "[" * 100_000])
def test_a_broken_receipt_is_refused(text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("mezzotint", text)
    buffer = io.BytesIO()
    PilImage.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_receipt(buffer.getvalue())


@pytest.mark.parametrize(
    ("text", "size"), [("512x768", (512, 768)), (" 64 X 64 ", (64, 64)), ("8×16", (8, 16))]
)
def test_a_size_is_two_numbers(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "512", "512x", "x512", "-8x8", "8.0x8", "8x8x8", "٨x٨", "9999999x8"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_size(text)
    assert refused.value.param == "size"
