"""The first stage: what can be found out before anything is made. Changes nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from mezzotint.deploy.aws import error_code
from mezzotint.deploy.config import OVERLAYS, QUOTAS
from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.runner import CallFailed
from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["check_tools", "check_versions"]

# Below these, something that is used here is not there: S3's own lock of a state, `aws eks`'s tokens.
OLDEST = {"terraform": (1, 11), "aws": (2, 0), "kubectl": (1, 32)}
ASKED = {
    "terraform": ("terraform", "version", "-json"),
    "aws": ("aws", "--version"),
    "kubectl": ("kubectl", "version", "--client", "--output", "json"),
}
# A mistake in the region's name may look like either.
NO_REGION = ("Could not connect to the endpoint", "Invalid endpoint")


def check_tools(d: Deployment) -> None:
    check_versions(d)
    _check_region(d)
    d.check_account()
    d.say(f"  account {d.account}, region {d.config.region}")
    _check_engine(d)


def check_versions(d: Deployment) -> None:
    """Raises DeployFailed: a tool is missing or too old; all of them at once."""
    wrong = []
    for tool, argv in ASKED.items():
        oldest = ".".join(map(str, OLDEST[tool]))
        try:
            said = d.runner.run(argv, limit_s=d.pace.limit("read"), tries=1).out
        except CallFailed as error:
            wrong.append(f"{tool} (at least {oldest}): {error.why}")
            continue
        version = _version(tool, said)
        if version < OLDEST[tool]:
            wrong.append(f"{tool} {'.'.join(map(str, version)) or 'of no known version'}: at least {oldest}")
    if wrong:
        raise DeployFailed("; ".join(wrong))


def _version(tool: str, said: str) -> tuple[int, ...]:
    try:
        if tool == "terraform":
            said = json.loads(said)["terraform_version"]
        elif tool == "kubectl":
            said = json.loads(said)["clientVersion"]["gitVersion"]
    except (ValueError, KeyError, TypeError):
        return ()
    found = re.search(r"(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


def _check_region(d: Deployment) -> None:
    """Raises SettingInvalid: there is no such region, or the account has not opted into it."""
    region = d.config.region
    asked = ("ec2", "describe-regions", "--region-names", region)
    try:
        # Tried twice, for a region that is none looks like a network that is down.
        found = d.aws(*asked, missing=("InvalidParameterValue",), tries=2)
    except CallFailed as error:
        if any(told in error.said for told in NO_REGION):
            raise SettingInvalid(f"region takes one of AWS's; not {region!r}", param="region") from None
        raise
    regions = (found or {}).get("Regions", [])
    if not regions:
        raise SettingInvalid(f"region takes one that this account may use; not {region!r}", param="region")


def _check_engine(d: Deployment) -> None:
    """Raises DeployFailed: the engines' instances are not offered there, or the account may run none."""
    instance = d.config.instance_type or OVERLAYS[d.config.overlay]
    offered = d.aws(
        "ec2",
        "describe-instance-type-offerings",
        "--location-type",
        "availability-zone",
        "--filters",
        f"Name=instance-type,Values={instance}",
    ).get("InstanceTypeOfferings", [])
    zones = sorted(str(each["Location"]) for each in offered)
    if not zones:
        raise DeployFailed(f"{instance} is not offered in {d.config.region}; choose another region")
    d.say(f"  {instance} is offered in {', '.join(zones)}")
    if len(zones) == 1:
        d.say("  in one zone only: an outage of it stops the engines")
    _check_quota(d, instance)


def _check_quota(d: Deployment, instance: str) -> None:
    found = next((quota for begins, quota in QUOTAS.items() if instance.startswith(begins)), None)
    if found is None:
        d.say(f"  which quota holds for {instance} is not known here; if it is too small, nodes do not start")
        return
    code, family = found
    needed = _vcpus(d, instance)
    allowed = _quota(d, code)
    if allowed is None:
        d.say("  the quota cannot be read with these credentials; if it is too small, nodes do not start")
    elif allowed < needed:
        raise DeployFailed(
            f"the account may run {allowed:g} vCPUs of running on-demand {family} instances in "
            f"{d.config.region}, and one {instance} has {needed}; ask AWS for more of the quota {code}"
        )
    else:
        d.say(f"  quota: {allowed:g} vCPUs of {family}, {allowed // needed:g} of {instance}")


def _vcpus(d: Deployment, instance: str) -> int:
    types: list[dict[str, Any]] = d.aws("ec2", "describe-instance-types", "--instance-types", instance).get(
        "InstanceTypes", []
    )
    return int(types[0]["VCpuInfo"]["DefaultVCpus"]) if types else 1


def _quota(d: Deployment, code: str) -> float | None:
    """`None`: it is not for these credentials to know."""
    wanted = ("--service-code", "ec2", "--quota-code", code)
    try:
        # An account that never asked for more has none of its own.
        found = d.aws("service-quotas", "get-service-quota", *wanted, missing=("NoSuchResourceException",))
        if found is None:
            found = d.aws("service-quotas", "get-aws-default-service-quota", *wanted)
    except CallFailed as error:
        if "AccessDenied" in error_code(error):
            return None
        raise
    return float(found["Quota"]["Value"])
