"""`mezzotint deploy up` against a model of the account, with a failure at every stage."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mezzotint.deploy.deployment import Answers
from mezzotint.deploy.stages import STAGES
from mezzotint.deploy.up import verify_service
from mezzotint.deploy.verify import Verified
from mezzotint.errors import DeployFailed, SettingInvalid
from tests.deploy.deploying import DIGEST, Service, Site, serving
from tests.deploy.world import ARN, DATABASE_PASSWORD, VALKEY_TOKEN


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, service: Service) -> Site:
    site = Site(tmp_path)
    site.world.change(address=service.url.removeprefix("http://"))
    return site


# At which stage: the call that fails. One of infra's stops half-way, as terraform's do.
FAILURES = {
    "tools": "describe-instance-types",
    "infra": "infra apply",
    "kubeconfig": "eks update-kubeconfig",
    "addons": "addons apply",
    "secrets": "secretsmanager get-secret-value valkey",
    "manifests": "apply --kustomize",
    "wait": "get gateways",
    "keys": "keys create metrics",
    "verify": "get secret mezzotint-page --output json",
}


def applies(site: Site) -> list[str]:
    """The roots that were applied, in order."""
    return [call.split()[1].rpartition("/")[2] for call in site.called("terraform", " apply ")]


def verified(site: Site, url: str = "") -> Verified:
    """As `mezzotint deploy verify` without a file."""
    with site.deployment(url=url) as d:
        d.check_account()
        d.enter_cluster()
        return verify_service(d)


def listen_to_https_alone(site: Site) -> None:
    objects = site.world.read()["objects"]
    objects["gateways/edge"]["spec"] = {"listeners": [{"port": 443, "protocol": "HTTPS"}]}
    site.world.change(objects=objects)


class TestStages:
    def test_a_first_up_does_every_stage_in_order_and_draws(self, site: Site) -> None:
        site.up()
        told = [line.split()[1].rstrip(":") for line in site.said if line[0].isdigit()]
        assert told == list(STAGES)
        assert list(site.state["stages"]) == list(STAGES)
        assert any("drew 64x32 in" in line for line in site.said)
        assert "exec gateway-1 -- mezzotint keys create NAME" in site.said[-1]

    def test_a_second_up_asks_terraform_nothing_and_changes_no_key(self, site: Site) -> None:
        site.up()
        before = len(site.calls)
        keys = site.world.read()["api_keys"]
        site.up()
        again = site.calls[before:]
        assert not [call for call in again if call.startswith("terraform -chdir")]
        assert site.world.read()["api_keys"] == keys
        assert any("drew" in line for line in site.said)

    def test_a_variable_that_changed_is_planned_and_applied_again(self, site: Site) -> None:
        site.up()
        site.up(terraform={"zone_count": 3})
        assert applies(site) == ["infra", "addons", "infra"]
        assert site.world.read()["variables"]["infra"]["zone_count"] == 3

    def test_what_was_undone_by_hand_is_as_the_manifests_say_again(self, site: Site) -> None:
        site.up()
        # As `kubectl rollout undo` leaves it: what it put back is another manager's.
        site.world.change(changed_by_hand='.spec.template.spec.containers[name="envoy"].image')
        site.up()
        assert site.state["stages"].keys() == set(STAGES)

    def test_until_a_stage_stops_behind_it_and_needs_no_images(self, site: Site) -> None:
        site.up(until="addons", images={})
        assert list(site.state["stages"]) == ["tools", "infra", "kubeconfig", "addons"]
        with pytest.raises(SettingInvalid, match="images: mezzotint/neuron, mezzotint/ui"):
            site.up(images={})

    def test_an_unknown_stage_is_refused_before_anything_is_called(self, site: Site) -> None:
        with pytest.raises(SettingInvalid, match=r"--until takes tools, infra, .*; not 'infar'"):
            site.up(until="infar")
        assert site.calls == []

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_failure_at_a_stage_says_which_and_the_next_up_goes_on(self, site: Site, stage: str) -> None:
        how = "half" if stage == "infra" else "exit"
        site.fail(FAILURES[stage], how)
        with pytest.raises(DeployFailed, match=f"^stage {stage} failed:\n  ") as caught:
            site.up()
        last = site.calls[-1].split()
        assert all(word in caught.value.message for word in last[:2])
        assert "did not work" in caught.value.message
        at = STAGES.index(stage)
        assert set(site.state.get("stages", {})) == set(STAGES[:at])
        before = applies(site)
        site.up()
        assert set(site.state["stages"]) == set(STAGES)
        redone = applies(site)[len(before) :]
        assert redone == [root for root in ("infra", "addons") if at <= STAGES.index(root)]

    @pytest.mark.parametrize("how", ["unstored", "unstored, reset"])
    @pytest.mark.parametrize("root", ["infra", "addons"])
    def test_a_state_that_terraform_could_not_store_is_stored_before_anything_else_is_planned(
        self, site: Site, root: str, how: str
    ) -> None:
        site.fail(f"{root} apply", how)
        if how == "unstored":
            with pytest.raises(DeployFailed, match=f"stage {root} failed") as caught:
                site.up()
            assert "ExpiredToken" in caught.value.message
        site.up()
        assert len(site.called(f"{root} state push")) == 1
        assert applies(site).count(root) == 1
        assert set(site.state["stages"]) == set(STAGES)

    @pytest.mark.parametrize("how", ["throttle", "reset"])
    @pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "keys"])
    def test_what_may_pass_is_tried_again(self, site: Site, stage: str, how: str) -> None:
        site.fail(FAILURES[stage], how)
        site.up()
        assert any("again in" in line for line in site.said)
        assert set(site.state["stages"]) == set(STAGES)

    def test_what_does_not_pass_is_tried_four_times_and_no_more(self, site: Site) -> None:
        for _ in range(9):
            site.fail("sts get-caller-identity", "throttle")
        with pytest.raises(DeployFailed, match="Rate exceeded"):
            site.up()
        assert len(site.called("sts get-caller-identity")) <= 4

    def test_a_key_is_never_made_by_a_second_try(self, site: Site) -> None:
        site.fail("keys create page", "reset")
        with pytest.raises(DeployFailed, match="stage keys failed"):
            site.up()
        assert len(site.called("keys create")) == 1


class TestChecks:
    def test_missing_and_old_tools_are_said_all_at_once(self, site: Site) -> None:
        site.launch.without = {"terraform", "kubectl"}
        with pytest.raises(DeployFailed, match=r"terraform .at least 1.11.*; kubectl .at least") as caught:
            site.up()
        assert "aws" not in caught.value.message
        assert site.calls == ["aws --version"]

    def test_another_account_is_refused_and_nothing_is_made(self, site: Site) -> None:
        with pytest.raises(SettingInvalid, match="of the account 123456789012; the one asked for is 999"):
            site.up(account="999999999999")
        assert not site.called("terraform -chdir")

    def test_the_account_of_the_first_up_holds_for_the_next(self, site: Site) -> None:
        site.up()
        site.world.change(account="999999999999")
        with pytest.raises(SettingInvalid, match="mezzotint was deployed to 123456789012"):
            site.up()

    def test_a_kubeconfig_of_another_cluster_is_refused_before_kubectl_does_anything(
        self, site: Site
    ) -> None:
        other = ARN.replace("cluster/mezzotint", "cluster/production")
        site.world.change(leads_to=other)
        with pytest.raises(SettingInvalid, match=r"leads to .*cluster/production, not to"):
            site.up()
        assert [call for call in site.called("kubectl") if "config view" not in call] == [
            "kubectl version --client --output json"
        ]

    def test_a_region_that_is_none_is_refused(self, site: Site) -> None:
        with pytest.raises(SettingInvalid, match="region takes one of AWS's; not 'us-west-9'"):
            site.up(region="us-west-9")

    def test_instances_that_are_not_offered_are_found_out_first(self, site: Site) -> None:
        site.world.change(zones=[])
        with pytest.raises(DeployFailed, match=r"inf2.8xlarge is not offered in us-west-2"):
            site.up()

    @pytest.mark.parametrize("quota", [0, 31, None])
    def test_a_quota_that_is_too_small_for_one_engine_is_found_out_first(
        self, site: Site, quota: int | None
    ) -> None:
        site.world.change(quota=quota)
        with pytest.raises(DeployFailed, match=r"Inf instances in us-west-2, and one inf2.8xlarge has 32"):
            site.up()
        assert not site.called("terraform -chdir")

    @pytest.mark.parametrize(
        ("instance", "family", "code"),
        [("p5.4xlarge", "P", "L-417A185B"), ("gr6.4xlarge", "G and VT", "L-DB2E81BA")],
    )
    def test_the_quota_is_the_one_of_the_instances_that_are_asked_for(
        self, site: Site, instance: str, family: str, code: str
    ) -> None:
        site.world.change(quota=0)
        with pytest.raises(DeployFailed, match=f"on-demand {family} instances .* the quota {code}"):
            site.up(instance_type=instance)
        site.up(until="tools", instance_type="x9.large")
        assert any("which quota holds for x9.large is not known" in line for line in site.said)

    def test_a_quota_that_may_not_be_read_is_said_and_is_no_failure(self, site: Site) -> None:
        site.fail("get-service-quota", "denied")
        site.up()
        assert any("quota cannot be read" in line for line in site.said)

    def test_variables_that_terraform_has_not_are_refused_before_anything_is_called(self, site: Site) -> None:
        with pytest.raises(SettingInvalid, match=r"no variable zone_cuont; there are .*zone_count"):
            site.up(terraform={"zone_cuont": 3})
        assert site.calls == []

    def test_another_backend_than_the_first_is_refused(self, site: Site) -> None:
        site.up()
        with pytest.raises(SettingInvalid, match="backend differs"):
            site.up(backend={"bucket": "states"})

    def test_two_at_a_time_are_refused(self, site: Site) -> None:
        with site.deployment(), pytest.raises(DeployFailed, match="another mezzotint deploy works"):
            site.up()


class TestPlans:
    def test_a_plan_that_destroys_is_not_applied_unasked(self, site: Site) -> None:
        site.world.change(destroys=2)
        site.answers = Answers()
        with pytest.raises(SettingInvalid, match=r"it destroys 2.*--yes"):
            site.up()
        assert applies(site) == []

    def test_without_a_terminal_a_plan_that_only_adds_is_applied(self, site: Site) -> None:
        site.answers = Answers()
        site.up()
        assert applies(site) == ["infra", "addons"]

    def test_at_a_terminal_only_yes_applies(self, site: Site) -> None:
        site.answers = Answers(ask=lambda question: "y\n")
        with pytest.raises(SettingInvalid, match="not confirmed"):
            site.up()
        assert applies(site) == []
        site.answers = Answers(ask=lambda question: "yes\n")
        site.up()
        assert applies(site) == ["infra", "addons"]

    def test_what_is_applied_is_the_plan_that_was_shown(self, site: Site) -> None:
        site.up()
        [planned] = site.called("infra plan")
        [applied] = site.called("infra apply")
        assert f"-out={applied.split()[-1]}" in planned.split()


class TestDryRun:
    def test_a_dry_run_calls_nothing_that_changes_and_writes_nothing(self, site: Site) -> None:
        site.up(dry_run=True)
        changing = ("apply", "delete", "destroy", "create", "restart", "state rm")
        assert not [call for call in site.calls if any(f" {verb} " in f"{call} " for verb in changing)]
        assert site.called("infra plan")
        assert not site.folder.exists()
        assert any("would run: kubectl" in line and "--kustomize" in line for line in site.said)
        assert [line for line in site.said if line.startswith("9/9")]

    def test_a_dry_run_needs_no_images_and_says_which_will_be_needed(self, site: Site) -> None:
        site.up(dry_run=True, images={})
        assert site.said[0].startswith("the images mezzotint/neuron, mezzotint/ui are not given")
        assert [line for line in site.said if line.startswith("9/9")]

    def test_a_dry_run_over_what_is_there_changes_none_of_it(self, site: Site) -> None:
        site.up()
        files, objects = site.files(), site.world.read()["objects"]
        site.up(dry_run=True, terraform={"zone_count": 3})
        assert site.files() == files
        assert site.world.read()["objects"] == objects
        assert site.world.read()["variables"]["infra"].get("zone_count") is None


class TestSecrets:
    def test_the_stores_secret_is_a_url_that_gives_the_password_back(self, site: Site) -> None:
        from sqlalchemy import make_url

        site.up()
        data = site.world.read()["objects"]["secrets/mezzotint-stores"]["data"]
        url = make_url(base64.b64decode(data["database_url"]).decode())
        assert (url.drivername, url.host, url.port, url.database) == (
            "postgresql+psycopg",
            "db.example",
            5432,
            "mezzotint",
        )
        assert (url.username, url.password) == ("mezzotint", DATABASE_PASSWORD)
        assert url.query == {"sslmode": "require"}
        assert base64.b64decode(data["valkey_password"]).decode() == VALKEY_TOKEN

    @pytest.mark.parametrize("stage", [None, *STAGES[4:]])
    def test_no_secret_is_in_a_command_line_a_log_the_state_or_a_message(
        self, site: Site, stage: str | None
    ) -> None:
        told = ""
        if stage is not None:
            site.fail(FAILURES[stage], "exit")
            with pytest.raises(DeployFailed) as caught:
                site.up()
            told = caught.value.message
        site.up()
        objects = site.world.read()["objects"]
        values = [
            base64.b64decode(value).decode()
            for name, each in objects.items()
            if name.startswith("secrets/")
            for value in each["data"].values()
        ]
        assert len(values) == 5
        secrets = {*values, DATABASE_PASSWORD, "p%40ss%2Fw%3Aord%231%25", VALKEY_TOKEN}
        secrets |= {base64.b64encode(each.encode()).decode() for each in secrets}
        everything = "\n".join([told, *site.said, *site.calls, *site.files().values()])
        assert [secret for secret in secrets if secret in everything] == []

    def test_rays_token_is_made_once_and_kept(self, site: Site) -> None:
        site.up()
        first = site.world.read()["objects"]["secrets/mezzotint-ray"]
        site.up()
        assert site.world.read()["objects"]["secrets/mezzotint-ray"] == first
        assert len(base64.b64decode(first["data"]["auth_token"])) >= 32

    def test_the_folder_is_the_users_alone(self, site: Site) -> None:
        site.up()
        assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((site.folder / "kubeconfig").stat().st_mode) == 0o600
        assert stat.S_IMODE((site.folder / "state.json").stat().st_mode) == 0o600

    def test_every_kubectl_call_names_its_own_kubeconfig_and_context(self, site: Site) -> None:
        site.up()
        calls = [call for call in site.calls if call.startswith("kubectl") and " version " not in call]
        own = f"kubectl --kubeconfig {site.folder / 'kubeconfig'}"
        assert all(call.startswith(own) for call in calls)
        assert all(f"--context {ARN}" in call for call in calls if "config view" not in call)


class TestKeys:
    def test_only_prometheus_gets_an_admins_key(self, site: Site) -> None:
        site.up()
        keys = site.world.read()["api_keys"]
        assert [(key["name"], key["is_admin"]) for key in keys] == [("page", False), ("metrics", True)]

    def test_a_key_that_a_broken_off_run_made_is_revoked(self, site: Site) -> None:
        site.fail("apply --filename", "exit", at=4)
        with pytest.raises(DeployFailed, match="stage keys failed"):
            site.up()
        assert [key["name"] for key in site.world.read()["api_keys"]] == ["page"]
        site.up()
        keys = [(key["name"], key["state"]) for key in site.world.read()["api_keys"]]
        assert sorted(keys) == [("metrics", "valid"), ("page", "revoked"), ("page", "valid")]

    def test_the_page_is_started_anew_with_its_first_key_and_not_again(self, site: Site) -> None:
        site.up()
        site.up()
        assert site.world.read()["restarted"] == ["page"]

    @pytest.mark.parametrize("broken_off", ["keys create metrics", "rollout restart"])
    def test_a_page_whose_start_a_failure_prevented_is_started_anew_by_the_next_up(
        self, site: Site, broken_off: str
    ) -> None:
        site.fail(broken_off, "exit")
        with pytest.raises(DeployFailed, match="stage keys failed"):
            site.up()
        site.up()
        assert site.world.read()["restarted"] == ["page"]

    def test_so_is_one_whose_key_was_taken_away_and_made_again(self, site: Site) -> None:
        site.up()
        objects = site.world.read()["objects"]
        del objects["secrets/mezzotint-page"]
        site.world.change(objects=objects)
        site.fail("rollout restart", "exit")
        with pytest.raises(DeployFailed, match="stage keys failed"):
            site.up()
        site.up()
        assert site.world.read()["restarted"] == ["page", "page"]

    def test_the_service_is_asked_with_the_pages_key(self, site: Site, service: Service) -> None:
        site.up()
        data = site.world.read()["objects"]["secrets/mezzotint-page"]["data"]
        assert service.keys == {base64.b64decode(data["api_key"]).decode()}


class TestManifests:
    def test_a_folder_that_is_no_component_is_refused_before_anything_is_made_and_hinders_no_down(
        self, site: Site
    ) -> None:
        with pytest.raises(SettingInvalid, match="component takes a folder whose"):
            site.up(component="/no/folder")
        assert site.calls == []
        site.up()
        site.down(component="/no/folder")

    def test_the_sites_values_are_terraforms_and_what_the_configuration_says(self, site: Site) -> None:
        site.up(cidrs=("203.0.113.7/32",), scheme="internet-facing", model="s3://own/model")
        lines = dict(line.split("=", 1) for line in site.world.read()["applied"]["site"].splitlines())
        assert lines == {
            "CLUSTER_NAME": "mezzotint",
            "REGION": "us-west-2",
            "NODE_ROLE": "mezzotint-node",
            "MODEL_URI": "s3://own/model",
            "IMAGE_STORE": "s3://mezzotint-pictures/images",
            "VALKEY_ADDRESS": "rediss://valkey.example:6379",
            "LB_SCHEME": "internet-facing",
            "LB_CIDRS": "203.0.113.7/32",
            "CERTIFICATE_ARN": "",
        }

    def test_images_go_by_digest_under_the_names_that_the_overlay_gives_them(self, site: Site) -> None:
        site.up()
        applied = yaml.safe_load(site.world.read()["applied"]["kustomization"])
        assert applied["resources"] == ["../overlays/inf2"]
        registry = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
        assert applied["images"] == [
            {
                "name": f"registry.invalid/mezzotint/{name}",
                "newName": f"{registry}/mezzotint/{name}",
                "digest": DIGEST,
            }
            for name in ("neuron", "ui")
        ]

    def test_the_checkout_is_only_read(self, site: Site) -> None:
        before = {path: path.read_text() for path in site.source.rglob("*") if path.is_file()}
        site.up()
        after = {path: path.read_text() for path in site.source.rglob("*") if path.is_file()}
        assert after == before


class TestReadiness:
    def test_what_never_gets_ready_is_told_with_the_pod_and_its_reason(self, site: Site) -> None:
        site.short = {"ready"}
        site.world.change(crashing=True)
        with pytest.raises(DeployFailed, match="stage wait failed: the service: not within") as caught:
            site.up()
        assert "RayService mezzotint is not ready" in caught.value.message
        assert "pod gateway-1: CrashLoopBackOff: back-off 5m0s" in caught.value.message
        site.world.change(crashing=False)
        site.short = set()
        site.up()
        assert set(site.state["stages"]) == set(STAGES)

    def test_a_change_is_done_when_the_new_version_serves_and_not_the_one_before(self, site: Site) -> None:
        site.up()
        site.said.clear()
        site.up(model="s3://own/model")
        assert any("mezzotint still serves from the cluster of before" in line for line in site.said)

    @pytest.mark.parametrize("name", ["rayservices/mezzotint", "deployments/edge"])
    def test_what_was_well_before_a_change_that_nobody_has_seen_is_not_well_yet(
        self, site: Site, name: str
    ) -> None:
        site.up()
        site.short = {"ready"}
        objects = site.world.read()["objects"]
        objects[name]["metadata"]["generation"] += 1
        site.world.change(objects=objects, asleep=True)
        with pytest.raises(DeployFailed, match=r"stage wait failed: .*not seen the change|not taken up"):
            site.up()

    def test_a_new_version_that_does_not_serve_is_no_success(self, site: Site) -> None:
        site.up()
        site.short = {"ready"}
        site.world.change(upgrade_hangs=True)
        with pytest.raises(
            DeployFailed, match=r"stage wait failed: .* still serves from the cluster of before"
        ):
            site.up(model="s3://own/model")
        site.world.change(upgrade_hangs=False, application="DEPLOY_FAILED")
        with pytest.raises(
            DeployFailed, match=r"stage wait failed: .* application mezzotint is DEPLOY_FAILED"
        ):
            site.up(model="s3://own/model")
        site.world.change(application="RUNNING")
        site.short = set()
        site.up(model="s3://own/model")

    def test_a_load_balancer_that_is_slow_to_answer_is_waited_for(self, site: Site, service: Service) -> None:
        service.not_ready = 2
        site.up()
        assert any("answers 503" in line for line in site.said)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ("/dashboard", "/dashboard answers 200; it must not be there"),
            ("/api/jobs/", "/api/jobs/ answers 200; it must not be there"),
            ("open", "/imagine without a key answers 200, not 401"),
            ("failing", "/serve/imagine answers 500: .*no usable picture"),
            ("format", "what was drawn is no PNG"),
            ("size", "the picture is 8x32, not 64x32"),
            ("event", "the events end with an error"),
            ("no progress", "no progress among the events"),
        ],
    )
    def test_verify_fails_on_what_is_not_as_it_should_be(
        self, site: Site, service: Service, wrong: str, told: str
    ) -> None:
        service.wrong = wrong
        with pytest.raises(DeployFailed, match=f"stage verify failed: {told}"):
            site.up()
        service.wrong = ""
        site.up()

    def test_what_answers_in_another_protocol_is_not_reached(self, site: Site, service: Service) -> None:
        site.short = {"reachable"}
        service.wrong = "no HTTP"
        with pytest.raises(DeployFailed, match=r"stage verify failed: .* is not reached: SSH-2.0"):
            site.up()

    def test_an_internal_load_balancer_that_is_not_reached_says_from_where_it_is(self, site: Site) -> None:
        site.short = {"reachable"}
        site.world.change(address="127.0.0.1:9")
        with pytest.raises(DeployFailed, match=r"stage verify failed: .*is reached from inside its network"):
            site.up()

    def test_without_the_file_verify_looks_where_up_did_and_knows_what_it_made(
        self, site: Site, service: Service
    ) -> None:
        site.up(url=service.url, scheme="internet-facing", cidrs=("203.0.113.7/32",))
        listen_to_https_alone(site)
        assert verified(site).url == service.url
        site.short = {"reachable"}
        with pytest.raises(DeployFailed) as caught:
            verified(site, url="http://127.0.0.1:9")
        assert "inside its network" not in caught.value.message

    def test_a_load_balancer_of_https_alone_is_not_looked_for_by_http(self, site: Site) -> None:
        site.up()
        listen_to_https_alone(site)
        with pytest.raises(DeployFailed, match=r"HTTPS alone.* --url https://"):
            verified(site)


def test_the_state_says_what_each_stage_was_done_with(site: Site) -> None:
    site.up()
    state = json.loads((site.folder / "state.json").read_text())
    assert (state["account"], state["region"], state["overlay"]) == ("123456789012", "us-west-2", "inf2")
    assert all(len(state["stages"][stage]["with"]) == 64 for stage in ("infra", "addons"))
    assert "token" not in state["outputs"]
