"""What the tests of the images read: the table of images, the locks, and the tools beside them."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "deploy/docker"
IMAGES = tomllib.loads((DOCKER / "images.toml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {name: DOCKER / name / "requirements.txt" for name in IMAGES} | {
    name: DOCKER / f"{name}.txt" for name in ("wheel", "sbom")
}


def load(name: str) -> ModuleType:
    """A tool of deploy/docker, which is no package."""
    spec = importlib.util.spec_from_file_location(f"deploy_docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lock = load("lock")


def versions(path: Path) -> dict[str, Version]:
    """What a lock or a file of constraints names."""
    return {name: Version(version) for name, version in lock.pins(path).items()}
