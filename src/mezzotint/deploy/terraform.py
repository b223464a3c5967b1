"""One root of terraform: `infra` or `addons`, run from a copy, with its data in the deployment's folder.

The copy has one file more, an override that says where the state is. So one checkout serves any number of
clusters, and none of them writes into it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.deploy.aws import parsed
from mezzotint.deploy.checkout import digest_of
from mezzotint.deploy.folder import Folder
from mezzotint.deploy.pace import Pace
from mezzotint.deploy.processes import Ended
from mezzotint.deploy.runner import TRIES, Runner

__all__ = ["Owned", "Plan", "Root"]

TOTALS = re.compile(r"Plan: (?:\d+ to import, )?(\d+) to add, (\d+) to change, (\d+) to destroy")
VARIABLE = re.compile(r'^\s*variable\s+"?(\w+)"?\s*{', re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns(
    ".terraform", "*.tfstate*", "*.tfvars", "*.tfvars.json", "tests", "*.tftest.hcl"
)
# Where terraform leaves a state that it could not store, because credentials expired for one.
UNSTORED = "errored.tfstate"
# Another command's lock, or one that is just being released.
LOCK_WAIT = "-lock-timeout=60s"
QUIET = ("-input=false", "-no-color")


@dataclass(frozen=True)
class Plan:
    """How many resources it would add, change and destroy; `changes` also when only outputs differ."""

    changes: bool
    add: int = 0
    change: int = 0
    destroy: int = 0


@dataclass(frozen=True)
class Owned:
    """A resource in the state."""

    address: str
    type: str
    values: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.values.get("id") or "")


class Root:
    def __init__(
        self, name: str, source: Path, backend: Mapping[str, str], runner: Runner, folder: Folder, pace: Pace
    ) -> None:
        self.name = name
        self._source = source / "terraform"
        self._backend = backend
        self._runner = runner
        self._folder = folder
        self._pace = pace
        self._place = folder.source / "terraform" / name
        self._files = folder.terraform(name)
        self._variables = self._files / "variables.tfvars.json"
        self._plan = self._files / "plan"
        self._imports: dict[str, str] = {}
        self._ready = False

    def declared(self) -> set[str]:
        """The names of the root's variables."""
        texts = (path.read_text(encoding="utf-8") for path in (self._source / self.name).glob("*.tf"))
        return {name for text in texts for name in VARIABLE.findall(text)}

    def digest(self, variables: Mapping[str, Any]) -> str:
        """Of the root, its modules, and the variables."""
        files = [path for path in self._source.rglob("*.tf") if ".terraform" not in path.parts]
        return digest_of(files, self.name, json.dumps(variables, sort_keys=True))

    def set_variables(self, variables: Mapping[str, Any]) -> None:
        self._variables.write_text(json.dumps(variables, indent=2), encoding="utf-8")
        self._variables.chmod(0o600)

    @property
    def has_variables(self) -> bool:
        return self._variables.exists()

    def take_over(self, kept: Mapping[str, str]) -> None:
        """Have the next plan import what is there already: by address, what it is imported by."""
        self._imports = dict(kept)

    def plan(self) -> Plan:
        self._prepare()
        argv = ("plan", *QUIET, LOCK_WAIT, "-detailed-exitcode", f"-var-file={self._variables}")
        # In a dry run it plans all the same, beside the state.
        ended = self._call(*argv, f"-out={self._plan}", limit="plan", log=True, accepted=(0, 2))
        totals = TOTALS.search(ended.out)
        add, change, destroy = map(int, totals.groups()) if totals else (0, 0, 0)
        return Plan(ended.code == 2, add, change, destroy)

    def apply(self) -> None:
        """What was planned, and nothing else. Tried once: a plan that was begun is stale."""
        argv = ("apply", *QUIET, LOCK_WAIT, str(self._plan))
        self._call(*argv, limit=self.name, log=True, changes=True, tries=1)

    def outputs(self) -> dict[str, Any]:
        """Those that are no secret."""
        self._prepare()
        ended = self._call("output", "-json", "-no-color")
        found = parsed(["terraform", "output"], ended.out)
        return {name: each["value"] for name, each in found.items() if not each.get("sensitive")}

    def resources(self) -> list[Owned]:
        """What the state holds, without data sources."""
        self._prepare()
        shown = parsed(["terraform", "show"], self._call("show", "-json", "-no-color").out)
        return list(_resources(shown.get("values", {}).get("root_module", {})))

    def forget(self, addresses: Iterable[str]) -> None:
        """Take them out of the state, and leave them as they are."""
        chosen = list(addresses)
        if chosen:
            self._call("state", "rm", LOCK_WAIT, *chosen, limit="change", changes=True)

    def destroy(self, *, refresh: bool = True) -> None:
        """Without `refresh` nothing is read before, which a root cannot whose data sources are gone."""
        self._prepare()
        argv = ("destroy", "-auto-approve", *QUIET, LOCK_WAIT, f"-var-file={self._variables}")
        unread = () if refresh else ("-refresh=false",)
        self._call(*argv, *unread, limit=self.name, log=True, changes=True, before_retry=self._store)

    def _prepare(self) -> None:
        """Copy the root and its modules, and have their providers fetched, once a command."""
        if not self._ready:
            self._copy()
            self._call("init", *QUIET, "-reconfigure", limit="init", log=True)
            self._ready = True
        self._store()

    def _store(self) -> None:
        """The state that a call before could not: without it, what was made would be made a second time."""
        unstored = self._place / UNSTORED
        if unstored.exists():
            self._call("state", "push", "-no-color", LOCK_WAIT, str(unstored), limit="change", changes=True)
            unstored.unlink()

    def _copy(self) -> None:
        copy = self._folder.source / "terraform"
        for each in (self.name, "modules"):
            _empty(copy / each)
            if (self._source / each).is_dir():
                shutil.copytree(self._source / each, copy / each, ignore=NOT_COPIED, dirs_exist_ok=True)
        (copy / self.name / "backend_override.tf.json").write_text(
            json.dumps({"terraform": {"backend": self._where()}}), encoding="utf-8"
        )
        imports = (
            f"import {{\n  to = {to}\n  id = {json.dumps(id)}\n}}\n" for to, id in self._imports.items()
        )
        (copy / self.name / "kept_imports.tf").write_text("".join(imports), encoding="utf-8")

    def _where(self) -> dict[str, Any]:
        if not self._backend:
            return {"local": {"path": str(self._files / "terraform.tfstate")}}
        settings = dict(self._backend)
        prefix = settings.pop("key_prefix", f"mezzotint/{self._folder.path.name}")
        key = f"{prefix}/{self.name}.tfstate"
        return {"s3": {**settings, "key": key, "encrypt": True, "use_lockfile": True}}

    def _call(
        self,
        *arguments: str,
        limit: str = "read",
        log: bool = False,
        changes: bool = False,
        accepted: tuple[int, ...] = (0,),
        tries: int = TRIES,
        before_retry: Callable[[], None] | None = None,
    ) -> Ended:
        argv = ["terraform", f"-chdir={self._place}", *arguments]
        return self._runner.run(
            argv,
            limit_s=self._pace.limit(limit),
            changes=changes,
            log=self._folder.logs / f"{self.name}-{arguments[0]}.log" if log else None,
            accepted=accepted,
            tries=tries,
            before_retry=before_retry,
        )


def _empty(folder: Path) -> None:
    """All but the providers that were fetched, which are large, and a state that is nowhere else."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.is_dir() and each.name != ".terraform":
            shutil.rmtree(each)
        elif each.is_file() and each.name != UNSTORED:
            each.unlink()


def _resources(module: Mapping[str, Any]) -> Iterator[Owned]:
    for each in module.get("resources", []):
        if each.get("mode") == "managed":
            yield Owned(each["address"], each["type"], each.get("values") or {})
    for inner in module.get("child_modules", []):
        yield from _resources(inner)
