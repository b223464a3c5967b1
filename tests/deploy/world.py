"""A small model of an AWS account with a cluster in it, and terraform, aws and kubectl that act upon it.

It knows what depends on what, which is what an order of removal is about: a network cannot go while a load
balancer stands in it; load balancers, Ray's clusters and nodes go only while the controller that made them
runs; a bucket with objects is not destroyed. Options that the real tools do not have are refused.

As a program it is the three tools: `WORLD=state.json python world.py TOOL ARGUMENT…`. It imports nothing but
the standard library, so that it starts quickly.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

ACCOUNT, REGION, CLUSTER = "123456789012", "us-west-2", "mezzotint"
DATABASE_PASSWORD = "p@ss/w:ord#1%"
VALKEY_TOKEN = "valkey-token-0123456789"
ARN = f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{CLUSTER}"
KMS = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/data-key"
# How many calls it takes a controller to do what it does.
DELAY = 2
TAG = "mezzotint.dev/cluster"
CNI_TAG = "cluster.k8s.amazonaws.com/name"
ELB_TAG = "elbv2.k8s.aws/cluster"


def new_world() -> dict:
    return {
        "tick": 0,
        "account": ACCOUNT,
        "leads_to": ARN,
        "zones": ["us-west-2a", "us-west-2b"],
        "quota": 64,
        "made": {"infra": [], "addons": []},
        "variables": {"infra": None, "addons": None},
        "locked": None,
        "objects": {},
        "deleted": {},
        "due": {},
        "balancers": {},
        "groups": {},
        "volumes": {},
        "interfaces": {},
        "instances": {},
        "buckets": {},
        "snapshots": {},
        "api_keys": [],
        "rotated": 0,
        "protected": True,
        "database_goes_after": 0,
        "log_groups": ["/aws/eks/mezzotint-two/cluster", "/aws/rds/instance/mezzotint-two/postgresql"],
        "stale": [],
        "unstored": {"infra": None, "addons": None},
        "failures": [],
        "leaks": [],
        "orphans": [],
        "crashing": False,
        "asleep": False,
        "upgrade_hangs": False,
        "application": "RUNNING",
    }


# What infra makes, in order: address, type, values, and the ARN's end that the tagging API lists.
INFRA = [
    ("module.network.aws_vpc.this", "aws_vpc", {"id": "vpc-1"}, "ec2:vpc/vpc-1"),
    ("module.network.aws_eip.nat[0]", "aws_eip", {"id": "eipalloc-1"}, "ec2:elastic-ip/eipalloc-1"),
    ("module.network.aws_nat_gateway.this[0]", "aws_nat_gateway", {"id": "nat-1"}, "ec2:natgateway/nat-1"),
    (
        "module.storage.aws_kms_key.data",
        "aws_kms_key",
        {"id": "data-key", "key_id": "data-key", "arn": KMS},
        "kms:key/data-key",
    ),
    (
        'module.storage.aws_s3_bucket.this["models"]',
        "aws_s3_bucket",
        {"id": "mezzotint-models", "bucket": "mezzotint-models"},
        "s3:mezzotint-models",
    ),
    (
        'module.storage.aws_s3_bucket_server_side_encryption_configuration.this["models"]',
        "aws_s3_bucket_server_side_encryption_configuration",
        {
            "bucket": "mezzotint-models",
            "rule": [{"apply_server_side_encryption_by_default": [{"kms_master_key_id": KMS}]}],
        },
        "",
    ),
    (
        'module.storage.aws_ecr_repository.this["cpu"]',
        "aws_ecr_repository",
        {"id": "mezzotint/cpu", "name": "mezzotint/cpu"},
        "ecr:repository/mezzotint/cpu",
    ),
    (
        "module.storage.aws_db_instance.this",
        "aws_db_instance",
        {
            "id": "db-X",
            "identifier": "mezzotint",
            "kms_key_id": KMS,
            "final_snapshot_identifier": "mezzotint-final",
            "skip_final_snapshot": False,
            "deletion_protection": True,
        },
        "rds:db:mezzotint",
    ),
    (
        "module.storage.aws_secretsmanager_secret.valkey",
        "aws_secretsmanager_secret",
        {"id": "secret-valkey"},
        "secretsmanager:secret:valkey",
    ),
    ("module.cluster.aws_eks_cluster.this", "aws_eks_cluster", {"id": CLUSTER}, f"eks:cluster/{CLUSTER}"),
]
ADDONS = [
    ("module.addons.helm_release.karpenter", "helm_release", {"id": "karpenter"}, ""),
    ("module.addons.helm_release.kuberay", "helm_release", {"id": "kuberay"}, ""),
    ("module.addons.helm_release.load_balancer", "helm_release", {"id": "aws-load-balancer-controller"}, ""),
    ("module.addons.aws_iam_role.load_balancer", "aws_iam_role", {"id": "mezzotint-lb"}, ""),
]
ROOTS = {"infra": INFRA, "addons": ADDONS}
# Terraform's, and made again by EKS and RDS, without a tag, for what they wrote last.
LOG_GROUPS = ["/aws/eks/mezzotint/cluster", "/aws/rds/instance/mezzotint/postgresql"]
OUTPUTS = {
    "cluster_name": CLUSTER,
    "region": REGION,
    "account_id": ACCOUNT,
    "accelerator": "inf2",
    "node_role": "mezzotint-node",
    "model_uri": "s3://mezzotint-models/sdxl-inf2",
    "image_store": "s3://mezzotint-pictures/images",
    "valkey_address": "rediss://valkey.example:6379",
    "lb_scheme": "internal",
    "lb_cidrs": "10.42.0.0/16",
    "certificate_arn": "",
    "vpc_id": "vpc-1",
    "database_host": "db.example",
    "database_name": "mezzotint",
    "database_secret_arn": "arn:aws:secretsmanager:us-west-2:123456789012:secret:rds",
    "valkey_secret_arn": "arn:aws:secretsmanager:us-west-2:123456789012:secret:valkey",
    "interruption_queue": "mezzotint",
}
# By `service command`: the options it takes, beside --region and --output. Held to botocore by a test.
AWS = {
    "sts get-caller-identity": "",
    "ec2 describe-regions": "--region-names",
    "ec2 describe-instance-type-offerings": "--location-type --filters",
    "ec2 describe-instance-types": "--instance-types",
    "ec2 describe-instances": "--filters",
    "ec2 describe-network-interfaces": "--filters",
    "ec2 describe-security-groups": "--filters",
    "ec2 describe-security-group-rules": "--filters",
    "ec2 describe-volumes": "--filters",
    "ec2 describe-nat-gateways": "--filter",
    "ec2 describe-addresses": "--filters",
    "ec2 describe-vpc-endpoints": "--filters",
    "ec2 describe-vpcs": "--filters",
    "ec2 describe-subnets": "--filters",
    "ec2 describe-tags": "--filters",
    "ec2 terminate-instances": "--instance-ids",
    "ec2 delete-network-interface": "--network-interface-id",
    "ec2 delete-security-group": "--group-id",
    "ec2 delete-volume": "--volume-id",
    "ec2 revoke-security-group-ingress": "--group-id --security-group-rule-ids",
    "service-quotas get-service-quota": "--service-code --quota-code",
    "service-quotas get-aws-default-service-quota": "--service-code --quota-code",
    "eks describe-cluster": "--name",
    "eks update-kubeconfig": "--name --kubeconfig",
    "eks update-cluster-config": "--name --no-deletion-protection",
    "secretsmanager get-secret-value": "--secret-id",
    "secretsmanager describe-secret": "--secret-id",
    "secretsmanager delete-secret": "--secret-id --force-delete-without-recovery",
    "elbv2 describe-load-balancers": "",
    "elbv2 describe-target-groups": "",
    "elbv2 describe-tags": "--resource-arns",
    "elbv2 delete-load-balancer": "--load-balancer-arn",
    "elbv2 delete-target-group": "--target-group-arn",
    "rds describe-db-snapshots": "--snapshot-type",
    "rds describe-db-instances": "--db-instance-identifier",
    "rds modify-db-instance": "--db-instance-identifier --no-deletion-protection --apply-immediately",
    "rds delete-db-instance": "--db-instance-identifier --final-db-snapshot-identifier",
    "rds delete-db-snapshot": "--db-snapshot-identifier",
    "rds delete-db-instance-automated-backup": "--db-instance-automated-backups-arn",
    "s3api list-object-versions": "--bucket --no-paginate --max-keys",
    "s3api delete-objects": "--bucket --delete",
    "s3api get-bucket-location": "--bucket",
    "s3api delete-bucket": "--bucket",
    "logs describe-log-groups": "--log-group-name-prefix",
    "logs delete-log-group": "--log-group-name",
    "kms describe-key": "--key-id",
    "kms schedule-key-deletion": "--key-id --pending-window-in-days",
    "ecr delete-repository": "--repository-name --force",
    "ecr describe-repositories": "--repository-names",
    "resourcegroupstaggingapi get-resources": "--tag-filters",
}
NAMESPACED = (
    "deployments",
    "pods",
    "rayservices",
    "rayclusters",
    "rayjobs",
    "gateways",
    "httproutes",
    "ingresses",
)


class Refused(Exception):
    """The tool ends with this code, and says this on its standard error."""

    def __init__(self, code: int, told: str) -> None:
        super().__init__(told)
        self.code = code


def aws_error(code: str, told: str = "") -> Refused:
    return Refused(254, f"An error occurred ({code}) when calling the operation: {told or code}")


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls = path.with_suffix(".calls")

    def start(self) -> None:
        self.write(new_world())
        self.calls.write_text("")

    def read(self) -> dict:
        return json.loads(self.path.read_text())

    def write(self, state: dict) -> None:
        self.path.write_text(json.dumps(state))

    def change(self, **values: object) -> None:
        self.write(self.read() | values)

    def answer(self, tool: str, arguments: list[str], stdin: str) -> tuple[int, str, str]:
        """The exit code and both outputs."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.s = self.read()
            self.s["tick"] += 1
            with self.calls.open("a") as file:
                file.write(json.dumps([tool, *arguments]) + "\n")
            try:
                settle(self.s)
                self._fail(tool, arguments)
                out = {"aws": aws, "kubectl": kubectl, "terraform": terraform}[tool](self.s, arguments, stdin)
                ended = (0, out, "") if isinstance(out, str) else (*out, "")
            except Refused as error:
                ended = (error.code, "", f"{error}\n")
            self.write(self.s)
        return ended

    def _fail(self, tool: str, arguments: list[str]) -> None:
        """Failures are lists: words of the call, which of those calls, how. Each happens once."""
        line = " ".join([tool, *arguments])
        # Not what a test is called, which its folder is too.
        plain = line.replace(str(self.path.parent), "")
        for failure in self.s["failures"]:
            words, at, how = failure
            if all(word in plain for word in words.split()) and at > 0:
                failure[1] -= 1
                if failure[1] == 0:
                    self._do_fail(how, line)

    def _do_fail(self, how: str, line: str) -> None:
        if " apply " in line and line.startswith("terraform"):
            # A plan that was begun is stale.
            Path(line.split()[-1]).unlink()
        if how == "throttle":
            raise aws_error("ThrottlingException", "Rate exceeded")
        if how == "reset":
            raise Refused(1, "read tcp 10.0.0.1:443: read: connection reset by peer")
        if how == "exit":
            raise Refused(1, "Error: it did not work\n  with some.thing,\n  on main.tf line 1")
        if how == "denied":
            raise aws_error("AccessDeniedException", "not authorized")
        if how == "half":
            root = root_of(line.split()[1:])
            self.s["made"][root] = ROOTS[root][: len(ROOTS[root]) // 2]
            take_effect(self.s, root)
            place = Path(line.split()[1].removeprefix("-chdir="))
            backend = json.loads((place / "backend_override.tf.json").read_text())["terraform"]["backend"]
            Path(backend["local"]["path"]).write_text("{}")
            raise Refused(1, "Error: creating the rest: it did not work")
        if how.startswith("unstored"):
            # All that was made is known to this file alone.
            root, place = root_of(line.split()[1:]), Path(line.split()[1].removeprefix("-chdir="))
            self.s["unstored"][root] = ROOTS[root] if " apply " in line else self.s["made"][root][:-1]
            (place / "errored.tfstate").write_text("{}")
            told = {"unstored": "ExpiredToken", "unstored, reset": "connection reset by peer"}[how]
            raise Refused(1, f"Error: Failed to save state: {told}")
        if how == "hang":
            self._hang(line)
        raise AssertionError(how)

    def _hang(self, line: str) -> None:
        """As terraform does: holds the state's lock until it is asked to stop, or for good."""
        self.s["locked"] = os.getpid()
        self.write(self.s)

        def stop(*_: object) -> None:
            self.s["locked"] = None
            self.write(self.s)
            print("Interrupt received. Gracefully shutting down...", flush=True)
            os._exit(1)

        signal.signal(signal.SIGINT, stop)
        self.path.with_suffix(".hanging").write_text(line)
        time.sleep(60)
        os._exit(3)


# --- what happens by itself ---


def alive(s: dict, controller: str) -> bool:
    return any(controller in each[0] for each in s["made"]["addons"])


def due(s: dict, what: str) -> bool:
    """Whether the controller has had its time, which begins now."""
    at = s["due"].setdefault(what, s["tick"] + DELAY)
    if s["tick"] >= at:
        del s["due"][what]
        return True
    return False


def put(s: dict, kind: str, name: str, **more: object) -> None:
    s["objects"].setdefault(f"{kind}/{name}", {"metadata": {"name": name, "generation": 1}, **more})


def named(s: dict, kind: str) -> list[str]:
    return [key.partition("/")[2] for key in s["objects"] if key.partition("/")[0] == kind]


def settle(s: dict) -> None:
    if s["asleep"]:
        return
    for controller in (settle_edge, settle_ray, settle_nodes, settle_pods, settle_deletions):
        controller(s)


def settle_edge(s: dict) -> None:
    if not alive(s, "load_balancer"):
        return
    gateways = [name for name in named(s, "gateways") if f"gateways/{name}" not in s["deleted"]]
    if gateways and not s["balancers"] and due(s, "balancer"):
        s["balancers"]["arn:aws:elasticloadbalancing:us-west-2:123456789012:loadbalancer/app/k8s/1"] = {}
        s["balancers"]["arn:aws:elasticloadbalancing:us-west-2:123456789012:targetgroup/k8s/1"] = {}
        s["groups"]["sg-lb"] = {}
        for name in gateways:
            s["objects"][f"gateways/{name}"]["status"] = {
                "addresses": [{"value": s.get("address", "lb.example")}]
            }
    for key in [key for key in s["deleted"] if key.startswith("gateways/")]:
        if due(s, key):
            s["deleted"].pop(key)
            s["objects"].pop(key, None)
            if "balancer" not in s["leaks"]:
                s["balancers"] = {}
            if "group" not in s["leaks"]:
                s["groups"].pop("sg-lb", None)


def settle_ray(s: dict) -> None:
    if not alive(s, "kuberay"):
        return
    for name in named(s, "rayservices"):
        key = f"rayservices/{name}"
        if key in s["deleted"]:
            if due(s, key):
                s["deleted"].pop(key)
                for gone in [key, "rayclusters/mezzotint-abc", "pods/gateway-1"]:
                    s["objects"].pop(gone, None)
        elif "rayclusters/mezzotint-abc" not in s["objects"]:
            put(s, "rayclusters", "mezzotint-abc")
            put(s, "pods", "gateway-1", status={"phase": "Pending"})
        elif not s["crashing"] and s["instances"] and due(s, "ray ready"):
            ready = [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}]
            s["objects"]["pods/gateway-1"]["status"] = {"phase": "Running", "conditions": ready}
            generation = s["objects"][key]["metadata"]["generation"]
            before = s["objects"][key].get("status", {}).get("observedGeneration", generation)
            # A second cluster is made beside the first; where it does not load, for good.
            second = before < generation or s["upgrade_hangs"]
            s["objects"][key]["status"] = {
                "conditions": [*ready, {"type": "UpgradeInProgress", "status": str(second)}],
                "observedGeneration": generation,
                "activeServiceStatus": {"applicationStatuses": {"mezzotint": {"status": s["application"]}}},
            }
    if s["crashing"] and "pods/gateway-1" in s["objects"]:
        waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}
        last = {"exitCode": 1, "reason": "Error"}
        s["objects"]["pods/gateway-1"]["status"] = {
            "phase": "Running",
            "containerStatuses": [{"state": {"waiting": waiting}, "lastState": {"terminated": last}}],
        }


def settle_nodes(s: dict) -> None:
    if not alive(s, "karpenter"):
        return
    pools = [name for name in named(s, "nodepools") if f"nodepools/{name}" not in s["deleted"]]
    if pools and not s["instances"] and due(s, "nodes"):
        for name in pools:
            put(s, "nodeclaims", f"{name}-1")
            s["instances"][f"i-{name}"] = {}
    for key in [key for key in s["deleted"] if key.startswith("nodepools/")]:
        if due(s, key):
            name = key.partition("/")[2]
            s["deleted"].pop(key)
            for gone in (key, f"nodeclaims/{name}-1"):
                s["objects"].pop(gone, None)
            s["instances"].pop(f"i-{name}", None)
    for key in [key for key in s["deleted"] if key.startswith("ec2nodeclasses/")]:
        if not named(s, "nodeclaims"):
            s["deleted"].pop(key)
            s["objects"].pop(key, None)


def settle_pods(s: dict) -> None:
    available = {"conditions": [{"type": "Available", "status": "True"}], "updatedReplicas": 2}
    available["availableReplicas"] = 2
    for name in named(s, "deployments"):
        each = s["objects"][f"deployments/{name}"]
        if name != "page" or "secrets/mezzotint-page" in s["objects"]:
            each["status"] = {**available, "observedGeneration": each["metadata"]["generation"]}


def settle_deletions(s: dict) -> None:
    """What needs no controller."""
    for key in list(s["deleted"]):
        kind = key.partition("/")[0]
        if kind == "namespaces" and due(s, key):
            s["deleted"].pop(key)
            stuck = [other for other in s["deleted"] if other.partition("/")[0] in NAMESPACED]
            if stuck:
                s["deleted"][key] = True
                continue
            for other in list(s["objects"]):
                if other == key or other.partition("/")[0] in (*NAMESPACED, "secrets"):
                    del s["objects"][other]
            if "volume" not in s["leaks"]:
                s["volumes"] = {}
        elif kind in ("httproutes", "ingresses", "rayjobs"):
            s["deleted"].pop(key)
            s["objects"].pop(key, None)


def take_effect(s: dict, root: str) -> None:
    """Buckets are there once made, and hold something."""
    made = [each[0] for each in s["made"][root]]
    if any("aws_s3_bucket.this" in address for address in made):
        s["buckets"].setdefault("mezzotint-models", 3)


# --- terraform ---


def root_of(arguments: list[str]) -> str:
    return arguments[0].removeprefix("-chdir=").rpartition("/")[2]


def terraform(s: dict, arguments: list[str], stdin: str) -> object:
    if arguments == ["version", "-json"]:
        return json.dumps({"terraform_version": "1.14.0"})
    root, command, options = root_of(arguments), arguments[1], arguments[2:]
    place = Path(arguments[0].removeprefix("-chdir="))
    known = ("-input=", "-no-color", "-lock-timeout=", "-detailed-exitcode", "-var-file=", "-out=", "-json")
    for option in options:
        if option.startswith("-") and not option.startswith(
            (*known, "-auto-approve", "-reconfigure", "-refresh=false")
        ):
            raise Refused(1, f"flag provided but not defined: {option}")
    override = json.loads((place / "backend_override.tf.json").read_text())
    backend = override["terraform"]["backend"]
    state = Path(backend["local"]["path"]) if "local" in backend else place / "remote"
    if command == "apply" and not Path(options[-1]).exists():
        raise Refused(1, "Error: Saved plan is stale")
    value = {each.partition("=")[0]: each.partition("=")[2] for each in options if "=" in each}
    value["place"] = str(place)
    if command in ("plan", "apply", "destroy", "state") and s["locked"]:
        raise Refused(1, "Error: Error acquiring the state lock")
    if command in ("plan", "destroy"):
        declared = "".join(path.read_text() for path in place.glob("*.tf"))
        given = json.loads(Path(value["-var-file"]).read_text())
        missing = set(re.findall(r'^variable "(\w+)" {}', declared, re.MULTILINE)) - given.keys()
        if missing:
            raise Refused(1, f"Error: No value for required variable: {', '.join(sorted(missing))}")
        if not isinstance(given.get("lb_cidrs", []), list):
            raise Refused(1, "Error: Invalid value for input variable: lb_cidrs: list of string required")
    if command in ("plan", "apply", "destroy") and s["unstored"][root] is not None:
        raise AssertionError("it would be made a second time, or what is stored would be the newer one")
    if "local" in backend and command in ("show", "output", "destroy") and not state.exists():
        # Whatever was made, this state does not know of it.
        return "{}"
    answer = TERRAFORM[command](s, root, value, options)
    if command == "apply" or (command == "state" and options[0] == "push"):
        state.write_text("{}")
    return answer


def terraform_plan(s: dict, root: str, value: dict, options: list[str]) -> object:
    variables = json.loads(Path(value["-var-file"]).read_text())
    if root == "addons" and not has_cluster(s):
        raise Refused(1, "Error: reading EKS Cluster (mezzotint): couldn't find resource")
    missing = len(ROOTS[root]) - len(s["made"][root])
    changed = s["variables"][root] not in (None, variables)
    Path(value["-out"]).write_text(json.dumps([root, variables]))
    if not missing and not changed:
        return "No changes. Your infrastructure matches the configuration.\n"
    told = f"Plan: {missing} to add, {int(changed)} to change, {s.get('destroys', 0)} to destroy.\n"
    return (2, told)


def terraform_apply(s: dict, root: str, value: dict, options: list[str]) -> object:
    place = value["place"]
    planned, variables = json.loads(Path(options[-1]).read_text())
    Path(options[-1]).unlink()
    if planned != root:
        raise Refused(1, "Error: Inconsistent plan")
    if root == "infra":
        imported = (Path(place) / "kept_imports.tf").read_text()
        for address, *_ in s["orphans"]:
            if f"to = {address}\n" not in imported:
                raise Refused(1, f"Error: {address}: BucketAlreadyOwnedByYou")
        s["orphans"] = []
        if not s["made"]["infra"] and set(LOG_GROUPS) & set(s["log_groups"]):
            raise Refused(1, "Error: creating CloudWatch Logs Log Group: ResourceAlreadyExistsException")
    s["made"][root], s["variables"][root] = list(ROOTS[root]), variables
    take_effect(s, root)
    return "Apply complete!\n"


def terraform_output(s: dict, root: str, value: dict, options: list[str]) -> object:
    found = {name: {"value": each, "sensitive": False} for name, each in OUTPUTS.items()}
    found["token"] = {"value": VALKEY_TOKEN, "sensitive": True}
    return json.dumps(found if s["made"][root] else {})


def terraform_show(s: dict, root: str, value: dict, options: list[str]) -> object:
    if not s["made"][root]:
        return json.dumps({"format_version": "1.0"})
    resources = [
        {"address": address, "mode": "managed", "type": kind, "values": values}
        for address, kind, values, _ in s["made"][root]
    ]
    child = {"address": "module.x", "resources": resources}
    return json.dumps({"values": {"root_module": {"child_modules": [child]}}})


def terraform_state(s: dict, root: str, value: dict, options: list[str]) -> object:
    if options[0] == "push":
        if options[-1] != str(Path(value["place"]) / "errored.tfstate") or not Path(options[-1]).exists():
            raise Refused(1, f"Error: open {options[-1]}: no such file or directory")
        s["made"][root], s["unstored"][root] = s["unstored"][root], None
        take_effect(s, root)
        return ""
    if options[0] != "rm":
        raise Refused(1, "unknown command")
    # What is forgotten is there all the same.
    if root == "infra":
        s["orphans"] += [each for each in s["made"][root] if each[0] in options]
    s["made"][root] = [each for each in s["made"][root] if each[0] not in options]
    return "Successfully removed.\n"


def terraform_destroy(s: dict, root: str, value: dict, options: list[str]) -> object:
    if "-auto-approve" not in options:
        raise Refused(1, "Error: asks for a terminal")
    going = list(s["made"][root])
    addresses = [each[0] for each in going]
    if root == "addons" and any("helm_release" in each for each in addresses) and not has_cluster(s):
        raise Refused(1, "Error: Kubernetes cluster unreachable")
    if root == "addons" and not has_cluster(s) and "-refresh=false" not in options:
        raise Refused(1, "Error: reading EKS Cluster (mezzotint): couldn't find resource")
    if root == "infra":
        check_destroy(s, going)
    s["made"][root] = [each for each in s["made"][root] if each[0] not in addresses]
    if any("aws_eks_cluster" in each for each in addresses):
        s["objects"], s["deleted"], s["api_keys"] = {}, {}, []
        s["log_groups"] += LOG_GROUPS
    return "Destroy complete!\n"


def check_destroy(s: dict, going: list) -> None:
    addresses = " ".join(each[0] for each in going)
    if "aws_s3_bucket.this" in addresses and s["buckets"].get("mezzotint-models"):
        raise Refused(1, "Error: deleting S3 Bucket (mezzotint-models): BucketNotEmpty")
    if "aws_db_instance" in addresses:
        if s["protected"]:
            raise Refused(1, "Error: deleting RDS DB Instance: deletion protection")
        if "mezzotint-final" in s["snapshots"]:
            raise Refused(1, "Error: deleting RDS DB Instance (mezzotint): DBSnapshotAlreadyExists")
        s["snapshots"]["mezzotint-final"] = CLUSTER
    if "aws_s3_bucket.this" in addresses:
        s["buckets"].pop("mezzotint-models", None)
    s["protected"] = True
    holds = [kind for kind in ("balancers", "groups", "interfaces", "instances") if s[kind]]
    if "aws_vpc" in addresses and holds:
        # It goes last, so all the rest has gone.
        gone = [each[0] for each in going if "aws_vpc" not in each[0]]
        s["made"]["infra"] = [each for each in s["made"]["infra"] if each[0] not in gone]
        s["objects"], s["deleted"], s["api_keys"] = {}, {}, []
        raise Refused(1, f"Error: deleting EC2 VPC (vpc-1): DependencyViolation: {', '.join(holds)}")


TERRAFORM = {
    "init": lambda s, root, value, options: "Terraform has been successfully initialized!\n",
    "plan": terraform_plan,
    "apply": terraform_apply,
    "output": terraform_output,
    "show": terraform_show,
    "state": terraform_state,
    "destroy": terraform_destroy,
}


def has_cluster(s: dict) -> bool:
    return any("aws_eks_cluster" in each[0] for each in s["made"]["infra"])


# --- aws ---


def aws(s: dict, arguments: list[str], stdin: str) -> object:
    if arguments == ["--version"]:
        return "aws-cli/2.31.0 Python/3.13.0 Linux/6.1\n"
    call, options = " ".join(arguments[:2]), read_options(arguments[2:])
    if call not in AWS:
        raise Refused(252, f"aws: error: argument command: Invalid choice: {call}")
    unknown = set(options) - {*AWS[call].split(), "--region", "--output"}
    if unknown:
        raise Refused(252, f"Unknown options: {', '.join(sorted(unknown))}")
    if options["--region"] != [REGION]:
        raise Refused(254, 'Could not connect to the endpoint URL: "https://ec2.nowhere.amazonaws.com/"')
    service, command = arguments[:2]
    handler = HANDLERS.get(call) or SERVICES[service]
    answer = handler(s, command, options)
    return answer if isinstance(answer, str) else json.dumps(answer)


def read_options(arguments: list[str]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            options[argument] = []
        elif options:
            options[list(options)[-1]].append(argument)
    return options


def matches(options: dict, tags: dict) -> bool:
    """Whether the tags fit the filter `Name=tag:KEY,Values=VALUE`."""
    for name in ("--filters", "--filter"):
        for each in options.get(name, []):
            key, _, value = each.removeprefix("Name=tag:").partition(",Values=")
            if tags.get(key) != value:
                return False
    return True


OWN = {TAG: CLUSTER}
# What the VPC CNI puts on the interfaces that it makes, and no more.
OF_THE_CNI = {CNI_TAG: CLUSTER, "node.k8s.amazonaws.com/instance_id": "i-gone"}


def pairs(tags: dict) -> list:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def ec2(s: dict, command: str, options: dict) -> object:
    made = [each[0] for each in s["made"]["infra"]]
    if command == "describe-regions":
        return {"Regions": [{"RegionName": REGION}]}
    if command == "describe-instance-type-offerings":
        return {"InstanceTypeOfferings": [{"Location": zone} for zone in s["zones"]]}
    if command == "describe-instance-types":
        return {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 32}}]}
    if command == "describe-tags":
        return {"Tags": []}
    if command == "describe-instances":
        found = [
            {
                "InstanceId": id,
                "State": {"Name": "running"},
                "Tags": pairs({"kubernetes.io/cluster/mezzotint": "owned", **tags}),
            }
            for id, tags in s["instances"].items()
            if matches(options, {"kubernetes.io/cluster/mezzotint": "owned", **tags})
        ]
        if has_cluster(s) and matches(options, OWN):
            tags = pairs(OWN | {"eks:nodegroup-name": "system"})
            found.append({"InstanceId": "i-system", "State": {"Name": "running"}, "Tags": tags})
        return {"Reservations": [{"Instances": [each]} for each in found]}
    simple = {
        "describe-network-interfaces": ("NetworkInterfaces", "NetworkInterfaceId", "interfaces", OF_THE_CNI),
        "describe-volumes": ("Volumes", "VolumeId", "volumes", OWN),
    }
    if command in simple:
        title, id, kind, tags = simple[command]
        state = {"Status": "available", "State": "available", "Tags": pairs(tags)}
        return {title: [{id: each, **state} for each in s[kind] if matches(options, tags)]}
    if command == "describe-security-groups":
        return {"SecurityGroups": security_groups(s, options)}
    if command == "describe-security-group-rules":
        rule = {
            "SecurityGroupRuleId": "sgr-1",
            "IsEgress": False,
            "ReferencedGroupInfo": {"GroupId": "sg-lb"},
        }
        return {"SecurityGroupRules": [rule]}
    if command == "revoke-security-group-ingress":
        s["groups"]["sg-lb"].pop("used_by", None)
        return {}
    kinds = {
        "describe-nat-gateways": ("NatGateways", "NatGatewayId", "nat-1", "aws_nat_gateway"),
        "describe-addresses": ("Addresses", "AllocationId", "eipalloc-1", "aws_eip"),
        "describe-vpcs": ("Vpcs", "VpcId", "vpc-1", "aws_vpc"),
        "describe-subnets": ("Subnets", "SubnetId", "", "aws_subnet"),
        "describe-vpc-endpoints": ("VpcEndpoints", "VpcEndpointId", "", "aws_vpc_endpoint"),
    }
    if command in kinds:
        title, id, name, kind = kinds[command]
        there = any(f".{kind}." in address for address in made) and matches(options, OWN)
        return {title: [{id: name, "State": "available"}] if there else []}
    return ec2_delete(s, command, options)


def security_groups(s: dict, options: dict) -> list:
    wanted = options["--filters"][0]
    if wanted.startswith("Name=ip-permission.group-id,Values="):
        group = s["groups"].get(wanted.partition("Values=")[2], {})
        return [{"GroupId": group["used_by"]}] if "used_by" in group else []
    tags = {ELB_TAG: CLUSTER}
    found = [{"GroupId": id, "Tags": pairs(tags)} for id in s["groups"] if matches(options, tags)]
    if has_cluster(s) and matches(options, {"kubernetes.io/cluster/mezzotint": "owned"}):
        own = {"kubernetes.io/cluster/mezzotint": "owned", "aws:eks:cluster-name": CLUSTER}
        found.append({"GroupId": "sg-eks", "Tags": pairs(own)})
    return found


def ec2_delete(s: dict, command: str, options: dict) -> object:
    kinds = {
        "terminate-instances": ("--instance-ids", "instances", "InvalidInstanceID.NotFound"),
        "delete-network-interface": (
            "--network-interface-id",
            "interfaces",
            "InvalidNetworkInterfaceID.NotFound",
        ),
        "delete-security-group": ("--group-id", "groups", "InvalidGroup.NotFound"),
        "delete-volume": ("--volume-id", "volumes", "InvalidVolume.NotFound"),
    }
    option, kind, missing = kinds[command]
    [id] = options[option]
    if id not in s[kind]:
        raise aws_error(missing)
    if kind == "groups" and (s["balancers"] or "used_by" in s[kind][id] or "held" in s[kind][id]):
        raise aws_error("DependencyViolation", f"resource {id} has a dependent object")
    del s[kind][id]
    return {}


def quotas(s: dict, command: str, options: dict) -> object:
    if command == "get-service-quota" and s["quota"] is None:
        raise aws_error("NoSuchResourceException")
    return {"Quota": {"Value": s["quota"] if s["quota"] is not None else 0.0}}


def eks(s: dict, command: str, options: dict) -> object:
    if not has_cluster(s):
        raise aws_error("ResourceNotFoundException", "No cluster found for name: mezzotint.")
    if command == "update-kubeconfig":
        context = {"name": s["leads_to"], "context": {"cluster": s["leads_to"], "user": s["leads_to"]}}
        Path(options["--kubeconfig"][0]).write_text(json.dumps({"contexts": [context]}))
        return "Added new context to kubeconfig\n"
    return {"cluster": {"name": CLUSTER, "status": "ACTIVE", "version": "1.35"}}


def secrets_manager(s: dict, command: str, options: dict) -> object:
    [name] = options["--secret-id"]
    if command == "get-secret-value":
        if name.endswith("rds"):
            text = json.dumps({"username": "mezzotint", "password": DATABASE_PASSWORD})
            return {"SecretString": text}
        return {"SecretString": VALKEY_TOKEN}
    there = any("aws_secretsmanager_secret" in each[0] for each in s["made"]["infra"])
    if command == "describe-secret" and not there:
        raise aws_error("ResourceNotFoundException")
    return {}


def elb(s: dict, command: str, options: dict) -> object:
    kinds = {"describe-load-balancers": ("LoadBalancers", "LoadBalancerArn", "loadbalancer")}
    kinds["describe-target-groups"] = ("TargetGroups", "TargetGroupArn", "targetgroup")
    other = "arn:aws:elasticloadbalancing:us-west-2:123456789012:loadbalancer/app/other/1"
    if command in kinds:
        title, id, word = kinds[command]
        found = [{id: arn} for arn in s["balancers"] if f":{word}/" in arn]
        return {title: [*found, {id: other}] if word == "loadbalancer" else found}
    if command == "describe-tags":
        arns = options["--resource-arns"]
        tags = {arn: {"team": "another"} if arn == other else {ELB_TAG: CLUSTER} for arn in arns}
        return {"TagDescriptions": [{"ResourceArn": arn, "Tags": pairs(tags[arn])} for arn in arns]}
    [arn] = options.get("--load-balancer-arn") or options["--target-group-arn"]
    if arn == other:
        raise AssertionError("that is somebody else's")
    if ":targetgroup/" in arn and any(":loadbalancer/" in each for each in s["balancers"]):
        raise aws_error("ResourceInUse", "is currently in use by a listener or a rule")
    s["balancers"].pop(arn, None)
    return {}


def rds(s: dict, command: str, options: dict) -> object:
    if command == "describe-db-snapshots":
        found = [
            {"DBSnapshotIdentifier": name, "TagList": [{"Key": TAG, "Value": cluster}]}
            for name, cluster in s["snapshots"].items()
        ]
        return {"DBSnapshots": [*found, {"DBSnapshotIdentifier": "of-others", "TagList": []}]}
    if command == "delete-db-snapshot":
        del s["snapshots"][options["--db-snapshot-identifier"][0]]
        return {}
    if command in ("delete-db-instance", "modify-db-instance") and not made(s, "aws_db_instance"):
        raise aws_error("DBInstanceNotFound")
    if command == "describe-db-instances" and s["database_goes_after"]:
        s["database_goes_after"] -= 1
        if s["database_goes_after"] == 0:
            s["made"]["infra"] = [each for each in s["made"]["infra"] if "aws_db_instance" not in each[0]]
        return {"DBInstances": [{"DBInstanceStatus": "deleting"}]}
    if command in ("delete-db-instance", "modify-db-instance") and s["database_goes_after"]:
        raise aws_error("InvalidDBInstanceState", "Instance mezzotint is already being deleted.")
    if command == "delete-db-instance":
        s["snapshots"][options["--final-db-snapshot-identifier"][0]] = CLUSTER
        s["made"]["infra"] = [each for each in s["made"]["infra"] if "aws_db_instance" not in each[0]]
    elif command == "modify-db-instance":
        s["protected"] = False
    elif command == "describe-db-instances" and not made(s, "aws_db_instance"):
        raise aws_error("DBInstanceNotFound")
    return {"DBInstances": [{"DBInstanceStatus": "available"}]}


def made(s: dict, kind: str) -> bool:
    return any(kind in each[0] for each in [*s["made"]["infra"], *s["orphans"]])


def forget(s: dict, kind: str) -> None:
    s["orphans"] = [each for each in s["orphans"] if kind not in each[0]]
    s["made"]["infra"] = [each for each in s["made"]["infra"] if kind not in each[0]]


def s3(s: dict, command: str, options: dict) -> object:
    [bucket] = options["--bucket"]
    if bucket not in s["buckets"]:
        raise aws_error("NoSuchBucket")
    if command == "list-object-versions":
        some = min(s["buckets"][bucket], int(options["--max-keys"][0]), 2)
        return {"Versions": [{"Key": f"k{i}", "VersionId": "v"} for i in range(some)]} if some else ""
    if command == "delete-objects":
        asked = json.loads(Path(options["--delete"][0].removeprefix("file://")).read_text())
        s["buckets"][bucket] -= len(asked["Objects"])
    elif command == "delete-bucket":
        del s["buckets"][bucket]
        forget(s, "aws_s3_bucket")
    return {}


def kms(s: dict, command: str, options: dict) -> object:
    if command == "schedule-key-deletion":
        forget(s, "aws_kms_key")
    state = "Enabled" if made(s, "aws_kms_key") else "PendingDeletion"
    return {"KeyMetadata": {"KeyState": state}}


def logs(s: dict, command: str, options: dict) -> object:
    if command == "delete-log-group":
        s["log_groups"].remove(options["--log-group-name"][0])
        return {}
    [prefix] = options["--log-group-name-prefix"]
    return {"logGroups": [{"logGroupName": name} for name in s["log_groups"] if name.startswith(prefix)]}


def ecr(s: dict, command: str, options: dict) -> object:
    if not made(s, "aws_ecr_repository"):
        raise aws_error("RepositoryNotFoundException")
    return {}


def tagging(s: dict, command: str, options: dict) -> object:
    found = []
    if options["--tag-filters"] == [f"Key={TAG},Values={CLUSTER}"]:
        found = [end for _, _, _, end in [*s["made"]["infra"], *s["orphans"]] if end] + s["stale"]
        found += [f"ec2:instance/{id}" for id in s["instances"]]
        # It goes on naming what has gone.
        found += ["ec2:instance/i-gone", "kms:key/data-key"]
    arns = {arn_of(end) for end in found}
    return {"ResourceTagMappingList": [{"ResourceARN": arn} for arn in sorted(arns)]}


def arn_of(end: str) -> str:
    service, _, resource = end.partition(":")
    place = "::" if service == "s3" else f"{REGION}:{ACCOUNT}"
    return f"arn:aws:{service}:{place}:{resource}".replace("s3::::", "s3:::")


HANDLERS = {"sts get-caller-identity": lambda s, command, options: {"Account": s["account"]}}
SERVICES = {
    "ec2": ec2,
    "service-quotas": quotas,
    "eks": eks,
    "secretsmanager": secrets_manager,
    "elbv2": elb,
    "rds": rds,
    "s3api": s3,
    "logs": logs,
    "kms": kms,
    "ecr": ecr,
    "resourcegroupstaggingapi": tagging,
}


# --- kubectl ---

KINDS = {"deployment": "deployments", "secret": "secrets", "namespace": "namespaces"}


def kubectl(s: dict, arguments: list[str], stdin: str) -> object:
    if arguments[:2] == ["version", "--client"]:
        return json.dumps({"clientVersion": {"gitVersion": "v1.35.0"}})
    if arguments[0] != "--kubeconfig" or not Path(arguments[1]).exists():
        raise Refused(1, "error: the test's own kubeconfig is not used")
    rest = arguments[2:]
    if rest[:2] == ["config", "view"]:
        return Path(arguments[1]).read_text()
    context = rest[rest.index("--context") + 1]
    if context != s["leads_to"] or not has_cluster(s):
        raise Refused(1, f'error: context "{context}" does not exist')
    rest = [each for at, each in enumerate(rest) if each != "--context" and rest[at - 1] != "--context"]
    return KUBECTL[rest[0]](s, rest[1:], stdin)


def kind_of(text: str) -> str:
    plain = text.partition(".")[0]
    return KINDS.get(plain, plain)


def kubectl_get(s: dict, rest: list[str], stdin: str) -> object:
    kind, output = kind_of(rest[0]), rest[rest.index("--output") + 1]
    if kind in ("rayservices", "rayclusters", "rayjobs") and not s["made"]["addons"]:
        raise Refused(1, f'error: the server doesn\'t have a resource type "{kind}"')
    if "--ignore-not-found" in rest:
        found = s["objects"].get(f"{kind}/{rest[1]}")
        if found is None:
            return ""
        return f"{rest[0]}/{rest[1]}\n" if output == "name" else json.dumps(found)
    return json.dumps({"items": [s["objects"][f"{kind}/{name}"] for name in named(s, kind)]})


def kubectl_apply(s: dict, rest: list[str], stdin: str) -> object:
    if "--server-side" not in rest:
        raise Refused(1, "error: applied on the client's side")
    if "--filename" in rest:
        thing = json.loads(stdin)
        name = thing["metadata"]["name"]
        data = {
            key: base64.b64encode(each.encode()).decode() for key, each in thing.get("stringData", {}).items()
        }
        s["objects"][f"{thing['kind'].lower()}s/{name}"] = {"metadata": {"name": name}, "data": data}
        return "applied\n"
    folder = Path(rest[rest.index("--kustomize") + 1])
    if not s["made"]["addons"]:
        raise Refused(1, 'error: no matches for kind "RayService" in version "ray.io/v1"')
    if s.get("changed_by_hand") and "--force-conflicts" not in rest:
        why = f'conflict with "kubectl" using apps/v1: {s["changed_by_hand"]}'
        raise Refused(1, f"error: Apply failed with 1 conflict: {why}")
    before = s.get("applied")
    s["applied"] = {
        "kustomization": (folder / "kustomization.yaml").read_text(),
        "site": (folder.parent / "overlays/inf2/site.env").read_text(),
    }
    put(s, "rayservices", "mezzotint")
    if before not in (None, s["applied"]):
        s["objects"]["rayservices/mezzotint"]["metadata"]["generation"] += 1
    put(s, "gateways", "edge")
    put(s, "httproutes", "edge")
    for name in ("edge", "page"):
        put(s, "deployments", name, spec={"replicas": 2})
    for name in ("mezzotint-cpu", "mezzotint-engine"):
        put(s, "nodepools", name)
        put(s, "ec2nodeclasses", name)
    s["volumes"] = {"vol-pvc": {}}
    return "applied\n"


def kubectl_delete(s: dict, rest: list[str], stdin: str) -> object:
    kind = kind_of(rest[0])
    if not {"--ignore-not-found", "--wait=false"} <= set(rest):
        raise AssertionError("it would wait for ever, or fail the second time")
    if (
        kind in ("rayservices", "rayjobs", "gateways", "nodepools")
        and not s["made"]["addons"]
        and not named(s, kind)
    ):
        raise Refused(1, f'error: the server doesn\'t have a resource type "{kind}"')
    for name in named(s, kind) if "--all" in rest else [rest[1]]:
        if f"{kind}/{name}" in s["objects"]:
            s["deleted"][f"{kind}/{name}"] = True
    return ""


def kubectl_rollout(s: dict, rest: list[str], stdin: str) -> object:
    name = rest[1].removeprefix("deployment/")
    s["objects"][f"deployments/{name}"]["metadata"]["generation"] += 1
    s["restarted"] = [*s.get("restarted", []), name]
    return "restarted\n"


def kubectl_exec(s: dict, rest: list[str], stdin: str) -> object:
    command = rest[rest.index("--") + 1 :]
    if command[:2] != ["mezzotint", "keys"]:
        raise Refused(1, "unknown command")
    verb, *more = command[2:]
    if verb == "list":
        return json.dumps(s["api_keys"])
    if verb == "revoke":
        next(each for each in s["api_keys"] if each["id"] == more[0])["state"] = "revoked"
        return ""
    id = f"id{len(s['api_keys'])}"
    key = {"id": id, "name": more[0], "state": "valid", "is_admin": "--admin" in more}
    s["api_keys"].append(key)
    return json.dumps({**key, "key": f"mk-{id}-{'s3cret' * 6}"})


KUBECTL = {
    "get": kubectl_get,
    "apply": kubectl_apply,
    "delete": kubectl_delete,
    "rollout": kubectl_rollout,
    "exec": kubectl_exec,
}


def main() -> int:
    tool, *arguments = sys.argv[1:]
    stdin = "" if sys.stdin.isatty() else sys.stdin.read()
    code, out, err = World(Path(os.environ["WORLD"])).answer(tool, arguments, stdin)
    sys.stdout.write(out)
    sys.stderr.write(err)
    return code


if __name__ == "__main__":
    sys.exit(main())
