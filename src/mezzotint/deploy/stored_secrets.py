"""The namespace, and the Secrets that its pods need to start.

Values go from AWS to the cluster through this process's memory: by standard input, never by a command line, a
file or the state. Each run renews what AWS rotates; a token of our own making is made once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mezzotint.deploy.deployment import Deployment
from mezzotint.deploy.kubectl import NAMESPACE
from mezzotint.errors import DeployFailed

__all__ = ["apply_secret", "database_url", "store_secrets"]

TOKEN_BYTES = 32
PORT = 5432


def store_secrets(d: Deployment) -> None:
    if not d.kubectl.exists("namespace", NAMESPACE):
        # Applied again, it would lose the labels that the manifests give it.
        d.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    if not d.kubectl.exists("secret", "mezzotint-ray"):
        # KubeRay hands it to every pod of Ray's; another one would part those that run from those to come.
        apply_secret(d, "mezzotint-ray", {"auth_token": secrets.token_urlsafe(TOKEN_BYTES)})
    values = {"database_url": _database_url(d), "valkey_password": _valkey_password(d)}
    apply_secret(d, "mezzotint-stores", values)


def apply_secret(d: Deployment, name: str, values: Mapping[str, str]) -> None:
    for value in values.values():
        d.runner.redaction.hide(value)
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": "mezzotint"}}
    d.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "stringData": dict(values),
        }
    )


def database_url(host: str, name: str, username: str, password: str) -> str:
    """RDS's passwords hold any character; a URL does not."""
    place = host if ":" in host else f"{host}:{PORT}"
    user = f"{quote(username, safe='')}:{quote(password, safe='')}"
    return f"postgresql+psycopg://{user}@{place}/{quote(name, safe='')}?sslmode=require"


def _database_url(d: Deployment) -> str:
    found = _parsed(_secret(d, "database_secret_arn"))
    if d.dry_run and not found:
        return ""
    if not {"username", "password"} <= found.keys():
        raise DeployFailed("the database's secret has no username and password")
    d.runner.redaction.hide(str(found["password"]))
    url = database_url(
        d.output("database_host"), d.output("database_name"), str(found["username"]), str(found["password"])
    )
    d.runner.redaction.hide(url)
    return url


def _valkey_password(d: Deployment) -> str:
    """The text itself, or what a table holds."""
    text = _secret(d, "valkey_secret_arn")
    found = _parsed(text)
    return next((str(found[name]) for name in ("auth_token", "password") if name in found), text)


def _secret(d: Deployment, output: str) -> str:
    arn = d.output(output)
    text = str(d.aws("secretsmanager", "get-secret-value", "--secret-id", arn).get("SecretString", ""))
    d.runner.redaction.hide(text)
    if not text and not d.dry_run:
        raise DeployFailed(f"the secret {arn} is empty")
    return text


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
