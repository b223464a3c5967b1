"""What controllers made in the account outside terraform, found by the cluster's tag, and removed.

Load balancers and their groups (AWS Load Balancer Controller), instances (Karpenter), volumes (the EBS
driver), network interfaces (the CNI). What is terraform's or EKS's is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.deploy.aws import error_code
from mezzotint.deploy.deployment import CLUSTER_TAG, Deployment
from mezzotint.deploy.runner import CallFailed
from mezzotint.errors import DeployFailed

__all__ = [
    "Left",
    "cluster_tags",
    "find_leftovers",
    "load_balancers",
    "remove_leftovers",
    "remove_log_groups",
    "tag_filters",
]

ELB_CLUSTER_TAG = "elbv2.k8s.aws/cluster"
# The only one on the interfaces that the VPC CNI makes, which stay where a node ends before they are deleted.
CNI_CLUSTER_TAG = "cluster.k8s.amazonaws.com/name"
LOG_GROUPS = ("/aws/eks/{}/cluster", "/aws/rds/instance/{}/")
# EKS's own, which go with the cluster: its node groups' instances, its security group.
OF_EKS = ("eks:nodegroup-name", "aws:eks:cluster-name")
TAGS_AT_ONCE = 20


@dataclass(frozen=True)
class Left:
    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True)
class Kind:
    """A kind of thing of EC2: how it is listed, which of those can go, and how."""

    name: str
    describe: str
    items: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]
    id: str
    delete: str
    option: str
    removable: Callable[[Mapping[str, Any]], bool] = lambda _: True


def _instances(found: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for reservation in found.get("Reservations", []):
        yield from (each for each in reservation["Instances"] if each["State"]["Name"] != "terminated")


# In the order in which they can go: an interface holds a group, an instance holds both and a volume.
KINDS = (
    Kind("instance", "describe-instances", _instances, "InstanceId", "terminate-instances", "--instance-ids"),
    Kind(
        "network interface",
        "describe-network-interfaces",
        lambda found: found.get("NetworkInterfaces", []),
        "NetworkInterfaceId",
        "delete-network-interface",
        "--network-interface-id",
        # Whoever uses another releases it when it goes itself.
        lambda each: each.get("Status") == "available",
    ),
    Kind(
        "security group",
        "describe-security-groups",
        lambda found: found.get("SecurityGroups", []),
        "GroupId",
        "delete-security-group",
        "--group-id",
    ),
    Kind(
        "volume",
        "describe-volumes",
        lambda found: found.get("Volumes", []),
        "VolumeId",
        "delete-volume",
        "--volume-id",
        lambda each: each.get("State") == "available",
    ),
)
GONE = (
    "InvalidInstanceID.NotFound",
    "InvalidNetworkInterfaceID.NotFound",
    "InvalidGroup.NotFound",
    "InvalidVolume.NotFound",
    "LoadBalancerNotFound",
    "TargetGroupNotFound",
)
# What still holds it is going too: the next look finds out.
HELD = (
    "DependencyViolation",
    "VolumeInUse",
    "ResourceInUse",
    "InvalidNetworkInterface.InUse",
    "InvalidParameterValue",
    "OperationNotPermitted",
)


def cluster_tags(d: Deployment) -> dict[str, str]:
    """Each alone means: of this cluster."""
    return {
        CLUSTER_TAG: d.cluster,
        f"kubernetes.io/cluster/{d.cluster}": "owned",
        ELB_CLUSTER_TAG: d.cluster,
        CNI_CLUSTER_TAG: d.cluster,
    }


def tag_filters(d: Deployment) -> list[str]:
    """As EC2 takes them, one at a time."""
    return [f"Name=tag:{key},Values={value}" for key, value in cluster_tags(d).items()]


def remove_leftovers(d: Deployment, kept_by: Iterable[str] = ()) -> None:
    """Remove them, until none is there or the limit has passed: what holds one may only go later.

    kept_by: ids of what terraform's state holds.
    """
    others = frozenset(kept_by)
    removed: set[Left] = set()

    def look() -> str:
        found = find_leftovers(d, others)
        for each in found:
            if each not in removed:
                d.say(f"  {'would remove' if d.dry_run else 'removing'} {each}")
                removed.add(each)
            _remove(d, each)
        return ", ".join(str(each) for each in found)

    if d.dry_run:
        look()
    else:
        try:
            d.wait("leftovers to go", "leftovers_gone", look)
        except DeployFailed as error:
            d.say(f"  {error.message}; left for later")
    d.say(f"  {len(removed) or 'no'} leftovers")


def remove_log_groups(d: Deployment) -> tuple[str, ...]:
    """Those that EKS and RDS make anew for their last lines, when terraform has destroyed its own: without a
    tag, for ever, and in the way of the next `up`. Only where neither is there to write any more.
    """
    found = []
    for begins in LOG_GROUPS:
        prefix = ("--log-group-name-prefix", begins.format(d.cluster))
        listed = d.aws("logs", "describe-log-groups", *prefix).get("logGroups", [])
        found += [str(each["logGroupName"]) for each in listed]
    for name in found:
        d.say(f"  removing log group {name}")
        gone = ("ResourceNotFoundException",)
        d.aws("logs", "delete-log-group", "--log-group-name", name, changes=True, missing=gone)
    return tuple(f"log group {name}" for name in found)


def find_leftovers(
    d: Deployment, kept_by: frozenset[str] = frozenset(), *, everything: bool = False
) -> list[Left]:
    """Of the kinds above, what has the cluster's tag: what can go and is nobody else's, or everything."""
    found = [Left("load balancer", arn) for arn in load_balancers(d)]
    found += [Left("target group", arn) for arn in _target_groups(d)]
    for kind in KINDS:
        for each in _tagged(d, kind):
            id, tags = str(each[kind.id]), _tags(each)
            can_go = kind.removable(each) and not any(tag in tags for tag in OF_EKS)
            if everything or can_go:
                found.append(Left(kind.name, id))
    return [each for each in found if each.id not in kept_by]


def _tagged(d: Deployment, kind: Kind) -> list[Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for tag in tag_filters(d):
        for each in kind.items(d.aws("ec2", kind.describe, "--filters", tag)):
            found[str(each[kind.id])] = each
    return list(found.values())


def load_balancers(d: Deployment) -> list[str]:
    """The ARNs of this cluster's."""
    listed = d.aws("elbv2", "describe-load-balancers").get("LoadBalancers", [])
    return _of_cluster(d, [str(each["LoadBalancerArn"]) for each in listed])


def _target_groups(d: Deployment) -> list[str]:
    listed = d.aws("elbv2", "describe-target-groups").get("TargetGroups", [])
    return _of_cluster(d, [str(each["TargetGroupArn"]) for each in listed])


def _of_cluster(d: Deployment, arns: list[str]) -> list[str]:
    """Their tags cannot be filtered by; they are asked for, twenty at a time."""
    found: list[str] = []
    for at in range(0, len(arns), TAGS_AT_ONCE):
        some = arns[at : at + TAGS_AT_ONCE]
        told = d.aws("elbv2", "describe-tags", "--resource-arns", *some, missing=GONE)
        if told is None:
            # One of them went in between, and nothing is told of the others.
            if len(some) > 1:
                found += [arn for each in some for arn in _of_cluster(d, [each])]
            continue
        described = told.get("TagDescriptions", [])
        ours = cluster_tags(d).items()
        found += [str(each["ResourceArn"]) for each in described if ours & _tags(each).items()]
    return found


def _tags(thing: Mapping[str, Any]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in thing.get("Tags") or thing.get("TagSet") or []}


def _remove(d: Deployment, left: Left) -> None:
    if left.kind == "load balancer":
        argv: tuple[str, ...] = ("elbv2", "delete-load-balancer", "--load-balancer-arn", left.id)
    elif left.kind == "target group":
        argv = ("elbv2", "delete-target-group", "--target-group-arn", left.id)
    else:
        kind = next(each for each in KINDS if each.name == left.kind)
        argv = ("ec2", kind.delete, kind.option, left.id)
    try:
        d.aws(*argv, changes=True, missing=GONE)
    except CallFailed as error:
        if error_code(error) not in HELD:
            raise
        if left.kind == "security group":
            _unreference(d, left.id)


def _unreference(d: Deployment, group: str) -> None:
    """Take back the rules of other groups that let this one in: as long as there is one, it cannot go."""
    others = d.aws(
        "ec2", "describe-security-groups", "--filters", f"Name=ip-permission.group-id,Values={group}"
    )
    for other in others.get("SecurityGroups", []):
        id = str(other["GroupId"])
        rules = d.aws("ec2", "describe-security-group-rules", "--filters", f"Name=group-id,Values={id}")
        for rule in rules.get("SecurityGroupRules", []):
            if rule.get("ReferencedGroupInfo", {}).get("GroupId") == group and not rule.get("IsEgress"):
                name = ("--group-id", id, "--security-group-rule-ids", str(rule["SecurityGroupRuleId"]))
                d.aws("ec2", "revoke-security-group-ingress", *name, changes=True)
