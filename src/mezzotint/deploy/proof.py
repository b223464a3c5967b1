"""Shows that nothing billable is left: by tag, through one API, and by the services that cost money.

The tagging API forgets what is deleted only after a while. So of what it lists, the service itself is asked;
what no service here knows of is listed as left, for somebody to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.deploy.aws import error_code
from mezzotint.deploy.data import holds_objects, snapshots
from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.leftovers import cluster_tags, find_leftovers, tag_filters
from mezzotint.deploy.runner import CallFailed

__all__ = ["Found", "look_for_billables", "split", "tagged"]


@dataclass(frozen=True)
class Found:
    """left: what is still there. kept: what was meant to stay, and costs little."""

    left: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Billable:
    """A kind of EC2's that costs money and takes filters by tag."""

    name: str
    describe: str
    listed: str
    id: str
    gone: Callable[[Mapping[str, Any]], bool] = lambda _: False


BILLABLES = (
    Billable(
        "NAT gateway",
        "describe-nat-gateways",
        "NatGateways",
        "NatGatewayId",
        lambda each: each.get("State") in ("deleted", "deleting"),
    ),
    Billable("elastic IP", "describe-addresses", "Addresses", "AllocationId"),
    Billable(
        "VPC endpoint",
        "describe-vpc-endpoints",
        "VpcEndpoints",
        "VpcEndpointId",
        lambda each: str(each.get("State", "")).lower() in ("deleted", "deleting"),
    ),
    Billable("VPC", "describe-vpcs", "Vpcs", "VpcId"),
    Billable("subnet", "describe-subnets", "Subnets", "SubnetId"),
)
# Kinds of ARNs of the tagging API that are asked for above, or go with what is.
ASKED_ABOVE = (
    "ec2:instance",
    "ec2:natgateway",
    "ec2:elastic-ip",
    "ec2:vpc-endpoint",
    "ec2:volume",
    "ec2:network-interface",
    "ec2:security-group",
    "ec2:security-group-rule",
    "ec2:vpc",
    "ec2:subnet",
    "elasticloadbalancing:loadbalancer",
    "elasticloadbalancing:targetgroup",
    "elasticloadbalancing:listener",
    "elasticloadbalancing:listener-rule",
    "eks:cluster",
    "eks:nodegroup",
    "eks:addon",
    "eks:podidentityassociation",
    "eks:access-entry",
)
NOT_FOUND = ("NotFound", "NoSuch", "NonExistent", "DoesNotExist")
# Of other kinds: the call that fails when it is gone, and the option that takes the ARN's last part.
ONE_BY_ONE: dict[str, tuple[str, str, str]] = {
    "rds:db": ("rds", "describe-db-instances", "--db-instance-identifier"),
    "rds:subgrp": ("rds", "describe-db-subnet-groups", "--db-subnet-group-name"),
    "elasticache:replicationgroup": ("elasticache", "describe-replication-groups", "--replication-group-id"),
    "elasticache:cluster": ("elasticache", "describe-cache-clusters", "--cache-cluster-id"),
    "elasticache:serverlesscache": (
        "elasticache",
        "describe-serverless-caches",
        "--serverless-cache-name",
    ),
    "elasticache:subnetgroup": ("elasticache", "describe-cache-subnet-groups", "--cache-subnet-group-name"),
    "elasticache:parametergroup": (
        "elasticache",
        "describe-cache-parameter-groups",
        "--cache-parameter-group-name",
    ),
    "rds:pg": ("rds", "describe-db-parameter-groups", "--db-parameter-group-name"),
    "sqs:": ("sqs", "get-queue-url", "--queue-name"),
    "kms:key": ("kms", "describe-key", "--key-id"),
    "secretsmanager:secret": ("secretsmanager", "describe-secret", "--secret-id"),
    "s3:": ("s3api", "get-bucket-location", "--bucket"),
    "ecr:repository": ("ecr", "describe-repositories", "--repository-names"),
    "logs:log-group": ("logs", "list-tags-for-resource", "--resource-arn"),
    "events:rule": ("events", "describe-rule", "--name"),
    "iam:role": ("iam", "get-role", "--role-name"),
    "iam:policy": ("iam", "get-policy", "--policy-arn"),
    "iam:instance-profile": ("iam", "get-instance-profile", "--instance-profile-name"),
}
BY_ARN = ("kms:key", "secretsmanager:secret", "logs:log-group", "iam:policy")
BY_LAST_PART = ("iam:role", "iam:instance-profile")


def look_for_billables(d: Deployment) -> Found:
    """Everything with the cluster's tag, sorted into what is left and what is kept: data, and its keys."""
    left = [str(each) for each in find_leftovers(d, everything=True)]
    for kind in BILLABLES:
        for tag in tag_filters(d):
            listed = d.aws("ec2", kind.describe, *_filter(kind, tag)).get(kind.listed, [])
            left += [f"{kind.name} {each[kind.id]}" for each in listed if not kind.gone(each)]
    if d.aws("eks", "describe-cluster", "--name", d.cluster, missing=("ResourceNotFoundException",)):
        left.append(f"EKS cluster {d.cluster}")
    kept = [f"RDS snapshot {name}" for name in snapshots(d)]
    keys = []
    for arn in tagged(d):
        kind_of, id = split(arn)
        if kind_of == "rds:snapshot" or _is_gone(d, kind_of, id, arn):
            continue
        if kind_of == "rds:auto-backup":
            kept.append(f"RDS automated backup {id}")
        elif kind_of == "s3:" and holds_objects(d, id):
            kept.append(f"S3 bucket {id}")
        elif kind_of == "kms:key":
            keys.append(f"KMS key {id}")
        else:
            left.append(arn)
    # A key without anything that it opens is only a cost.
    (kept if kept else left).extend(keys)
    return Found(tuple(sorted(set(left))), tuple(sorted(set(kept))))


def _filter(kind: Billable, tag: str) -> tuple[str, str]:
    # The one call whose option is called by another name.
    return ("--filter" if kind.describe == "describe-nat-gateways" else "--filters", tag)


def tagged(d: Deployment) -> list[str]:
    """The ARNs that the tagging API lists, some of them of what is gone."""
    arns: set[str] = set()
    for key, value in cluster_tags(d).items():
        tag = f"Key={key},Values={value}"
        listed = d.aws("resourcegroupstaggingapi", "get-resources", "--tag-filters", tag)
        arns |= {str(each["ResourceARN"]) for each in listed.get("ResourceTagMappingList", [])}
    return sorted(arns)


def split(arn: str) -> tuple[str, str]:
    """What kind of thing it is, and its id there: `ec2:instance` and `i-…`; `s3:` and the bucket's name."""
    service, resource = arn.split(":")[2], arn.split(":", 5)[5]
    for mark in ("/", ":"):
        kind, found, id = resource.partition(mark)
        if found and mark not in kind and not (mark == "/" and ":" in kind):
            return f"{service}:{kind}", id
    return f"{service}:", resource


def _is_gone(d: Deployment, kind: str, id: str, arn: str) -> bool:
    if kind in ASKED_ABOVE:
        return True
    if kind.startswith("ec2:"):
        # What is gone has no tags; an instance keeps them for a while, but is asked for above.
        return not d.aws("ec2", "describe-tags", "--filters", f"Name=resource-id,Values={id}").get("Tags")
    if kind not in ONE_BY_ONE:
        return False
    service, call, option = ONE_BY_ONE[kind]
    name = arn if kind in BY_ARN else id.rpartition("/")[2] if kind in BY_LAST_PART else id
    try:
        found = d.aws(service, call, option, name)
    except CallFailed as error:
        if any(told in error_code(error) for told in NOT_FOUND):
            return True
        raise
    # Neither costs anything while it waits for the day of its deletion.
    if kind == "kms:key":
        return bool(found.get("KeyMetadata", {}).get("KeyState") == "PendingDeletion")
    return kind == "secretsmanager:secret" and "DeletedDate" in found
