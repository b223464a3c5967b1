"""`/openapi.json`, and the same as a page: plain HTML, no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

__all__ = ["router"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .3rem 0; } code { font-size: .95em; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
.method { display: inline-block; min-width: 4.5em; }
"""
DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{DIGEST}'; frame-ancestors 'none'; base-uri 'none'"
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
Node = Mapping[str, Any]

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    document: dict[str, Any] = request.app.openapi()
    return document


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(page(request.app.openapi()), headers={"content-security-policy": POLICY})


def page(document: Node) -> str:
    """An OpenAPI document as HTML."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    schemas = document.get("components", {}).get("schemas", {})
    operations = (
        part
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
        for part in _operation(path, method, operation, schemas)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f'<h1>{title}</h1><p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(operations)}</html>"
    )


def _operation(path: str, method: str, operation: Node, schemas: Node) -> Iterator[str]:
    yield f'<details><summary><code class="method">{method.upper()}</code><code>{escape(path)}</code> '
    yield f"{escape(operation.get('summary', ''))}</summary>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    rows = [
        (each["name"], each["in"], each.get("required", False), each.get("schema", {}), each)
        for each in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(content.get("schema", {}), schemas)
        required = schema.get("required", [])
        rows += [
            (name, kind, name in required, field, field)
            for name, field in schema.get("properties", {}).items()
        ]
    if rows:
        yield "<table><tr><th>field<th>in<th>type<th>meaning</tr>"
        for name, place, required, schema, told in rows:
            mark = " (required)" if required else ""
            meaning = told.get("description") or schema.get("description", "")
            yield f"<tr><td><code>{escape(name)}</code>{mark}<td>{escape(place)}"
            yield f"<td>{escape(_type(schema, schemas))}<td>{escape(meaning)}</tr>"
        yield "</table>"
    yield "<table><tr><th>status<th>meaning</tr>"
    for status, response in operation.get("responses", {}).items():
        yield f"<tr><td>{escape(status)}<td>{escape(response.get('description', ''))}</tr>"
    yield "</table></details>"


def _resolved(schema: Node, schemas: Node) -> Node:
    reference = schema.get("$ref")
    return schema if reference is None else schemas.get(reference.rpartition("/")[2], {})


def _type(schema: Node, schemas: Node) -> str:
    """In a few words."""
    schema = _resolved(schema, schemas)
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = (_type(each, schemas) for each in schema[several] if each.get("type") != "null")
            return " | ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    return str(schema.get("type", "any"))
