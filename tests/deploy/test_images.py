"""The images: what every Dockerfile keeps to. They are built and run by `make images-check`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from mezzotint.cli import app
from mezzotint.config import OTHER_VARIABLES, PREFIX, Settings, load_settings
from mezzotint.serve.api import ops
from tests.deploy.dockerfiles import Dockerfile, read_dockerfile
from tests.deploy.image_files import DOCKER, IMAGES, PROJECT, ROOT

SERVICES = ("cpu", "cuda", "neuron")
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


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def dockerfile(image: str) -> Dockerfile:
    return read_dockerfile(DOCKER / image / "Dockerfile")


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
    assert "/opt/mezzotint/healthcheck.py" in health.rest
    assert set(health.flags) == {"interval", "timeout", "start-period", "retries"}
    asked = re.search(r"http://127\.0\.0\.1:([^/\"]+)(/\w*)", health.rest)
    assert asked is not None
    assert asked[2] == "/healthz"
    defaults = {"ui": "7860"}.get(image, f"${{MEZZOTINT_PORT:-{Settings.model_fields['port'].default}}}")
    assert asked[1] == defaults
    assert port.rest in asked[1]
    # The page's own: tests/ui/test_health.py.
    assert image == "ui" or "/healthz" in {each.path for each in ops.router.routes}  # type: ignore[attr-defined]


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
