"""Terraform providers that know every argument of the real ones and create nothing.

They run inside the tests' own process, one server each on loopback, and Terraform is told where
(`TF_REATTACH_PROVIDERS`): so the real `terraform` validates, plans and tests without a network and without an
account. A computed attribute is unknown in a plan and made up by an apply. Data sources answer what they are
told to, and make up the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import msgpack

from tests.deploy.terraform.protocol import CALLS, SERVICE, message, message_class
from tests.deploy.terraform.schemas import Schema

UNKNOWN = msgpack.ExtType(0, b"\0")
NESTINGS = {"single": 1, "list": 2, "set": 3, "map": 4}
# The real providers find a name where none is given.
FOUND_IF_NOT_GIVEN = {"id", "name"}
MESSAGE_BYTES = 64 << 20


@contextmanager
def serving(schemas: dict[str, Schema], answers: dict[str, Schema]) -> Iterator[dict[str, str]]:
    """Serve a provider for each schema; gives the environment in which Terraform finds them."""
    servers = []
    attached = {}
    try:
        for name, schema in schemas.items():
            server, port = _start(SchemaProvider(schema, answers))
            servers.append(server)
            attached[f"registry.terraform.io/hashicorp/{name}"] = {
                "Protocol": "grpc",
                "ProtocolVersion": 6,
                "Pid": os.getpid(),
                "Test": True,
                "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
            }
        yield {"TF_REATTACH_PROVIDERS": json.dumps(attached)}
    finally:
        for server in servers:
            server.stop(None).wait(5)


def _start(provider: SchemaProvider) -> tuple[grpc.Server, int]:
    server = grpc.server(
        ThreadPoolExecutor(8),
        options=[("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", -1)],
    )
    handlers = {
        call: grpc.unary_unary_rpc_method_handler(
            _answering(getattr(provider, _snake_case(call), None), answer),
            request_deserializer=message_class(question).FromString,
            response_serializer=message_class(answer).SerializeToString,
        )
        for call, (question, answer) in CALLS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def _answering(method: Callable[[Any], Any] | None, answer: str) -> Callable[[Any, Any], Any]:
    """What a provider has no opinion of is well: an empty answer holds no diagnostics."""
    return lambda request, _: method(request) if method else message(answer)


def _snake_case(call: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", call).lower()


class SchemaProvider:
    """One provider's side of the protocol: a method for each call that has an answer of its own."""

    def __init__(self, schema: Schema, answers: dict[str, Schema]) -> None:
        self._resources: dict[str, Schema] = schema["resources"]
        self._data: dict[str, Schema] = schema["data"]
        self._answers = answers
        self._schemas = message(
            "Schemas",
            provider=_schema(schema["provider"] or {"attributes": {}, "blocks": {}}),
            resource_schemas=_named(self._resources),
            data_source_schemas=_named(self._data),
        )

    def get_provider_schema(self, request: Any) -> Any:
        return self._schemas

    def upgrade_resource_state(self, request: Any) -> Any:
        return message("Upgraded", upgraded_state=message("Value", json=request.raw_state.json))

    def read_resource(self, request: Any) -> Any:
        return message("WasRead", new_state=request.current_state, private=request.private)

    def plan_resource_change(self, request: Any) -> Any:
        state = _unpack(request.proposed_new_state)
        filled = _filled(state, self._resources[request.type_name], lambda name, kind: UNKNOWN)
        return message("Planned", planned_state=_pack(filled))

    def apply_resource_change(self, request: Any) -> Any:
        state = _unpack(request.planned_state)
        filled = _filled(state, self._resources[request.type_name], _maker(request.type_name))
        return message("Applied", new_state=_pack(filled))

    def read_data_source(self, request: Any) -> Any:
        asked = _unpack(request.config)
        answered = {**asked, **self._answers.get(request.type_name, {})}
        filled = _filled(answered, self._data[request.type_name], _maker(request.type_name))
        return message("DataRead", state=_pack(filled))


# --- schemas as messages ---


def _named(blocks: dict[str, Schema]) -> list[Any]:
    return [message("NamedSchema", key=name, value=_schema(block)) for name, block in blocks.items()]


def _schema(block: Schema) -> Any:
    return message("Schema", block=_block(block))


def _block(block: Schema) -> Any:
    return message(
        "Block",
        attributes=[_attribute(name, each) for name, each in sorted(block["attributes"].items())],
        block_types=[
            message(
                "NestedBlock",
                type_name=name,
                block=_block(each["block"]),
                nesting=NESTINGS[each["nesting"]],
                min_items=each["min"] if each["nesting"] in ("list", "set") else 0,
                max_items=each["max"] if each["nesting"] in ("list", "set") else 0,
            )
            for name, each in sorted(block["blocks"].items())
        ],
    )


def _attribute(name: str, attribute: Schema) -> Any:
    kinds = {key: attribute[key] for key in ("required", "optional", "computed")}
    if "type" in attribute:
        return message("Attribute", name=name, type=json.dumps(attribute["type"]).encode(), **kinds)
    nested = message(
        "Object",
        nesting=NESTINGS[attribute["nesting"]],
        attributes=[_attribute(inner, each) for inner, each in attribute["attributes"].items()],
    )
    return message("Attribute", name=name, nested_type=nested, **kinds)


# --- values ---


def _unpack(value: Any) -> Any:
    if value.msgpack:
        return msgpack.unpackb(value.msgpack, strict_map_key=False)
    return json.loads(value.json) if value.json else None


def _pack(value: Any) -> Any:
    return message("Value", msgpack=msgpack.packb(value))


def _filled(value: Any, block: Schema, make: Callable[[str, Any], Any]) -> Any:
    """`value` with what the provider itself would say, by `make(name, type)`."""
    if not isinstance(value, dict):
        return value
    value = dict(value)
    for name, attribute in block["attributes"].items():
        given = value.get(name)
        own = attribute["computed"] and (not attribute["optional"] or name in FOUND_IF_NOT_GIVEN)
        if (given is None and own) or isinstance(given, msgpack.ExtType):
            value[name] = make(name, attribute.get("type"))
    for name, nested in block["blocks"].items():
        inner = value.get(name)
        if isinstance(inner, list):
            value[name] = [_filled(each, nested["block"], make) for each in inner]
        elif isinstance(inner, dict):
            value[name] = _filled(inner, nested["block"], make)
    return value


def _maker(type_name: str) -> Callable[[str, Any], Any]:
    return lambda name, kind: _made_up(type_name, name, kind)


def _made_up(type_name: str, name: str, kind: Any) -> Any:
    """A value of the type, the same for the same question."""
    if kind == "string":
        is_arn = name == "arn" or name.endswith("_arn")
        return f"arn:aws:mock:us-west-2:111122223333:{type_name}" if is_arn else f"{type_name}-{name}"
    if kind == "number":
        return 1
    if kind == "bool":
        return False
    if isinstance(kind, list) and kind[0] in ("list", "set"):
        return [_made_up(type_name, name, kind[1])]
    if isinstance(kind, list) and kind[0] == "object":
        return {inner: _made_up(type_name, inner, each) for inner, each in kind[1].items()}
    return {} if isinstance(kind, list) else None
