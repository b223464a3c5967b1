"""As much of Terraform's plug-in protocol, version 6, as a provider of schemas and nothing else speaks.

Messages are built from the table below when this is imported, so that neither a compiler nor generated code
is needed. On the wire a message is its fields' numbers and kinds; the numbers are those of `tfplugin6.proto`,
which HashiCorp publishes with Terraform. Knows nothing of schemas' contents.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "tfplugin6.Provider"

# Message by message: kind, name and number of each field; `*` where it repeats. A map is a repeated entry.
MESSAGES = {
    "Nothing": "",
    "Value": "bytes msgpack 1, bytes json 2",
    "Diagnostic": "int64 severity 1, string summary 2, string detail 3",
    "RawState": "bytes json 1",
    "Schema": "int64 version 1, Block block 2",
    "Block": "int64 version 1, *Attribute attributes 2, *NestedBlock block_types 3",
    "Attribute": "string name 1, bytes type 2, bool required 4, bool optional 5, bool computed 6, "
    "Object nested_type 10",
    "NestedBlock": "string type_name 1, Block block 2, int64 nesting 3, int64 min_items 4, int64 max_items 5",
    "Object": "*Attribute attributes 1, int64 nesting 3",
    "NamedSchema": "string key 1, Schema value 2",
    "Schemas": "Schema provider 1, *NamedSchema resource_schemas 2, *NamedSchema data_source_schemas 3",
    "Validated": "*Diagnostic diagnostics 1",
    # Of a provider's own configuration, diagnostics have another number.
    "ProviderValidated": "*Diagnostic diagnostics 2",
    "Upgrade": "string type_name 1, int64 version 2, RawState raw_state 3",
    "Upgraded": "Value upgraded_state 1, *Diagnostic diagnostics 2",
    "Read": "string type_name 1, Value current_state 2, bytes private 3",
    "WasRead": "Value new_state 1, *Diagnostic diagnostics 2, bytes private 3",
    "Plan": "string type_name 1, Value prior_state 2, Value proposed_new_state 3, Value config 4",
    "Planned": "Value planned_state 1, *Diagnostic diagnostics 4",
    "Apply": "string type_name 1, Value prior_state 2, Value planned_state 3, Value config 4",
    "Applied": "Value new_state 1, *Diagnostic diagnostics 3",
    "ReadData": "string type_name 1, Value config 2",
    "DataRead": "Value state 1, *Diagnostic diagnostics 2",
    "Functions": "",
    "Stopped": "string error 1",
}

# What is asked of a provider, and with which messages.
CALLS = {
    "GetProviderSchema": ("Nothing", "Schemas"),
    "ValidateProviderConfig": ("Nothing", "ProviderValidated"),
    "ValidateResourceConfig": ("Nothing", "Validated"),
    "ValidateDataResourceConfig": ("Nothing", "Validated"),
    "ConfigureProvider": ("Nothing", "Validated"),
    "UpgradeResourceState": ("Upgrade", "Upgraded"),
    "ReadResource": ("Read", "WasRead"),
    "PlanResourceChange": ("Plan", "Planned"),
    "ApplyResourceChange": ("Apply", "Applied"),
    "ReadDataSource": ("ReadData", "DataRead"),
    "GetFunctions": ("Nothing", "Functions"),
    "StopProvider": ("Nothing", "Stopped"),
}

_PACKAGE = "mezzotint_terraform_test"
_FIELD = re.compile(r"(\*?)(\w+) (\w+) (\d+)")
_KINDS = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="plugin.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in _FIELD.findall(fields):
            added = message.field.add(name=field, number=int(number))
            added.label = _KINDS.LABEL_REPEATED if repeated else _KINDS.LABEL_OPTIONAL
            if kind in MESSAGES:
                added.type, added.type_name = _KINDS.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(_KINDS, f"TYPE_{kind.upper()}")
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())
_classes: dict[str, Any] = {
    name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
    for name in MESSAGES
}


def message(kind: str, /, **fields: Any) -> Any:
    """A message of the table above."""
    return _classes[kind](**fields)


def message_class(kind: str) -> Any:
    return _classes[kind]
