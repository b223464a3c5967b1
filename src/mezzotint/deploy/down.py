"""`mezzotint deploy down`: takes everything away, in an order in which each can still go, and shows it gone.

It begins with what is there, not with what the state says was made: after half an `up`, without a state, or a
second time, it does what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mezzotint.deploy.checks import check_versions
from mezzotint.deploy.data import (
    delete_databases,
    delete_kept,
    empty_buckets,
    kept_resources,
    prepare_for_destroy,
)
from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.kubectl import NAMESPACE
from mezzotint.deploy.leftovers import load_balancers, remove_leftovers, remove_log_groups
from mezzotint.deploy.proof import Found, look_for_billables, split, tagged
from mezzotint.deploy.runner import CallFailed
from mezzotint.deploy.stages import DOWN, STAGES
from mezzotint.deploy.up import run_stage
from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["take_down"]

# They bring load balancers, and their controller takes those back; it must still run.
EDGE = (
    "httproutes.gateway.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "ingresses.networking.k8s.io",
)
SERVICES = ("rayservices.ray.io", "rayjobs.ray.io", "rayclusters.ray.io")
NODE_POOLS = "nodepools.karpenter.sh"
NODE_CLAIMS = "nodeclaims.karpenter.sh"
NODE_CLASSES = "ec2nodeclasses.karpenter.k8s.aws"
# Of these, what the addons' state holds lives in the cluster, and went with it.
IN_CLUSTER = ("helm_", "kubernetes_", "kubectl_")


@dataclass
class Removal:
    """in_cluster: whether there is one to ask."""

    d: Deployment
    delete_data: bool
    skip_kubernetes: bool
    in_cluster: bool = False


def take_down(d: Deployment, *, delete_data: bool = False, skip_kubernetes: bool = False) -> None:
    """Raises:
    DeployFailed: a stage failed, or something billable is left.
    SettingInvalid: it is the wrong account, region or cluster, or nobody confirmed it.
    """
    if not d.config.backend:
        # Where terraform's state is, is known from `up`.
        d.config = replace(d.config, backend=d.folder.state.get("backend", {}))
    removal = Removal(d, delete_data, skip_kubernetes)
    for number, stage in enumerate(DOWN, 1):
        d.say(f"{number}/{len(DOWN)} {stage.name}: {stage.what}")
        run_stage(d, stage.name, partial(WORK[stage.name], removal))
    if not d.dry_run:
        d.folder.forget()


def _account(r: Removal) -> None:
    d = r.d
    check_versions(d)
    d.check_account()
    found = d.aws("eks", "describe-cluster", "--name", d.cluster, missing=("ResourceNotFoundException",))
    status = (found or {}).get("cluster", {}).get("status", "")
    r.in_cluster = status in ("ACTIVE", "UPDATING") and not r.skip_kubernetes
    if r.in_cluster:
        d.enter_cluster()
    else:
        d.say(f"  the cluster is not asked: {status or 'there is none'}")
    d.say(f"  account {d.account}, region {d.config.region}, cluster {d.cluster}")
    if r.delete_data:
        d.say("  with all pictures, models and the database")
    if not d.dry_run and not d.confirm(f"Remove it? Type the cluster's name, {d.cluster}: ", d.cluster):
        raise SettingInvalid(
            f"removing {d.cluster} was not confirmed; --yes confirms it without a terminal", param="--yes"
        )
    if not d.dry_run:
        # From here on an `up` must look at everything again.
        d.folder.create()
        d.folder.unmark(*STAGES)


def _in_cluster(work: Callable[[Deployment], None]) -> Callable[[Removal], None]:
    """A stage that asks the cluster, where there is one."""

    def stage(r: Removal) -> None:
        if r.in_cluster:
            work(r.d)
        else:
            r.d.say("  no cluster to ask")

    return stage


@_in_cluster
def _edge(d: Deployment) -> None:
    for kind in EDGE:
        d.kubectl.delete(kind)
    d.wait("Gateways and Ingresses to go", "edge_gone", lambda: _still(d, EDGE))
    try:
        d.wait("load balancers to go", "load_balancers_gone", lambda: ", ".join(load_balancers(d)))
    except DeployFailed as error:
        # Nothing asks for them any more, so nobody takes them back: they are leftovers.
        d.say(f"  {error.message}; left for later")


@_in_cluster
def _services(d: Deployment) -> None:
    for kind in SERVICES[:2]:
        d.kubectl.delete(kind)
    d.wait("KubeRay's clusters to go", "services_gone", lambda: _still(d, SERVICES))


@_in_cluster
def _namespace(d: Deployment) -> None:
    d.kubectl.delete("namespace", NAMESPACE, cluster_wide=True)

    def look() -> str:
        names = [each["metadata"]["name"] for each in d.kubectl.items("namespaces", cluster_wide=True)]
        return f"namespace {NAMESPACE} is there" if NAMESPACE in names else ""

    d.wait("the namespace to go", "namespace_gone", look)


@_in_cluster
def _nodes(d: Deployment) -> None:
    d.kubectl.delete(NODE_POOLS, cluster_wide=True)
    kinds = (NODE_POOLS, NODE_CLAIMS)
    d.wait("Karpenter's nodes to go", "nodes_gone", lambda: _still(d, kinds, cluster_wide=True))
    # While a claim refers to it, it stays; and it keeps an instance profile of its own.
    d.kubectl.delete(NODE_CLASSES, cluster_wide=True)
    classes = (NODE_CLASSES,)
    d.wait("Karpenter's node classes to go", "nodes_gone", lambda: _still(d, classes, cluster_wide=True))


def _still(d: Deployment, kinds: tuple[str, ...], cluster_wide: bool = False) -> str:
    return ", ".join(
        f"{kind.partition('.')[0]}/{each['metadata']['name']}"
        for kind in kinds
        for each in d.kubectl.items(kind, cluster_wide=cluster_wide)
    )


def _addons(r: Removal) -> None:
    d, root = r.d, r.d.root("addons")
    owned = root.resources()
    if not owned:
        d.say("  terraform's state holds none")
        return
    if not r.in_cluster:
        root.forget(each.address for each in owned if each.type.startswith(IN_CLUSTER))
        owned = [each for each in owned if not each.type.startswith(IN_CLUSTER)]
    if owned:
        _ensure_variables(d, "addons")
        # Without a cluster, what the root reads of it is not there.
        root.destroy(refresh=r.in_cluster)


def _leftovers(r: Removal) -> None:
    owned = r.d.root("infra").resources()
    remove_leftovers(r.d, [each.id for each in owned])


def _infra(r: Removal) -> None:
    d, root = r.d, r.d.root("infra")
    owned = root.resources()
    kept: dict[str, str] = {}
    if r.delete_data:
        empty_buckets(d, owned)
    else:
        kept = kept_resources(d, owned)
        # Noted before they are forgotten: by this alone the next `up` finds them.
        d.folder.keep(kept={**d.folder.state.get("kept", {}), **kept})
        root.forget(kept)
    going = [each for each in owned if each.address not in kept]
    if going:
        _ensure_variables(d, "infra")
        prepare_for_destroy(d, going)
        if not r.delete_data:
            delete_databases(d, going)
        _destroy(d)
    else:
        d.say("  terraform's state holds nothing to remove")
    if r.delete_data and not d.dry_run:
        _delete_kept(d)


def _destroy(d: Deployment) -> None:
    """Twice at most: what the cluster made while it ended, such as interfaces, may hold the network."""
    root = d.root("infra")
    try:
        root.destroy()
    except CallFailed:
        d.say("  terraform could not remove everything; looking for what holds the rest")
        remove_leftovers(d, [each.id for each in root.resources()])
        root.destroy()


def _delete_kept(d: Deployment) -> None:
    d.folder.keep(kept={})
    kinds = [(*split(arn), arn) for arn in tagged(d)]
    delete_kept(
        d,
        buckets=[id for kind, id, _ in kinds if kind == "s3:"],
        keys=[id for kind, id, _ in kinds if kind == "kms:key"],
        backups=[arn for kind, _, arn in kinds if kind == "rds:auto-backup"],
    )


def _ensure_variables(d: Deployment, name: str) -> None:
    """A destroy wants the variables too; those of `up` are kept, but a state of elsewhere comes without."""
    root = d.root(name)
    if not root.has_variables:
        declared = root.declared()
        # `infra` goes last, so its state has its outputs as long as anything wants them.
        outputs = {} if name == "infra" else d.folder.state.get("outputs") or d.root("infra").outputs()
        given = {**outputs, **d.variables(root)}
        root.set_variables({each: value for each, value in given.items() if each in declared})


def _proof(r: Removal) -> None:
    d = r.d
    if d.dry_run:
        d.say("  would ask each service what is left")
        return
    remove_leftovers(d)
    last = Found((), ())

    def look() -> str:
        nonlocal last
        last = look_for_billables(d)
        if not last.left:
            last = replace(last, left=remove_log_groups(d))
        return ", ".join(last.left)

    try:
        d.wait("everything to be gone", "listing", look)
    except DeployFailed:
        listed = "".join(f"\n    {each}" for each in last.left)
        raise DeployFailed(f"{len(last.left)} things are left in {d.config.region}:{listed}") from None
    for each in last.kept:
        d.say(f"  kept, and costs a little: {each} (`down --delete-data` deletes it)")
    d.say("  nothing else with the cluster's tag is left")


WORK: dict[str, Callable[[Removal], None]] = {
    "account": _account,
    "edge": _edge,
    "services": _services,
    "namespace": _namespace,
    "nodes": _nodes,
    "addons": _addons,
    "leftovers": _leftovers,
    "infra": _infra,
    "proof": _proof,
}
