"""What OpenAI's clients read: the pictures in one answer, or event by event."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from mezzotint.errors import StoreUnavailable
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.api.drawing import draw_all, stream_all
from mezzotint.serve.api.openai_schemas import ImageFields
from mezzotint.serve.api.pictures import link_to
from mezzotint.serve.api.sse import DONE, EventStream, ServerEvent, opened
from mezzotint.serve.prepared import PreparedRequest
from mezzotint.serve.services import Services
from mezzotint.serve.several import together
from mezzotint.serve.wire import Drawn, Step

__all__ = ["Answer", "ImagesAnswer", "Usage"]

# The side in pixels of what counts as one token of a picture, and the bytes of one of text.
TOKEN_PIXELS = 16
TOKEN_BYTES = 4


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """An estimate of one rule: 4 bytes of prompt, or 16 × 16 pixels, are a token. Each picture counts its own
    inputs."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails


class ImageItem(BaseModel):
    """One picture: `b64_json` or `url`. `warning` says why there is no link where one was asked for."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    seed: int
    receipt: dict[str, Any]
    warning: str | None = None


class Facts(BaseModel):
    """`size` and `usage` are those of the pictures as drawn."""

    created: int
    background: Literal["opaque"]
    output_format: str
    quality: str
    size: str
    usage: Usage


class ImagesAnswer(Facts):
    """The whole answer; written down picture by picture, in `Answer.whole`."""

    data: list[ImageItem]


@dataclass(frozen=True)
class Answer:
    """To one request of `kind`: image_generation, image_edit or image_variation."""

    kind: str
    fields: ImageFields
    requests: Sequence[PreparedRequest]
    services: Services
    caller: Caller

    async def whole(self, request: Request) -> Response:
        """Every picture in one JSON object.

        Raises:
            MezzotintError: why the first that failed did; then there is none.
        """
        drawn = await draw_all(self.services, self.caller, self.requests)
        facts = Facts(created=int(time.time()), usage=usage_of(self.requests), **self._facts())
        # At once: a store that is slow to answer is waited for once, not for each of them.
        places = await together(*(self._place(each, request) for each in drawn))
        items = []
        for each, place in zip(drawn, places, strict=True):
            items.append(self._item(each, place).model_dump_json(exclude_unset=True).encode())
            # A large picture takes ten milliseconds to write down; between two of them others are served.
            await asyncio.sleep(0)
        head = facts.model_dump_json()[:-1] + ',"data":['
        body = head.encode() + b",".join(items) + b"]}"
        return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")

    async def streamed(self) -> Response:
        """Partial and finished pictures as events.

        Raises:
            MezzotintError: a picture was refused before any of them was begun.
        """
        return EventStream(await opened(self._events()), end=DONE)

    def _facts(self) -> dict[str, Any]:
        width, height = self.requests[0].request.size
        return {
            "background": "opaque",
            "output_format": self.fields.format,
            "quality": self.fields.told_quality,
            "size": f"{width}x{height}",
        }

    async def _place(self, drawn: Drawn, request: Request) -> dict[str, str]:
        """Where a link was asked for, it; or why there is none."""
        if not self.fields.as_links:
            return {}
        try:
            name = await self.services.images.put(drawn.data, drawn.format)
        except StoreUnavailable as error:
            # The picture is drawn; losing it for want of a link would help nobody.
            return {"warning": error.message}
        return {"url": link_to(name, request, self.services)}

    def _item(self, drawn: Drawn, place: dict[str, str]) -> ImageItem:
        file = {} if "url" in place else {"b64_json": _base64(drawn.data)}
        return ImageItem(
            **file,
            **place,
            revised_prompt=drawn.receipt["prompt"],
            seed=drawn.receipt["seed"],
            receipt=drawn.receipt,
        )

    async def _events(self) -> AsyncGenerator[ServerEvent | None]:
        waiting = set(range(len(self.requests)))
        partials: Counter[int] = Counter()
        async with aclosing(stream_all(self.services, self.caller, self.requests)) as told:
            async for number, event in told:
                # Once every picture is queued none can be refused any more: the answer can begin.
                if waiting:
                    waiting.discard(number)
                    if not waiting:
                        yield None
                if isinstance(event, Drawn):
                    yield self._completed(number, event)
                elif isinstance(event, Step) and event.preview is not None:
                    index = partials[number]
                    partials[number] += 1
                    if index < (self.fields.partial_images or 0):
                        yield self._partial(number, event.preview, index)

    def _partial(self, number: int, preview: bytes, index: int) -> ServerEvent:
        return self._event("partial_image", number, preview, {"partial_image_index": index})

    def _completed(self, number: int, drawn: Drawn) -> ServerEvent:
        usage = usage_of(self.requests[number : number + 1]).model_dump()
        return self._event("completed", number, drawn.data, {"receipt": drawn.receipt, "usage": usage})

    def _event(self, what: str, number: int, picture: bytes, more: dict[str, Any]) -> ServerEvent:
        kind = f"{self.kind}.{what}"
        data = {
            "type": kind,
            "b64_json": _base64(picture),
            "created_at": int(time.time()),
            **self._facts(),
            "seed": self.requests[number].request.seed,
            **more,
        }
        return ServerEvent(data, kind)


def usage_of(requests: Sequence[PreparedRequest]) -> Usage:
    """What the requests count as in tokens."""
    text = sum(_text_tokens(prepared) for prepared in requests)
    drawn = sum(_tiles(*prepared.request.size) for prepared in requests)
    read = sum(_tiles_read(prepared) for prepared in requests)
    return Usage(
        input_tokens=text + read,
        output_tokens=drawn,
        total_tokens=text + read + drawn,
        input_tokens_details=TokenDetails(text_tokens=text, image_tokens=read),
        output_tokens_details=TokenDetails(text_tokens=0, image_tokens=drawn),
    )


def _text_tokens(prepared: PreparedRequest) -> int:
    text = prepared.request.prompt + (prepared.request.negative_prompt or "")
    return -(-len(text.encode()) // TOKEN_BYTES)


def _tiles_read(prepared: PreparedRequest) -> int:
    """Pictures that are read are resized to the size that is drawn, those of controls in the end; those of
    image prompts, to their encoder's."""
    request = prepared.request
    image = 0 if request.image is None else _tiles(request.width, request.height)
    prompts = sum(_tiles(each.image.shape[1], each.image.shape[0]) for each in request.image_prompts)
    return image + len(request.controls) * _tiles(*request.size) + prompts


def _tiles(width: int, height: int) -> int:
    return -(-width // TOKEN_PIXELS) * -(-height // TOKEN_PIXELS)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
