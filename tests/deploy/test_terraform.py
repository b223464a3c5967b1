"""`deploy/terraform`, held by the real `terraform` to providers that know every argument of the real ones and
create nothing (`tests/deploy/terraform`). Neither a network nor an account is used, but for the providers'
schemas, which npm brings once into `.cache`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.terraform.provider import serving
from tests.deploy.terraform.schemas import PACKAGES, NotFetched, Schema, read_schema

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "deploy/terraform"
CACHE = REPOSITORY / ".cache/terraform-schemas"
MODULES = ["network", "cluster", "karpenter", "storage", "addons"]
FOLDERS = [f"modules/{module}" for module in MODULES] + ["infra", "addons"]
SECONDS = 120

ZONES = ["us-west-2a", "us-west-2b", "us-west-2c"]
GATEWAY_API = """apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: gateways.gateway.networking.k8s.io
  annotations: {gateway.networking.k8s.io/bundle-version: v1.6.1}
"""
# What AWS and the internet would say to the data sources.
ANSWERS: dict[str, Schema] = {
    "aws_caller_identity": {"account_id": "111122223333"},
    "aws_partition": {"partition": "aws", "dns_suffix": "amazonaws.com"},
    "aws_region": {"region": "us-west-2"},
    "aws_availability_zones": {"names": ZONES},
    "aws_ec2_instance_type_offerings": {"locations": ZONES[1:]},
    "aws_eks_cluster": {
        "endpoint": "https://cluster.example",
        "certificate_authority": [{"data": base64.b64encode(b"a certificate").decode()}],
    },
    "http": {"status_code": 200, "response_body": GATEWAY_API},
}
VARIABLES = {
    "infra": {"region": "us-west-2", "cluster_name": "plate", "accelerator": "inf2"},
    "addons": {
        "region": "us-west-2",
        "cluster_name": "plate",
        "accelerator": "inf2",
        "vpc_id": "vpc-0123456789abcdef0",
        "interruption_queue": "plate",
        # Of infra's outputs, one that addons does not take: given in a file, it is no error.
        "model_uri": "s3://plate-models/sdxl-inf2",
    },
}


class Terraform:
    """The real program, in a copy of `deploy/terraform`."""

    def __init__(self, program: str, folder: Path, environment: dict[str, str]) -> None:
        self.program, self.folder, self.environment = program, folder, environment
        self._ready: set[Path] = set()

    def run(self, folder: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run in `folder` of the copy, initialised before the first time."""
        where = self.folder / folder
        if where not in self._ready:
            self.initialise(folder, "-backend=false", "-input=false")
        return subprocess.run(
            [self.program, *arguments, *([] if arguments[0] == "show" else ["-no-color"])],
            cwd=where,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def initialise(self, folder: str | Path, *arguments: str) -> None:
        self._ready.add(self.folder / folder)
        self.expect(folder, "init", *arguments)

    def expect(self, folder: str | Path, *arguments: str) -> str:
        ran = self.run(folder, *arguments)
        assert ran.returncode == 0, (
            f"terraform {' '.join(arguments)} in {folder}:\n{ran.stdout}\n{ran.stderr}"
        )
        return ran.stdout


def declared(kind: str, file: str) -> dict[str, str]:
    """The variables or outputs of a file, and what each says."""
    text = (SOURCE / file).read_text()
    return dict(re.findall(rf'^{kind} "(\w+)" \{{\n(.*?)^\}}', text, re.M | re.S))


def wanted_providers(folder: str) -> dict[str, str]:
    text = (SOURCE / folder / "versions.tf").read_text()
    return dict(re.findall(r'hashicorp/(\w+)"\n\s+version = "([^"]+)"', text))


def text_of(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.rglob("*.tf")))


@pytest.fixture(scope="module")
def program() -> str:
    found = shutil.which("terraform")
    if found is None:
        pytest.skip("needs terraform, 1.11 or newer")
    return found


@pytest.fixture(scope="module")
def schemas() -> dict[str, Schema]:
    try:
        return {name: read_schema(name, CACHE) for name in PACKAGES}
    except NotFetched as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def terraform(
    program: str, schemas: dict[str, Schema], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terraform]:
    folder = tmp_path_factory.mktemp("terraform")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".terraform*"))
    with serving({name: used(schema, folder) for name, schema in schemas.items()}, ANSWERS) as attached:
        yield Terraform(program, folder, environment(folder, attached))


def used(schema: Schema, folder: Path) -> Schema:
    """The part of `schema` that the configuration names: Terraform reads all of it with each command."""
    named = set(re.findall(r'^(?:resource|data) "(\w+)"', text_of(folder), re.M))
    return {
        **schema,
        "resources": {name: block for name, block in schema["resources"].items() if name in named},
        "data": {name: block for name, block in schema["data"].items() if name in named},
    }


def environment(folder: Path, attached: dict[str, str]) -> dict[str, str]:
    """This process's, less what would lead Terraform to an account or to somebody's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_", "KUBE"))}
    settings = folder / "terraform.rc"
    settings.touch()
    return {
        **kept,
        **attached,
        "CHECKPOINT_DISABLE": "1",
        "TF_IN_AUTOMATION": "1",
        "TF_CLI_CONFIG_FILE": str(settings),
    }


def test_everything_is_formatted(program: str) -> None:
    ran = subprocess.run(
        [program, "fmt", "-check", "-diff", "-recursive", str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_argument_is_one_of_the_providers(terraform: Terraform, folder: str) -> None:
    verdict = json.loads(terraform.expect(folder, "validate", "-json"))
    assert verdict["valid"], verdict
    assert verdict["warning_count"] == 0, verdict["diagnostics"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_keeps_what_its_own_test_claims(terraform: Terraform, folder: str) -> None:
    claims = sum(
        len(re.findall(r'^run "', file.read_text(), re.M)) for file in (SOURCE / folder).glob("*.tftest.hcl")
    )
    assert claims > 0
    assert f"Success! {claims} passed, 0 failed." in terraform.expect(folder, "test")


@pytest.mark.parametrize(
    ("module", "right", "wrong"),
    [
        ("network", "enable_dns_hostnames", "enable_dns_hostname"),
        ("cluster", "http_put_response_hop_limit", "http_hop_limit"),
        ("karpenter", "message_retention_seconds", "retention_seconds"),
        ("storage", "storage_encrypted", "encrypted"),
        ("addons", "create_namespace", "make_namespace"),
    ],
)
def test_a_misspelled_argument_is_found(terraform: Terraform, module: str, right: str, wrong: str) -> None:
    broken = break_module(terraform, module, right, wrong)
    ran = terraform.run(broken, "validate")
    assert ran.returncode == 1
    assert f'An argument named "{wrong}" is not expected here.' in ran.stderr


def test_an_argument_in_the_wrong_block_is_found(terraform: Terraform) -> None:
    broken = break_module(
        terraform, "cluster", "  vpc_config {\n", "  endpoint_private_access = true\n\n  vpc_config {\n"
    )
    ran = terraform.run(broken, "validate")
    assert ran.returncode == 1
    assert 'An argument named "endpoint_private_access" is not expected here.' in ran.stderr


def test_a_missing_argument_is_found(terraform: Terraform) -> None:
    broken = break_module(terraform, "cluster", "  role_arn = aws_iam_role.cluster.arn\n", "")
    ran = terraform.run(broken, "validate")
    assert ran.returncode == 1
    assert 'The argument "role_arn" is required' in ran.stderr


def test_a_setting_that_opens_the_api_fails_the_modules_own_test(terraform: Terraform) -> None:
    private = "endpoint_public_access  = length(var.public_access_cidrs) > 0"
    broken = break_module(terraform, "cluster", private, "endpoint_public_access  = true")
    ran = terraform.run(broken, "test")
    assert ran.returncode == 1
    assert "The API must be reached from the VPC, and not from the internet." in ran.stdout + ran.stderr


def break_module(terraform: Terraform, module: str, right: str, wrong: str) -> Path:
    """A copy of the module in which the first `right` is `wrong`."""
    copies = len(list(terraform.folder.glob(f"broken-{module}-*")))
    broken = terraform.folder / f"broken-{module}-{copies}"
    shutil.copytree(SOURCE / "modules" / module, broken, ignore=shutil.ignore_patterns(".terraform*"))
    file = next(file for file in sorted(broken.glob("*.tf")) if right in file.read_text())
    file.write_text(file.read_text().replace(right, wrong, 1))
    return broken


@pytest.mark.parametrize("root", sorted(VARIABLES))
def test_what_was_applied_is_left_alone_and_can_all_be_removed(terraform: Terraform, root: str) -> None:
    """As far as a provider that creates nothing can tell: no cycle, and no difference that comes again."""
    folder = with_local_state(terraform, root, f"applied-{root}")
    terraform.expect(folder, "apply", "-input=false", "-auto-approve")
    again = terraform.run(folder, "plan", "-input=false", "-detailed-exitcode")
    assert again.returncode == 0, again.stdout
    terraform.expect(folder, "destroy", "-input=false", "-auto-approve")
    assert json.loads((folder / "terraform.tfstate").read_text())["resources"] == []


def with_local_state(terraform: Terraform, root: str, name: str) -> Path:
    """A copy of the root with its variables given and its state on this disk, initialised."""
    folder = terraform.folder / name
    shutil.copytree(SOURCE / root, folder, ignore=shutil.ignore_patterns(".terraform*"))
    (folder / "backend_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
    (folder / "terraform.tfvars.json").write_text(json.dumps(VARIABLES[root]))
    terraform.initialise(folder, "-input=false")
    return folder


@pytest.fixture(scope="module", params=sorted(VARIABLES))
def plan(request: pytest.FixtureRequest, terraform: Terraform) -> dict[str, Any]:
    """A real plan of a root as a new account would see it, its state on this disk."""
    folder = with_local_state(terraform, request.param, f"plan-{request.param}")
    terraform.expect(folder, "plan", "-input=false", "-out", "planned")
    planned: dict[str, Any] = json.loads(terraform.expect(folder, "show", "-json", "planned"))
    return {"root": request.param, **planned}


def test_a_new_account_gets_a_plan_that_only_creates(plan: dict[str, Any]) -> None:
    changes = plan["resource_changes"]
    assert {action for change in changes for action in change["change"]["actions"]} <= {"create", "read"}
    assert len(changes) > 10
    assert not plan.get("errored")


def test_everything_bears_the_clusters_tag(plan: dict[str, Any]) -> None:
    tags = plan["configuration"]["provider_config"]["aws"]["expressions"]["default_tags"]
    assert "var.cluster_name" in json.dumps(tags)
    written = re.search(r"default_tags \{\n\s+tags = (.*)", text_of(SOURCE / plan["root"]))
    assert written
    assert written[1] == '{ "mezzotint.dev/cluster" = var.cluster_name }'


def test_no_secret_is_in_a_variable_or_an_output(plan: dict[str, Any]) -> None:
    secret = re.compile("password|token|secret", re.I)
    named = [*plan.get("variables", {}), *plan["configuration"]["root_module"].get("outputs", {})]
    assert {name for name in named if secret.search(name)} <= {"database_secret_arn", "valkey_secret_arn"}


def test_the_outputs_are_the_names_that_the_sites_files_take() -> None:
    contract = (REPOSITORY / "deploy/README.md").read_text()
    outputs = set(declared("output", "infra/outputs.tf"))
    site, _, further = contract.partition("### `site.env`")[2].partition("Further outputs of `infra`")
    expected = {name.lower() for name in re.findall(r"`([A-Z_]{3,})`", site)}
    expected |= set(re.findall(r"`([a-z_]+)`", further)) - {"infra", "username", "password"}
    assert expected >= {"cluster_name", "model_uri", "registry", "database_secret_arn"}
    assert expected <= outputs | {"site"}, sorted(expected - outputs)


def test_every_chart_with_a_servicemonitor_waits_for_its_definition() -> None:
    """Helm would be refused by a cluster that knows no ServiceMonitor yet."""
    text = text_of(SOURCE / "modules/addons")
    releases = dict(re.findall(r'^resource "helm_release" "(\w+)" \{\n(.*?)^\}', text, re.M | re.S))
    watched = {name for name, body in releases.items() if re.search(r"serviceMonitor += \{ enabled", body)}
    waiting = {
        name
        for name, body in releases.items()
        if re.search(r"depends_on = .*helm_release\.prometheus_stack", body)
    }
    assert watched == {"karpenter", "kuberay"}
    assert watched <= waiting


@pytest.mark.parametrize("module", ["network", "cluster", "karpenter", "storage"])
def test_what_a_module_leaves_open_the_root_leaves_open_too(module: str) -> None:
    """Else a site could change it by editing the module alone. The defaults are the same in both."""
    given = (SOURCE / "infra/main.tf").read_text()
    root = declared("variable", "infra/variables.tf")
    for name, body in declared("variable", f"modules/{module}/variables.tf").items():
        default = re.search(r"^  default +=(.*)", body, re.M)
        if default is None:
            continue
        passed = re.search(rf"^  {name} += (.*)$", given, re.M)
        assert passed, name
        if passed[1] == f"var.{name}":
            in_root = re.search(r"^  default +=(.*)", root[name], re.M)
            assert in_root, name
            assert in_root[1] == default[1], name


def test_what_addons_takes_is_what_infra_gives() -> None:
    variables = declared("variable", "addons/variables.tf")
    required = {name for name, body in variables.items() if "default " not in body}
    assert required
    assert required <= set(declared("output", "infra/outputs.tf"))


def test_a_schema_says_what_is_required_computed_and_a_block(schemas: dict[str, Schema]) -> None:
    """Facts that can be looked up in the documentation of AWS's provider, as its bindings are read."""
    cluster = schemas["aws"]["resources"]["aws_eks_cluster"]
    assert {name for name, each in cluster["attributes"].items() if each["required"]} == {"name", "role_arn"}
    assert {
        name for name, each in cluster["attributes"].items() if not each["required"] and not each["optional"]
    } >= {
        "arn",
        "endpoint",
        "certificate_authority",
    }
    vpc = cluster["blocks"]["vpc_config"]
    assert (vpc["min"], vpc["max"]) == (1, 1)
    assert vpc["block"]["attributes"]["subnet_ids"]["type"] == ["set", "string"]
    assert vpc["block"]["attributes"]["vpc_id"] == {
        "type": "string",
        "required": False,
        "optional": False,
        "computed": True,
    }


def test_pinned_providers_are_those_whose_arguments_were_checked(schemas: dict[str, Schema]) -> None:
    for root in ("infra", "addons"):
        pins = wanted_providers(root)
        assert pins
        assert pins == {name: schemas[name]["version"] for name in pins}
    for module in MODULES:
        for name, wanted in wanted_providers(f"modules/{module}").items():
            major, minor = (int(part) for part in wanted.removeprefix("~> ").split("."))
            checked = [int(part) for part in schemas[name]["version"].split(".")]
            assert checked[0] == major, name
            assert checked[1] >= minor, name


@pytest.mark.parametrize("module", MODULES)
def test_each_module_says_what_it_takes_and_gives(module: str) -> None:
    """Every variable and output of a module has a description, and its README names each."""
    readme = (SOURCE / "modules" / module / "README.md").read_text()
    for kind in ("variable", "output"):
        found = declared(kind, f"modules/{module}/{kind}s.tf")
        assert found
        for name, body in found.items():
            assert "description = " in body, f"{module}: {kind} {name}"
            assert f"`{name}`" in readme, f"{module}/README.md: {name}"


def test_every_check_that_the_scan_skips_says_why() -> None:
    """`make scan` itself fetches an environment, so it is not run here."""
    skipped = [
        (file, line)
        for file in (REPOSITORY / "deploy").rglob("*")
        if file.suffix in (".tf", ".yaml") or file.name.startswith("Dockerfile")
        for line in file.read_text().splitlines()
        if "checkov:skip" in line or "checkov.io/skip" in line
    ]
    assert skipped
    for file, line in skipped:
        reason = re.search(r"CKV\w*_\d+\s*[:=]\s*(.*)", line)
        assert reason, f"{file}: {line}"
        assert len(reason[1].split()) >= 3, f"{file}: {line}"
