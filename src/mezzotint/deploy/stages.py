"""What `up` and `down` do, in order. Knows the names and the sentences; the work is in other modules."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DOWN", "STAGES", "UP", "Stage"]


@dataclass(frozen=True)
class Stage:
    """name: as in messages, logs and the state. what: for people.

    once: it is not repeated while what it was done with is the same; the others are quick, and ask what there
    is before they change it.
    """

    name: str
    what: str
    once: bool = False


UP = (
    Stage("tools", "the tools, the account, and what the region offers"),
    Stage("infra", "network, cluster, Karpenter's roles and storage, by terraform", once=True),
    Stage("kubeconfig", "the way into the cluster"),
    Stage("addons", "KubeRay, Karpenter, load balancer controller, device plugin, monitoring", once=True),
    Stage("secrets", "the namespace and what its pods must know"),
    Stage("manifests", "the service itself"),
    Stage("wait", "until everything is ready"),
    Stage("keys", "API keys for the page and for Prometheus"),
    Stage("verify", "a picture through the load balancer"),
)
STAGES = tuple(stage.name for stage in UP)

# Load balancers need their controller, Ray's clusters need KubeRay, nodes need Karpenter: each before what
# would have removed it. The network goes last, for it cannot go while anything stands in it.
DOWN = (
    Stage("account", "whether this is the account and the cluster that is meant"),
    Stage("edge", "Gateways, HTTPRoutes and Ingresses, until their load balancers are gone"),
    Stage("services", "the RayService, until KubeRay's clusters are gone"),
    Stage("namespace", "the namespace and its volumes"),
    Stage("nodes", "NodePools, until Karpenter's nodes are gone"),
    Stage("addons", "what was installed into the cluster, by terraform"),
    Stage("leftovers", "what controllers made and left, by the cluster's tag"),
    Stage("infra", "storage, cluster and network, by terraform"),
    Stage("proof", "that nothing billable is left"),
)
