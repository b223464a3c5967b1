"""What arguments a Terraform provider takes, read from the bindings of it that CDK for Terraform put on npm.

The bindings are generated from the provider's own schema, and one folder of the package is one resource or
data source: `index.js` says how each argument is written as HCL, `index.d.ts` which are required and which
are blocks. What they do not say: enums, conflicts, defaults, and whether an optional argument is also
computed. So what is checked with them is names, places, types and required arguments.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Type = str | list[Any]
Schema = dict[str, Any]

# The package of each provider. It says itself which version of the provider it was generated from.
PACKAGES = {
    "aws": "@cdktf/provider-aws@21.22.1",
    "helm": "@cdktf/provider-helm@12.1.2",
    "http": "@cdktf/provider-http@10.0.1",
    "kubernetes": "@cdktf/provider-kubernetes@12.1.1",
    "random": "@cdktf/provider-random@12.0.1",
}
FETCH_SECONDS = 240

# `name: { value: …this._property…, isBlock: …, type: …, storageClassType: … }`, as the generator lays it out.
_WRITTEN = re.compile(
    r"(?P<name>\w+): \{\s*value: (?P<value>[^\n]*)\n\s*isBlock: (?:true|false),\s*"
    r'type: "(?P<kind>\w+)",\s*storageClassType: "(?P<stored>\w+)",\s*\}'
)
_PROPERTY = re.compile(r"(?:struct!?|this)\._?(\w+)")
_INTERFACE = re.compile(r"export interface (\w+)[^{]*\{(.*?)\n\}", re.S)
_MEMBER = re.compile(r"/\*\*(?P<doc>.*?)\*/\s*readonly (?P<name>\w+)(?P<optional>\??):", re.S)
_WRITER = re.compile(r"function (\w+)ToHclTerraform\(struct\) \{(.*?)\n\}", re.S)
_CLASS = re.compile(r"^class (\w+) extends cdktf\.(\w+) \{(.*?)^\}", re.S | re.M)
_GETTER = re.compile(
    r"return (?P<set>cdktf\.Fn\.tolist\()?this\.get(?P<kind>\w+)Attribute\('(?P<name>\w+)'\)"
)
_CHILD = re.compile(r'this\._\w+ = new (\w+?)(List|Map|OutputReference)\(this, "(\w+)"')
_ROOTS = {"TerraformResource": "resources", "TerraformDataSource": "data", "TerraformProvider": "provider"}
_PLAIN = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
_GOTTEN: dict[str, Type] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
    "AnyMap": "dynamic",
}


class NotFetched(Exception):
    """npm is not there, or did not bring the package."""


def read_schema(provider: str, cache: Path) -> Schema:
    """`{"version": …, "provider": block, "resources": {type: block}, "data": {type: block}}` of `provider`.

    Fetched once into `cache`, and read from there afterwards.

    Raises:
        NotFetched: it is not in the cache, and npm could not bring it.
    """
    package = PACKAGES[provider]
    kept = cache / f"{package.rsplit('/', 1)[1].replace('@', '-')}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Another run may fetch it at the same time; whichever ends last has written the same.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            unfinished = Path(folder) / "schema.json"
            unfinished.write_text(json.dumps(_read_package(_fetch(package, Path(folder)))))
            unfinished.replace(kept)
    schema: Schema = json.loads(kept.read_text())
    return schema


def _fetch(package: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise NotFetched("needs npm, to fetch the providers' schemas once")
    command = [npm, "pack", package, "--loglevel=error"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=folder)
    except subprocess.TimeoutExpired:
        raise NotFetched(f"npm did not bring {package} within {FETCH_SECONDS} s") from None
    if ran.returncode:
        raise NotFetched(f"npm did not bring {package}: {ran.stderr.strip()[-300:]}")
    return folder / ran.stdout.strip().splitlines()[-1]


def _read_package(archive: Path) -> Schema:
    folders: dict[str, dict[str, str]] = {}
    with tarfile.open(archive) as package:
        for member in package:
            parts = member.name.split("/")
            if len(parts) == 4 and parts[1] == "lib" and parts[3] in ("index.js", "index.d.ts"):
                content = package.extractfile(member)
                assert content is not None
                folders.setdefault(parts[2], {})[parts[3]] = content.read().decode()
            elif member.name == "package/package.json":
                content = package.extractfile(member)
                assert content is not None
                version = json.load(content)["cdktf"]["provider"]["version"]
    schema: Schema = {"version": version, "provider": None, "resources": {}, "data": {}}
    for folder in folders.values():
        if len(folder) == 2:
            _add(schema, _Binding.read(folder["index.js"], folder["index.d.ts"]))
    return schema


def _add(schema: Schema, binding: _Binding) -> None:
    for name, (base, body) in binding.classes.items():
        if base not in _ROOTS:
            continue
        written = body.partition("synthesizeHclAttributes() {")[2]
        block = binding.block(written, body, f"{name}Config")
        if base == "TerraformProvider":
            schema["provider"] = block
        elif binding.type_name:
            schema[_ROOTS[base]][binding.type_name] = block
        return


@dataclass(frozen=True)
class _Member:
    required: bool
    is_block: bool


@dataclass(frozen=True)
class _Binding:
    """One folder of the package."""

    type_name: str
    classes: dict[str, tuple[str, str]]
    writers: dict[str, str]
    members: dict[str, dict[str, _Member]]

    @classmethod
    def read(cls, script: str, types: str) -> _Binding:
        named = re.search(r"terraformResourceType: '(\w+)'", script)
        return cls(
            type_name=named[1] if named else "",
            classes={name: (base, body) for name, base, body in _CLASS.findall(script)},
            writers=dict(_WRITER.findall(script)),
            members={name: _members(body) for name, body in _INTERFACE.findall(types)},
        )

    def block(self, written: str, body: str, interface: str) -> Schema:
        """The block that `written` writes, of a class whose text is `body`."""
        members = self.members.get(interface, {})
        children = {name: (struct, shape) for struct, shape, name in _CHILD.findall(body)}
        attributes: Schema = {}
        blocks: Schema = {}
        for entry in _WRITTEN.finditer(written):
            name = entry["name"]
            property_name = _PROPERTY.search(entry["value"])
            member = members.get(property_name[1] if property_name else name, _Member(False, False))
            plain = _plain_type(entry["kind"], entry["stored"])
            if plain is not None:
                attributes[name] = _argument(member, type=plain)
                continue
            struct, shape = children.get(name, (re.sub(r"(List|Map)$", "", entry["stored"]), "List"))
            inner = self._struct(struct)
            if member.is_block:
                blocks[name] = _nested_block(entry["kind"], shape, member, inner)
            else:
                alone = entry["kind"] == "struct" or shape == "OutputReference"
                nesting = "single" if alone else entry["kind"]
                attributes[name] = _argument(member, nesting=nesting, attributes=inner["attributes"])
        for name, kind in self._computed(body).items():
            if name not in attributes and name not in blocks:
                attributes[name] = _computed(kind)
        return {"attributes": attributes, "blocks": blocks}

    def _struct(self, struct: str) -> Schema:
        writer = self.writers.get(struct[:1].lower() + struct[1:], "")
        body = self.classes.get(f"{struct}OutputReference", ("", ""))[1]
        return self.block(writer, body, struct)

    def _computed(self, body: str) -> dict[str, Type]:
        """Every attribute that can be read of a class, whether or not it can be written."""
        found: dict[str, Type] = {}
        for getter in _GETTER.finditer(body):
            kind = _GOTTEN.get(getter["kind"], "string")
            found[getter["name"]] = ["set", kind[1]] if getter["set"] and isinstance(kind, list) else kind
        for struct, shape, name in _CHILD.findall(body):
            inner = self._computed(self.classes.get(f"{struct}OutputReference", ("", ""))[1])
            found[name] = ["map" if shape == "Map" else "list", ["object", inner]]
        return found


def _members(body: str) -> dict[str, _Member]:
    return {
        member["name"]: _Member(required=not member["optional"], is_block=" block\n" in member["doc"])
        for member in _MEMBER.finditer(body)
    }


def _plain_type(kind: str, stored: str) -> Type | None:
    matched = re.fullmatch(r"(string|number|boolean|any)(List|Map)?", stored)
    if matched is None:
        return None
    plain = _PLAIN[matched[1]]
    if matched[2] == "List":
        return ["set" if kind == "set" else "list", "string" if plain == "dynamic" else plain]
    if matched[2] == "Map":
        # A map of anything is how the generator writes a value whose shape the provider leaves open.
        return plain if plain == "dynamic" else ["map", plain]
    return plain


def _argument(member: _Member, **of: Any) -> Schema:
    return {
        "required": member.required,
        "optional": not member.required,
        "computed": not member.required,
        **of,
    }


def _computed(kind: Type) -> Schema:
    return {"required": False, "optional": False, "computed": True, "type": kind}


def _nested_block(kind: str, shape: str, member: _Member, inner: Schema) -> Schema:
    nesting = "single" if kind == "struct" else kind
    return {
        "nesting": nesting,
        "min": int(member.required),
        "max": int(shape == "OutputReference" and nesting != "single"),
        "block": inner,
    }
