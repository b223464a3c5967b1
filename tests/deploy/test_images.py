"""The images: what every Dockerfile keeps to, and that each lock is what its image needs, with hashes.

They are built and run by `make images-check`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mezzotint.cli import app
from mezzotint.config import OTHER_VARIABLES, PREFIX, Settings, load_settings
from mezzotint.serve.api import ops
from tests.deploy.dockerfiles import Dockerfile, read_dockerfile

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "deploy/docker"
IMAGES = tomllib.loads((DOCKER / "images.toml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVICES = ("cpu", "cuda", "neuron")
LOCKS = {name: DOCKER / name / "requirements.txt" for name in IMAGES} | {
    name: DOCKER / f"{name}.txt" for name in ("wheel", "sbom")
}
USER = "10001"
LABELS = {"title", "description", "licenses", "version", "revision", "base.name"}
# Who reads what of another's, and in which file; an empty one is the system's.
READ_BY = {
    "PATH": "",
    "HOME": "",
    "PYTHONUNBUFFERED": "",
    "PYTHONDONTWRITEBYTECODE": "",
    "HF_HUB_OFFLINE": "huggingface_hub/constants.py",
    "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub/constants.py",
    "RAY_USAGE_STATS_ENABLED": "ray/_common/usage/usage_constants.py",
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "ray/_private/utils.py",
    # The container toolkit of the node.
    "NVIDIA_DRIVER_CAPABILITIES": "",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lock = load("lock")


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def dockerfile(image: str) -> Dockerfile:
    return read_dockerfile(DOCKER / image / "Dockerfile")


# Dockerfiles


def test_every_dockerfile_is_an_image_of_the_table() -> None:
    assert {path.parent.name for path in DOCKER.glob("*/Dockerfile")} == set(IMAGES)


def test_an_image_is_built_on_the_base_of_the_table(image: str, dockerfile: Dockerfile) -> None:
    tag = IMAGES[image]["base"].partition("@")[0]
    assert [each.rest for each in dockerfile.head] == [f"BASE={tag}"]
    assert not tag.endswith(":latest")
    assert ":" in tag
    bases = [stage[0].rest.partition(" AS ")[0] for stage in dockerfile.stages.values()]
    assert set(bases) == {"scratch", "${BASE}"}
    assert bases[-1] == "${BASE}"


def test_nothing_is_fetched_but_by_the_package_managers(dockerfile: Dockerfile) -> None:
    assert not [each for each in dockerfile.all if each.word == "ADD"]
    ran = [each.rest for each in dockerfile.all if each.word in ("RUN", "COPY")]
    assert not [line for line in ran if "://" in line or re.search(r"\b(curl|git) |\bwget +[-\"$]", line)]


def test_what_is_copied_is_there_and_not_ignored(dockerfile: Dockerfile) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    copies = [each for each in dockerfile.all if each.word == "COPY"]
    assert copies
    for copy in copies:
        if "from" in copy.flags:
            assert copy.flags["from"] in dockerfile.stages
            continue
        for source in copy.words()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(f"{source}/".startswith(f"{path}/") for path in kept), source
    mounts = [each.flags["mount"] for each in dockerfile.all if "mount" in each.flags]
    assert all(re.search(r"from=(\w+)", mount)[1] in dockerfile.stages for mount in mounts)  # type: ignore[index]


def test_every_package_is_installed_by_its_hash(image: str, dockerfile: Dockerfile) -> None:
    commands = [
        command
        for each in dockerfile.all
        if each.word == "RUN"
        for command in each.rest.split("&&")
        if re.search(r"\bpip\b.*\b(install|wheel|download)\b", command) and "python3-pip" not in command
    ]
    assert len(commands) == 4
    # Without an index, it is what was made of this repository.
    assert all("--require-hashes" in command or "--no-index" in command for command in commands)
    assert {name for command in commands for name in re.findall(r"(\S+)\.txt", command)} <= {
        "wheel",
        "requirements",
        "/opt/mezzotint/requirements",
    }


def test_it_runs_as_a_user_of_its_own_to_the_last(dockerfile: Dockerfile) -> None:
    words = [each.word for each in dockerfile.image]
    assert [each.rest for each in dockerfile.of("USER")] == [f"{USER}:{USER}"]
    assert not {"RUN", "COPY"} & set(words[words.index("USER") :])
    made = " ".join(each.rest for each in dockerfile.of("RUN"))
    assert f"useradd --uid {USER} --gid {USER}" in made


def test_all_that_it_writes_is_on_one_volume(dockerfile: Dockerfile) -> None:
    [volume] = (each.rest for each in dockerfile.of("VOLUME"))
    variables = environment(dockerfile)
    assert variables["HOME"] == variables.get("MEZZOTINT_HOME", variables["HOME"]) == volume
    made = " ".join(each.rest for each in dockerfile.of("RUN"))
    assert f"install -d -o {USER} -g {USER} {volume}" in made


def test_its_variables_are_read_by_somebody(
    image: str, dockerfile: Dockerfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(dockerfile).items():
        if name.startswith(PREFIX):
            assert name in OTHER_VARIABLES or name.removeprefix(PREFIX).lower() in Settings.model_fields
            monkeypatch.setenv(name, value)
        elif READ_BY[name]:
            package, _, file = READ_BY[name].partition("/")
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.submodule_search_locations is not None
            assert f'"{name}"' in (Path(spec.submodule_search_locations[0]) / file).read_text()
    settings = load_settings()
    if image in SERVICES:
        assert settings.host == "0.0.0.0"
        assert not settings.ui


def test_its_command_is_one_that_there_is(image: str, dockerfile: Dockerfile) -> None:
    [entry], [command] = dockerfile.of("ENTRYPOINT"), dockerfile.of("CMD")
    assert entry.words() == ["tini", "--", "mezzotint"]
    name, *arguments = command.words()
    assert name == ("ui" if image == "ui" else "serve")
    found = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    # It parses the arguments, and raises where there is no such option.
    parameters = found.make_context(name, arguments).params
    if image == "ui":
        assert parameters["host"] == "0.0.0.0"


def test_its_health_is_asked_for_where_it_listens(image: str, dockerfile: Dockerfile) -> None:
    [health], [port] = dockerfile.of("HEALTHCHECK"), dockerfile.of("EXPOSE")
    route = {"ui": "/"}.get(image, "/healthz")
    assert "/opt/mezzotint/healthcheck.py" in health.rest
    assert set(health.flags) == {"interval", "timeout", "start-period", "retries"}
    asked = re.search(r"http://127\.0\.0\.1:([^/\"]+)(/\w*)", health.rest)
    assert asked is not None
    assert asked[2] == route
    defaults = {"ui": "7860"}.get(image, f"${{MEZZOTINT_PORT:-{Settings.model_fields['port'].default}}}")
    assert asked[1] == defaults
    assert port.rest in asked[1]
    assert image == "ui" or route in {each.path for each in ops.router.routes}  # type: ignore[attr-defined]


def test_it_says_what_it_is(image: str, dockerfile: Dockerfile) -> None:
    [label] = dockerfile.of("LABEL")
    said = {name.removeprefix("org.opencontainers.image."): value for name, value in label.pairs().items()}
    assert set(said) == LABELS
    assert said["title"] == f"mezzotint/{image}"
    assert said["licenses"] == PROJECT["project"]["license"]
    arguments = {each.rest.partition("=")[0] for each in dockerfile.of("ARG")}
    assert set(re.findall(r"\$\{(\w+)\}", label.rest)) <= arguments


@pytest.mark.parametrize("image", SERVICES)
def test_a_ray_node_has_what_its_probes_run(image: str) -> None:
    installed = [each.rest for each in read_dockerfile(DOCKER / image / "Dockerfile").of("RUN")]
    assert any("apt-get install" in line and " wget" in line and " tini" in line for line in installed)


def environment(dockerfile: Dockerfile) -> dict[str, str]:
    return {name: value for each in dockerfile.of("ENV") for name, value in each.pairs().items()}


# Locks


@pytest.fixture(params=LOCKS)
def locked(request: pytest.FixtureRequest) -> dict[str, Version]:
    """The versions of one lock, by name."""
    return versions(LOCKS[request.param])


def versions(path: Path) -> dict[str, Version]:
    return {name: Version(version) for name, version in lock.pins(path).items()}


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
