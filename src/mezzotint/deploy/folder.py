"""What is kept of a deployment between two commands: `~/.mezzotint/deploy/CLUSTER`, for this user alone.

::

    state.json      account, region, overlay, url; stages done, and a hash of what each was done with;
                    no secret
    kubeconfig      of this cluster alone; the user's own is never read or written
    terraform/      of each root its variables, plan, provider data, and without a backend its state
    source/         copies of deploy/terraform and deploy/kubernetes, the second with this site's values
    logs/           what terraform said, and deploy.log: each call with its seconds and exit code
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["Folder", "folder_of"]

VERSION = 1


def folder_of(cluster: str) -> Path:
    return Path.home() / ".mezzotint" / "deploy" / cluster


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.kubeconfig = path / "kubeconfig"
        self.source = path / "source"
        self.logs = path / "logs"
        self._file = path / "state.json"
        self.state: dict[str, Any] = self._read()

    @property
    def is_empty(self) -> bool:
        """Nothing was deployed from here, or it was all removed."""
        return not self.state.get("stages") and not self.state.get("outputs")

    def create(self) -> None:
        for each in (self.path, self.source, self.logs):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def terraform(self, root: str) -> Path:
        folder = self.path / "terraform" / root
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises DeployFailed: another command works on the same cluster from here."""
        self.create()
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DeployFailed(f"another mezzotint deploy works on {self.path.name} now") from None
            self.state = self._read()
            yield

    def keep(self, **values: Any) -> None:
        self.state |= values
        self._write()

    def mark(self, stage: str, digest: str = "") -> None:
        """The stage is done, with what has this digest."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.state.setdefault("stages", {})[stage] = {"done": now, "with": digest}
        self._write()

    def unmark(self, *stages: str) -> None:
        for stage in stages:
            self.state.get("stages", {}).pop(stage, None)
        self._write()

    def is_done(self, stage: str, digest: str) -> bool:
        return bool(self.state.get("stages", {}).get(stage, {}).get("with") == digest)

    def forget(self) -> None:
        """All is removed: what is left of the state is who and where, and when."""
        names = ("cluster", "account", "region", "backend", "kept")
        kept = {name: self.state[name] for name in names if name in self.state}
        self.state = {**kept, "removed": datetime.now(UTC).isoformat(timespec="seconds")}
        self._write()
        self.kubeconfig.unlink(missing_ok=True)
        shutil.rmtree(self.source, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"version": VERSION}
        except (OSError, ValueError) as error:
            raise SettingInvalid(f"{self._file} cannot be read: {error}", param="cluster") from None
        if not isinstance(found, dict) or found.get("version", VERSION) != VERSION:
            raise SettingInvalid(f"{self._file} is not of this version of Mezzotint", param="cluster")
        return found

    def _write(self) -> None:
        # Whole or not at all: a command that is killed here must find the old one.
        self.state["version"] = VERSION
        handle, name = tempfile.mkstemp(dir=self.path, prefix=".state")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=2)
        os.replace(name, self._file)

    @classmethod
    @contextlib.contextmanager
    def for_trial(cls, path: Path) -> Iterator[Folder]:
        """A copy to try things in, for a dry run: the folder itself is not touched."""
        with tempfile.TemporaryDirectory(prefix="mezzotint-deploy-") as name:
            trial = Path(name) / path.name
            _copy_of_what_stays(path, trial)
            folder = cls(trial)
            folder.create()
            yield folder


def _copy_of_what_stays(path: Path, copy: Path) -> None:
    """A command may be at work there: what goes while this reads is not missed."""
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if name != ".terraform"]
        target = copy / Path(folder).relative_to(path)
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            if name != "lock" and not name.endswith(".lock.info"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy2(Path(folder) / name, target)
