"""deploy/docker/images.py: what it runs, what it refuses, and what it writes for the overlays.

The builders are stand-ins that note what they are asked for; `make images-check` uses real ones.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.image_files import DOCKER, IMAGES, ROOT, load

images = load("images")
DIGEST = f"sha256:{'ab' * 32}"
PINNED = f"registry.example/python:3.11@{DIGEST}"
# It writes down its arguments, and what a push or an inspection would tell.
STAND_IN = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
for argument; do case "$argument" in *fails*) exit 3;; esac; done
while [ $# -gt 0 ]; do
  [ "$1" = --digestfile ] && printf %s {digest} > "$2"
  shift
done
echo "{told}"
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def stand_ins(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, before all others on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "podman", "buildah", "skopeo"):
        told = f"host.example/prefix/ui@{DIGEST}" if name == "docker" else DIGEST
        (folder / name).write_text(STAND_IN.format(log=log, digest=DIGEST, told=told))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_base_without_a_digest_is_refused(
    stand_ins: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert images.main(["build", "--base", "python:3.11", "cpu"]) == 2
    assert "make pin" in capsys.readouterr().err
    assert not log.exists()
    assert images.main(["build", "--base", PINNED, "cpu"]) == 0
    assert images.main(["build", "--base", "python:3.11", "--unpinned", "cpu"]) == 0


def test_an_image_is_tagged_by_its_commit(stand_ins: Path, log: Path) -> None:
    assert images.main(["build", "--base", PINNED, "cpu", "ui"]) == 0
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    built = [line for line in log.read_text().splitlines() if " build " in line]
    assert len(built) == 2
    for name, line in zip(("cpu", "ui"), built, strict=True):
        tag = re.search(rf"--tag mezzotint/{name}:([0-9a-f]+)", line)
        assert tag is not None
        assert head.startswith(tag[1])
        assert f"--build-arg BASE={PINNED}" in line
        assert f"--file deploy/docker/{name}/Dockerfile" in line


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_a_health_check_survives_every_builder(stand_ins: Path, log: Path, builder: str) -> None:
    """Images in OCI's own format have none; docker writes its own anyway and knows no such option."""
    assert images.main(["build", "--builder", builder, "--base", PINNED, "ui"]) == 0
    assert log.read_text().startswith(f"{builder} build ")
    assert ("--format docker" in log.read_text()) == (builder != "docker")


def test_docker_without_its_server_is_passed_over(stand_ins: Path, log: Path) -> None:
    (stand_ins / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert images.main(["build", "--base", PINNED, "ui"]) == 0
    assert log.read_text().startswith("podman build ")


def test_models_and_packages_come_as_contexts(stand_ins: Path, log: Path, tmp_path: Path) -> None:
    folders = ["--models", str(tmp_path), "--wheels", str(tmp_path)]
    assert images.main(["build", "--base", PINNED, *folders, "cpu", "ui"]) == 0
    cpu, ui = (line for line in log.read_text().splitlines() if " build " in line)
    assert f"--build-context models={tmp_path}" in cpu
    assert f"--build-context wheels={tmp_path}" in cpu
    assert "PIP_NO_INDEX=1" in cpu
    assert "models=" not in ui
    assert images.main(["build", "--base", PINNED, "--models", str(tmp_path / "none"), "cpu"]) == 2


def test_a_failed_build_ends_with_one(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert images.main(["build", "--base", PINNED, "--tag", "fails", "cpu", "ui"]) == 1
    assert "ended with 3" in capsys.readouterr().err


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_a_push_tells_the_digests(stand_ins: Path, log: Path, tmp_path: Path, builder: str) -> None:
    file = tmp_path / "of/kustomization.yaml"
    command = ["push", "--builder", builder, "--tag", "t", "--output", str(file)]
    assert images.main([*command, "--registry", "host.example/prefix/", "ui"]) == 0
    assert "host.example/prefix/ui:t" in log.read_text()
    assert yaml.safe_load(file.read_text())["images"] == [
        {"name": "mezzotint/ui", "newName": "host.example/prefix/ui", "digest": DIGEST}
    ]


def test_a_push_that_fails_leaves_the_digests_as_they_were(stand_ins: Path, tmp_path: Path) -> None:
    file = tmp_path / "kustomization.yaml"
    command = ["push", "--builder", "podman", "--tag", "t", "--output", str(file)]
    assert images.main([*command, "--registry", "host.example/fails", "cpu", "ui"]) == 1
    assert not file.exists()
    # One that says nothing of a digest is none either.
    (stand_ins / "docker").write_text("#!/bin/sh\n")
    command[2] = "docker"
    assert images.main([*command, "--registry", "host.example/prefix", "ui"]) == 2
    assert not file.exists()


@pytest.mark.parametrize("registry", ["https://host.example/prefix", "me:secret@host.example"])
def test_a_registry_is_a_host_and_a_prefix(stand_ins: Path, log: Path, registry: str) -> None:
    assert images.main(["push", "--tag", "t", "--registry", registry, "ui"]) == 2
    assert "push" not in (log.read_text() if log.exists() else "")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")
def test_kustomize_takes_the_digests(stand_ins: Path, tmp_path: Path) -> None:
    """In a Deployment, and in a RayService, which it knows nothing of."""
    command = ["push", "--builder", "podman", "--tag", "t", "--registry", "host.example/prefix"]
    assert images.main([*command, "--output", str(tmp_path / "images/kustomization.yaml"), "cpu", "ui"]) == 0
    pod = {"containers": [{"name": "a", "image": "mezzotint/cpu"}]}
    pod["initContainers"] = [{"name": "b", "image": "mezzotint/cpu"}]
    group = {"template": {"spec": pod}}
    ray = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "r"}}
    ray["spec"] = {"rayClusterConfig": {"headGroupSpec": group, "workerGroupSpecs": [group]}}  # type: ignore[assignment]
    page = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "p"}}
    page["spec"] = {"template": {"spec": {"containers": [{"name": "a", "image": "mezzotint/ui"}]}}}  # type: ignore[assignment]
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "objects.yaml").write_text(yaml.safe_dump_all([ray, page]))
    (overlay / "kustomization.yaml").write_text(
        json.dumps({"resources": ["objects.yaml"], "components": ["../images"]})
    )
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True
    ).stdout
    assert done.count(f"host.example/prefix/cpu@{DIGEST}") == 4
    assert done.count(f"host.example/prefix/ui@{DIGEST}") == 1
    assert "image: mezzotint/" not in done


def test_a_pinned_base_is_one_that_is_built_on(
    stand_ins: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "images.toml"
    before = re.sub(r"@sha256:[0-9a-f]+", "", (DOCKER / "images.toml").read_text())
    table.write_text(before)
    monkeypatch.setattr(images, "IMAGES_FILE", table)
    assert images.main(["pin", "cpu"]) == 0
    tag = IMAGES["cpu"]["base"].partition("@")[0]
    assert f"skopeo inspect --format {{{{.Digest}}}} docker://{tag}" in log.read_text()
    assert f'base = "{tag}@{DIGEST}"' in table.read_text()
    assert len(table.read_text().splitlines()) == len(before.splitlines())
    # `ui` has the same base, so it is pinned with it; Neuron's is not.
    assert images.main(["build", "--builder", "podman", "cpu", "ui"]) == 0
    assert images.main(["build", "--builder", "podman", "neuron"]) == 2
    # Once more replaces the digest, and adds none.
    assert images.main(["pin", "cpu"]) == 0
    assert f"@{DIGEST}@" not in table.read_text()


def test_a_description_is_made_of_the_lock(stand_ins: Path, log: Path, tmp_path: Path) -> None:
    tool = shutil.copy(stand_ins / "skopeo", stand_ins / "cyclonedx-py")
    assert images.main(["sbom", "--tool", str(tool), "--output", str(tmp_path / "sbom"), "cpu", "ui"]) == 0
    cpu, ui = log.read_text().splitlines()
    assert " requirements deploy/docker/cpu/requirements.txt " in cpu
    assert f"--output-file {tmp_path}/sbom/ui.cdx.json" in ui
    assert images.main(["sbom", "--tool", str(tmp_path / "none"), "ui"]) == 2


def test_an_unknown_image_is_told_from_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert images.main(["build", "gpu"]) == 2
    assert ", ".join(IMAGES) in capsys.readouterr().err


@pytest.fixture
def server() -> Iterator[str]:
    """Answers /well with 200, and all else with 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_the_health_check_tells_a_well_server_from_others(server: str) -> None:
    def code(url: str) -> int:
        command = [sys.executable, "-S", str(DOCKER / "healthcheck.py"), url]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode

    # It waits 4 s for an answer, and Docker asks again too.
    assert any(code(f"{server}/well") == 0 for _ in range(3))
    assert code(f"{server}/ill") == 1
    # Nobody listens there.
    assert code("http://127.0.0.1:1/well") == 1
