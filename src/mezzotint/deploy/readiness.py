"""Whether what was applied runs, and if not, which pod does not and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mezzotint.deploy.deployment import Deployment
from mezzotint.errors import DeployFailed

__all__ = ["address_of", "load_balancer", "pod_troubles", "wait_for_deployment", "wait_until_ready"]

GATEWAYS = "gateways.gateway.networking.k8s.io"
INGRESSES = "ingresses.networking.k8s.io"
RAYSERVICES = "rayservices.ray.io"
# The page waits for its key, which a gateway makes: see `keys`.
LATER = frozenset({"page"})
DEPLOYMENTS = ("edge", "page")
SHOWN_PODS = 4
MAX_REASON = 200


def wait_until_ready(d: Deployment) -> None:
    """Raises DeployFailed: not in time; says what is missing, and which pods do not run and why."""
    _waited(d, "the service", "ready", lambda: _missing(d))
    address = address_of(d)
    if address:
        d.say(f"  the load balancer is {address}")


def wait_for_deployment(d: Deployment, name: str) -> None:
    _waited(d, f"the deployment {name}", "page", lambda: _deployment_missing(d, name))


def _waited(d: Deployment, what: str, limit: str, look: Any) -> None:
    try:
        d.wait(what, limit, look)
    except DeployFailed as error:
        troubles = "".join(f"\n    {each}" for each in pod_troubles(d))
        raise DeployFailed(error.message + troubles) from None


def _missing(d: Deployment) -> str:
    """What is not ready yet, in a line; empty when everything is."""
    missing = [*_deployments(d), *_ray_service(d)]
    if not address_of(d):
        missing.append("no load balancer has an address")
    if not missing:
        return ""
    pods = list(pod_troubles(d))
    return "; ".join([*missing, *pods[:1]])


def _deployments(d: Deployment) -> list[str]:
    reasons = {name: _deployment_missing(d, name) for name in DEPLOYMENTS if name not in LATER}
    return [f"deployment {name}: {reason}" for name, reason in reasons.items() if reason]


def _deployment_missing(d: Deployment, name: str) -> str:
    found = d.kubectl.get("deployment", name)
    if found is None:
        return "there is none"
    if _is_behind(found):
        return "its change is not taken up"
    wanted = found.get("spec", {}).get("replicas", 1)
    updated = found.get("status", {}).get("updatedReplicas", 0)
    if not _is_available(found) or updated < wanted:
        return "; ".join(["not available", *list(pod_troubles(d))[:1]])
    return ""


def _is_behind(thing: dict[str, Any]) -> bool:
    """Whether what its status says is of before the last change."""
    return bool(thing.get("status", {}).get("observedGeneration", 0) < thing["metadata"].get("generation", 0))


def _is_available(deployment: dict[str, Any]) -> bool:
    return _condition(deployment, "Available").get("status") == "True"


def _ray_service(d: Deployment) -> list[str]:
    services = d.kubectl.items(RAYSERVICES)
    if not services:
        return ["no RayService"]
    reasons = {each["metadata"]["name"]: _ray_service_missing(each) for each in services}
    return [f"RayService {name} {reason}" for name, reason in reasons.items() if reason]


def _ray_service_missing(service: dict[str, Any]) -> str:
    """Ready is also what serves the version of before, while that of now loads or fails."""
    ready = _condition(service, "Ready")
    if ready.get("status") != "True":
        return f"is not ready: {ready.get('reason') or 'its operator has said nothing yet'}"
    if _is_behind(service):
        return "is not changed yet: its operator has not seen the change"
    if _condition(service, "UpgradeInProgress").get("status") == "True":
        return "still serves from the cluster of before: the new one does not serve yet"
    active = service.get("status", {}).get("activeServiceStatus") or {}
    states = {name: each.get("status") for name, each in (active.get("applicationStatuses") or {}).items()}
    unready = [f"application {name} is {state}" for name, state in states.items() if state != "RUNNING"]
    return f"is not changed yet: {', '.join(unready)}" if unready else ""


def _condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def address_of(d: Deployment) -> str:
    """The load balancer's name in DNS; empty as long as it has none."""
    return load_balancer(d)[0]


def load_balancer(d: Deployment) -> tuple[str, bool]:
    """Its name, and whether it listens to anything but HTTPS; an Ingress does."""
    for gateway in d.kubectl.items(GATEWAYS):
        listeners = gateway.get("spec", {}).get("listeners") or [{}]
        for address in gateway.get("status", {}).get("addresses") or []:
            if address.get("value"):
                return str(address["value"]), any(each.get("protocol") != "HTTPS" for each in listeners)
    for ingress in d.kubectl.items(INGRESSES):
        for point in ingress.get("status", {}).get("loadBalancer", {}).get("ingress") or []:
            if point.get("hostname") or point.get("ip"):
                return str(point.get("hostname") or point["ip"]), True
    return "", True


def pod_troubles(d: Deployment) -> Iterable[str]:
    """Of the pods that do not run, the first few: a line each, with the reason as Kubernetes gives it."""
    lines = [line for pod in d.kubectl.items("pods") if (line := _pod_trouble(pod))]
    return lines[:SHOWN_PODS]


def _pod_trouble(pod: dict[str, Any]) -> str:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return ""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _line(name, "Pending", scheduled.get("message") or scheduled.get("reason"))
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in containers:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
            last = container.get("lastState", {}).get("terminated", {})
            ended = f"last ended with {last['exitCode']} ({last.get('reason')})" if last else ""
            return _line(name, waiting.get("reason"), waiting.get("message") or ended)
    if status.get("phase") == "Failed":
        return _line(name, "Failed", status.get("message") or status.get("reason"))
    if _condition(pod, "Ready").get("status") != "True":
        return _line(name, status.get("phase"), "not ready")
    return ""


def _line(pod: str, state: object, reason: object) -> str:
    told = " ".join(str(reason or "no reason given").split())
    return f"pod {pod}: {state}: {told[:MAX_REASON]}"
