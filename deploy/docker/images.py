"""Build, push and describe the images of images.toml, with docker, podman or buildah.

    images.py build [IMAGE …]      each as mezzotint/IMAGE:COMMIT
    images.py push --registry HOST/PREFIX [IMAGE …]
    images.py pin [IMAGE …]        write the bases' digests into images.toml
    images.py sbom [IMAGE …]       what the locks hold, as CycloneDX

`make images`, `make push`, `make pin` and `make sbom` call it. Of Python it needs the standard library alone;
of other programs it names what is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
IMAGES_FILE = HERE / "images.toml"
BUILDERS = ("docker", "podman", "buildah")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# A component that overlays include, so that they take the images by digest.
DIGESTS = ROOT / "deploy/kubernetes/components/images/kustomization.yaml"
COMPONENT = """\
# Written by `make push`: the images that were pushed, by digest.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
images:
"""


class Problem(Exception):
    """What whoever calls can mend; its text is the one line they get."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        images = tomllib.loads(IMAGES_FILE.read_text())
        unknown = [name for name in given.images if name not in images]
        if unknown:
            raise Problem(f"no image {', '.join(unknown)}; there are {', '.join(images)}")
        given.images = given.images or list(images)
        given.act(given, {name: image["base"] for name, image in images.items()})
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(error.cmd[:3])} … ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build, push and describe the images.")
    acts = parser.add_subparsers(required=True, metavar="build|push|pin|sbom")
    build = acts.add_parser("build", help="build and tag by commit")
    build.add_argument("--base", help="build on this instead of what images.toml says")
    build.add_argument("--unpinned", action="store_true", help="accept a base without a digest")
    build.add_argument("--models", type=Path, metavar="FOLDER", help="bake it in, as /opt/mezzotint/models")
    build.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install from this folder, and nowhere else"
    )
    build.add_argument("--flags", default="", help="further arguments for the builder, as one text")
    build.add_argument("--print", action="store_true", help="print the commands, run nothing")
    build.set_defaults(act=build_images)
    push = acts.add_parser("push", help="push, and write the digests for kustomize")
    push.add_argument(
        "--registry", required=True, metavar="HOST/PREFIX", help="IMAGE goes to HOST/PREFIX/IMAGE"
    )
    push.add_argument("--output", type=Path, default=DIGESTS, metavar="FILE", help="where the digests go")
    push.add_argument("--flags", default="", help="further arguments for the push, as one text")
    push.set_defaults(act=push_images)
    pin = acts.add_parser("pin", help="ask the registries for the bases' digests")
    pin.set_defaults(act=pin_bases)
    sbom = acts.add_parser("sbom", help="write a CycloneDX file for each")
    sbom.add_argument("--tool", default="cyclonedx-py", help="the cyclonedx-py to run")
    sbom.add_argument("--output", type=Path, default=ROOT / "build/sbom", metavar="FOLDER")
    sbom.set_defaults(act=describe_images)
    for act in (build, push):
        act.add_argument("--builder", choices=BUILDERS, help="the first of them that works, if not given")
        act.add_argument("--tag", help="instead of the commit")
    for act in (build, push, pin, sbom):
        act.add_argument("images", nargs="*", metavar="IMAGE", help="all, if none is given")
    return parser


def build_images(given: argparse.Namespace, bases: dict[str, str]) -> None:
    if not given.unpinned:
        _refuse_unpinned({name: given.base or bases[name] for name in given.images})
    for folder in (given.models, given.wheels):
        if folder is not None and not folder.is_dir():
            raise Problem(f"{folder} is no folder")
    # To print, no builder need be here.
    builder = given.builder or ("docker" if given.print else find_builder())
    tag = given.tag or commit()
    for name in given.images:
        command = build_command(builder, name, given.base or bases[name], tag, given.models, given.wheels)
        command += [*shlex.split(given.flags), "."]
        print(shlex.join(command), flush=True)
        if not given.print:
            subprocess.run(command, check=True, cwd=ROOT)


def build_command(
    builder: str, name: str, base: str, tag: str, models: Path | None, wheels: Path | None
) -> list[str]:
    """The command but for the caller's own flags and the context."""
    command = [
        builder,
        "build",
        "--file",
        f"deploy/docker/{name}/Dockerfile",
        "--tag",
        f"mezzotint/{name}:{tag}",
    ]
    if builder != "docker":
        # OCI's own format knows no HEALTHCHECK.
        command += ["--format", "docker"]
    arguments = {"BASE": base, "VERSION": version(), "REVISION": tag}
    if wheels is not None:
        command += ["--build-context", f"wheels={wheels.resolve()}"]
        arguments["PIP_NO_INDEX"] = "1"
    if models is not None and name != "ui":
        command += ["--build-context", f"models={models.resolve()}"]
    for argument, value in arguments.items():
        command += ["--build-arg", f"{argument}={value}"]
    return command


def push_images(given: argparse.Namespace, _: dict[str, str]) -> None:
    builder = given.builder or find_builder()
    tag = given.tag or commit()
    registry = given.registry.rstrip("/")
    if "://" in registry or "@" in registry:
        raise Problem("the registry is HOST/PREFIX, without https:// and without a user")
    text = COMPONENT
    for name in given.images:
        target = f"{registry}/{name}"
        digest = push_image(builder, f"mezzotint/{name}:{tag}", f"{target}:{tag}", shlex.split(given.flags))
        text += f"  - name: mezzotint/{name}\n    newName: {target}\n    digest: {digest}\n"
    # All or none: a file with half of them would deploy two commits at once.
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)
    print(text)


def push_image(builder: str, local: str, target: str, flags: list[str]) -> str:
    """The digest under which the registry has it."""
    if builder == "docker":
        _run([builder, "tag", local, target])
        _run([builder, "push", *flags, target])
        found = _output([builder, "image", "inspect", "--format", '{{join .RepoDigests " "}}', target])
        repository = target.rpartition(":")[0]
        told = next((each for each in found.split() if each.startswith(f"{repository}@")), "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "digest"
            where = target if builder == "podman" else f"docker://{target}"
            _run([builder, "push", "--digestfile", str(file), *flags, local, where])
            told = file.read_text()
    digest = DIGEST.search(told)
    if digest is None:
        raise Problem(f"{builder} did not say under which digest {target} was pushed")
    return digest[0]


def pin_bases(given: argparse.Namespace, bases: dict[str, str]) -> None:
    text = IMAGES_FILE.read_text()
    for base in dict.fromkeys(bases[name] for name in given.images):
        tag = base.partition("@")[0]
        pinned = f"{tag}@{remote_digest(tag)}"
        text = text.replace(f'"{base}"', f'"{pinned}"')
        print(pinned)
    IMAGES_FILE.write_text(text)


def remote_digest(image: str) -> str:
    """What the registry has under this tag now: the list of all platforms, where there is one."""
    if shutil.which("skopeo"):
        told = _output(["skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{image}"])
    elif shutil.which("docker"):
        told = _output(["docker", "buildx", "imagetools", "inspect", image])
    else:
        raise Problem("asking a registry takes skopeo or docker, and neither is here")
    digest = DIGEST.search(told)
    if digest is None:
        raise Problem(f"no digest was told of {image}")
    return digest[0]


def describe_images(given: argparse.Namespace, _: dict[str, str]) -> None:
    if not shutil.which(given.tool):
        raise Problem(f"there is no {given.tool}; `make sbom` installs it")
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.images:
        file = given.output / f"{name}.cdx.json"
        command = [given.tool, "requirements", f"deploy/docker/{name}/requirements.txt", "--pyproject"]
        command += ["pyproject.toml", "--output-format", "JSON", "--output-file", str(file.resolve())]
        subprocess.run(command, check=True, cwd=ROOT)
        print(file)


def find_builder() -> str:
    """The first that works: of docker, the client is often there without a server."""
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "docker"
    found = next((name for name in BUILDERS[1:] if shutil.which(name)), None)
    if found is None:
        raise Problem("no builder works here: docker (with its server), podman or buildah")
    return found


def commit() -> str:
    """The tag: the commit, and whether what is here differs from it."""
    told = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
    changed = _output(
        ["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "deploy/docker", "pyproject.toml"]
    )
    return f"{told}-changed" if changed.strip() else told


def version() -> str:
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/mezzotint/__init__.py").read_text())
    if found is None:
        raise Problem("src/mezzotint/__init__.py names no version")
    return found[1]


def _refuse_unpinned(bases: dict[str, str]) -> None:
    loose = sorted({base for base in bases.values() if "@" not in base})
    if loose:
        raise Problem(
            f"{', '.join(loose)} may be another image tomorrow: `make pin` writes its digest into "
            "images.toml; UNPINNED=1 builds what is not to be deployed"
        )


def _run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    os.environ.setdefault("DOCKER_BUILDKIT", "1")
    sys.exit(main())
