"""Build the images `cpu` and `ui` and run them as a cluster would: what `make images-check` runs.

Each runs as its own user on a read-only root, without capabilities. The service draws a picture, the page in
another container fetches it from there, a container becomes a Ray node as KubeRay starts one, a model is
baked in, and all stop in time. What was built is pushed to a registry on this machine and asked for by its
digest.

It needs podman and docker-registry. `--nested` is for a machine that is a container or a small
virtual machine itself, without a registry in reach: the base is made of Debian's packages, which needs
debootstrap and root. The findings go to docs/measurements/images-COMMIT.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.containers import (
    NESTED_CONF,
    USER,
    Container,
    answers,
    ask,
    expect,
    fetch,
    free_port,
    output,
    run,
)

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "deploy/docker/images.py"
NAMES = ("cpu", "ui")
LOCAL_BASE = "localhost/mezzotint-check-base:bookworm"
RUN = f"mezzotint-check-{secrets.token_hex(3)}"
PNG = b"\x89PNG\r\n\x1a\n"
# As KubeRay 1.7 starts a head and asks for its health: its words, without the parts that name a cluster.
RAY_HEAD = (
    "ulimit -n 65536; ray start --head --block --num-cpus=0 --dashboard-host=0.0.0.0 "
    "--dashboard-agent-listen-port=52365 --metrics-export-port=8080 --object-store-memory=100000000"
)
PROBES = (
    "wget --tries 1 -T 5 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success",
    "wget --tries 1 -T 5 -q -O- http://localhost:8265/api/gcs_healthz | grep success",
)
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
REGISTRY = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="mezzotint-images-") as name:
        folder = Path(name)
        if given.nested:
            (folder / "containers.conf").write_text(NESTED_CONF)
            os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
        tag = output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD").strip()
        findings: dict[str, Any] = {
            "command": f"make images-check{' CHECK_FLAGS=--nested' if given.nested else ''}",
            "commit": tag,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "engine": output("podman", "--version").strip(),
        }
        if given.nested and not given.base:
            given.base = local_base(folder)
        findings["images"] = {image: build_and_describe(given, image, tag) for image in NAMES}
        findings["served"] = check_service_and_page(tag)
        findings["ray_node"] = check_ray_node(tag)
        findings["baked"] = check_baked(given, folder, tag)
        findings["pushed"] = check_push(folder, tag)
    file = given.output or ROOT / f"docs/measurements/images-{tag}.json"
    file.write_text(json.dumps(findings, indent=1) + "\n")
    print(f"wrote {file}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the images and run them as a cluster would.")
    parser.add_argument("--base", help="build on this image instead of images.toml's")
    parser.add_argument("--nested", action="store_true", help="on a machine that is a container itself")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install from FOLDER/IMAGE, no index")
    parser.add_argument("--flags", default="", help="further arguments for the builds, as one text")
    parser.add_argument("--output", type=Path, metavar="FILE")
    return parser.parse_args()


def build(given: argparse.Namespace, image: str, tag: str, *further: str) -> None:
    flags = given.flags + (" --isolation=chroot --network=host" if given.nested else "")
    command = [sys.executable, str(IMAGES), "build", "--builder=podman", f"--tag={tag}", "--unpinned"]
    command += [f"--flags={flags}", *([f"--base={given.base}"] if given.base else [])]
    if given.wheels:
        command.append(f"--wheels={given.wheels / image}")
    run(*command, *further, image)


def local_base(folder: Path) -> str:
    """An image with Debian's own Python, for where no registry is in reach."""
    if ask("podman", "image", "exists", LOCAL_BASE).returncode:
        system, archive = folder / "base", folder / "base.tar"
        packages = "ca-certificates,python3,python3-pip,python3-venv"
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(system))
        run("tar", "--create", f"--file={archive}", f"--directory={system}", ".")
        run("podman", "import", str(archive), LOCAL_BASE)
        shutil.rmtree(system)
        archive.unlink()
    return LOCAL_BASE


def build_and_describe(given: argparse.Namespace, image: str, tag: str) -> dict[str, Any]:
    build(given, image, tag)
    [told] = json.loads(output("podman", "image", "inspect", f"mezzotint/{image}:{tag}"))
    config = told["Config"]
    expect(f"{image} runs as {USER}", config["User"] == f"{USER}:{USER}")
    expect(f"{image} has a health check", "healthcheck.py" in json.dumps(told))
    expect(f"{image} says its commit", config["Labels"]["org.opencontainers.image.revision"] == tag)
    expect(f"{image} holds this checkout's code", code_in(f"mezzotint/{image}:{tag}") == code_here())
    base = config["Labels"]["org.opencontainers.image.base.name"]
    [of_base] = json.loads(output("podman", "image", "inspect", base))
    return {"base": base, "bytes": told["Size"], "bytes_of_base": of_base["Size"]}


HASH_OF_CODE = """
import hashlib, importlib.util, pathlib
root = pathlib.Path(importlib.util.find_spec("mezzotint").origin).parent
found = hashlib.sha256()
for path in sorted(root.rglob("*.py")):
    found.update(path.read_bytes())
print(found.hexdigest())
"""


def code_in(image: str) -> str:
    """A hash of the package in an image: what a builder's cache kept of an older commit shows here."""
    return output("podman", "run", "--rm", "--entrypoint", "python3", image, "-c", HASH_OF_CODE).strip()


def code_here() -> str:
    found = hashlib.sha256()
    for path in sorted((ROOT / "src/mezzotint").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def check_service_and_page(tag: str) -> dict[str, Any]:
    at, page_at = free_port(), free_port()
    api, url = f"http://127.0.0.1:{at}", f"http://127.0.0.1:{page_at}"
    name, network = f"{RUN}-service", f"--network={RUN}"
    found: dict[str, Any] = {}
    run("podman", "network", "create", RUN)
    try:
        options = (network, f"--publish=127.0.0.1:{at}:8000")
        with Container(name, f"mezzotint/cpu:{tag}", options=options) as service:
            found["service_ready_s"] = service.wait("the service is ready", lambda: answers(f"{api}/readyz"))
            key = check_service(service, api)
            # By the environment and not the command line: a key is a secret.
            os.environ["MEZZOTINT_API_KEY"] = key
            options = (network, f"--publish=127.0.0.1:{page_at}:7860", "--env=MEZZOTINT_API_KEY")
            options = (*options, f"--env=MEZZOTINT_API=http://{name}:8000")
            with Container(f"{RUN}-page", f"mezzotint/ui:{tag}", options=options) as page:
                found["page_ready_s"] = page.wait("the page is ready", lambda: answers(url))
                check_page(page, url, service, api, key)
                found["page_memory_bytes"] = page.memory_bytes()
                found["page_stops_s"] = page.stop()
            found["service_memory_bytes"] = service.memory_bytes()
            found["service_stops_s"] = service.stop()
    finally:
        run("podman", "network", "rm", "--force", RUN)
    return found


def check_service(service: Container, api: str) -> str:
    """The key that was made for it."""
    service.check_hardened()
    expect("the service's own health check passes", service.is_healthy())
    expect("a stranger is refused", answers(f"{api}/imagine?prompt=a+red+apple", 401))
    key = service.exec("mezzotint", "keys", "create", "check").strip()
    picture = fetch(f"{api}/imagine?prompt=a+red+apple&seed=1", key)
    expect(f"the service draws a picture, {len(picture):,} bytes", picture.startswith(PNG))
    return key


def check_page(page: Container, url: str, service: Container, api: str, key: str) -> None:
    page.check_hardened()
    expect("the page's own health check passes", page.is_healthy())
    expect("the page is Mezzotint's", b"Mezzotint" in fetch(url))
    expect("nothing that draws is in it", not page.tries("python3", "-c", "import torch"))
    job = json.loads(fetch(f"{api}/v1/images/jobs", key, {"prompt": "a blue fish", "seed": 2}))["id"]
    service.wait(
        "the job is done",
        lambda: json.loads(fetch(f"{api}/v1/images/jobs/{job}", key))["state"] == "done",
    )
    drawn = fetch(f"{api}/v1/images/jobs/{job}/images/0", key)
    expect("the page fetches the service's picture", fetch(f"{url}/pictures/{job}/0.png") == drawn)


def check_ray_node(tag: str) -> dict[str, Any]:
    """A head as KubeRay starts one: a shell with the command, the probes run inside."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    options = ("--entrypoint=/bin/bash", "--env=RAY_AUTH_MODE", "--env=RAY_AUTH_TOKEN")
    with Container(f"{RUN}-head", f"mezzotint/cpu:{tag}", "-c", "--", RAY_HEAD, options=options) as head:
        seconds = head.wait(
            "the head's probes pass", lambda: all(head.tries("bash", "-c", probe) for probe in PROBES)
        )
        print(f"ok: KubeRay's probes pass after {seconds} s")
        head.check_hardened()
        head.wait("it is a node of its cluster", lambda: "1 node_" in head.exec("ray", "status"))
        print("ok: it is a node of its cluster")
        return {"ready_s": seconds, "stops_s": head.stop()}


def check_baked(given: argparse.Namespace, folder: Path, tag: str) -> dict[str, Any]:
    """A model that is in the image alone draws, and nobody in the container can change it."""
    models = folder / "models"
    shutil.copytree(ROOT / "src/mezzotint/models/demo", models / "baked")
    build(given, "cpu", f"{tag}-baked", f"--models={models}")
    image = f"mezzotint/cpu:{tag}-baked"
    model = "/opt/mezzotint/models/baked"
    with Container(f"{RUN}-baked", image, "600", options=("--entrypoint=sleep",)) as container:
        container.exec("mezzotint", "draw", "--model", model, "--output", "/tmp/a.png", "a red apple")
        expect("a baked model draws", container.tries("test", "-s", "/tmp/a.png"))
        owner = container.exec("stat", "--format=%u %a", f"{model}/model_index.json").split()
        expect("a baked model is root's, and everybody's to read", owner[0] == "0" and owner[1][-1] in "45")
    run("podman", "image", "rm", image)
    return {"model": "demo"}


def check_push(folder: Path, tag: str) -> dict[str, Any]:
    """What was pushed is what the digests say, and its size is what a node pulls."""
    port = free_port()
    prefix = f"127.0.0.1:{port}/check"
    with registry(folder, port):
        file = folder / "kustomization.yaml"
        command = [sys.executable, str(IMAGES), "push", "--builder=podman", f"--tag={tag}"]
        run(*command, f"--registry={prefix}", f"--output={file}", *NAMES)
        told = re.findall(r"newName: (\S+)\n +digest: (\S+)", file.read_text())
        expect("every image that was pushed is told of", len(told) == len(NAMES))
        sizes = {}
        for name, digest in told:
            run("podman", "pull", "--quiet", f"{name}@{digest}")
            url = f"http://127.0.0.1:{port}/v2/{name.partition('/')[2]}/manifests/{digest}"
            manifest = json.loads(fetch(url, accept=MANIFEST))
            print(f"ok: {name} is pulled by the digest that was told")
            sizes[f"{Path(name).name}_compressed_bytes"] = sum(each["size"] for each in manifest["layers"])
            run("podman", "image", "rm", f"{name}@{digest}")
        return sizes


@contextmanager
def registry(folder: Path, port: int) -> Iterator[None]:
    (folder / "registry.yml").write_text(REGISTRY.format(folder=folder / "registry", port=port))
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n')
    os.environ["CONTAINERS_REGISTRIES_CONF"] = str(folder / "registries.conf")
    process = subprocess.Popen(["docker-registry", "serve", str(folder / "registry.yml")])
    try:
        deadline = time.monotonic() + 30
        while not answers(f"http://127.0.0.1:{port}/v2/") and time.monotonic() < deadline:
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
