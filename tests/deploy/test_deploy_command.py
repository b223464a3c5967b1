"""The command itself: its file and flags, exit codes, signals, and the real tools where they are there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mezzotint.cli.main import run
from mezzotint.deploy.checkout import find_source
from mezzotint.deploy.config import OVERLAYS, QUOTAS, DeployConfig, read_config
from mezzotint.deploy.data import empty_buckets, listed_versions
from mezzotint.deploy.deployment import environment_of
from mezzotint.deploy.folder import Folder
from mezzotint.deploy.interrupts import Interrupts
from mezzotint.deploy.leftovers import KINDS
from mezzotint.deploy.pace import LIMITS, Pace
from mezzotint.deploy.processes import Processes
from mezzotint.deploy.proof import ONE_BY_ONE
from mezzotint.deploy.redaction import Redaction
from mezzotint.deploy.runner import CallFailed, Runner
from mezzotint.deploy.stages import DOWN, UP
from mezzotint.deploy.terraform import Owned, Root
from mezzotint.errors import SettingInvalid
from tests.deploy import world as model
from tests.deploy.deploying import DIGEST, Site, serving
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
OWN_COMPONENT = """
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
  - target: {kind: RayService}
    patch: |
      - {op: replace, path: /spec/rayClusterConfig/autoscalerOptions/idleTimeoutSeconds, value: 1234}
"""


class TestConfiguration:
    def write(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "site.toml"
        path.write_text(text)
        return path

    def test_a_file_says_everything_and_flags_go_over_it(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            f"""
            cluster = "drawing"
            region = "eu-central-1"
            account = "123456789012"
            overlay = "gpu"
            [load_balancer]
            scheme = "internet-facing"
            cidrs = ["203.0.113.0/24"]
            certificate = "arn:aws:acm:us-west-2:123456789012:certificate/x"
            url = "https://draw.example"
            [images]
            "mezzotint/cpu" = "registry.example:5000/mezzotint/cpu@{DIGEST}"
            [terraform]
            zone_count = 3
            [backend]
            bucket = "states"
            """,
        )
        config = read_config(path, region="us-west-2", overlay=None)
        assert (config.cluster, config.region, config.overlay) == ("drawing", "us-west-2", "gpu")
        assert config.cidrs == ("203.0.113.0/24",)
        assert config.terraform == {"zone_count": 3}
        assert config.backend == {"bucket": "states"}

    def test_the_sites_own_folder_is_beside_the_file_wherever_the_command_is_run(
        self, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, "component = 'own/changes'")
        assert read_config(path).component == str(tmp_path / "own/changes")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("cluter = 'x'", r"no setting cluter; there are cluster, region, .*load_balancer"),
            ("[load_balancer]\ncidr = []", r"no setting cidr in \[load_balancer\]; there are scheme, cidrs"),
            ("images = 'x'", r"images takes a table"),
            ("cluster = '../x'", "cluster takes 3 to 24"),
            ("cluster = 'a-cluster-with-a-name-too-long'", "cluster takes 3 to 24"),
            ("region = 'us-west-2a'", "region takes one such as us-west-2"),
            ("account = '12'", "account takes 12 digits"),
            ("account = 123456789012", "account takes text"),
            ("overlay = 'local'", "overlay takes gpu or inf2 or trn1"),
            ("[load_balancer]\nscheme = 'public'", "scheme takes internal or internet-facing"),
            ("[load_balancer]\nscheme = 'internet-facing'", "cidrs takes who may reach"),
            ("[load_balancer]\ncidrs = ['0.0.0.0/0']", "cidrs takes networks .* not everybody"),
            ("[load_balancer]\ncidrs = ['0.0.0.0/00']", "cidrs takes networks .* not everybody"),
            ("[load_balancer]\ncidrs = ['0::/0']", "cidrs takes networks .* not everybody"),
            ("[load_balancer]\ncidrs = ['203.0.113.7']", "cidrs takes networks such as 203.0.113.7/32"),
            ("[load_balancer]\ncidrs = '203.0.113.7/32'", "cidrs takes a list; not '203.0.113.7/32'"),
            ("[load_balancer]\ncidrs = 5", "cidrs takes a list; not 5"),
            ("[load_balancer]\ncidrs = ['x']", "cidrs takes networks"),
            ("[load_balancer]\nurl = 'draw.example.com'", "url takes an address such as https://"),
            ("[load_balancer]\nurl = 'http://draw.example.com:80x'", "url takes an address such as https://"),
            ("[load_balancer]\nurl = 'http://draw example.com'", "url takes an address such as https://"),
            ("[load_balancer]\ncertificate = 'x'", "certificate takes an ARN of ACM"),
            (
                "[load_balancer]\ncertificate = 'arn:aws:acm:us-west-2:123456789012:certificate/x'",
                "url takes https://… of the certificate's name",
            ),
            (
                "region = 'us-west-2'\n[load_balancer]\nurl = 'https://x.example'\n"
                "certificate = 'arn:aws:acm:us-east-1:123456789012:certificate/x'",
                "certificate takes one of the region, us-west-2; not 'arn:aws:acm:us-east-1",
            ),
            ("[load_balancer]\ncertificate = 'arn:x:acm:'", "certificate takes an ARN of ACM"),
            ("[images]\n'mezzotint/cpu' = 'x:latest'", "images.mezzotint/cpu takes a reference by digest"),
            ("[images]\n'nginx' = 'x'", "images takes the names mezzotint/cpu"),
            ("[terraform]\nregion = 'x'", "terraform takes variables that have no setting"),
            ("[backend]\ntable = 'x'", "backend takes texts: bucket"),
            ("cluster = ", "Invalid value"),
        ],
    )
    def test_what_is_wrong_or_unknown_is_refused_with_what_is_accepted(
        self, tmp_path: Path, text: str, told: str
    ) -> None:
        with pytest.raises(SettingInvalid, match=told):
            read_config(self.write(tmp_path, text))

    def test_every_overlay_has_an_instance_and_a_quota(self) -> None:
        for instance in OVERLAYS.values():
            assert re.fullmatch(r"[a-z0-9]+\.\d*xlarge", instance)
            assert instance.startswith(tuple(QUOTAS))
        assert all(re.fullmatch(r"L-[0-9A-F]{8}", code) for code, _ in QUOTAS.values())

    def test_a_place_without_the_folder_deploy_is_one_clear_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["deploy", "up", "--source", str(tmp_path), "--region", "us-west-2"]) == 2
        assert re.fullmatch(
            r"error: no terraform/infra.*a checkout of Mezzotint.*\n", capsys.readouterr().err
        )

    def test_the_tools_inherit_no_kubeconfig_workspace_or_arguments(self) -> None:
        outside = {
            "PATH": "/bin",
            "KUBECONFIG": "/home/me/.kube/config",
            "TF_WORKSPACE": "other",
            "TF_CLI_ARGS_apply": "-destroy",
            "AWS_REGION": "elsewhere",
            "AWS_PROFILE": "me",
        }
        found = environment_of("us-west-2", outside)
        assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "us-west-2"
        assert found["AWS_PROFILE"] == "me"
        assert not {"KUBECONFIG", "TF_WORKSPACE", "TF_CLI_ARGS_apply"} & found.keys()

    def test_every_limit_that_is_asked_for_has_a_value_and_none_is_left_over(self) -> None:
        modules = (path for path in (ROOT / "src/mezzotint/deploy").glob("*.py") if path.name != "pace.py")
        sources = "".join(path.read_text() for path in modules)
        assert {name for name in LIMITS if f'"{name}"' in sources} == set(LIMITS)


class TestRedaction:
    @pytest.mark.parametrize(
        "text",
        [
            "postgresql+psycopg://mezzotint:hunter2secret@db/mezzotint",
            "Authorization: Bearer abc.hunter2secret",
            'password = "hunter2secret"',
            "aws_secret_access_key=hunter2secret",
            '"SecretString": "hunter2secret"',
            "mk-id1-hunter2secrethunter2secret",
        ],
    )
    def test_what_looks_like_a_secret_is_hidden(self, text: str) -> None:
        assert "hunter2secret" not in Redaction()(text)

    def test_what_was_seen_is_hidden_however_it_is_written(self) -> None:
        redaction = Redaction()
        redaction.hide("a b/c:d?")
        assert redaction("a b/c:d? a%20b%2Fc%3Ad%3F YSBiL2M6ZD8=") == "[hidden] [hidden] [hidden]"


class TestProcesses:
    @pytest.fixture
    def processes(self) -> Iterator[Processes]:
        with Interrupts() as interrupts:
            yield Processes(interrupts, dict(os.environ), grace_s=PATIENCE_S, progress_s=0.01)

    def runner(self, processes: Processes) -> Runner:
        return Runner(processes, Pace(retry_s=0), Redaction(), lambda line: None)

    def test_a_tool_that_hangs_is_asked_to_stop_at_its_limit(self, processes: Processes) -> None:
        # With a handler of its own: what runs in the background is born deaf to SIGINT, and its children too.
        code = "import signal, sys, time\nsignal.signal(2, lambda *_: sys.exit('released'))\ntime.sleep(60)"
        # On a busy machine it may not have come to its handler within the first.
        for limit_s in (2, 30):
            stopped = f"did not end within {limit_s} s and was stopped"
            with pytest.raises(CallFailed, match=stopped) as caught:
                self.runner(processes).run([sys.executable, "-I", "-S", "-c", code], limit_s=limit_s)
            if caught.value.lines == ["released"]:
                break
        assert caught.value.lines == ["released"]

    def test_one_that_does_not_stop_is_ended_for_certain(self) -> None:
        code = "import signal, time\nsignal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN)\n"
        code += "print('deaf', flush=True); time.sleep(60)"
        with Interrupts() as interrupts:
            processes = Processes(interrupts, dict(os.environ), grace_s=0.1, progress_s=1, last_grace_s=0.1)
            with pytest.raises(CallFailed, match="was stopped"):
                self.runner(processes).run([sys.executable, "-c", code], limit_s=0.5)

    def test_a_log_is_followed_line_by_line_and_is_the_users_alone(
        self, processes: Processes, tmp_path: Path
    ) -> None:
        told: list[str] = []
        release, log = tmp_path / "release", tmp_path / "tool.log"
        code = "import pathlib, sys, time\nprint('at work', flush=True)\n"
        code += f"while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.01)\nprint('ended')"

        def say(line: str) -> None:
            told.append(line)
            if "at work" in line:
                release.touch()

        # The tool ends when its line has been told.
        runner = Runner(processes, Pace(), Redaction(), say)
        ended = runner.run([sys.executable, "-c", code], limit_s=PATIENCE_S, log=log)
        assert ended.out == "at work\nended\n"
        assert log.stat().st_mode & 0o077 == 0

    def test_a_missing_tool_is_said_as_such(self, processes: Processes) -> None:
        with pytest.raises(CallFailed, match="no-such-tool is not on the PATH"):
            self.runner(processes).run(["no-such-tool"], limit_s=1)


class TestCommand:
    """The real command in a process of its own, and the model as programs."""

    def arguments(self, site: Site) -> list[str]:
        config = site.home.parent / "site.toml"
        images = "".join(f'"{name}" = "{image}"\n' for name, image in site.config["images"].items())
        config.write_text(f'region = "us-west-2"\noverlay = "inf2"\n[images]\n{images}')
        return ["--config", str(config), "--source", str(site.source.parent), "--every", "0.01"]

    def test_up_status_verify_and_down_end_with_0(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        with serving() as service:
            site.world.change(address=service.url.removeprefix("http://"))
            options = self.arguments(site)
            results = {}
            for command in (["up"], ["status", "--json"], ["verify", "--json"], ["down", "--yes"]):
                given = options if command[0] in ("up", "down") else options[:2]
                process = site.command(*command, *given)
                out, err = process.communicate(timeout=PATIENCE_S * 4)
                assert process.returncode == 0, err
                results[command[0]] = out, err
        assert "done: mezzotint is up to verify" in results["up"][1]
        status = json.loads(results["status"][0])
        assert status["running"]["deployments"] == {"edge": "2/2", "page": "2/2"}
        assert status["stages"]["verify"] is not None
        assert json.loads(results["verify"][0])["size"] == "64x32"
        assert "done: mezzotint is removed" in results["down"][1]

    def test_a_signal_goes_to_terraform_once_which_releases_its_lock(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.fail("infra apply", "hang")
        process = site.command("up", *self.arguments(site))
        hanging = site.world.path.with_suffix(".hanging")
        wait_until(lambda: hanging.exists() or process.poll() is not None, "terraform runs")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, err
        assert err.splitlines()[-2] == "interrupted"
        assert err.splitlines()[-1].startswith("to go on: mezzotint deploy up --config")
        assert site.world.read()["locked"] is None
        assert "infra" not in json.loads((site.folder / "state.json").read_text())["stages"]

    def test_a_failed_stage_ends_with_1_and_says_what_failed_and_how_to_go_on(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.fail("infra apply", "exit")
        process = site.command("up", *self.arguments(site))
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        lines = err.splitlines()
        assert lines[-1] == "error: stage infra failed"
        assert lines[-2].startswith("to go on: mezzotint deploy up --config")
        assert any(line.startswith("  terraform -chdir=") and " apply " in line for line in lines)
        assert "    Error: it did not work" in lines

    def test_what_is_refused_ends_with_2_in_one_line(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        process = site.command("up", *self.arguments(site), "--account", "999999999999")
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert err.splitlines()[-1].startswith("error: these credentials are of the account 123456789012;")
        assert "to go on" not in err

    def test_status_looks_while_an_up_is_at_work(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        options = self.arguments(site)
        with site.deployment():
            # A file that is replaced while it is read looks like this: a name, and nothing behind it.
            (site.folder / "source/.state0").symlink_to("gone")
            process = site.command("status", *options[:2])
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert "no EKS cluster of this name" in out

    @pytest.mark.parametrize("call", ["sts get-caller-identity", "eks describe-cluster"])
    def test_status_without_credentials_says_what_was_done_and_that_nothing_answered(
        self, tmp_path: Path, call: str
    ) -> None:
        site = Site(tmp_path)
        site.fail(call, "denied")
        process = site.command("status", *self.arguments(site)[:2])
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        assert "  addons" in out
        assert "no EKS cluster" not in out
        told = out.splitlines()[-1]
        assert told.startswith(f"not answered: aws {call} ")
        assert "AccessDenied" in told

    @pytest.mark.parametrize(("script", "command"), [("install.sh", "up"), ("cleanup.sh", "down")])
    def test_the_scripts_pass_their_options_and_the_exit_code_on(
        self, tmp_path: Path, script: str, command: str
    ) -> None:
        stub = tmp_path / "mezzotint"
        stub.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
        stub.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        ran = subprocess.run(
            [ROOT / "deploy" / script, "--dry-run", "a b"],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert ran.returncode == 7
        assert ran.stdout == f"deploy {command} --source {ROOT} --dry-run a b\n"


class TestRealTools:
    """That the calls which the model answers are calls of the real tools."""

    def test_every_call_of_aws_is_one_that_botocore_knows(self) -> None:
        import botocore.session
        from botocore import xform_name

        # Of the aws command itself: its own commands and options, and those of its paging.
        own_commands = {"eks update-kubeconfig"}
        own_options = {"--no-paginate", "--region", "--output"}
        session = botocore.session.get_session()
        asked = [(" ".join(call), option) for *call, option in ONE_BY_ONE.values()]
        asked += [(f"ec2 {kind.delete}", kind.option) for kind in KINDS]
        for call, options in [*model.AWS.items(), *asked]:
            if call in own_commands:
                continue
            service, command = call.split()
            service = {"s3api": "s3"}.get(service, service)
            operations = session.get_service_model(service)
            name = next(
                (each for each in operations.operation_names if xform_name(each, "-") == command), None
            )
            assert name is not None, call
            shape = operations.operation_model(name).input_shape
            members = {f"--{xform_name(each, '-')}" for each in (shape.members if shape else {})}
            asked_for = set(options.split()) - own_options
            given = {option.replace("--no-", "--") for option in asked_for}
            assert given <= members, f"{call}: {given - members}"

    @pytest.mark.skipif(shutil.which("aws") is None, reason="aws is not installed")
    def test_what_is_deleted_of_a_bucket_at_once_is_no_more_than_was_asked_for(
        self, tmp_path: Path, s3_url: str
    ) -> None:
        """Of the real aws command, whose own paging counts versions and not the marks of what was deleted."""
        import boto3

        bucket = s3_url.split("/")[2]
        s3 = boto3.client("s3")
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        for key in "abcd":
            s3.put_object(Bucket=bucket, Key=key, Body=b"")
            s3.delete_object(Bucket=bucket, Key=key)
        site = Site(tmp_path)
        with Interrupts() as interrupts:
            environment = environment_of("us-east-1", os.environ)
            site.launch = Processes(interrupts, environment, grace_s=PATIENCE_S, progress_s=PATIENCE_S)
            with site.deployment(region="us-east-1") as d:
                assert len(listed_versions(d, bucket, at_most=5)) == 5
                empty_buckets(d, [Owned("bucket", "aws_s3_bucket", {"bucket": bucket})])
        left = s3.list_object_versions(Bucket=bucket)
        assert not {"Versions", "DeleteMarkers"} & left.keys()

    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
    def test_every_call_of_kubectl_has_options_that_it_knows(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        with serving() as service:
            site.world.change(address=service.url.removeprefix("http://"))
            site.up()
            site.down()
        forms: dict[str, list[str]] = {}
        for line in site.world.calls.read_text().splitlines():
            argv = json.loads(line)
            if argv[0] == "kubectl" and "--context" in argv:
                verb = argv[5]
                forms.setdefault(f"{verb} {sorted(each for each in argv if each[:2] == '--')}", argv)
        assert len(forms) >= 8
        # A cluster that is nowhere: what is wrong with the options is said before it is looked for.
        config = tmp_path / "nowhere"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
                    "contexts": [{"name": model.ARN, "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        for argv in forms.values():
            argv[2] = str(config)
            ran = subprocess.run(
                argv, input="{}", capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
            assert not re.search(r"unknown (flag|shorthand|command)|unable to match|usage:", ran.stderr, re.I)

    @pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
    def test_a_root_is_planned_applied_read_and_destroyed_by_the_real_terraform(self, tmp_path: Path) -> None:
        """Of resources that terraform has itself, so nothing is fetched; with the state in the folder."""
        source = tmp_path / "deploy"
        infra = source / "terraform/infra"
        infra.mkdir(parents=True)
        (infra / "main.tf").write_text(
            'terraform {\n  backend "s3" {}\n}\n'
            'variable "cluster_name" {}\n'
            'resource "terraform_data" "kept" { input = "data" }\n'
            'resource "terraform_data" "this" {\n  for_each = toset(["a b"])\n  input = var.cluster_name\n}\n'
            'output "cluster_name" { value = terraform_data.this["a b"].output }\n'
            'output "token" {\n  value = "t"\n  sensitive = true\n}\n'
        )
        folder = Folder(tmp_path / "home")
        folder.create()
        with Interrupts() as interrupts:
            environment = environment_of("us-west-2", os.environ)
            processes = Processes(interrupts, environment, grace_s=PATIENCE_S, progress_s=PATIENCE_S)
            runner = Runner(processes, Pace(), Redaction(), lambda line: None)
            root = Root("infra", source, {}, runner, folder, Pace())
            root.set_variables({"cluster_name": "x"})
            plan = root.plan()
            assert (plan.changes, plan.add, plan.destroy) == (True, 2, 0)
            root.apply()
            assert root.outputs() == {"cluster_name": "x"}
            assert not root.plan().changes
            addresses = {each.address for each in root.resources()}
            assert addresses == {"terraform_data.kept", 'terraform_data.this["a b"]'}
            [id] = [each.id for each in root.resources() if each.address == "terraform_data.kept"]
            root.forget(["terraform_data.kept"])
            root.destroy()
            assert root.resources() == []
            again = Root("infra", source, {}, runner, folder, Pace())
            again.take_over({"terraform_data.kept": id})
            assert again.plan().add == 1
            again.apply()
            assert id in {each.id for each in again.resources()}
            # As terraform leaves it where the place of the state does not answer any more.
            state = folder.path / "terraform/infra/terraform.tfstate"
            state.replace(folder.source / "terraform/infra/errored.tfstate")
            later = Root("infra", source, {}, runner, folder, Pace())
            assert not later.plan().changes
            assert id in {each.id for each in later.resources()}
            assert not (folder.source / "terraform/infra/errored.tfstate").exists()
            later.destroy()
        assert (folder.path / "terraform/infra/terraform.tfstate").is_file()
        assert sorted(path.name for path in infra.iterdir()) == ["main.tf"]

    @pytest.mark.skipif(not (ROOT / "deploy/terraform/infra").is_dir(), reason="deploy/terraform is not here")
    def test_the_real_roots_declare_what_the_configuration_says(self, tmp_path: Path) -> None:
        folder = Folder(tmp_path)
        folder.create()
        runner: Any = None
        infra, addons = (
            Root(name, ROOT / "deploy", {}, runner, folder, Pace()).declared() for name in ("infra", "addons")
        )
        said = {"cluster_name", "region", "account_id", "accelerator", "lb_scheme", "lb_cidrs"}
        assert said | {"certificate_arn", "model_uri", "engine_instance_types"} <= infra
        assert {"cluster_name", "region"} <= addons

    @pytest.mark.skipif(
        not (ROOT / "deploy/kubernetes/overlays").is_dir(), reason="deploy/kubernetes is not here"
    )
    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
    @pytest.mark.parametrize("overlay", sorted(OVERLAYS))
    def test_a_site_of_the_real_manifests_has_its_own_values_and_images_by_digest(
        self, tmp_path: Path, overlay: str
    ) -> None:
        from mezzotint.deploy.site import check_images, write_site

        site = Site(tmp_path)
        site.source = tmp_path / "deploy"
        shutil.copytree(ROOT / "deploy/kubernetes", site.source / "kubernetes")
        names = ("cpu", "cuda", "neuron", "ui")
        # What `make push` wrote of another push, as before a rollback: the configuration's word goes first.
        pushed = [
            {"name": f"mezzotint/{name}", "newName": f"registry.example/mezzotint/{name}"} for name in names
        ]
        component = yaml.safe_dump({"images": [{**each, "digest": f"sha256:{'1' * 64}"} for each in pushed]})
        with (site.source / "kubernetes/components/images/kustomization.yaml").open("w") as file:
            file.write(f"apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n{component}")
        images = {f"mezzotint/{name}": f"registry.example/mezzotint/{name}@{DIGEST}" for name in names}
        cidrs = ("203.0.113.7/32", "198.51.100.0/24")
        certificate = "arn:aws:acm:us-west-2:123456789012:certificate/x"
        own = tmp_path / "own"
        own.mkdir()
        (own / "kustomization.yaml").write_text(OWN_COMPONENT)
        asked = {"overlay": overlay, "images": images, "cidrs": cidrs, "certificate": certificate}
        asked |= {"component": str(own), "instance_type": "x9.large"}
        with site.deployment(**asked) as d:
            d.folder.keep(outputs=model.OUTPUTS)
            check_images(d)
            folder = write_site(d)
        rendered = subprocess.run(
            ["kubectl", "kustomize", str(folder)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert rendered.returncode == 0, rendered.stderr
        ours = set(re.findall(r"image: (\S*mezzotint/\S*)", rendered.stdout))
        assert ours
        assert all(image.endswith(f"@{DIGEST}") for image in ours)
        assert ".invalid" not in rendered.stdout
        assert "idleTimeoutSeconds: 1234" in rendered.stdout
        assert re.search(
            r"key: node.kubernetes.io/instance-type\n +operator: In\n +values:\n +- x9.large\n",
            rendered.stdout,
        )
        for value in (*cidrs, certificate, "rediss://valkey.example:6379", "mezzotint-node"):
            assert value in rendered.stdout, value


class TestDocument:
    def test_the_page_names_every_stage_setting_and_option(self) -> None:
        from typer.main import get_command

        from mezzotint.cli.deploy import app

        page = (ROOT / "docs/deploy/command.md").read_text()
        for stage in (*UP, *DOWN):
            assert f"`{stage.name}`" in page, stage.name
        for name in DeployConfig.__dataclass_fields__:
            assert f"`{name}`" in page or f"\n{name} = " in page or f"[{name}]" in page, name
        commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
        for command in commands.values():
            for parameter in command.params:
                option = parameter.opts[0]
                assert option == "--help" or f"`{option}" in page, option

    def test_the_default_place_of_the_source_is_this_checkout(self) -> None:
        wanted = ROOT / "deploy"
        parts = ("terraform/infra", "terraform/addons", "kubernetes/overlays")
        if all((wanted / part).is_dir() for part in parts):
            assert find_source(None) == wanted
        else:
            with pytest.raises(SettingInvalid, match="a checkout of Mezzotint: --source PATH"):
                find_source(None)
