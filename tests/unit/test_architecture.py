"""The walls between the rooms, and the names that others build on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mezzotint

PACKAGE = Path(mezzotint.__file__).parent

# Each room, and the rooms of Mezzotint it may import. Leaving one out is the point.
MAY_IMPORT = {
    "errors": set(),
    "samplers": {"errors"},
    "threads": set(),
    "cores": {"errors"},
    "neuron_versions": set(),
    "embeddings": set(),
    "emphasis": {"errors"},
    "core": {"errors", "samplers", "imaging"},
    "checks": {"core", "errors"},
    "resolving_added": {"checks", "core", "errors", "imaging.inputs"},
    "resolving": {
        "checks",
        "core",
        "embeddings",
        "emphasis",
        "errors",
        "resolving_added",
        "samplers",
        "imaging.inputs",
        "imaging.size",
    },
    "tuning": {"errors"},
    "config": {"errors", "config_file", "tuning"},
    "config_file": {"errors"},
    "backends": {
        "core",
        "cores",
        "embeddings",
        "emphasis",
        "errors",
        "samplers",
        "backends",
        "imaging.edges",
        "imaging.inputs",
        "tuning",
    },
    # `Engine.load` makes the fake backend or asks the models for one; the rest knows only the protocol.
    "engine": {
        "core",
        "resolving",
        "errors",
        "engine",
        "backends.base",
        "backends.fake",
        "models.loading",
        "tuning",
    },
    "models": {"core", "resolving", "cores", "errors", "samplers", "backends", "models", "threads", "tuning"},
    "imaging": {"core", "emphasis", "errors", "imaging"},
    "serve": {
        "core",
        "resolving",
        "resolving_added",
        "cores",
        "errors",
        "samplers",
        "config",
        "engine.admission",
        "engine.engine",
        "engine.events",
        "engine.observer",
        "engine.rows",
        "engine.ticket",
        "backends.base",
        "imaging",
        "models",
        "serve",
    },
    # A client of the service over HTTP: of the rest it knows the file formats and the names of samplers.
    "ui": {
        "core",
        "emphasis",
        "errors",
        "samplers",
        "imaging.formats",
        "imaging.metadata",
        "imaging.uploads",
        "ui",
    },
    # Drives other programs; a wheel without the server can deploy one.
    "deploy": {"errors", "config_file", "deploy"},
    # Besides its clients it has the peers that are compared: diffusers' modules, put together its own way.
    "bench": {
        "core",
        "resolving",
        "errors",
        "engine",
        "backends.base",
        "backends.diffusers",
        "backends.channels_last",
        "backends.parts",
        "backends.tuned",
        "models",
        "imaging",
        "bench",
        "threads",
        "tuning",
    },
}
ENGINES = {"mezzotint.serve.fleet", "mezzotint.serve.replica", "mezzotint.serve.routing"}
# No module of these rooms may import these libraries and rooms, at any depth of the file.
WITHOUT = {
    "engine": {"torch", "diffusers", "ray", "transformers", "fastapi", "starlette"},
    "core": {"torch", "diffusers", "ray", "asyncio"},
    "checks": {"torch", "diffusers", "ray", "asyncio"},
    "resolving": {"torch", "diffusers", "ray", "asyncio"},
    "resolving_added": {"torch", "diffusers", "ray", "asyncio"},
    "emphasis": {"torch", "diffusers", "ray", "asyncio"},
    "samplers": {"torch", "diffusers"},
    "tuning": {"torch", "diffusers"},
    "serve": {"torch", "diffusers"},
    "serve/access": {"ray", "fastapi", "starlette", "mezzotint.engine", *ENGINES},
    "serve/api": {"ray", "sqlalchemy", "mezzotint.engine", *ENGINES},
    "serve/dispatch": {"ray", "fastapi", "starlette"},
    "serve/fleet": {"ray", "fastapi", "starlette"},
    "serve/gateway": {"ray", "fastapi", "starlette"},
    "serve/health": {"ray", "fastapi", "starlette"},
    "serve/jobs": {"ray", "fastapi", "starlette", "mezzotint.serve.api"},
    "serve/peers": {"ray", "fastapi", "starlette"},
    "serve/replica": {"ray", "fastapi", "starlette"},
    "serve/runs": {"ray", "fastapi", "starlette"},
    "serve/services": {"ray"},
    "serve/several": {"ray", "fastapi", "starlette"},
    "serve/stores": {"ray", "fastapi", "starlette", "mezzotint.engine", "mezzotint.serve.gateway", *ENGINES},
    "imaging": {"torch", "diffusers", "ray"},
    "ui": {"torch", "diffusers", "ray", "transformers", "sqlalchemy"},
    "deploy": {"torch", "diffusers", "ray", "sqlalchemy", "boto3", "kubernetes"},
}
# What must be known of a model at once, before torch is there.
WITHOUT_TORCH = {
    "models/added.py",
    "models/artefact.py",
    "models/controlnets.py",
    "models/embeddings.py",
    "models/ip_adapters.py",
    "models/locations.py",
    "models/loras.py",
    "models/named.py",
    "backends/neuron/shapes.py",
    "cores.py",
}
PURE = {"engine/rows.py", "engine/rules.py", "engine/scheduler.py", "engine/standing.py", "engine/cost.py"}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    assert modules(room), f"no room {room}"
    for path in modules(room):
        for name in imports_of(path):
            if name == "mezzotint" or not name.startswith("mezzotint."):
                continue
            inner = name.removeprefix("mezzotint.")
            allowed = MAY_IMPORT[room]
            assert any(inner == each or inner.startswith(each + ".") for each in allowed), (
                f"{path.relative_to(PACKAGE)} imports {name}; {room} may import {sorted(allowed)}"
            )


def test_what_one_module_takes_from_another_is_among_the_names_that_it_offers() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    offered = {path: names for path, tree in trees.items() if (names := _offered(tree)) is not None}
    assert len(offered) > 200
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mezzotint."):
                continue
            source = PACKAGE.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
            taken = {each.name for each in node.names}
            hidden = taken - offered.get(source, taken)
            assert not hidden, f"{node.module} does not offer {hidden}, which {path.name} takes"


def _offered(tree: ast.Module) -> set[str] | None:
    """What `__all__` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("room", sorted(WITHOUT))
def test_a_room_stays_clear_of_what_it_must_not_know(room: str) -> None:
    assert modules(room), f"no room {room}"
    for path in modules(room):
        for name in imports_of(path):
            known = [each for each in WITHOUT[room] if name == each or name.startswith(each + ".")]
            assert not known, f"{path.relative_to(PACKAGE)} imports {name}"


ARCHITECTURE = PACKAGE.parents[1] / "docs/architecture.md"


@pytest.mark.skipif(not ARCHITECTURE.is_file(), reason="docs is not here")
@pytest.mark.parametrize("room", ["engine", "backends", "serve"])
def test_each_module_of_a_room_has_its_line_in_the_table(room: str) -> None:
    told = ARCHITECTURE.read_text(encoding="utf-8")
    for path in (PACKAGE / room).glob("[!_]*.py"):
        assert f"{path.name}`" in told, f"docs/architecture.md does not tell what {room}/{path.name} is for"


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_what_is_known_of_a_model_before_it_is_loaded_needs_no_torch(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports_of(PACKAGE / name)}
    assert not roots & {"torch", "diffusers", "transformers", "torch_neuronx"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_scheduler_and_the_cost_model_have_no_clock_no_thread_and_no_chance(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports_of(PACKAGE / name)}
    assert not roots & {"time", "datetime", "threading", "asyncio", "random", "queue", "logging", "os"}


def test_a_backend_has_at_most_seven_methods() -> None:
    from mezzotint.backends.base import Backend

    methods = [
        name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))
    ]
    assert len(methods) <= 7


def test_the_library_exports_what_it_says() -> None:
    assert sorted(mezzotint.__all__) == [
        "Engine",
        "GenerationRequest",
        "Image",
        "MezzotintError",
        "__version__",
    ]


def test_the_threads_policy_is_set_before_torch_and_a_callers_own_stays() -> None:
    # Ends where torch would begin, which takes seconds.
    probe = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import mezzotint.models.loading\n"
    )
    policy = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    plain = {name: value for name, value in os.environ.items() if name not in policy}
    for given, expected in ((plain, "PASSIVE"), (plain | {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        command = [sys.executable, "-c", probe]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
        assert found.stdout.strip() == expected


def test_importing_the_library_loads_neither_torch_nor_ray() -> None:
    heavy = {"torch", "ray", "diffusers", "transformers"}
    probe = f"import sys, mezzotint; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
