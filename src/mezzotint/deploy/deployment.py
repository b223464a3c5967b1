"""What every stage works with: what is asked for, what is known so far, and the three tools."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mezzotint.deploy.aws import Aws
from mezzotint.deploy.config import DeployConfig
from mezzotint.deploy.folder import Folder
from mezzotint.deploy.kubectl import Kubectl
from mezzotint.deploy.pace import Pace
from mezzotint.deploy.runner import CallFailed, Runner
from mezzotint.deploy.terraform import Root
from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["CLUSTER_TAG", "Answers", "Deployment", "environment_of", "shown_failure"]

# On every AWS resource of a deployment.
CLUSTER_TAG = "mezzotint.dev/cluster"
PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov"}
# They would make terraform do something else than what is written here.
NOT_INHERITED = ("KUBECONFIG", "TF_WORKSPACE", "TF_DATA_DIR")


@dataclass(frozen=True)
class Answers:
    """How questions are answered. yes: all, with yes. ask: puts one to a person; None without a terminal."""

    yes: bool = False
    ask: Callable[[str], str] | None = None


@dataclass
class Deployment:
    config: DeployConfig
    source: Path
    folder: Folder
    runner: Runner
    pace: Pace
    say: Callable[[str], None]
    answers: Answers = field(default_factory=Answers)
    account: str = ""

    def __post_init__(self) -> None:
        self.aws = Aws(self.runner, self.pace, self.config.region)
        self._roots: dict[str, Root] = {}

    @property
    def cluster(self) -> str:
        return self.config.cluster

    @property
    def dry_run(self) -> bool:
        return self.runner.dry_run

    @property
    def cluster_arn(self) -> str:
        """Of the EKS cluster; also the name of its context in the kubeconfig."""
        region = self.config.region
        partition = next((name for part, name in PARTITIONS.items() if region.startswith(f"{part}-")), "aws")
        return f"arn:{partition}:eks:{region}:{self.account}:cluster/{self.cluster}"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.runner, self.pace, self.folder.kubeconfig, self.cluster_arn)

    def root(self, name: str) -> Root:
        if name not in self._roots:
            self._roots[name] = Root(
                name, self.source, self.config.backend, self.runner, self.folder, self.pace
            )
        return self._roots[name]

    def variables(self, root: Root) -> dict[str, Any]:
        """What the configuration says of a root's variables; only those that it declares."""
        asked = self.config
        said = {
            "cluster_name": asked.cluster,
            "region": asked.region,
            "account_id": self.account,
            "accelerator": asked.overlay,
            "engine_instance_types": [asked.instance_type] if asked.instance_type else None,
            "lb_scheme": asked.scheme,
            "lb_cidrs": list(asked.cidrs),
            "certificate_arn": asked.certificate,
            "model_uri": asked.model,
        }
        given = {**{name: value for name, value in said.items() if value}, **asked.terraform}
        declared = root.declared()
        return {name: value for name, value in given.items() if name in declared}

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Terraform's, of `infra`. In a dry run of what is not there yet, each is `<name>`."""
        found: Mapping[str, Any] = self.folder.state.get("outputs") or {}
        return Unknown(found) if self.dry_run else found

    def output(self, name: str) -> str:
        """Raises DeployFailed: infra has no such output."""
        try:
            return str(self.outputs[name])
        except KeyError:
            raise DeployFailed(f"terraform's root infra has no output {name}") from None

    def check_account(self) -> None:
        """Raises SettingInvalid: the credentials are of another account than the one that is meant."""
        identity = self.aws("sts", "get-caller-identity")
        self.account = str(identity.get("Account", ""))
        # What was all removed, and left no data, binds nobody.
        before = {} if self.folder.is_empty and not self.folder.state.get("kept") else self.folder.state
        for meant, whose in (
            (self.config.account, "the one asked for is"),
            (before.get("account", ""), f"{self.cluster} was deployed to"),
        ):
            if meant and meant != self.account:
                raise SettingInvalid(
                    f"these credentials are of the account {self.account}; {whose} {meant}", param="account"
                )
        region, asked = before.get("region", ""), self.config.region
        if region and region != asked and not self.folder.is_empty:
            raise SettingInvalid(
                f"region is {asked}; {self.cluster} was deployed to {region}", param="region"
            )
        buckets = [address for address in before.get("kept") or {} if "aws_s3_bucket" in address]
        if region and region != asked and buckets:
            raise SettingInvalid(
                f"region is {asked}; {self.cluster}'s buckets, which were kept, are in {region}, and their "
                "names are taken everywhere: `down --delete-data` there, or another cluster's name",
                param="region",
            )

    def enter_cluster(self) -> None:
        """Write the kubeconfig, and see that it leads to the cluster that is meant.

        Raises:
            SettingInvalid: it leads to another.
        """
        self.folder.kubeconfig.unlink(missing_ok=True)
        # Its own file, so not a change in a dry run, which has a folder to throw away.
        self.aws.update_kubeconfig(self.cluster, str(self.folder.kubeconfig))
        if self.runner.print_only:
            return
        self.folder.kubeconfig.chmod(0o600)
        found = self.kubectl.current_cluster()
        if found != self.cluster_arn:
            raise SettingInvalid(
                f"the kubeconfig leads to {found or 'no cluster'}, not to {self.cluster_arn}", param="cluster"
            )

    def wait(self, what: str, limit: str, look: Callable[[], str]) -> None:
        """Look until there is nothing left to say, which is what `look` answers then.

        Raises:
            DeployFailed: the limit passed; says what was waited for last.
        """
        if self.dry_run:
            self.say(f"  would wait for {what}, {self.pace.limit(limit):g} s at most")
            return
        began = time.monotonic()
        told, told_at = "", began
        while missing := look():
            now = time.monotonic()
            if now - began > self.pace.limit(limit):
                raise DeployFailed(f"{what}: not within {self.pace.limit(limit):g} s; {missing}")
            if missing != told or now - told_at >= self.pace.progress_s:
                self.say(f"  {now - began:.0f} s, waiting for {what}: {missing}")
                told, told_at = missing, now
            time.sleep(self.pace.every_s)

    def confirm(self, question: str, expected: str) -> bool:
        """Whether a person typed what was expected, or said yes to everything before."""
        if self.answers.yes:
            return True
        return self.answers.ask is not None and self.answers.ask(question).strip() == expected


class Unknown(dict[str, Any]):
    """Stands in for outputs that there are none of yet."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__(known)

    def __missing__(self, name: str) -> str:
        return f"<{name}>"


def environment_of(region: str, outside: Mapping[str, str]) -> dict[str, str]:
    """Of the tools: this process's own, less what would have them do something else, and without prompts."""
    kept = {
        name: value
        for name, value in outside.items()
        if name not in NOT_INHERITED and not name.startswith("TF_CLI_ARGS")
    }
    return {
        **kept,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_PAGER": "",
        "AWS_CLI_AUTO_PROMPT": "off",
        "TF_IN_AUTOMATION": "1",
        "TF_INPUT": "0",
        "CHECKPOINT_DISABLE": "1",
    }


def shown_failure(error: CallFailed, runner: Runner) -> str:
    """What failed, on several lines."""
    lines = [f"  {runner.shown(error.argv)}", f"  {error.why}"]
    return "\n".join([*lines, *(f"    {runner.redaction(line)}" for line in error.lines)])
