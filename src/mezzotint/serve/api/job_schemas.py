"""What a job is asked for with, and how it is told."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from mezzotint.core import Mask, Pixels
from mezzotint.errors import InvalidRequest, NotSupported
from mezzotint.imaging.uploads import read_mask_text, read_upload_text
from mezzotint.serve.api.openai_schemas import GenerationFields
from mezzotint.serve.api.pictures import link_to
from mezzotint.serve.jobs.work import Work
from mezzotint.serve.services import Services
from mezzotint.serve.stores.job import Job, JobState

__all__ = ["JobAnswer", "JobFields", "JobList", "cursor_of", "image_answers", "job_answer", "read_cursor"]


class JobFields(GenerationFields):
    """The body of `POST /v1/images/jobs`: that of generations, and the pictures to start from."""

    image: str | None = Field(None, description="base64 or a data: URL; drawn anew as far as strength goes")
    mask: str | None = Field(
        None, description="base64 or a data: URL; transparent is redrawn, of image's size"
    )
    # Not told of: they are there to say where they are taken.
    stream: SkipJsonSchema[bool | None] = None
    response_format: SkipJsonSchema[Literal["b64_json", "url"] | None] = None

    @property
    def fingerprint(self) -> str:
        """Two bodies that say the same have the same."""
        said = json.dumps(self.model_dump(exclude_none=True), sort_keys=True)
        return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()

    def read_pictures(self) -> tuple[Pixels | None, Mask | None]:
        """The decoded image and mask. Computes: not on an event loop.

        Raises:
            MezzotintError: one of them is not accepted.
        """
        image = None if self.image is None else read_upload_text(self.image, "image")
        mask = None if self.mask is None else read_mask_text(self.mask, "mask", redraw="transparent")
        return image, mask

    def _check_streaming(self) -> None:
        for name in ("stream", "response_format"):
            # To ask for no stream is to ask for nothing.
            if getattr(self, name):
                raise NotSupported(
                    f"{name}: a job's events and pictures have routes of their own", param=name
                )


class JobImageAnswer(BaseModel):
    index: int
    seed: int
    url: str
    receipt: dict[str, Any]


class JobAnswer(BaseModel):
    """A job. Times are seconds since 1970. Lists leave out `images`, `progress`, `position` and `eta_s`.

    state: queued, running, done, failed or cancelled.
    cancelling: it was asked to stop and has not yet.
    position: jobs or requests ahead of it, while it waits. eta_s: an estimate.
    """

    id: str
    object: str = "image.job"
    state: JobState
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float | None
    cancelling: bool
    model: str
    n: int
    seeds: list[int]
    size: str
    output_format: str
    priority: str
    error: dict[str, Any] | None
    progress: float | None = None
    position: int | None = None
    eta_s: float | None = None
    images: list[JobImageAnswer] | None = None


class JobList(BaseModel):
    """Newest first. `next_cursor` asks for the page after it; null on the last."""

    object: str = "list"
    data: list[JobAnswer]
    has_more: bool
    next_cursor: str | None


def job_answer(job: Job) -> JobAnswer:
    """The job without what takes another look: images and progress."""
    work = Work.from_json(job.request)
    width, height = work.size
    return JobAnswer(
        id=job.id,
        state=job.state,
        created_at=job.created,
        started_at=job.started,
        finished_at=job.finished,
        deadline_at=job.deadline,
        cancelling=job.cancel_requested and job.state == "running",
        model=work.model,
        n=job.n,
        seeds=[work.first_seed + number for number in range(job.n)],
        size=f"{width}x{height}",
        output_format=work.format,
        priority=job.priority,
        error=None if job.error is None else dict(job.error),
    )


def image_answers(job: Job, request: Request, services: Services) -> list[JobImageAnswer]:
    return [
        JobImageAnswer(
            index=image.index,
            seed=image.receipt["seed"],
            url=link_to(image.name, request, services),
            receipt=dict(image.receipt),
        )
        for image in job.images
    ]


def cursor_of(job: Job) -> str:
    """Opaque to clients, so that what is in it may change."""
    return base64.urlsafe_b64encode(str(job.sequence).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> int | None:
    """The sequence in a cursor.

    Raises:
        InvalidRequest: this is none.
    """
    if cursor is None:
        return None
    try:
        sequence = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        sequence = -1
    if not 0 <= sequence < 2**63:
        raise InvalidRequest("cursor must be a next_cursor of this list", param="cursor")
    return sequence
