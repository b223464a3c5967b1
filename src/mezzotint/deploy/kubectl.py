"""kubectl, always with this deployment's own kubeconfig and with the context by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mezzotint.deploy.aws import parsed
from mezzotint.deploy.pace import Pace
from mezzotint.deploy.runner import TRIES, CallFailed, Runner

__all__ = ["NAMESPACE", "Kubectl"]

NAMESPACE = "mezzotint"
# What was changed by hand meanwhile, as by `kubectl rollout undo`, is another manager's, and is taken back.
APPLY = ("apply", "--server-side", "--field-manager", "mezzotint-deploy", "--force-conflicts")
# Neither the kind's definition nor the object is there.
NO_KIND = ("the server doesn't have a resource type", "no matches for kind")


class Kubectl:
    def __init__(self, runner: Runner, pace: Pace, kubeconfig: Path, context: str) -> None:
        self._runner = runner
        self._pace = pace
        self._kubeconfig = str(kubeconfig)
        self.context = context

    def _argv(self, *arguments: str) -> list[str]:
        return ["kubectl", "--kubeconfig", self._kubeconfig, "--context", self.context, *arguments]

    def current_cluster(self) -> str:
        """The cluster's name in the kubeconfig's current context, whichever that is."""
        argv = ["kubectl", "--kubeconfig", self._kubeconfig, "config", "view", "--minify", "--output", "json"]
        view = parsed(argv, self._runner.run(argv, limit_s=self._pace.limit("read")).out)
        contexts = view.get("contexts") or [{}]
        return str(contexts[0].get("context", {}).get("cluster", ""))

    def items(self, kind: str, *, selector: str = "", cluster_wide: bool = False) -> list[dict[str, Any]]:
        """Every object of a kind in the namespace; none where the kind is not known."""
        argv = self._argv(
            "get", kind, *self._scope(cluster_wide), "--output", "json", "--request-timeout=30s"
        )
        if selector:
            argv += ["--selector", selector]
        try:
            ended = self._runner.run(argv, limit_s=self._pace.limit("read"))
        except CallFailed as error:
            if any(told in error.said for told in NO_KIND):
                return []
            raise
        return list(parsed(argv, ended.out).get("items", []))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        argv = self._argv("get", kind, name, "--namespace", NAMESPACE, "--ignore-not-found")
        argv += ["--output", "json", "--request-timeout=30s"]
        return parsed(argv, self._runner.run(argv, limit_s=self._pace.limit("read")).out) or None

    def exists(self, kind: str, name: str) -> bool:
        """Without reading what it holds."""
        argv = self._argv(
            "get", kind, name, "--namespace", NAMESPACE, "--ignore-not-found", "--output", "name"
        )
        argv += ["--request-timeout=30s"]
        return bool(self._runner.run(argv, limit_s=self._pace.limit("read")).out.strip())

    def apply(self, manifest: dict[str, Any]) -> None:
        """By standard input, for it may be a Secret."""
        argv = self._argv(*APPLY, "--filename", "-")
        self._runner.run(argv, limit_s=self._pace.limit("change"), changes=True, stdin=json.dumps(manifest))

    def apply_folder(self, folder: Path) -> None:
        argv = self._argv(*APPLY, "--kustomize", str(folder))
        self._runner.run(argv, limit_s=self._pace.limit("manifests"), changes=True)

    def delete(self, kind: str, *names: str, cluster_wide: bool = False) -> None:
        """Ask for it; whoever must know that it is gone waits. Nothing there is as good."""
        chosen = names or ("--all",)
        argv = self._argv(
            "delete", kind, *chosen, *self._scope(cluster_wide), "--ignore-not-found", "--wait=false"
        )
        try:
            self._runner.run(argv, limit_s=self._pace.limit("change"), changes=True)
        except CallFailed as error:
            if not any(told in error.said for told in NO_KIND):
                raise

    def restart(self, deployment: str) -> None:
        argv = self._argv("rollout", "restart", f"deployment/{deployment}", "--namespace", NAMESPACE)
        self._runner.run(argv, limit_s=self._pace.limit("change"), changes=True)

    def execute(self, pod: str, *command: str, changes: bool, tries: int = TRIES) -> str:
        """What a command in a pod prints."""
        argv = self._argv("exec", pod, "--namespace", NAMESPACE, "--", *command)
        return self._runner.run(argv, limit_s=self._pace.limit("change"), changes=changes, tries=tries).out

    def _scope(self, cluster_wide: bool) -> tuple[str, ...]:
        return () if cluster_wide else ("--namespace", NAMESPACE)
