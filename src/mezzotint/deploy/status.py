"""`mezzotint deploy status`: what was done, and what runs now."""

from __future__ import annotations

from typing import Any

from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.readiness import address_of, pod_troubles
from mezzotint.deploy.runner import CallFailed
from mezzotint.deploy.stages import STAGES

__all__ = ["as_text", "status_of"]

RAYSERVICES = "rayservices.ray.io"


def status_of(d: Deployment) -> dict[str, Any]:
    """The stages as the state has them, and what the cluster says. What cannot be asked is said as such.

    Raises:
        SettingInvalid: the credentials are of another account.
    """
    state = d.folder.state
    done = state.get("stages", {})
    found: dict[str, Any] = {
        "cluster": d.cluster,
        "region": d.config.region,
        "account": state.get("account"),
        "overlay": state.get("overlay"),
        "removed": state.get("removed"),
        "stages": {name: done.get(name, {}).get("done") for name in STAGES},
        "eks": None,
        "running": None,
    }
    try:
        d.check_account()
        found["account"] = d.account
        cluster = d.aws(
            "eks", "describe-cluster", "--name", d.cluster, missing=("ResourceNotFoundException",)
        )
        if cluster:
            found["eks"] = {name: cluster["cluster"].get(name) for name in ("status", "version")}
            d.enter_cluster()
            found["running"] = _running(d)
    except CallFailed as error:
        said = map(d.runner.redaction, error.lines[-1:])
        found["not_asked"] = ": ".join([d.runner.shown(error.argv), error.why, *said])
    return found


def _running(d: Deployment) -> dict[str, Any]:
    deployments = {
        each["metadata"]["name"]: f"{each.get('status', {}).get('availableReplicas', 0)}/"
        f"{each.get('spec', {}).get('replicas', 1)}"
        for each in d.kubectl.items("deployments")
    }
    ready = {
        each["metadata"]["name"]: next(
            (
                f"{condition['status']} ({condition.get('reason', '')})"
                for condition in each.get("status", {}).get("conditions") or []
                if condition["type"] == "Ready"
            ),
            "unknown",
        )
        for each in d.kubectl.items(RAYSERVICES)
    }
    nodes = d.kubectl.items("nodes", cluster_wide=True)
    pools: dict[str, int] = {}
    for node in nodes:
        pool = node["metadata"].get("labels", {}).get("mezzotint.dev/pool", "system")
        pools[pool] = pools.get(pool, 0) + 1
    return {
        "deployments": deployments,
        "ray_services_ready": ready,
        "nodes": pools,
        "address": address_of(d) or None,
        "troubles": list(pod_troubles(d)),
    }


def as_text(found: dict[str, Any]) -> str:
    lines = [f"{found['cluster']} in {found['region']}, account {found['account']}"]
    if found["removed"]:
        lines.append(f"removed {found['removed']}")
    lines += [f"  {name:<10}  {at or '-'}" for name, at in found["stages"].items()]
    if found["eks"] is not None:
        lines.append(f"EKS {found['eks']['version']}: {found['eks']['status']}")
    elif "not_asked" not in found:
        lines.append("no EKS cluster of this name")
    running = found["running"] or {}
    for title in ("deployments", "ray_services_ready", "nodes"):
        inner = ", ".join(f"{name} {value}" for name, value in running.get(title, {}).items())
        if inner:
            lines.append(f"{title.replace('_', ' ')}: {inner}")
    if running.get("address"):
        lines.append(f"address: {running['address']}")
    lines += [f"  {each}" for each in running.get("troubles", [])]
    if "not_asked" in found:
        lines.append(f"not answered: {found['not_asked']}")
    return "\n".join(lines)
