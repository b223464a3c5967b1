"""Pictures in a folder and in a bucket: the same claims of both."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mezzotint.errors import ImageNotFound, SettingInvalid, StoreUnavailable
from mezzotint.serve.stores.images import ImageStore, open_images


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "pictures")
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
async def images(place: str, clock: Clock) -> AsyncIterator[ImageStore]:
    async with open_images(place, 60.0, clock) as store:
        yield store


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_a_picture_comes_back_as_it_was_with_its_type(images: ImageStore, format: str) -> None:
    name = await images.put(b"\x00\xffpicture", format)
    assert await images.get(name) == (b"\x00\xffpicture", f"image/{format}")


async def test_another_gateway_serves_the_same_picture(images: ImageStore, place: str, clock: Clock) -> None:
    name = await images.put(b"picture", "png")
    async with open_images(place, 60.0, clock) as other:
        assert (await other.get(name))[0] == b"picture"


async def test_names_are_never_the_same_and_hold_128_random_bits(images: ImageStore) -> None:
    names = await asyncio.gather(*(images.put(b"same", "png") for _ in range(20)))
    assert len(set(names)) == 20
    assert all(len(name.split("-")[1].split(".")[0]) == 32 for name in names)


async def test_an_expired_picture_is_not_found_and_is_swept(images: ImageStore, clock: Clock) -> None:
    short, long = await images.put(b"short", "png"), await images.put(b"long", "png", ttl_s=1_000.0)
    clock.time += 62.0
    with pytest.raises(ImageNotFound):
        await images.get(short)
    assert (await images.get(long))[0] == b"long"
    assert await images.sweep() == 1
    assert await images.sweep() == 0
    assert (await images.get(long))[0] == b"long"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../secret.png",
        "..%2fsecret.png",
        "/etc/passwd",
        "ffffffff-00000000000000000000000000000000.png/../../secret.png",
        "ffffffff-00000000000000000000000000000000.svg",
        "ffffffff-00000000000000000000000000000000.png\n",
        "FFFFFFFF-00000000000000000000000000000000.png",
        "ffffffff-00000000000000000000000000000000.png",
        "x" * 10_000,
        "\x00",
    ],
)
async def test_no_other_name_leads_anywhere(images: ImageStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(ImageNotFound):
        await images.get(name)
    assert (tmp_path / "secret.png").exists()


async def test_a_folder_holds_whole_pictures_only(tmp_path: Path, clock: Clock) -> None:
    async with open_images(str(tmp_path / "pictures"), 60.0, clock) as images:
        name = await images.put(b"picture", "png")
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == [name]
    assert (tmp_path / "pictures").stat().st_mode & 0o777 == 0o700


async def test_with_nothing_set_pictures_lie_below_the_home_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path))
    async with open_images("", 60.0, clock) as images:
        name = await images.put(b"picture", "png")
    assert (tmp_path / "data/images" / name).read_bytes() == b"picture"


async def test_a_place_that_cannot_be_written_is_found_at_the_start(
    tmp_path: Path, clock: Clock, s3_url: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    places = [str(tmp_path / "file"), "/proc/nowhere", "gs://bucket", "s3://", "s3://no-such-bucket-here/x"]
    for place in places:
        with pytest.raises(SettingInvalid, match="MEZZOTINT_IMAGE_STORE takes a folder") as caught:
            async with open_images(place, 60.0, clock):
                pass
        assert "\n" not in caught.value.message


async def test_an_unreachable_s3_is_found_at_the_start(
    s3_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SettingInvalid, match="MEZZOTINT_IMAGE_STORE"):
        async with open_images(s3_url, 60.0, clock):
            pass


async def test_a_store_that_goes_away_in_flight_is_unavailable(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "pictures"
    async with open_images(str(folder), 60.0, clock) as images:
        folder.rmdir()
        folder.write_text("in the way")
        with pytest.raises(StoreUnavailable) as caught:
            await images.put(b"picture", "png")
        assert caught.value.retry_after_s
        assert images.failures == 1


@contextmanager
def full_disk() -> Iterator[None]:
    """What a full disk does to a write: only a part of it fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_full_disk_is_told_once_however_many_pictures_are_read_meanwhile(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_images(str(tmp_path / "pictures"), 60.0, clock) as images:
        name = await images.put(b"picture", "png")
        for outage in (1, 2):
            with full_disk():
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        await images.put(bytes(100_000), "png")
                    await images.get(name)
            told = [each for each in caplog.messages if "does not answer" in each]
            assert len(told) == outage
            # It is back.
            await images.put(bytes(100_000), "png")


async def test_a_full_disk_is_unavailable_and_leaves_nothing(tmp_path: Path, clock: Clock) -> None:
    async with open_images(str(tmp_path / "pictures"), 60.0, clock) as images:
        with full_disk(), pytest.raises(StoreUnavailable):
            await images.put(bytes(100_000), "png")
        name = await images.put(bytes(100_000), "png")
        assert len((await images.get(name))[0]) == 100_000
