"""The images' locks: each is what its image needs and no more, by the hash of every file."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.image_files import DOCKER, IMAGES, LOCKS, PROJECT, ROOT, lock, versions


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("path", LOCKS.values(), ids=LOCKS)
def test_every_line_of_a_lock_has_one_version_and_a_hash(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found)
    names = [each[1] for each in found if each is not None]
    assert names
    assert len(names) == len(set(names))
    assert names == [canonicalize_name(name) for name in names]


def wanted_of(image: str) -> list[Requirement]:
    table = IMAGES[image]
    if "requirements" in table:
        lines = (DOCKER / table["requirements"]).read_text().splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith("#")]
    wanted = map(Requirement, lock.wanted_of(PROJECT, table["extras"]))
    return [each for each in wanted if canonicalize_name(each.name) not in table.get("without", ())]


def test_a_lock_meets_what_the_project_asks_for(image: str) -> None:
    found = versions(LOCKS[image])
    for each in wanted_of(image):
        assert found[canonicalize_name(each.name)] in each.specifier, each


@pytest.mark.parametrize("image", ["cpu", "cuda", "ui"])
def test_a_lock_has_the_versions_that_are_tested_together(image: str) -> None:
    tested = versions(ROOT / "constraints.txt")
    for name, version in versions(LOCKS[image]).items():
        assert name not in tested or Version(version.public) == tested[name], name


@pytest.mark.parametrize("image", ["cpu", "cuda", "ui"])
def test_a_lock_has_whatever_its_packages_need(image: str) -> None:
    """By what the packages installed here say of themselves: they are of the same versions."""
    found = versions(LOCKS[image])
    left, seen, read = list(wanted_of(image)), set(), 0
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        assert name in found, wanted
        assert found[name] in wanted.specifier, wanted
        for extra in {"", *wanted.extras} - {extra for seen_name, extra in seen if seen_name == name}:
            seen.add((name, extra))
            try:
                needs = [Requirement(line) for line in requires(name) or ()]
            except PackageNotFoundError:
                continue
            read += 1
            left += [each for each in needs if is_needed(each, extra) and not is_for_cuda(image, each)]
    # Nothing is there that nobody asked for, either.
    unknown = {name for name, _ in seen} ^ set(found)
    assert image == "cuda" or not unknown
    assert read > 40


def is_needed(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    own = requirement.marker.evaluate({"extra": ""})
    return not own and requirement.marker.evaluate({"extra": extra}) if extra else own


def is_for_cuda(image: str, requirement: Requirement) -> bool:
    # The torch installed here may be either build; only the lock of `cuda` has these.
    return image != "cuda" and requirement.name.startswith(("nvidia-", "cuda-", "triton"))


def test_each_lock_has_its_own_build_of_torch() -> None:
    torch = {image: versions(LOCKS[image]).get("torch") for image in IMAGES}
    tested = versions(ROOT / "constraints.txt")["torch"]
    assert torch == {"cpu": Version(f"{tested}+cpu"), "cuda": tested, "neuron": None, "ui": None}
    assert {
        image for image in IMAGES if any(name.startswith("nvidia-") for name in versions(LOCKS[image]))
    } == {"cuda"}


def test_a_wheel_is_made_by_what_the_project_asks_for() -> None:
    found = versions(LOCKS["wheel"])
    for line in PROJECT["build-system"]["requires"]:
        assert found[Requirement(line).name] in Requirement(line).specifier


def test_the_page_runs_on_what_its_lock_has(tmp_path: Path) -> None:
    """With every package that the lock lacks refused, it is built as `mezzotint ui` builds it."""
    held = ",".join(lock.pins(LOCKS["ui"]))
    done = subprocess.run(
        [sys.executable, "-c", PAGE, held],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch", "refused", "page", "built"]


PAGE = """
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions

held = {*sys.argv[1].split(","), "mezzotint"}
names = lambda of: {each.lower().replace("_", "-").replace(".", "-") for each in of}
refused = {module for module, of in packages_distributions().items() if not names(of) & held}

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not in the lock", name=name)

sys.meta_path.insert(0, Refuse())
try:
    import torch
except ModuleNotFoundError:
    print("torch refused")
import asyncio
from mezzotint.cli import app
from mezzotint.ui.app import build_app
from mezzotint.ui.running import run_page
from mezzotint.ui.settings import UiSettings

async def build():
    return build_app(UiSettings())

assert asyncio.run(build()).routes
print("page built")
"""


def test_a_lock_is_written_with_the_hash_of_the_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_wheel(tmp_path, "whole", "1.0", "Requires-Dist: part>=2")
    part = write_wheel(tmp_path, "part", "2.5")
    write_wheel(tmp_path, "part", "3.0")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    order = lock.Order(tmp_path / "lock.txt", "a test", ("whole",), constraints=("part==2.5",))
    lines = lock.resolve(order).splitlines()[2:]
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (whole, part)}
    assert lines == [f"part==2.5 --hash=sha256:{sums[part]}", f"whole==1.0 --hash=sha256:{sums[whole]}"]
    # What the base brings is resolved against, and not listed.
    order = lock.Order(
        order.lock, "a test", ("whole",), provided=("part==2.5",), left_out=frozenset({"part"})
    )
    assert lock.resolve(order).splitlines()[2:] == lines[1:]


def write_wheel(folder: Path, name: str, version: str, *metadata: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    said = "\n".join(("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", said)
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path
