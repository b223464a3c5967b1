"""The keys of the page and of Prometheus: made in a gateway, which has the database, and put into Secrets."""

from __future__ import annotations

import json

from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.kubectl import NAMESPACE
from mezzotint.deploy.readiness import wait_for_deployment
from mezzotint.deploy.stored_secrets import apply_secret
from mezzotint.errors import DeployFailed

__all__ = ["gateway_pod", "make_keys"]

# Whose: what the key may do more. Prometheus reads the metrics, which tell of every key.
RIGHTS: dict[str, tuple[str, ...]] = {"page": (), "metrics": ("--admin",)}
GATEWAY_PODS = "ray.io/group=gateways"
STAGE = "keys"


def make_keys(d: Deployment) -> None:
    missing = [name for name in RIGHTS if not d.kubectl.exists("secret", f"mezzotint-{name}")]
    if "page" in missing:
        # Broken off from here on, this leaves a page that runs without the key that is there.
        d.folder.unmark(STAGE)
    if missing:
        pod = gateway_pod(d)
        _revoke_lost(d, pod, missing)
        for name in missing:
            apply_secret(d, f"mezzotint-{name}", {"api_key": _make_key(d, pod, name)})
    if not d.folder.is_done(STAGE, ""):
        # What is in its environment is read when it starts.
        d.kubectl.restart("page")
    wait_for_deployment(d, "page")


def gateway_pod(d: Deployment) -> str:
    """One that is ready, where `mezzotint keys` finds the database."""
    if d.dry_run:
        return "<gateway>"
    for pod in d.kubectl.items("pods", selector=GATEWAY_PODS):
        conditions = pod.get("status", {}).get("conditions") or []
        if any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions):
            return str(pod["metadata"]["name"])
    raise DeployFailed(f"no pod {GATEWAY_PODS} in {NAMESPACE} is ready, and keys are made in one")


def _revoke_lost(d: Deployment, pod: str, names: list[str]) -> None:
    """Those that a run made before it was broken off: nobody holds them."""
    listed = d.kubectl.execute(pod, "mezzotint", "keys", "list", "--json", changes=d.dry_run)
    for key in _parsed(listed or "[]"):
        if key.get("name") in names and key.get("state") == "valid":
            d.kubectl.execute(pod, "mezzotint", "keys", "revoke", str(key["id"]), changes=True)


def _make_key(d: Deployment, pod: str, name: str) -> str:
    # Tried once: a second try could make a second key.
    command = ("mezzotint", "keys", "create", name, *RIGHTS[name], "--json")
    made = d.kubectl.execute(pod, *command, changes=True, tries=1)
    if d.dry_run:
        return ""
    key = next((each["key"] for each in _parsed(made) if each.get("key")), "")
    if not key:
        raise DeployFailed(f"mezzotint keys create {name} printed no key")
    d.runner.redaction.hide(key)
    return str(key)


def _parsed(text: str) -> list[dict[str, str]]:
    """The tables of a list, or the one. Nothing of it is repeated: it may be a key."""
    try:
        found = json.loads(text)
    except ValueError:
        raise DeployFailed("mezzotint keys in the gateway's pod printed no JSON") from None
    return found if isinstance(found, list) else [found]
