"""Multipart bodies: text fields checked by a model, files kept in memory, every bound held while reading."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser, MultipartPart

from mezzotint.errors import InvalidRequest, NotSupported, PayloadTooLarge
from mezzotint.imaging.uploads import MAX_UPLOAD_BYTES
from mezzotint.serve.api.errors import invalid_body
from mezzotint.serve.api.json_bodies import parse

__all__ = ["form_schema", "read_form"]

_Fields = TypeVar("_Fields", bound=BaseModel)

# OpenAI's clients send up to 16 pictures and a mask.
MAX_FILES = 17
MAX_TEXT_FIELDS = 64
# A prompt at its longest takes 40,000.
MAX_TEXT_BYTES = 64 * 1024
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "iso8859-1", "latin-1", "latin1"})


class _Parser(MultiPartParser):
    # No file of a stranger's is written to this machine's disk; 0 keeps all of it in memory.
    spool_max_size = 0
    ended = False

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._part_bytes = 0

    def on_headers_finished(self) -> None:
        try:
            super().on_headers_finished()
        except MultiPartException:
            # Its own words name no part.
            name = self._current_part.field_name
            for kind, count, most in (
                ("files", self._current_files, MAX_FILES),
                ("fields of text", self._current_fields, MAX_TEXT_FIELDS),
            ):
                if count > most:
                    raise PayloadTooLarge(f"{name}: a form has at most {most} {kind}", param=name) from None
            raise

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part_bytes += end - start
        name, is_file = self._current_part.field_name, self._current_part.file is not None
        what, most = ("a file", MAX_UPLOAD_BYTES) if is_file else ("a text", MAX_TEXT_BYTES)
        if self._part_bytes > most:
            raise PayloadTooLarge(f"{name}: {what} has at most {most:,} bytes", param=name)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            self.items.append((part.field_name, self._text_of(part)))
        else:
            super().on_part_end()

    def _text_of(self, part: MultipartPart) -> str:
        # Starlette looks at the form's character set alone, and takes what is not in it for Latin-1.
        name, kind = part.field_name, dict(part.item_headers).get(b"content-type", b"")
        try:
            return part.data.decode(_charset_of(kind.decode("latin-1"), name) or self._charset)
        except UnicodeDecodeError as error:
            found = f"no {error.encoding.upper()} at byte {error.start + 1}"
            raise InvalidRequest(f"{name}: {found}; a file must have a filename", param=name) from None

    def on_end(self) -> None:
        self.ended = True


async def read_form(
    request: Request, kind: type[_Fields], files: Sequence[str], not_served: Collection[str]
) -> tuple[_Fields, dict[str, list[bytes]]]:
    """The text fields as `kind`, and the content of the files by the field's name.

    `files` names the fields that take files; `name[]` is read as `name`. `not_served` names fields of `kind`
    that clients know as files or objects.

    Raises:
        InvalidRequest: not such a form, an unknown field, text where a file is meant or the reverse, or text
            that is not in its character set.
        NotSupported: a file, or a part of an object (`name[part]`), of a field that is not served.
        PayloadTooLarge: a file of more than 50 MB, a text of more than 64 KiB, or too many of them.
    """
    form = await _parse(request)
    try:
        texts, contents = await _sorted(form, kind, files, not_served)
    finally:
        await form.close()
    return _check(kind, texts), contents


async def _sorted(
    form: FormData, kind: type[BaseModel], files: Sequence[str], not_served: Collection[str]
) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    texts: dict[str, str] = {}
    contents: dict[str, list[bytes]] = {name: [] for name in files}
    for sent, value in form.multi_items():
        name = sent.removesuffix("[]")
        if name in contents:
            if _is_nothing(value):
                continue
            if not isinstance(value, UploadFile):
                raise InvalidRequest(f"{name} must be a file, not text", param=name)
            contents[name].append(await value.read())
        elif (known := sent.partition("[")[0]) in not_served and (
            known != sent or isinstance(value, UploadFile)
        ):
            raise NotSupported(f"{known} is not supported", param=known)
        elif isinstance(value, UploadFile):
            raise InvalidRequest(f"{sent} takes no file", param=sent)
        elif known != sent and known in kind.model_fields:
            raise InvalidRequest(f"{known}: a list or an object is one text of JSON in a form", param=known)
        elif sent in texts:
            raise InvalidRequest(f"{sent} is given more than once", param=sent)
        else:
            texts[sent] = value
    return texts, contents


def _is_nothing(value: str | UploadFile) -> bool:
    """What a form sends in the place of a file that nobody chose."""
    return not (value.filename or value.size) if isinstance(value, UploadFile) else not value


async def _parse(request: Request) -> FormData:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise InvalidRequest("the body must be multipart/form-data", param="content-type")
    _charset_of(request.headers["content-type"], "content-type")
    parser = _Parser(
        request.headers,
        request.stream(),
        max_files=MAX_FILES,
        max_fields=MAX_TEXT_FIELDS,
        max_part_size=MAX_TEXT_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    if not parser.ended:
        # Its last part is not among the others: without it, another picture would be drawn than was meant.
        await form.close()
        raise InvalidRequest("the form cannot be read: it breaks off before its last boundary")
    return form


def _charset_of(content_type: str, param: str) -> str | None:
    """The character set that it tells, if any.

    Raises:
        InvalidRequest: on `param`, when it is none of the few that are read.
    """
    told = parse_options_header(content_type)[1].get(b"charset")
    if told is None:
        return None
    charset = told.decode("latin-1")
    # Some that Python knows take time that grows with the square of the text.
    if charset.lower().replace("_", "-") not in CHARSETS:
        raise InvalidRequest("a form's character set must be utf-8, us-ascii or latin-1", param=param)
    return charset


def _check(kind: type[_Fields], texts: Mapping[str, str]) -> _Fields:
    # In a form everything is text: numbers too, and lists and objects, which come as JSON.
    in_json = _in_json(kind.model_json_schema())
    values = {
        name: _parsed(kind, name, in_json[name], text) if name in in_json else text
        for name, text in texts.items()
    }
    try:
        return kind.model_validate(values, strict=False)
    except ValidationError as error:
        raise invalid_body(error) from None


def _in_json(schema: Mapping[str, Any]) -> dict[str, str]:
    """The fields that are lists or objects, and which of both."""
    kinds = {
        name: [each.get("type", "object") for each in field.get("anyOf", ())]
        for name, field in schema["properties"].items()
    }
    return {name: told for name in kinds for told in ("array", "object") if told in kinds[name]}


def _parsed(kind: type[BaseModel], name: str, told_as: str, text: str) -> Any:
    """The list or object, held to what its own JSON is held to: in it a number in quotes is none."""
    if not text:
        return None
    annotation = kind.model_fields[name].annotation
    assert annotation is not None
    told = parse(text, f"{name} must be a JSON {told_as}", name)
    try:
        return TypeAdapter(annotation).validate_python(told)
    except ValidationError as error:
        raise invalid_body(error, name) from None


def form_schema(
    kind: type[BaseModel], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """The body of a route that calls `read_form`, for the OpenAPI document."""
    schema = kind.model_json_schema()
    schema.pop("$defs", None)
    for name in _in_json(schema):
        told = {"description": schema["properties"][name]["description"]}
        schema["properties"][name] = {**told, "type": "string", "contentMediaType": "application/json"}
    file = {"type": "string", "format": "binary"}
    # By either name, as OpenAI's clients send them; several are not served yet.
    listed = {f"{name}[]": {"type": "array", "items": file, "maxItems": 1} for name in (*required, *optional)}
    properties = {**dict.fromkeys((*required, *optional), file), **listed, **schema["properties"]}
    either = [{"anyOf": [{"required": [name]}, {"required": [f"{name}[]"]}]} for name in required]
    form = {**schema, "properties": properties, "allOf": either}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
