"""Write schemas.json from custom resource definitions: what a strict API server would accept of each kind.

Run by hand when a version in README.md changes: `python compact.py CRD.yaml…`. Descriptions are left out, and
what a structural schema says in Kubernetes' own words is said in JSON Schema's: an unknown field is refused
unless the definition preserves it, what has a default need not be there, a number may be a text where
Kubernetes takes both. Rules in CEL are not carried over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
# Said by Kubernetes to its own tools, or true of any object.
DROPPED = ("description", "default", "format", "x-kubernetes-validations", "x-kubernetes-list-type")
DROPPED += ("x-kubernetes-list-map-keys", "x-kubernetes-map-type", "example", "title")


def strict(schema: Any) -> Any:
    """JSON Schema for a structural schema, and all below it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    required = [
        name for name in schema.get("required", ()) if "default" not in (properties or {}).get(name, {})
    ]
    found = {key: value for key, value in schema.items() if key not in (*DROPPED, "properties", "required")}
    takes_both = found.pop("x-kubernetes-int-or-string", False)
    preserves = found.pop("x-kubernetes-preserve-unknown-fields", False)
    embedded = found.pop("x-kubernetes-embedded-resource", False)
    nullable = found.pop("nullable", False)
    found = {key: strict(value) for key, value in found.items()}
    if properties is not None:
        found["properties"] = {name: strict(value) for name, value in properties.items()}
        if embedded:
            found["properties"] = {"apiVersion": {}, "kind": {}, "metadata": {}, **found["properties"]}
        if not preserves and "additionalProperties" not in found:
            found["additionalProperties"] = False
    if required:
        found["required"] = required
    if takes_both:
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if nullable and "type" in found:
        found["type"] = [found["type"], "null"]
    return found


def schemas_of(definition: dict[str, Any]) -> dict[str, Any]:
    """By `apiVersion/kind`. Of the metadata nothing is asked here: it is the same for every kind."""
    spec = definition["spec"]
    found = {}
    for version in spec["versions"]:
        if not version["storage"]:
            continue
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"] = {
            **schema.get("properties", {}),
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
        }
        found[f"{spec['group']}/{version['name']}/{spec['names']['kind']}"] = schema
    return found


def main() -> None:
    schemas: dict[str, Any] = {}
    for path in sys.argv[1:]:
        for document in yaml.safe_load_all(Path(path).read_text()):
            if document and document["kind"] == "CustomResourceDefinition":
                schemas.update(schemas_of(document))
    lines = [
        f"{json.dumps(name)}: {json.dumps(schema, separators=(',', ':'))}"
        for name, schema in sorted(schemas.items())
    ]
    (HERE / "schemas.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
