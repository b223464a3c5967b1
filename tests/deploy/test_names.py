"""One name for one thing: labels, ports, resources, settings and paths fit each other wherever they are."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from mezzotint.config import OTHER_VARIABLES, PREFIX, Settings
from mezzotint.serve import proxy
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
    serve_config,
)

ON_AWS = ("gpu", "inf2", "trn1")
RAY = Path(ray.__file__).parent
# What an instance has: vCPUs, GiB, accelerators (AWS's instance type pages, autumn 2026).
INSTANCES = {
    "inf2.8xlarge": (32, 128, {"aws.amazon.com/neuron": 1}),
    "trn1.2xlarge": (8, 32, {"aws.amazon.com/neuron": 1}),
    "g6.2xlarge": (8, 32, {"nvidia.com/gpu": 1}),
    "g6.4xlarge": (16, 64, {"nvidia.com/gpu": 1}),
    "g6e.xlarge": (4, 32, {"nvidia.com/gpu": 1}),
    "g6e.2xlarge": (8, 64, {"nvidia.com/gpu": 1}),
}
# What the kubelet, the system and a node's own pods keep for themselves: cores, and the share of memory.
KEPT_CPU, KEPT_MEMORY = 0.5, 0.15
NEURON_CORES_PER_CHIP = 2
UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: object) -> float:
    """A Kubernetes quantity, in cores or bytes."""
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi)?", str(text))
    assert found is not None, text
    return float(found[1]) * UNITS.get(found[2], 1.0)


def labels_of(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    return {name: template["metadata"]["labels"] for name, template in pods(manifests)}


def selected(selector: Manifest, manifests: list[Manifest]) -> set[str]:
    """The pods that `matchLabels` finds; all for an empty selector."""
    assert set(selector) <= {"matchLabels"}
    wanted = selector.get("matchLabels", {}).items()
    return {name for name, labels in labels_of(manifests).items() if wanted <= labels.items()}


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return overlay(request.param)


@pytest.fixture(params=ON_AWS)
def on_aws(request: pytest.FixtureRequest) -> list[Manifest]:
    return overlay(request.param)


# Labels and ports


def test_every_selector_finds_the_pods_it_is_named_for(manifests: list[Manifest]) -> None:
    expected = {
        ("PodDisruptionBudget", "gateways"): {"gateways"},
        ("PodDisruptionBudget", "edge"): {"edge"},
        ("NetworkPolicy", "ray"): {"head", "gateways", "engines"},
        ("NetworkPolicy", "operator"): {"head"},
        ("NetworkPolicy", "kubernetes-api"): {"head"},
        ("NetworkPolicy", "s3"): {"head", "gateways", "engines"},
        ("NetworkPolicy", "postgresql"): {"gateways"},
        ("NetworkPolicy", "valkey"): {"head"},
        ("PodDisruptionBudget", "engines"): {"engines"},
        ("NetworkPolicy", "edge"): {"edge"},
        ("NetworkPolicy", "load-balancer"): {"edge"},
        ("NetworkPolicy", "page"): {"page"},
        ("NetworkPolicy", "prometheus-to-ray"): {"head", "gateways", "engines"},
        ("NetworkPolicy", "prometheus-to-edge"): {"edge"},
        ("PodMonitor", "ray"): {"head", "gateways", "engines"},
        ("PodMonitor", "edge"): {"edge"},
    }
    for each in manifests:
        name = (each["kind"], each["metadata"]["name"])
        selector = each.get("spec", {}).get("selector") or each.get("spec", {}).get("podSelector")
        if each["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor") and selector:
            assert selected(selector, manifests) == expected[name], name
        if each["kind"] == "Service":
            assert selected({"matchLabels": selector}, manifests) == {each["metadata"]["name"]}
        if each["kind"] == "Deployment":
            assert selected(selector, manifests) == {each["metadata"]["name"]}
    for name, template in pods(manifests):
        for spread in template["spec"].get("topologySpreadConstraints", ()):
            assert selected(spread["labelSelector"], manifests) == {name}


def ports_of(template: Manifest) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for each in template["spec"]["containers"]
        for port in each["ports"]
    }


def test_every_service_and_probe_names_a_port_that_its_pods_have(manifests: list[Manifest]) -> None:
    templates = dict(pods(manifests))
    for each in manifests:
        if each["kind"] == "Service":
            ports = ports_of(templates[each["metadata"]["name"]])
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports.keys()
    for template in templates.values():
        for container in template["spec"]["containers"]:
            for probe in ("readinessProbe", "livenessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports_of(template)


def allows(policies: list[Manifest], way: str, pod: dict[str, str], peer: dict[str, str], port: int) -> bool:
    """Whether a policy lets `pod` receive from (Ingress) or send to (Egress) `peer`, both pods here."""
    rules = "ingress" if way == "Ingress" else "egress"
    for policy in policies:
        spec = policy["spec"]
        if (
            way not in spec["policyTypes"]
            or not spec["podSelector"].get("matchLabels", {}).items() <= pod.items()
        ):
            continue
        for rule in spec.get(rules, ()):
            peers = rule.get("from" if way == "Ingress" else "to")
            ports = [each["port"] for each in rule.get("ports", ())]
            named = peers is None or any(
                "podSelector" in each
                and "namespaceSelector" not in each
                and each["podSelector"].get("matchLabels", {}).items() <= peer.items()
                for each in peers
            )
            if named and (not ports or port in ports):
                return True
    return False


FLOWS = [
    ("edge", "gateways", 8000),
    ("edge", "engines", 8000),
    ("edge", "page", 7860),
    ("page", "edge", 8080),
    ("gateways", "engines", 41234),
    ("engines", "head", 6379),
    ("head", "gateways", 52365),
]
NO_FLOWS = [
    ("edge", "head", 8265),
    ("edge", "head", 6379),
    ("edge", "gateways", 8265),
    ("page", "gateways", 8000),
    ("page", "head", 8265),
    ("gateways", "page", 7860),
    ("gateways", "edge", 9902),
    ("page", "edge", 9902),
    ("page", "edge", 9903),
]


def test_the_policies_open_the_flows_that_are_and_no_others(manifests: list[Manifest]) -> None:
    policies = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    labels = labels_of(manifests)

    def flows(source: str, target: str, port: int) -> bool:
        sent = allows(policies, "Egress", labels[source], labels[target], port)
        return sent and allows(policies, "Ingress", labels[target], labels[source], port)

    assert [flow for flow in FLOWS if not flows(*flow)] == []
    # From the load balancer, which is no pod, the edge's 9903 may be asked: that end alone is open.
    assert [flow for flow in NO_FLOWS if flows(*flow)] == []
    assert one(policies, "NetworkPolicy", "deny-all")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


# Where pods go, and whether they fit


def test_every_pod_has_nodes_to_go_to(on_aws: list[Manifest]) -> None:
    pools = [each["spec"]["template"] for each in on_aws if each["kind"] == "NodePool"]
    for name, template in pods(on_aws):
        spec = template["spec"]
        fitting = [
            pool for pool in pools if spec["nodeSelector"].items() <= pool["metadata"]["labels"].items()
        ]
        (pool,) = fitting
        tolerated = {each["key"] for each in spec.get("tolerations", ())}
        assert {each["key"] for each in pool["spec"].get("taints", ())} <= tolerated, name
        assert (spec["nodeSelector"]["mezzotint.dev/pool"] == "engine") == (name == "engines")


def requirement(pool: Manifest, key: str) -> list[str]:
    found = [
        each["values"] for each in pool["spec"]["template"]["spec"]["requirements"] if each["key"] == key
    ]
    assert len(found) == 1, key
    values: list[str] = found[0]
    return values


def test_an_engine_fits_on_every_instance_that_its_pool_may_take(on_aws: list[Manifest]) -> None:
    pool = one(on_aws, "NodePool", "mezzotint-engine")
    (engine,) = ray_groups(on_aws)["engines"]["template"]["spec"]["containers"]
    asked = {name: quantity(value) for name, value in engine["resources"]["requests"].items()}
    for instance in requirement(pool, "node.kubernetes.io/instance-type"):
        cpus, gib, accelerators = INSTANCES[instance]
        assert asked["cpu"] <= cpus - KEPT_CPU, instance
        assert asked["memory"] <= gib * 2**30 * (1 - KEPT_MEMORY), instance
        for name, count in accelerators.items():
            assert 0 < asked[name] <= count, instance
    (disk,) = one(on_aws, "EC2NodeClass", "mezzotint-engine")["spec"]["blockDeviceMappings"]
    assert asked["ephemeral-storage"] < quantity(disk["ebs"]["volumeSize"])
    assert quantity(disk["ebs"]["volumeSize"]) >= 200 * 2**30


def test_the_pool_may_have_as_many_accelerators_as_engines_may_ask_for(on_aws: list[Manifest]) -> None:
    group = ray_groups(on_aws)["engines"]
    (engine,) = group["template"]["spec"]["containers"]
    limits = one(on_aws, "NodePool", "mezzotint-engine")["spec"]["limits"]
    (accelerator,) = limits
    # During an upgrade there are two clusters; what does not fit waits for the old one to go.
    assert quantity(limits[accelerator]) >= group["maxReplicas"] * quantity(
        engine["resources"]["requests"][accelerator]
    )
    taints = one(on_aws, "NodePool", "mezzotint-engine")["spec"]["template"]["spec"]["taints"]
    assert [each["key"] for each in taints] == [accelerator]


@pytest.mark.parametrize("name", ["inf2", "trn1"])
def test_the_driver_on_neurons_nodes_is_the_one_that_its_image_wants(name: str) -> None:
    (term,) = one(overlay(name), "EC2NodeClass", "mezzotint-engine")["spec"]["amiSelectorTerms"]
    assert f"`{term['alias'].partition('@')[2]}` 2.28" in (ROOT / "docs/neuron.md").read_text()


def test_nodes_keep_their_credentials_from_pods_and_their_disks_encrypted(on_aws: list[Manifest]) -> None:
    for each in (each["spec"] for each in on_aws if each["kind"] == "EC2NodeClass"):
        assert each["metadataOptions"]["httpTokens"] == "required"
        assert each["metadataOptions"]["httpPutResponseHopLimit"] == 1
        assert all(disk["ebs"]["encrypted"] for disk in each["blockDeviceMappings"])
        assert all("latest" not in term["alias"] for term in each["amiSelectorTerms"])


# Ray's resources and Serve's actors


def custom_resources(group: Manifest) -> dict[str, int]:
    """As Ray's own autoscaler reads them from rayStartParams."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources

    found: dict[str, int] = _get_custom_resources({}, group["rayStartParams"], "a group")
    return found


def capacity(group: Manifest) -> dict[str, float]:
    """What Ray knows of a group's pod, by the names in `ray_actor_options`."""
    parameters = group["rayStartParams"]
    told = {"num_cpus": float(parameters["num-cpus"]), "num_gpus": float(parameters.get("num-gpus", 0))}
    return told | {name: float(count) for name, count in custom_resources(group).items()}


def wanted(config: dict[str, Any], deployment: str) -> dict[str, float]:
    (application,) = config["applications"]
    (options,) = [
        each["ray_actor_options"] for each in application["deployments"] if each["name"] == deployment
    ]
    return {key: float(value) for key, value in options.items() if key != "resources"} | options.get(
        "resources", {}
    )


def fits(asked: dict[str, float], there: dict[str, float]) -> bool:
    return all(there.get(name, 0.0) >= amount for name, amount in asked.items() if amount)


def test_each_actor_fits_on_its_own_group_alone_and_none_on_the_head(manifests: list[Manifest]) -> None:
    groups = ray_groups(manifests)
    config = serve_config(manifests)
    homes = {
        deployment: {
            name for name, group in groups.items() if fits(wanted(config, deployment), capacity(group))
        }
        for deployment in ("gateway", "engine")
    }
    assert homes == {"gateway": {"gateways"}, "engine": {"engines"}}


def test_the_groups_have_room_for_as_many_actors_as_serve_may_start(manifests: list[Manifest]) -> None:
    groups = ray_groups(manifests)
    (application,) = serve_config(manifests)["applications"]
    settings = application["args"]
    gateways, engines = groups["gateways"], groups["engines"]
    assert gateways["minReplicas"] * capacity(gateways)["gateway"] == settings["gateways"]
    assert engines["minReplicas"] == settings["replicas"]
    assert engines["maxReplicas"] == settings.get("max_replicas", settings["replicas"])
    for group in (gateways, engines):
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # One engine to a pod, and as many gateways as it has CPUs for.
    assert capacity(engines)["engine"] == 1
    needed = capacity(gateways)["gateway"] * wanted(serve_config(manifests), "gateway")["num_cpus"]
    assert needed <= capacity(gateways)["num_cpus"]
    assert (
        wanted(serve_config(manifests), "engine")["num_cpus"]
        == capacity(engines)["num_cpus"]
        == settings["threads"]
    )


def test_what_ray_is_told_of_a_pod_is_what_the_pod_has(manifests: list[Manifest]) -> None:
    for name, group in ray_groups(manifests).items():
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        there = capacity(group)
        assert there["num_cpus"] <= quantity(limits["cpu"]), name
        assert there["num_gpus"] == float(limits.get("nvidia.com/gpu", 0)), name
        chips = float(limits.get("aws.amazon.com/neuron", 0))
        assert there.get("neuron_cores", 0) == chips * NEURON_CORES_PER_CHIP, name
        assert float(group["rayStartParams"]["object-store-memory"]) < quantity(limits["memory"]) / 4
    assert ray_groups(manifests)["head"]["rayStartParams"]["num-cpus"] == "0"


def test_the_settings_are_accepted(manifests: list[Manifest]) -> None:
    (application,) = serve_config(manifests)["applications"]
    settings = Settings(**application["args"])
    engines = ray_groups(manifests)["engines"]
    if settings.device == "neuron":
        assert custom_resources(engines)["neuron_cores"] == settings.neuron_cores
    assert (settings.auth == "off") == (settings.model == "demo")


def test_nothing_ends_before_the_requests_that_it_carries(manifests: list[Manifest]) -> None:
    (application,) = serve_config(manifests)["applications"]
    settings = Settings(**application["args"])
    spec = ray_service(manifests)["spec"]
    assert spec["rayClusterDeletionDelaySeconds"] >= settings.deadline_s + settings.drain_s
    for name in ("gateways", "engines"):
        grace = ray_groups(manifests)[name]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert settings.drain_s < drain_of_ray(manifests) < grace
    edge = one(manifests, "Deployment", "edge")["spec"]["template"]["spec"]
    # Envoy ends at once when it is told to: what it carries must have gone out before.
    (envoy,) = edge["containers"]
    slept = envoy["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.deadline_s < slept < edge["terminationGracePeriodSeconds"]
    for route in routes():
        if route.get("route", {}).get("cluster") == "serve":
            seconds = float(route["route"]["timeout"].removesuffix("s"))
            assert seconds == 0 or seconds > settings.deadline_s
    for balancer in (each for each in manifests if each["kind"] == "LoadBalancerConfiguration"):
        attributes = {each["key"]: each["value"] for each in balancer["spec"]["loadBalancerAttributes"]}
        idle = float(attributes["idle_timeout.timeout_seconds"])
        assert settings.deadline_s < idle
        # Whoever in front keeps a connection longer sends into one that has just been closed.
        assert idle < float(http_manager()["common_http_protocol_options"]["idle_timeout"].removesuffix("s"))


def drain_of_ray(manifests: list[Manifest]) -> float:
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    from ray._private import ray_constants

    assert hasattr(ray_constants, name)
    (seconds,) = {float(value or 0) for _, each, value in environment(manifests) if each == name}
    return seconds


def test_workers_outwait_a_head_that_somebody_must_mend(on_aws: list[Manifest]) -> None:
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    for group in ("gateways", "engines"):
        (container,) = ray_groups(on_aws)[group]["template"]["spec"]["containers"]
        # In the list itself: KubeRay looks for it there alone, and adds its own 600, which would win.
        (seconds,) = [int(each["value"]) for each in container["env"] if each["name"] == name]
        assert seconds == 3600
    (section,) = re.findall(
        r"^### MezzotintHeadDown\n(.*?)^###", (ROOT / "docs/deploy/runbook.md").read_text(), re.M | re.S
    )
    (minutes,) = re.findall(r"\*\*Escalate\.\*\* After (\d+) minutes", section)
    assert int(minutes) * 60 <= seconds / 2
    assert "for an hour" in section


def test_the_heads_node_is_not_taken_away_to_save_money(on_aws: list[Manifest]) -> None:
    annotations = ray_groups(on_aws)["head"]["template"]["metadata"]["annotations"]
    assert annotations == {"karpenter.sh/do-not-disrupt": "true"}
    policies = {
        each["metadata"]["name"]: each["spec"]["disruption"]["consolidationPolicy"]
        for each in on_aws
        if each["kind"] == "NodePool"
    }
    assert policies["mezzotint-engine"] == "WhenEmpty"


# Variables, images, secrets, the site


def environment(manifests: list[Manifest]) -> Iterator[tuple[str, str, str | None]]:
    """(container, name, value) of every variable that a container gets."""
    maps = {each["metadata"]["name"]: each["data"] for each in manifests if each["kind"] == "ConfigMap"}
    for pod, template in pods(manifests):
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            where = f"{pod}/{container['name']}"
            for source in container.get("envFrom", ()):
                for name, value in maps[source["configMapRef"]["name"]].items():
                    yield where, name, value
            for each in container.get("env", ()):
                yield where, each["name"], each.get("value")


def test_every_variable_of_ours_is_one_that_is_read(manifests: list[Manifest]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    names = {name for _, name, _ in environment(manifests) if name.startswith(PREFIX)}
    assert names
    assert names <= known


def test_rays_nodes_have_the_variables_that_mezzotint_serve_would_set(manifests: list[Manifest]) -> None:
    for pod, container in (("head", "ray-head"), ("gateways", "ray-worker"), ("engines", "ray-worker")):
        found = {
            name: value for where, name, value in environment(manifests) if where == f"{pod}/{container}"
        }
        assert found["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == proxy.PROXY_CALLBACK
        assert found["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] == "1"
        assert {found["HOME"], found["MEZZOTINT_HOME"]} <= {
            mount["mountPath"]
            for mount in ray_groups(manifests)[pod]["template"]["spec"]["containers"][0]["volumeMounts"]
        }


# A pod's log files that grow, at most: of its actors, of Ray's own processes, of workers that have ended.
LOG_FILES = 16


def test_logs_are_rotated_long_before_they_fill_tmp_which_would_evict_the_pod(
    manifests: list[Manifest],
) -> None:
    told = {name: value for where, name, value in environment(manifests) if where == "gateways/ray-worker"}
    wanted = {name: told[name] for name in ("RAY_ROTATION_MAX_BYTES", "RAY_ROTATION_BACKUP_COUNT")}
    # Ray reads them when it starts a node, each worker for its .out and .err; what nobody reads is no error.
    for file in ("_private/node.py", "_private/workers/default_worker.py"):
        assert "RAY_ROTATION_MAX_BYTES" in (RAY / file).read_text()
    assert "RAY_ROTATION_BACKUP_COUNT" in (RAY / "_private/node.py").read_text()
    autoscaler = ray_service(manifests)["spec"]["rayClusterConfig"]["autoscalerOptions"]["env"]
    assert {each["name"]: each["value"] for each in autoscaler} == wanted
    kept = int(wanted["RAY_ROTATION_MAX_BYTES"] or 0) * (1 + int(wanted["RAY_ROTATION_BACKUP_COUNT"] or 0))
    for name in ("head", "gateways", "engines"):
        volumes = ray_groups(manifests)[name]["template"]["spec"]["volumes"]
        (tmp,) = [each["emptyDir"]["sizeLimit"] for each in volumes if each["name"] == "tmp"]
        assert 0 < kept * LOG_FILES < 0.75 * quantity(tmp), name


def test_every_image_of_ours_has_a_folder(manifests: list[Manifest]) -> None:
    images = {
        container["image"].partition("mezzotint/")[2].partition(":")[0].partition("@")[0]
        for _, template in pods(manifests)
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
        if "mezzotint/" in container["image"]
    }
    assert {
        image for image in images if not (ROOT / "deploy/docker" / image / "Dockerfile").is_file()
    } == set()


def test_all_of_a_cluster_runs_one_python_and_one_ray(manifests: list[Manifest]) -> None:
    """The neuron image has versions of its own, so that all of a cluster has it, or none."""
    images = {
        template["spec"]["containers"][0]["image"].partition("mezzotint/")[2].partition(":")[0]
        for name, template in pods(manifests)
        if name in ("head", "gateways", "engines")
    }
    assert images in ({"cpu"}, {"cpu", "cuda"}, {"neuron"})


def secrets_named(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        for each in value.values():
            yield from secrets_named(each)
    if isinstance(value, list):
        for each in value:
            yield from secrets_named(each)


README = (ROOT / "deploy/README.md").read_text()


def test_the_secrets_are_those_of_the_table(manifests: list[Manifest]) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith("| Secrets |")]
    told = {
        name: set(re.findall(r"`([a-z_]+)`", keys))
        for name, keys in re.findall(r"`(mezzotint-[a-z]+)` \(([^)]*)\)", row)
    }
    assert told["mezzotint-ray"] == {"auth_token"}
    for name, key in secrets_named(manifests):
        assert key in told[name]
    options = ray_service(manifests)["spec"]["rayClusterConfig"]["authOptions"]
    assert options.get("secretName", "mezzotint-ray") == "mezzotint-ray"


def test_the_site_is_told_the_same_way_everywhere() -> None:
    table = README.partition("### `site.env`")[2]
    names = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])
    }
    for overlay_name in ON_AWS:
        lines = (KUBERNETES / "overlays" / overlay_name / "site.env").read_text().splitlines()
        assert {line.partition("=")[0] for line in lines} == names
    replacements = yaml.safe_load((KUBERNETES / "transformers/site/replacement.yaml").read_text())[
        "replacements"
    ]
    assert {each["source"]["fieldPath"].partition(".")[2] for each in replacements} == names


def test_terraform_and_each_overlay_look_for_the_model_under_one_prefix() -> None:
    text = (ROOT / "deploy/terraform/infra/main.tf").read_text()
    told = dict(
        re.findall(r'^    (\w+) += "s3://\$\{module\.storage\.model_bucket\}/(.+)"$', text, flags=re.M)
    )
    in_overlays = {}
    for name in ON_AWS:
        site = (KUBERNETES / "overlays" / name / "site.env").read_text()
        in_overlays[name] = re.findall(r"^MODEL_URI=s3://mezzotint-models/(.+)$", site, flags=re.M)
    assert in_overlays == {name: [prefix] for name, prefix in told.items()}


@pytest.mark.parametrize("name", ON_AWS)
def test_the_load_balancers_webhook_sees_the_edges_pods_alone(name: str) -> None:
    text = (ROOT / "deploy/terraform/modules/addons/gateway.tf").read_text()
    wanted = dict(re.findall(r'objectSelector += \{ matchLabels = \{ "(\S+)" = "(\S+)" \} \}', text))
    assert wanted
    assert selected({"matchLabels": wanted}, overlay(name)) == {"edge"}


@pytest.mark.parametrize("name", ON_AWS)
def test_every_value_of_the_site_arrives(name: str) -> None:
    lines = (KUBERNETES / "overlays" / name / "site.env").read_text().splitlines()
    text = json.dumps(overlay(name))
    missing = [line for line in lines if line.partition("=")[2] and line.partition("=")[2] not in text]
    assert missing == []


# The edge


def edge_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((KUBERNETES / "base/edge/envoy.yaml").read_text())
    return config


def http_manager() -> dict[str, Any]:
    (listener,) = [each for each in edge_config()["static_resources"]["listeners"] if each["name"] == "http"]
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def route_table() -> dict[str, Any]:
    table: dict[str, Any] = http_manager()["route_config"]
    return table


def test_what_the_edge_sends_again_is_what_the_proxy_marks_as_lost() -> None:
    for route in routes():
        if route.get("route", {}).get("cluster") == "serve":
            policy = route["route"]["retry_policy"]
            assert [each["name"] for each in policy["retriable_headers"]] == [proxy.LOST_HEADER]
            assert "retriable-headers" in policy["retry_on"]
            # A 503 of a gateway's own is its last word: it has tried two engines.
            assert "5xx" not in policy["retry_on"]
            assert "status" not in policy["retry_on"]
    assert proxy.LOST_HEADER in route_table()["response_headers_to_remove"]


def test_probes_are_answered_when_strangers_have_filled_the_limits() -> None:
    for listener in edge_config()["static_resources"]["listeners"]:
        spared = listener.get("ignore_global_conn_limit") and listener.get("bypass_overload_manager")
        assert bool(spared) == (listener["name"] in ("metrics", "health"))


def routes() -> list[dict[str, Any]]:
    (host,) = route_table()["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def destination(path: str) -> str:
    """Where the edge leads a short request for `path`: a cluster, or the status of its own answer."""
    for route in routes():
        match = route["match"]
        if "headers" in match:
            continue
        matched = (
            path.startswith(match["prefix"])
            if "prefix" in match
            else re.fullmatch(match["safe_regex"]["regex"], path)
        )
        if matched:
            return str(route["route"]["cluster"] if "route" in route else route["direct_response"]["status"])
    raise AssertionError(path)


def test_the_edge_leads_every_route_of_the_service_to_it_but_metrics() -> None:
    from mezzotint.serve.api import a1111, imagine, jobs, openai, ops, pictures, reference

    paths = {
        route.path
        for module in (a1111, imagine, jobs, openai, ops, pictures, reference)
        for route in module.router.routes
    }
    assert len(paths) > 20
    for path in paths - {"/metrics"}:
        concrete = re.sub(r"{[^}]*}", "x", path)
        assert destination(concrete) == "serve", path
        assert destination(f"/serve{concrete}") == "serve", path


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/dashboard",
        "/dashboard/",
        "/api/jobs/",
        "/-/routes",
        "/-/healthz",
        "/serve",
        "/serve/metrics",
        "/serve/dashboard",
        "/serve/-/routes",
        "/serve/api/jobs/",
    ],
)
def test_the_edge_closes_what_is_not_for_strangers(path: str) -> None:
    assert destination(path) == "404"


@pytest.mark.parametrize(
    "path",
    ["/", "/theme.css", "/gradio_api/queue/join", "/assets/index.js", "/pictures/job_1/0.png", "/previews/x"],
)
def test_the_edge_leads_the_pages_own_paths_to_it(path: str) -> None:
    assert destination(path) == "page"


def test_the_edge_takes_away_every_header_that_steers_ray_serve() -> None:
    removed = set(route_table()["request_headers_to_remove"])
    assert {name.decode() for name in proxy.STRIPPED} <= removed


def test_the_edge_lets_through_as_long_a_body_as_the_service_takes() -> None:
    (route,) = [each for each in routes() if "headers" in each["match"]]
    (header,) = route["match"]["headers"]
    default = Settings.model_fields["max_body_mb"].default
    assert header["range_match"]["start"] == default * 1e6 + 1


def test_the_edge_talks_to_the_services_and_ports_that_there_are(manifests: list[Manifest]) -> None:
    clusters = {each["name"]: each for each in edge_config()["static_resources"]["clusters"]}

    def address(cluster: str) -> tuple[str, int]:
        (endpoint,) = clusters[cluster]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        found = endpoint["endpoint"]["address"]["socket_address"]
        return found["address"], found["port_value"]

    service = ray_service(manifests)["spec"]["serveService"]
    (port,) = service["spec"]["ports"]
    assert address("serve") == (service["metadata"]["name"], port["port"])
    assert port["port"] == serve_config(manifests)["http_options"]["port"]
    page = one(manifests, "Service", "page")
    assert address("page") == ("page", page["spec"]["ports"][0]["port"])
    listeners = {
        each["name"]: each["address"]["socket_address"]["port_value"]
        for each in edge_config()["static_resources"]["listeners"]
    }
    edge = dict(pods(manifests))["edge"]
    assert listeners == ports_of(edge)
    for each in manifests:
        if each["kind"] == "HTTPRoute":
            (backend,) = each["spec"]["rules"][0]["backendRefs"]
            assert backend["port"] == one(manifests, "Service", "edge")["spec"]["ports"][0]["port"]
        if each["kind"] == "TargetGroupConfiguration":
            check = each["spec"]["defaultConfiguration"]["healthCheckConfig"]
            assert int(check["healthCheckPort"]) == listeners["health"]


# Documents

DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "deploy").rglob("*.md")])


def test_every_link_in_the_documents_leads_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
        gone = [each for each in targets if "://" not in each and not (document.parent / each).exists()]
        broken += [f"{document.relative_to(ROOT)}: {target}" for target in gone]
    assert broken == []


def test_no_document_applies_an_overlay_whose_site_is_a_placeholder() -> None:
    applied = [
        name
        for document in DOCUMENTS
        for name in re.findall(r"apply -k\s+deploy/kubernetes/overlays/(\w+)", document.read_text())
    ]
    assert set(applied) == {"local"}


def test_every_make_target_in_the_documents_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {
        (str(document.relative_to(ROOT)), target)
        for document in DOCUMENTS
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), flags=re.M)
    }
    assert named
    assert {each for each in named if each[1] not in targets} == set()


def commands() -> dict[tuple[str, ...], set[str]]:
    """Every command of `mezzotint`, with its options."""
    import typer.main

    from mezzotint.cli.main import app

    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found[path] = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def test_every_command_and_option_in_the_documents_is_there() -> None:
    known = commands()
    wrong = []
    for document in DOCUMENTS:
        for line in re.findall(
            r"(?:^|`|[$] )mezzotint ((?:[a-z-]+)[^`\n|]*)", document.read_text(), flags=re.M
        ):
            words = line.split()
            path: tuple[str, ...] = ()
            while words and (*path, words[0]) in known:
                path = (*path, words.pop(0))
            options = [
                word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]+(=.*)?", word)
            ]
            unknown = [option for option in options if option not in known[path]]
            if not path or unknown:
                wrong.append(f"{document.relative_to(ROOT)}: mezzotint {line}")
    assert wrong == []


# Where a path in a document may begin.
TOP = ("src/", "tests/", "docs/", "deploy/", "training/", "overlays/", "components/", "base/", "modules/")


def test_every_path_in_the_documents_is_there() -> None:
    gone = []
    for document in DOCUMENTS:
        near = (ROOT, document.parent, KUBERNETES, ROOT / "deploy/terraform", ROOT / "deploy")
        for path in re.findall(r"`([\w./-]+/[\w./*{},-]*)`", document.read_text()):
            if not path.startswith(TOP) or "NAME" in path or "{" in path:
                continue
            if not any(list(place.glob(path.rstrip("/"))) for place in near):
                gone.append(f"{document.relative_to(ROOT)}: {path}")
    assert gone == []
