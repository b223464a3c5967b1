"""The manifests of one site: a copy of deploy/kubernetes with this site's values and images in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mezzotint.config_file import read_table
from mezzotint.deploy.deployment import Deployment
from mezzotint.errors import DeployFailed, SettingInvalid

__all__ = ["SITE", "apply_manifests", "check_component", "check_images", "write_site"]

SITE, COMPONENT = "site", "component"
OURS = "mezzotint/"
TLS = "../../components/tls"
PUSHED = "components/images/kustomization.yaml"
# Of `site.env`: these may be said by the configuration; the rest comes from terraform's outputs alone.
SAID = ("MODEL_URI", "LB_SCHEME", "LB_CIDRS", "CERTIFICATE_ARN")


def apply_manifests(d: Deployment) -> None:
    d.kubectl.apply_folder(write_site(d))


def check_images(d: Deployment) -> None:
    """Raises SettingInvalid: an image that the overlay runs is not given; a dry run only says so."""
    missing = [name for name in _overlay_images(d) if name not in d.config.images]
    if missing and d.dry_run:
        d.say(f"the images {', '.join(missing)} are not given, and are needed from the stage manifests on")
    elif missing:
        raise SettingInvalid(
            f"images: {', '.join(missing)} of the overlay {d.config.overlay} not given. The registry is made "
            "by infra: first `mezzotint deploy up --until addons`, then `make push` to it",
            param="images",
        )


def check_component(d: Deployment) -> None:
    """Raises SettingInvalid: the site's own component is none. Not asked by `down`, which does without."""
    file = Path(d.config.component) / "kustomization.yaml"
    if d.config.component and not (file.is_file() and read_table(file).get("kind") == "Component"):
        raise SettingInvalid(
            "component takes a folder whose kustomization.yaml is of the kind Component; "
            f"not {d.config.component!r}",
            param="component",
        )


def write_site(d: Deployment) -> Path:
    """The folder that kubectl applies.

    Raises:
        DeployFailed: a value of `site.env` is known to nobody.
    """
    kubernetes = d.folder.source / "kubernetes"
    shutil.rmtree(kubernetes, ignore_errors=True)
    shutil.copytree(d.source / "kubernetes", kubernetes)
    overlay = kubernetes / "overlays" / d.config.overlay
    values = _values(d, overlay / "site.env")
    cidrs = values.get("LB_CIDRS", "").split(",")
    # The manifests have room for one; all of them are patched in below.
    values["LB_CIDRS"] = cidrs[0]
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    (overlay / "site.env").write_text(lines, encoding="utf-8")
    _forget_pushed(kubernetes / PUSHED)
    if values.get("CERTIFICATE_ARN"):
        _add_component(overlay / "kustomization.yaml", TLS)
    site = kubernetes / SITE
    site.mkdir()
    if d.config.component:
        # Copied, for what kubectl takes lies below one folder.
        shutil.copytree(d.config.component, site / COMPONENT)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../overlays/{d.config.overlay}"],
        "components": [COMPONENT] if d.config.component else [],
        "images": _images(d),
        "patches": [
            *([_who_may_reach(cidrs)] if len(cidrs) > 1 else []),
            *([_engines_run_on(d.config.instance_type)] if d.config.instance_type else []),
        ],
    }
    _write(site / "kustomization.yaml", kustomization)
    return site


def _forget_pushed(component: Path) -> None:
    """What `make push` last wrote would go before the configuration's images, and undo a rollback."""
    if component.is_file():
        found = yaml.safe_load(component.read_text(encoding="utf-8"))
        _write(component, {**found, "images": []})


def _values(d: Deployment, env: Path) -> dict[str, str]:
    """Each name of the file with this site's value; what nothing is known of keeps the overlay's own."""
    said = {
        "MODEL_URI": d.config.model,
        "LB_SCHEME": d.config.scheme,
        "LB_CIDRS": ",".join(d.config.cidrs),
        "CERTIFICATE_ARN": d.config.certificate,
    }
    values: dict[str, str] = {}
    for line in env.read_text(encoding="utf-8").splitlines():
        name, equals, own = line.partition("=")
        if not equals or line.startswith("#"):
            continue
        values[name] = said.get(name) or _known(d, name, own)
        if "\n" in values[name]:
            raise DeployFailed(f"{name} of site.env takes one line")
    return values


def _known(d: Deployment, name: str, own: str) -> str:
    output = name.lower()
    if name in SAID and output not in d.outputs:
        return own
    return d.output(output)


def _overlay_images(d: Deployment) -> Mapping[str, str]:
    """Of the overlay's images that are ours: the name in the manifests, and what the overlay makes of it."""
    overlay = d.source / "kubernetes" / "overlays" / d.config.overlay
    found = yaml.safe_load((overlay / "kustomization.yaml").read_text(encoding="utf-8"))
    listed = found.get("images") or []
    return {
        each["name"]: each.get("newName", each["name"]) for each in listed if each["name"].startswith(OURS)
    }


def _images(d: Deployment) -> list[dict[str, str]]:
    """By the names that the overlay gives them, for it comes first."""
    images = []
    for name, renamed in _overlay_images(d).items():
        # Only a dry run gets here without.
        new_name, _, digest = d.config.images.get(name, f"<{name}>@<digest>").partition("@")
        images.append({"name": renamed, "newName": new_name, "digest": digest})
    return images


def _who_may_reach(cidrs: list[str]) -> dict[str, Any]:
    change = [{"op": "replace", "path": "/spec/sourceRanges", "value": cidrs}]
    return {"target": {"kind": "LoadBalancerConfiguration"}, "patch": yaml.safe_dump(change)}


def _engines_run_on(instance_type: str) -> dict[str, Any]:
    """The overlays name theirs in the third requirement, behind those that all of them have."""
    path = "/spec/template/spec/requirements/2"
    change = [
        {"op": "test", "path": f"{path}/key", "value": "node.kubernetes.io/instance-type"},
        {"op": "replace", "path": f"{path}/values", "value": [instance_type]},
    ]
    return {"target": {"kind": "NodePool", "name": "mezzotint-engine"}, "patch": yaml.safe_dump(change)}


def _add_component(path: Path, component: str) -> None:
    """Behind the others: it changes what they bring."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    components = found.setdefault("components", [])
    if component not in components:
        components.append(component)
    _write(path, found)


def _write(path: Path, kustomization: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(kustomization), sort_keys=False), encoding="utf-8")
