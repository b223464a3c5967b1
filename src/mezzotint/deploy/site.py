"""The manifests of one site: a copy of deploy/kubernetes with this site's values and images written into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from mezzotint.deploy.config import images_of
from mezzotint.deploy.deployment import Deployment
from mezzotint.errors import DeployFailed

__all__ = ["SITE", "apply_manifests", "write_site"]

SITE = "site"
# Of `site.env`: these are said by the configuration, the rest by terraform's outputs of the same names.
SAID = ("MODEL_URI", "LB_SCHEME", "LB_CIDRS", "CERTIFICATE_ARN")


def apply_manifests(d: Deployment) -> None:
    folder = write_site(d)
    d.kubectl.apply_folder(folder)


def write_site(d: Deployment) -> Path:
    """The folder that kubectl applies.

    Raises:
        DeployFailed: a value of `site.env` is known to nobody.
    """
    kubernetes = d.folder.source / "kubernetes"
    shutil.rmtree(kubernetes, ignore_errors=True)
    shutil.copytree(d.source / "kubernetes", kubernetes)
    overlay = kubernetes / "overlays" / d.config.overlay
    env = overlay / "site.env"
    env.write_text(_filled(d, env.read_text(encoding="utf-8")), encoding="utf-8")
    site = kubernetes / SITE
    site.mkdir()
    images = [_image(name, reference) for name, reference in images_of(d.config).items()]
    (site / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"../overlays/{d.config.overlay}"],
                "images": images,
            },
            sort_keys=False,
        ),
        encoding="utf-8",
    )
    return site


def _filled(d: Deployment, text: str) -> str:
    """Each line `NAME=value` with this site's value; what nothing is known of keeps the overlay's own."""
    said = {
        "MODEL_URI": d.config.model,
        "LB_SCHEME": d.config.scheme,
        "LB_CIDRS": ",".join(d.config.cidrs),
        "CERTIFICATE_ARN": d.config.certificate,
    }
    lines = []
    for line in text.splitlines():
        name, equals, own = line.partition("=")
        if not equals or line.startswith("#"):
            lines.append(line)
            continue
        value = said.get(name) or _known(d, name, own)
        if "\n" in value:
            raise DeployFailed(f"{name} of site.env takes one line")
        lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n"


def _known(d: Deployment, name: str, own: str) -> str:
    output = name.lower()
    if name in SAID and output not in d.outputs:
        return own
    return d.output(output)


def _image(name: str, reference: str) -> dict[str, str]:
    new_name, _, digest = reference.partition("@")
    return {"name": name, "newName": new_name, "digest": digest}
