"""Write an image's lock: every package it installs, at one version, with its file's sha256.

`python3.11 deploy/docker/lock.py [--upgrade] [NAME …]`, on Linux, x86_64. A NAME is an image of images.toml,
or `wheel` or `sbom`, the tools that build and describe them; without one, all are written. What is resolved
is pyproject.toml's, at the versions of constraints.txt; what that lacks keeps the version it has in the lock,
unless `--upgrade` is given.

pip's own settings hold, so a mirror or a folder of wheels may stand for the index: the hash says that it is
the same file. A lock names no index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# The tools, each in an environment of its own.
TOOLS = ("wheel", "sbom")
SBOM_TOOL = "cyclonedx-bom>=7.5"
HEADER = """\
# Written by `make lock` from {source}; change that instead. For Python 3.11 on Linux, x86_64.
# Installed with --no-deps --require-hashes{note}.
"""


@dataclass(frozen=True)
class Order:
    """What to resolve, and into which file. provided: requirements that are met without a package."""

    lock: Path
    source: str
    requirements: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    provided: tuple[str, ...] = ()
    index: str = ""
    note: str = ""
    left_out: frozenset[str] = field(default_factory=frozenset)


def main() -> None:
    images = tomllib.loads((HERE / "images.toml").read_text())
    parser = argparse.ArgumentParser(description="Write the images' locks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*images, *TOOLS)))
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest of what constraints.txt lacks"
    )
    given = parser.parse_args()
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux" or os.uname().machine != "x86_64":
        parser.error("a lock is for Python 3.11 on Linux, x86_64: run it there")
    unknown = set(given.names) - {*images, *TOOLS}
    if unknown:
        parser.error(f"no image {', '.join(sorted(unknown))}; there are {', '.join((*images, *TOOLS))}")
    for name in given.names or (*images, *TOOLS):
        order = order_of(name, images.get(name, {}), upgrade=given.upgrade)
        order.lock.write_text(resolve(order))
        print(f"{order.lock.relative_to(ROOT)}: {len(pins(order.lock))} packages")


def order_of(name: str, image: dict[str, Any], *, upgrade: bool = False) -> Order:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tested = pins(ROOT / "constraints.txt")
    lock = HERE / f"{name}.txt" if name in TOOLS else HERE / name / "requirements.txt"
    kept = {} if upgrade or not lock.exists() else pins(lock)
    if name in TOOLS:
        wanted = project["build-system"]["requires"] if name == "wheel" else [SBOM_TOOL]
        source = "pyproject.toml's [build-system]" if name == "wheel" else "lock.py"
        return Order(lock, source, tuple(wanted), _as_constraints(kept))
    if "requirements" in image:
        wanted = _lines(HERE / image["requirements"])
        return Order(
            lock,
            Path(image["requirements"]).name,
            tuple(wanted),
            _as_constraints(kept),
            tuple(image["provided"]),
            note=": what is not listed here, the base brings",
            left_out=frozenset(name_of(each) for each in image["provided"]),
        )
    wanted = [
        each for each in wanted_of(project, image["extras"]) if name_of(each) not in image.get("without", ())
    ]
    if "torch" in image:
        # The very build: `==` would take any.
        wanted.append(f"torch==={tested['torch']}{image['torch']}")
    return Order(
        lock,
        "pyproject.toml and constraints.txt",
        tuple(wanted),
        _as_constraints({**kept, **tested}),
        index=os.environ.get("TORCH_INDEX", image.get("index", "")),
    )


def wanted_of(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The requirements of pyproject.toml, with those of `extras`."""
    table = project["project"]
    return [
        *table["dependencies"],
        *(each for extra in extras for each in table["optional-dependencies"][extra]),
    ]


def resolve(order: Order) -> str:
    """The lock's text."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in (*order.constraints, *order.provided)))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--report", str(report), "-c", str(constraints)]
        if order.index:
            command += ["--extra-index-url", order.index]
        subprocess.run([*command, *order.requirements, *order.provided], check=True)
        found = json.loads(report.read_text())["install"]
    lines = []
    for each in found:
        name = name_of(each["metadata"]["name"])
        if name in order.left_out or (order.left_out and _belongs_to_torch(name)):
            continue
        sha256 = _sha256_of(each["download_info"]["archive_info"])
        lines.append(f"{name}=={each['metadata']['version']} --hash=sha256:{sha256}\n")
    return HEADER.format(source=order.source, note=order.note) + "".join(sorted(lines))


def _sha256_of(archive: dict[str, Any]) -> str:
    """As pip reports it: before 23.1 in one text, `sha256=…`."""
    hashes: dict[str, str] = archive.get("hashes") or dict([archive["hash"].split("=", 1)])
    return hashes["sha256"]


def pins(lock: Path) -> dict[str, str]:
    """The version of each package that a lock or a file of constraints names."""
    found = (re.match(r"([\w.-]+)==([\w.!+-]+)", line) for line in _lines(lock))
    return {name_of(each[1]): each[2] for each in found if each is not None}


def name_of(requirement: str) -> str:
    """The package's name, in its one normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def _as_constraints(versions: dict[str, str]) -> tuple[str, ...]:
    # Without the build's name: which build is asked for is a requirement's to say.
    return tuple(f"{name}=={version.split('+')[0]}" for name, version in versions.items())


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _belongs_to_torch(name: str) -> bool:
    """What torch brings along for a GPU, which a base with its own torch does without."""
    return name.startswith("nvidia-") or name == "triton"


if __name__ == "__main__":
    main()
