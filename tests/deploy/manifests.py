"""The manifests as a cluster would get them: each overlay rendered by the real `kubectl kustomize`."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "KUBERNETES",
    "OVERLAYS",
    "ROOT",
    "Manifest",
    "overlay",
    "pods",
    "ray_groups",
    "ray_service",
    "render",
    "schemas",
    "serve_config",
]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
CRDS = Path(__file__).parent / "crds"
OVERLAYS = ("local", "gpu", "inf2", "trn1")
RENDER_SECONDS = 60.0

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder. No cluster is asked."""
    kubectl = shutil.which("kubectl")
    assert kubectl is not None, "skipped by conftest where there is no kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=RENDER_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@functools.cache
def overlay(name: str) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / name)


@functools.cache
def schemas() -> dict[str, Any]:
    """Of custom resources, by `apiVersion/kind`."""
    found: dict[str, Any] = {}
    for path in sorted(CRDS.glob("*.json")):
        found.update(json.loads(path.read_text()))
    return found


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def ray_service(manifests: list[Manifest]) -> Manifest:
    return one(manifests, "RayService", "mezzotint")


def serve_config(manifests: list[Manifest]) -> dict[str, Any]:
    """What the RayService hands to Ray Serve."""
    config: dict[str, Any] = yaml.safe_load(ray_service(manifests)["spec"]["serveConfigV2"])
    return config


def ray_groups(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The head and the worker groups by name."""
    cluster = ray_service(manifests)["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {
        each["groupName"]: each for each in cluster["workerGroupSpecs"]
    }


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template, by what makes pods of it."""
    for name, group in ray_groups(manifests).items():
        yield name, group["template"]
    for each in manifests:
        if each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]
