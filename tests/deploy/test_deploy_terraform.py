"""That `up` and `down` handle the real roots: by the real terraform, with providers that create nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mezzotint.deploy.config import DeployConfig
from mezzotint.deploy.data import kept_resources
from mezzotint.deploy.deployment import Deployment, environment_of
from mezzotint.deploy.folder import Folder
from mezzotint.deploy.interrupts import Interrupts
from mezzotint.deploy.pace import Pace
from mezzotint.deploy.processes import Processes
from mezzotint.deploy.redaction import Redaction
from mezzotint.deploy.runner import Runner

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

pytestmark = [
    pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed"),
    pytest.mark.skipif(not (DEPLOY / "terraform/infra").is_dir(), reason="deploy/terraform is not here"),
]


def test_the_real_infra_is_applied_gives_every_sites_value_and_goes_but_for_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With its providers, which are made from the real ones' schemas.
    roots = pytest.importorskip("tests.deploy.test_terraform")
    try:
        schemas = {
            name: roots.used(roots.read_schema(name, roots.CACHE), roots.SOURCE) for name in roots.PACKAGES
        }
    except roots.NotFetched as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr("mezzotint.deploy.data.holds_objects", lambda d, bucket: "models" in bucket)
    folder = Folder(tmp_path / "home")
    folder.create()
    with roots.serving(schemas, roots.ANSWERS) as attached, Interrupts() as interrupts:
        environment = environment_of("us-west-2", roots.environment(tmp_path, attached))
        launch = Processes(interrupts, environment, grace_s=60, progress_s=60)
        runner = Runner(launch, Pace(), Redaction(), lambda line: None)
        config = DeployConfig(region="us-west-2", overlay="inf2", cidrs=("203.0.113.7/32",))
        d = Deployment(config, DEPLOY, folder, runner, Pace(), lambda line: None)
        d.account = roots.ANSWERS["aws_caller_identity"]["account_id"]
        root = d.root("infra")
        root.set_variables(d.variables(root))
        assert root.plan().add > 100
        root.apply()
        outputs = root.outputs()
        named = (DEPLOY / "kubernetes/overlays/inf2/site.env").read_text().splitlines()
        assert {line.partition("=")[0].lower() for line in named} <= outputs.keys()
        assert {
            "database_host",
            "database_name",
            "database_secret_arn",
            "valkey_secret_arn",
        } <= outputs.keys()
        # Every required variable of the second root is one of the first's outputs or of the configuration.
        addons = d.root("addons").declared()
        assert {"cluster_name", "region", "vpc_id", "accelerator", "interruption_queue"} <= addons
        assert {"cluster_name", "vpc_id", "accelerator", "interruption_queue"} <= outputs.keys()

        kept = kept_resources(d, root.resources())
        assert 'module.storage.aws_s3_bucket.this["models"]' in kept
        assert 'module.storage.aws_s3_bucket.this["pictures"]' not in kept
        assert "module.storage.aws_kms_key.data" in kept
        root.forget(kept)
        root.destroy()
        assert root.resources() == []
    # It worked in a copy.
    assert not (DEPLOY / "terraform/infra/.terraform").exists()
