"""`mezzotint deploy down` against the same model: after any failure, twice, stateless, with leftovers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mezzotint.deploy.deployment import Answers
from mezzotint.deploy.stages import DOWN, STAGES
from mezzotint.errors import DeployFailed, SettingInvalid
from tests.deploy.deploying import Service, Site, serving
from tests.deploy.test_deploy_up import FAILURES
from tests.deploy.world import ARN

KEPT = {
    "module.storage.aws_kms_key.data",
    'module.storage.aws_s3_bucket.this["models"]',
    'module.storage.aws_s3_bucket_server_side_encryption_configuration.this["models"]',
}
BILLED = ("balancers", "groups", "interfaces", "instances", "volumes")
DOWN_FAILURES = {
    "account": "eks describe-cluster",
    "edge": "delete gateways",
    "services": "delete rayservices",
    "namespace": "get namespaces",
    "nodes": "delete nodepools",
    "addons": "addons destroy",
    "leftovers": "describe-target-groups",
    "infra": "list-object-versions",
    "proof": "get-resources",
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, service: Service) -> Site:
    service.wrong = ""
    site = Site(tmp_path)
    site.world.change(address=service.url.removeprefix("http://"))
    return site


@pytest.fixture
def up(site: Site) -> Site:
    site.up()
    site.said.clear()
    return site


def made(site: Site) -> set[str]:
    """What is there, in terraform's state or not."""
    found = site.world.read()
    return {each[0] for each in [*found["made"]["infra"], *found["made"]["addons"], *found["orphans"]]}


def assert_gone(site: Site) -> None:
    world = site.world.read()
    assert {kind: world[kind] for kind in BILLED} == {kind: {} for kind in BILLED}
    assert made(site) <= KEPT


def position(site: Site, *words: str) -> int:
    return next(at for at, call in enumerate(site.calls) if all(word in call for word in words))


class TestOrder:
    def test_everything_goes_and_the_data_stays_and_is_named(self, up: Site) -> None:
        up.down()
        assert_gone(up)
        assert made(up) == KEPT
        assert up.world.read()["buckets"] == {"mezzotint-models": 3}
        kept = [line for line in up.said if "kept, and costs a little" in line]
        assert [line.split(": ", 1)[1].split(" (")[0] for line in kept] == [
            "KMS key data-key",
            "RDS snapshot mezzotint-final",
            "S3 bucket mezzotint-models",
        ]

    def test_each_goes_while_what_takes_it_away_still_runs(self, up: Site) -> None:
        up.down()
        order = [
            position(up, "delete gateways"),
            position(up, "delete rayservices"),
            position(up, "delete namespace"),
            position(up, "delete nodepools"),
            position(up, "delete ec2nodeclasses"),
            position(up, "addons destroy"),
            position(up, "infra destroy"),
        ]
        assert order == sorted(order)
        # Nothing was left for the sweep: the controllers had their time.
        assert not up.called("delete-load-balancer")
        assert not up.called("terminate-instances")

    def test_a_second_down_is_harmless_and_finds_nothing_to_do(self, up: Site) -> None:
        up.down()
        before = len(up.calls)
        up.down()
        again = up.calls[before:]
        assert not [call for call in again if " destroy " in call or " delete" in call]
        assert made(up) == KEPT
        assert up.state["removed"]

    def test_an_up_after_a_down_finds_the_data_again_and_a_down_after_that_goes_through(
        self, up: Site
    ) -> None:
        up.down()
        up.up()
        assert set(up.state["stages"]) == set(STAGES)
        up.down()
        assert_gone(up)
        first, second = sorted(up.world.read()["snapshots"])
        assert first == "mezzotint-final"
        assert second.startswith("mezzotint-final-")

    def test_with_delete_data_nothing_stays(self, up: Site) -> None:
        up.down(delete_data=True)
        world = up.world.read()
        assert made(up) == set()
        assert (world["buckets"], world["snapshots"]) == ({}, {})
        assert not [line for line in up.said if "kept" in line]

    def test_delete_data_later_takes_what_an_earlier_down_kept(self, up: Site) -> None:
        up.down()
        up.down(delete_data=True)
        world = up.world.read()
        assert (made(up), world["buckets"], world["snapshots"]) == (set(), {}, {})


class TestBrokenOff:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_down_after_an_up_that_failed_at_a_stage_removes_what_there_is(
        self, site: Site, stage: str
    ) -> None:
        site.fail(FAILURES[stage], "half" if stage in ("infra", "addons") else "exit")
        with pytest.raises(DeployFailed):
            site.up()
        site.down()
        assert_gone(site)
        site.down()
        assert_gone(site)

    def test_a_down_where_nothing_ever_was_is_harmless(self, site: Site) -> None:
        site.down()
        assert not [call for call in site.calls if " destroy " in call or " delete" in call]

    @pytest.mark.parametrize("stage", [stage.name for stage in DOWN])
    def test_a_failure_of_down_says_where_and_the_next_goes_on(self, up: Site, stage: str) -> None:
        up.fail(DOWN_FAILURES[stage], "exit")
        with pytest.raises(DeployFailed, match=f"^stage {stage} failed"):
            up.down()
        up.down()
        assert_gone(up)

    def test_a_network_that_something_still_holds_is_looked_after_and_tried_once_more(self, up: Site) -> None:
        up.fail("infra destroy", "exit")
        up.down()
        assert_gone(up)
        assert any("looking for what holds the rest" in line for line in up.said)

    def test_a_destroy_that_never_works_ends_after_two_tries(self, up: Site) -> None:
        up.fail("infra destroy", "exit")
        up.fail("infra destroy", "exit")
        with pytest.raises(DeployFailed, match="stage infra failed"):
            up.down()
        assert len(up.called("infra destroy")) == 2

    @pytest.mark.parametrize("how", ["unstored", "unstored, reset"])
    def test_what_a_destroy_could_not_store_is_stored_before_the_next(self, up: Site, how: str) -> None:
        up.fail("infra destroy", how)
        up.down()
        assert len(up.called("infra state push")) == 1
        assert_gone(up)

    def test_a_database_whose_deletion_an_earlier_down_has_begun_is_waited_for(self, up: Site) -> None:
        up.world.change(database_goes_after=3, snapshots={"mezzotint-final": "mezzotint"})
        up.down()
        assert_gone(up)
        assert set(up.world.read()["snapshots"]) == {"mezzotint-final"}

    def test_without_its_state_it_removes_what_it_can_and_lists_the_rest(self, up: Site) -> None:
        shutil.rmtree(up.folder)
        up.short = {"leftovers_gone", "listing"}
        with pytest.raises(
            DeployFailed, match=r"stage proof failed: .* things are left in us-west-2:"
        ) as caught:
            up.down()
        for thing in ("EKS cluster mezzotint", "NAT gateway nat-1", "elastic IP eipalloc-1", "rds:us-west-2"):
            assert thing in caught.value.message
        world = up.world.read()
        assert (world["balancers"], world["instances"]) == ({}, {})

    def test_without_its_notes_and_with_terraforms_state_in_s3_everything_goes(self, site: Site) -> None:
        backend = {"bucket": "states"}
        site.up(backend=backend)
        shutil.rmtree(site.folder)
        site.down(backend=backend)
        assert_gone(site)

    def test_a_cluster_that_went_by_other_ways_leaves_its_charts_to_be_forgotten(self, up: Site) -> None:
        world = up.world.read()
        infra = [each for each in world["made"]["infra"] if "aws_eks_cluster" not in each[0]]
        up.world.change(made={**world["made"], "infra": infra}, objects={}, instances={})
        up.down()
        assert up.called("addons state rm", "helm_release.karpenter")
        assert_gone(up)

    def test_a_cluster_that_does_not_answer_can_be_left_out(self, up: Site) -> None:
        up.down(skip_kubernetes=True)
        assert not [call for call in up.called("kubectl --kubeconfig") if "delete" in call]
        assert_gone(up)
        assert up.called("terminate-instances")
        assert up.called("delete-load-balancer")


class TestLeftovers:
    def test_what_controllers_left_is_found_by_its_tag_and_removed(self, up: Site) -> None:
        up.world.change(leaks=["balancer", "group", "volume"], interfaces={"eni-1": {}})
        up.short = {"load_balancers_gone"}
        up.down()
        assert_gone(up)
        for kind in ("load balancer", "target group", "security group", "network interface", "volume"):
            assert any(f"removing {kind}" in line for line in up.said), kind

    def test_what_cannot_go_yet_does_not_keep_the_rest_from_going(self, up: Site) -> None:
        world = up.world.read()
        held = {**world["groups"], "sg-held": {"held": True}}
        up.world.change(groups=held)
        up.short = {"leftovers_gone", "listing"}
        with pytest.raises(DeployFailed, match="stage infra failed") as caught:
            up.down()
        assert "DependencyViolation" in caught.value.message
        assert any("security group sg-held; left for later" in line for line in up.said)
        assert made(up) == KEPT | {"module.network.aws_vpc.this"}
        left = {kind: up.world.read()[kind] for kind in BILLED}
        assert left == {**{kind: {} for kind in BILLED}, "groups": {"sg-held": {"held": True}}}

    def test_a_group_that_others_let_in_is_taken_out_of_their_rules_first(self, up: Site) -> None:
        world = up.world.read()
        up.world.change(leaks=["group"], groups={**world["groups"], "sg-lb": {"used_by": "sg-eks"}})
        up.down()
        assert up.called("revoke-security-group-ingress", "--group-id sg-eks")
        assert_gone(up)

    def test_logs_that_eks_and_rds_began_anew_go_and_other_clusters_stay(self, up: Site) -> None:
        others = up.world.read()["log_groups"]
        up.down()
        assert up.world.read()["log_groups"] == others
        assert any("removing log group /aws/eks/mezzotint/cluster" in line for line in up.said)

    def test_other_clusters_load_balancers_nodes_and_groups_stay(self, up: Site) -> None:
        up.world.change(leaks=["balancer"])
        up.short = {"load_balancers_gone"}
        up.down()
        removed = [call for call in up.calls if call.startswith("aws") and "delete" in call]
        assert not [call for call in removed if "app/other" in call or "sg-eks" in call or "i-system" in call]
        assert "of-others" not in "\n".join(up.said)


class TestProof:
    def test_what_is_left_of_an_unknown_kind_fails_and_is_listed(self, up: Site) -> None:
        up.world.change(stale=["fsx:file-system/fs-1"])
        up.short = {"leftovers_gone", "listing"}
        with pytest.raises(DeployFailed, match="stage proof failed: 1 things are left") as caught:
            up.down()
        assert "arn:aws:fsx:us-west-2:123456789012:file-system/fs-1" in caught.value.message

    def test_what_the_tagging_api_still_names_but_its_service_does_not_is_gone(self, up: Site) -> None:
        up.world.change(stale=["rds:db:mezzotint", "eks:cluster/mezzotint", "secretsmanager:secret:valkey"])
        up.down()
        assert_gone(up)

    def test_what_is_only_slow_to_go_is_waited_for(self, up: Site) -> None:
        up.fail("get-resources", "throttle")
        up.down()
        assert_gone(up)


class TestRefusals:
    def untouched(self, site: Site) -> bool:
        return not [call for call in site.calls if " delete" in call or " destroy" in call]

    def test_another_account_is_refused(self, up: Site) -> None:
        up.world.change(account="999999999999")
        with pytest.raises(SettingInvalid, match="mezzotint was deployed to 123456789012"):
            up.down()
        assert self.untouched(up)

    def test_another_region_is_refused(self, up: Site) -> None:
        with up.deployment(region="eu-west-1") as d:
            # The model has one region, so what is asked before is answered.
            d.aws.region = "us-west-2"
            with pytest.raises(
                SettingInvalid, match="region is eu-west-1; mezzotint was deployed to us-west-2"
            ):
                d.check_account()
        assert self.untouched(up)

    def test_another_account_is_refused_until_all_is_removed_and_no_data_kept(self, up: Site) -> None:
        up.down()
        up.world.change(account="999999999999")
        with pytest.raises(SettingInvalid, match="mezzotint was deployed to 123456789012"):
            up.up()
        up.world.change(account="123456789012")
        up.down(delete_data=True)
        up.world.change(account="999999999999")
        with up.deployment() as d:
            d.check_account()
        assert d.account == "999999999999"

    def test_another_region_is_refused_while_kept_buckets_have_the_names(self, up: Site) -> None:
        up.down()
        with up.deployment(region="eu-west-1") as d:
            d.aws.region = "us-west-2"
            with pytest.raises(SettingInvalid, match=r"buckets, which were kept, are in us-west-2"):
                d.check_account()
        up.down(delete_data=True)
        with up.deployment(region="eu-west-1") as d:
            d.aws.region = "us-west-2"
            d.check_account()

    def test_a_kubeconfig_of_another_cluster_is_refused(self, up: Site) -> None:
        up.world.change(leads_to=ARN.replace("cluster/mezzotint", "cluster/production"))
        with pytest.raises(SettingInvalid, match=r"leads to .*cluster/production"):
            up.down()
        assert self.untouched(up)

    def test_without_a_terminal_only_yes_removes(self, up: Site) -> None:
        up.answers = Answers()
        with pytest.raises(SettingInvalid, match="not confirmed; --yes"):
            up.down()
        assert self.untouched(up)

    @pytest.mark.parametrize("typed", ["", "yes\n", "mezzotin\n"])
    def test_at_a_terminal_only_the_clusters_name_removes(self, up: Site, typed: str) -> None:
        up.answers = Answers(ask=lambda question: typed)
        with pytest.raises(SettingInvalid, match="not confirmed"):
            up.down()
        assert self.untouched(up)
        up.answers = Answers(ask=lambda question: "mezzotint\n")
        up.down()
        assert_gone(up)

    def test_a_dry_run_removes_nothing_and_says_what_it_would(self, up: Site) -> None:
        files, before = up.files(), up.world.read()
        up.down(dry_run=True, delete_data=True)
        assert self.untouched(up)
        assert up.files() == files
        assert up.world.read()["objects"] == before["objects"]
        assert any("would run: kubectl" in line and "delete rayservices" in line for line in up.said)
        assert any("would run: terraform" in line and "destroy" in line for line in up.said)
