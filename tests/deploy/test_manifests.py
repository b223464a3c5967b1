"""What is applied to a cluster: valid to the last field, restricted, and the same as the rendered files."""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Manifest,
    one,
    overlay,
    pods,
    ray_groups,
    ray_service,
    render,
    schemas,
    serve_config,
)

VERSIONS = ("1.35", "1.36")
CLUSTER_WIDE = {"Namespace", "NodePool", "EC2NodeClass", "GatewayClass", "IngressClass", "IngressClassParams"}
RENDERED = {name: f"{name}.yaml" for name in OVERLAYS} | {"inf2": "ray-service-stablediffusion.yaml"}
VARIANTS = {
    "tls": ["../../components/alb", "../../components/tls"],
    "ingress": ["../../components/ingress"],
}


def faults(manifest: Manifest) -> list[str]:
    """What a strict API server would refuse in it."""
    schema = schemas().get(f"{manifest['apiVersion']}/{manifest['kind']}")
    if schema is not None:
        found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
        return [f"{error.json_path}: {error.message[:200]}" for error in found]
    told = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            told.append(f"{version}: {error.message[:200]}")
    return told


def check(manifests: list[Manifest]) -> None:
    found = {f"{each['kind']}/{each['metadata']['name']}": faults(each) for each in manifests}
    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_object_is_valid_strictly(name: str) -> None:
    check(overlay(name))


@pytest.mark.parametrize(
    "kind", ["RayService", "NodePool", "EC2NodeClass", "HTTPRoute", "Deployment", "LoadBalancerConfiguration"]
)
def test_a_misspelled_field_is_refused(kind: str) -> None:
    manifest = copy.deepcopy(next(each for each in overlay("inf2") if each["kind"] == kind))
    manifest["spec"]["replicaz"] = 1
    assert faults(manifest)


def test_a_misspelled_field_deep_in_a_pod_is_refused() -> None:
    manifest = copy.deepcopy(ray_service(overlay("inf2")))
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]["toleration"] = []
    assert faults(manifest)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_rendered_file_is_what_the_overlay_renders(name: str) -> None:
    """`make manifests` writes it."""
    path = KUBERNETES / "rendered" / RENDERED[name]
    assert [each for each in yaml.safe_load_all(path.read_text()) if each] == overlay(name)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path: Path) -> list[Manifest]:
    """The inf2 overlay with another way in."""
    copied = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copied)
    path = copied / "overlays/inf2/kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    kustomization["components"] = ["../../components/aws", *VARIANTS[request.param]]
    path.write_text(yaml.safe_dump(kustomization))
    site = copied / "overlays/inf2/site.env"
    site.write_text(
        site.read_text().replace("CERTIFICATE_ARN=", "CERTIFICATE_ARN=arn:aws:acm:r:1:certificate/c")
    )
    return render(copied / "overlays/inf2")


def test_the_other_ways_in_are_valid(variant: list[Manifest]) -> None:
    check(variant)
    kinds = {each["kind"] for each in variant}
    if "Ingress" in kinds:
        assert "Gateway" not in kinds
        return
    (listener,) = one(variant, "LoadBalancerConfiguration", "edge")["spec"]["listenerConfigurations"]
    assert listener["defaultCertificate"] == "arn:aws:acm:r:1:certificate/c"
    assert [each["port"] for each in one(variant, "Gateway", "edge")["spec"]["listeners"]] == [443]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_in_the_namespace_or_of_the_whole_cluster(name: str) -> None:
    outside = {each["kind"] for each in overlay(name) if each["metadata"].get("namespace") != "mezzotint"}
    assert outside <= CLUSTER_WIDE


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_is_written_down(name: str) -> None:
    assert "Secret" not in {each["kind"] for each in overlay(name)}


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "local"])
def test_the_databases_url_is_read_from_a_file_that_the_gateways_alone_have(name: str) -> None:
    """A variable's value would stay what it was when the pod started, and lie in Ray's own state."""
    having = set()
    for group, template in pods(overlay(name)):
        names = {
            each["name"]: each.get("secret", {}).get("secretName") for each in template["spec"]["volumes"]
        }
        for container in template["spec"]["containers"]:
            mounts = {mount["mountPath"]: names[mount["name"]] for mount in container["volumeMounts"]}
            variables = {each["name"]: each for each in container.get("env", ())}
            if "mezzotint-stores" in mounts.values():
                having.add(group)
                path = variables["MEZZOTINT_DATABASE_URL"]["value"].removeprefix("file://")
                assert mounts[str(Path(path).parent)] == "mezzotint-stores"
            assert "secretKeyRef" not in str(variables.get("MEZZOTINT_DATABASE_URL"))
    assert having == {"gateways"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_bucket_forgets_no_picture_before_its_job(name: str) -> None:
    from mezzotint.config import Settings
    from mezzotint.serve.jobs.work import WAITING_SECONDS

    (application,) = serve_config(overlay(name))["applications"]
    variables = (ROOT / "deploy/terraform/modules/storage/variables.tf").read_text()
    days = re.search(r'variable "picture_days" {.*?default += (\d+)', variables, re.DOTALL)
    assert days is not None
    kept_s = Settings(**application["args"]).job_ttl_s + WAITING_SECONDS
    assert kept_s < int(days[1]) * 24 * 3_600


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_restricted(name: str) -> None:
    """As Pod Security's level `restricted` asks, and with a root filesystem that nobody writes to."""
    manifests = overlay(name)
    labels = one(manifests, "Namespace", "mezzotint")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    contexts = {
        "autoscaler": ray_service(manifests)["spec"]["rayClusterConfig"]["autoscalerOptions"][
            "securityContext"
        ]
    }
    for pod, template in pods(manifests):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
            "emptyDir",
            "configMap",
            "secret",
        }
        contexts |= {f"{pod}/{each['name']}": each["securityContext"] for each in containers(template)}
    for context in contexts.values():
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_says_what_it_takes_and_every_volume_how_large_it_gets(name: str) -> None:
    for _, template in pods(overlay(name)):
        for container in containers(template):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert {"cpu", "memory"} <= resources["limits"].keys()
        for volume in template["spec"]["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_is_told_of_services_by_variables(name: str) -> None:
    """A Service mezzotint-… would become a variable MEZZOTINT_…, which is no setting and stops the start."""
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in pods(overlay(name)))


@pytest.mark.parametrize("name", OVERLAYS)
def test_nobody_but_the_head_may_ask_the_kubernetes_api(name: str) -> None:
    mounted = {
        pod
        for pod, template in pods(overlay(name))
        if template["spec"].get("automountServiceAccountToken", True)
    }
    assert mounted == {"head"}
    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} & {
        each["kind"] for each in overlay(name)
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_image_is_latest(name: str) -> None:
    images = [each["image"] for _, template in pods(overlay(name)) for each in containers(template)]
    tags = [image.rpartition("/")[2] for image in images]
    assert all(":" in tag or "@" in tag for tag in tags)
    assert not [tag for tag in tags if tag.endswith(":latest")]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_the_operator_refuses_is_not_there(name: str) -> None:
    """Rules of KubeRay 1.7 that are in its code, not in the schema."""
    spec = ray_service(overlay(name))["spec"]
    cluster = spec["rayClusterConfig"]
    assert spec["upgradeStrategy"]["type"] in ("NewCluster", "None", "NewClusterWithIncrementalUpgrade")
    assert cluster["authOptions"]["mode"] == "token"
    assert "enableK8sTokenAuth" not in cluster["authOptions"]
    assert "name" not in cluster["headGroupSpec"].get("headService", {}).get("metadata", {})
    # These two do nothing any more.
    assert not {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"} & spec.keys()


@pytest.mark.parametrize("name", ["gpu", "inf2", "trn1"])
def test_a_cluster_of_many_survives_its_head(name: str) -> None:
    options = ray_service(overlay(name))["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"].startswith("rediss://")
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "mezzotint-stores"


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_services_configuration_is_what_serve_takes(name: str) -> None:
    with warnings.catch_warnings():
        # Ray's own models, by pydantic's older names.
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config(overlay(name)))
    (application,) = config.applications
    assert application.import_path == "mezzotint.serve.app:build_app"
    known = {"gateway", "engine"}
    assert {deployment.name for deployment in application.deployments} == known


def test_the_reader_of_pods_sees_them_all() -> None:
    manifests = overlay("local")
    assert {name for name, _ in pods(manifests)} == {"head", "gateways", "engines", "edge", "page"}
    assert set(ray_groups(manifests)) == {"head", "gateways", "engines"}
