"""`mezzotint deploy up`: stage after stage, each of which may be done again; goes on where it was stopped."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mezzotint.deploy.checks import check_tools
from mezzotint.deploy.config import NOT_VARIABLES, OVERLAYS
from mezzotint.deploy.data import still_there
from mezzotint.deploy.deployment import Deployment, shown_failure
from mezzotint.deploy.keys import gateway_pod, make_keys
from mezzotint.deploy.kubectl import NAMESPACE
from mezzotint.deploy.readiness import load_balancer, wait_until_ready
from mezzotint.deploy.runner import TRIES, CallFailed
from mezzotint.deploy.site import apply_manifests, check_component, check_images
from mezzotint.deploy.stages import STAGES, UP, Stage
from mezzotint.deploy.stored_secrets import store_secrets
from mezzotint.deploy.terraform import Plan, Root
from mezzotint.deploy.verify import Verified, verify, wait_until_reachable
from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["bring_up", "run_stage", "verified_text", "verify_service"]

KEY_VARIABLE = "MEZZOTINT_API_KEY"


def bring_up(d: Deployment, until: str | None = None, again: bool = False) -> None:
    """All stages, or those up to `until`. `again`: those that are done with the same, too.

    Raises:
        DeployFailed: a stage failed.
        SettingInvalid: what is asked for cannot be.
    """
    stages = _chosen(d, until)
    if again and not d.dry_run:
        d.folder.unmark(*STAGES)
    # Where it is looked for is asked by `verify` too, which may be without the file.
    seen = {"scheme": d.config.scheme, "url": d.config.url}
    d.folder.keep(cluster=d.cluster, overlay=d.config.overlay, **seen, removed=None)
    for number, stage in enumerate(stages, 1):
        d.say(f"{number}/{len(UP)} {stage.name}: {stage.what}")
        run_stage(d, stage.name, partial(WORK[stage.name], d))
        if not stage.once:
            d.folder.mark(stage.name)
        # The stages behind it would ask a cluster that is not there yet.
        if d.dry_run and stage.name == "infra":
            d.runner.print_only = True


def run_stage(d: Deployment, name: str, work: Callable[[], None]) -> None:
    """Raises DeployFailed: with the stage's name, and what the tool said."""
    try:
        work()
    except CallFailed as error:
        raise DeployFailed(f"stage {name} failed:\n{shown_failure(error, d.runner)}") from None
    except DeployFailed as error:
        raise DeployFailed(f"stage {name} failed: {d.runner.redaction(error.message)}") from None


def _chosen(d: Deployment, until: str | None) -> tuple[Stage, ...]:
    if until is not None and until not in STAGES:
        raise SettingInvalid(f"--until takes {', '.join(STAGES)}; not {until!r}", param="--until")
    if not d.config.overlay:
        raise SettingInvalid(f"overlay takes {' or '.join(OVERLAYS)}", param="overlay")
    _check_variables(d)
    before = d.folder.state.get("backend", {})
    if before != d.config.backend and not d.folder.is_empty:
        raise SettingInvalid(
            f"backend differs from the one that {d.cluster} was deployed with, {dict(before)}: its state is "
            "there, and everything would be made a second time",
            param="backend",
        )
    stages = UP[: STAGES.index(until) + 1] if until else UP
    if any(stage.name == "manifests" for stage in stages):
        check_component(d)
        check_images(d)
    return stages


def _check_variables(d: Deployment) -> None:
    """Raises SettingInvalid: neither root has a variable of this name. Terraform itself would only warn."""
    declared = d.root("infra").declared() | d.root("addons").declared()
    unknown = sorted(set(d.config.terraform) - declared)
    if unknown:
        raise SettingInvalid(
            f"terraform has no variable {', '.join(unknown)}; there are "
            f"{', '.join(sorted(declared - set(NOT_VARIABLES)))}",
            param="terraform",
        )


def _infra(d: Deployment) -> None:
    root = d.root("infra")
    variables = d.variables(root)
    if not d.dry_run:
        d.folder.keep(account=d.account, region=d.config.region, backend=dict(d.config.backend))
    root.take_over(still_there(d, d.folder.state.get("kept") or {}))
    if _applied(d, root, variables):
        d.folder.keep(kept={})
        outputs = root.outputs() if not d.dry_run else {}
        _check_outputs(d, outputs)
        d.folder.keep(outputs={**d.folder.state.get("outputs", {}), **outputs})
        d.folder.mark("infra", root.digest(variables))


def _addons(d: Deployment) -> None:
    root = d.root("addons")
    known = {name: value for name, value in d.outputs.items() if name in root.declared()}
    variables = {**known, **d.variables(root)}
    if _applied(d, root, variables):
        d.folder.mark("addons", root.digest(variables))


def _applied(d: Deployment, root: Root, variables: Mapping[str, Any]) -> bool:
    """Plan and apply; whether there was anything to look at."""
    if d.folder.is_done(root.name, root.digest(variables)):
        d.say(f"  as before; terraform is not asked ({root.name} is done with the same files and variables)")
        return False
    root.set_variables(variables)
    confirmed: Plan | None = None
    for attempt in range(1, TRIES + 1):
        plan = root.plan()
        if not plan.changes:
            d.say("  nothing to change")
            return True
        d.say(f"  to add {plan.add}, to change {plan.change}, to destroy {plan.destroy}")
        if not d.dry_run and (confirmed is None or plan.destroy > confirmed.destroy):
            _confirm(d, root.name, plan)
            confirmed = plan
        try:
            root.apply()
            return True
        except CallFailed as error:
            if attempt == TRIES or not error.may_pass:
                raise
            d.say(f"  {error.why}; this may pass, so the rest is planned again in {d.pace.retry_s:g} s")
            time.sleep(d.pace.retry_s)
    raise AssertionError("the last try returns or raises")


def _confirm(d: Deployment, root: str, plan: Plan) -> None:
    """A person says yes, where there is one. Without one, nothing is destroyed unasked.

    Raises:
        SettingInvalid: it was not said.
    """
    if d.answers.ask is None and not plan.destroy:
        return
    if not d.confirm(f"Apply this to {root} in account {d.account}? It costs money. Type yes: ", "yes"):
        raise SettingInvalid(
            f"{root}: the plan was not confirmed (it destroys {plan.destroy}); --yes applies it unasked",
            param="--yes",
        )


def _check_outputs(d: Deployment, outputs: Mapping[str, Any]) -> None:
    """Raises DeployFailed: the state is another cluster's."""
    meant = {"account_id": d.account, "region": d.config.region, "cluster_name": d.cluster}
    for name, value in meant.items():
        if name in outputs and str(outputs[name]) != value:
            raise DeployFailed(
                f"terraform's {name} is {outputs[name]}, not {value}: another deployment's state"
            )


def _kubeconfig(d: Deployment) -> None:
    d.enter_cluster()
    if not d.dry_run:
        d.say(f"  {d.folder.kubeconfig} leads to {d.cluster_arn}")


def _verify(d: Deployment) -> None:
    if d.dry_run:
        d.say(f"  would draw a picture at {d.config.url or 'the load balancer'}")
        return
    found = verify_service(d)
    d.say(f"  {found.url} draws, and in a browser is the page")
    inside = f"--namespace {NAMESPACE} exec {gateway_pod(d)} -- mezzotint keys create NAME"
    d.say(f"  a key for a client: kubectl --kubeconfig {d.folder.kubeconfig} {inside}")


def verify_service(d: Deployment) -> Verified:
    """Draw through the load balancer, with the key of the environment or else the page's.

    Raises:
        DeployFailed: there is no address or no key yet, or something is not as it should be.
    """
    url = d.config.url or d.folder.state.get("url") or _load_balancer(d)
    key = os.environ.get(KEY_VARIABLE) or _page_key(d)
    d.runner.redaction.hide(key)
    try:
        wait_until_reachable(url, d.wait)
    except DeployFailed as error:
        hint = ""
        if d.folder.state.get("scheme", d.config.scheme) == "internal":
            hint = "; an internal load balancer is reached from inside its network only: verify from there"
        raise DeployFailed(error.message + hint) from None
    return verify(url, key, d.pace, d.say)


def _load_balancer(d: Deployment) -> str:
    address, takes_http = load_balancer(d)
    if not address:
        raise DeployFailed("no load balancer has an address yet")
    if not takes_http:
        raise DeployFailed(
            "the load balancer takes HTTPS alone: --url https://… of its certificate's name says where"
        )
    return f"http://{address}"


def _page_key(d: Deployment) -> str:
    found = d.kubectl.get("secret", "mezzotint-page")
    if found is None:
        raise DeployFailed(f"there is no Secret mezzotint-page; give a key in {KEY_VARIABLE}")
    return base64.b64decode(found["data"]["api_key"]).decode()


def verified_text(found: Verified, as_json: bool) -> str:
    if as_json:
        return json.dumps({**vars(found), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, indent=2)
    return f"{found.url}: {found.size} in {found.picture_s:.1f} s"


WORK: dict[str, Callable[[Deployment], None]] = {
    "tools": check_tools,
    "infra": _infra,
    "kubeconfig": _kubeconfig,
    "addons": _addons,
    "secrets": store_secrets,
    "manifests": apply_manifests,
    "wait": wait_until_ready,
    "keys": make_keys,
    "verify": _verify,
}
