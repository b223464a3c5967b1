"""Jobs: pictures that nobody waits for. They outlive the connection, the gateway and the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from mezzotint.core import ResolvedRequest
from mezzotint.errors import IdempotencyConflict, ImageNotFound, QueueFull
from mezzotint.imaging.formats import CONTENT_TYPES
from mezzotint.serve.access.caller import Caller
from mezzotint.serve.access.limits import check_possible
from mezzotint.serve.api.dependencies import CallerOf, ServicesOf
from mezzotint.serve.api.documented import DRAWN, answers, headers
from mezzotint.serve.api.job_schemas import (
    JobAnswer,
    JobFields,
    JobList,
    cursor_of,
    image_answers,
    job_answer,
    read_cursor,
)
from mezzotint.serve.api.json_bodies import JsonRoute
from mezzotint.serve.api.openai import prepare_all
from mezzotint.serve.api.pictures import link_to
from mezzotint.serve.api.sse import EventStream, ServerEvent, opened
from mezzotint.serve.jobs.work import Work
from mezzotint.serve.services import Services
from mezzotint.serve.stores.job import FINAL, Job, JobEvent, JobState, NewJob
from mezzotint.serve.stores.jobs import MAX_IDEMPOTENCY_KEY
from mezzotint.serve.telemetry.record import current

__all__ = ["router"]

ROUTE = "/v1/images/jobs"
MAX_PAGE = 100
MAX_EVENT_ID = 2**63 - 1

router = APIRouter(tags=["Jobs"], route_class=JsonRoute)
ONE_JOB = {200: headers(*DRAWN), **answers(404)}
JobId = Annotated[str, Path(alias="id", max_length=100)]


@router.post(
    ROUTE,
    status_code=202,
    response_model=JobAnswer,
    responses={202: headers("Location", *DRAWN), **answers(404, 409, 415)},
    summary="Ask for pictures without waiting for them",
)
async def create(
    fields: JobFields,
    request: Request,
    services: ServicesOf,
    caller: CallerOf,
    idempotency_key: Annotated[str, Header(max_length=MAX_IDEMPOTENCY_KEY)] = "",
) -> Response:
    new = NewJob(
        caller.id,
        {},
        n=fields.count,
        deadline_s=fields.deadline_s,
        idempotency_key=idempotency_key,
        fingerprint=await asyncio.to_thread(lambda: fields.fingerprint) if idempotency_key else "",
    )
    # Asked without a key too: no picture is kept where there is no database to take the job it belongs to.
    job = await services.jobs.replay(new)
    if job is None:
        first, work = await _work(fields, services, caller)
        # A client that leaves leaves no pictures behind that no job will take with it.
        making = asyncio.create_task(_made(new, first, work, services, caller))
        # Why there is no job then is nobody's to hear.
        making.add_done_callback(lambda made: made.cancelled() or made.exception())
        job = await asyncio.shield(making)
    answer = await _whole(job, request, services)
    return JSONResponse(
        answer.model_dump(), 202, {"Location": f"{services.settings.public_url.rstrip('/')}{ROUTE}/{job.id}"}
    )


async def _work(fields: JobFields, services: Services, caller: Caller) -> tuple[ResolvedRequest, Work]:
    """The first picture's request, and what is to be drawn, complete but for pictures.

    Raises:
        MezzotintError: a field is not accepted, or the key may not.
    """
    image, mask = await asyncio.to_thread(fields.read_pictures)
    requests = await prepare_all(fields, services, caller, image=image, mask=mask)
    cost_s = services.gateway.cost_s(requests)
    check_possible(caller, len(requests), cost_s)
    first = requests[0].request
    return first, Work.of(
        first,
        model=(await services.gateway.served()).model,
        format=fields.format,
        compression=fields.output_compression,
        cost_s=cost_s,
    )


async def _made(new: NewJob, first: ResolvedRequest, work: Work, services: Services, caller: Caller) -> Job:
    """The job, its pictures kept; or none, and none of them."""
    # Asking counts now, drawing when it is drawn.
    async with services.access.admit(caller, images=0, compute_s=0.0):
        work = await work.with_pictures_of(first, services.images, services.settings.job_ttl_s)
    try:
        priority = work.request.priority or new.priority
        job = await services.jobs.create(replace(new, request=work.to_json(), priority=priority))
    except (IdempotencyConflict, QueueFull):
        await services.images.delete(work.uploads)
        raise
    if Work.from_json(job.request).uploads != work.uploads:
        # Another request of this idempotency key, at the same time, made the job.
        await services.images.delete(work.uploads)
    services.runner.wake()
    return job


@router.get(
    ROUTE,
    response_model=JobList,
    summary="The key's own jobs, newest first",
)
async def page(
    services: ServicesOf,
    caller: CallerOf,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    cursor: Annotated[str | None, Query(max_length=100, description="a page's next_cursor")] = None,
    state: JobState | None = None,
) -> JobList:
    before = read_cursor(cursor)
    jobs = await services.jobs.page(caller.id, before=before, limit=limit + 1, state=state)
    more = len(jobs) > limit
    return JobList(
        data=[job_answer(job) for job in jobs[:limit]],
        has_more=more,
        next_cursor=cursor_of(jobs[limit - 1]) if more else None,
    )


@router.get(ROUTE + "/{id}", response_model=JobAnswer, responses=ONE_JOB, summary="One job")
async def get(id: JobId, request: Request, services: ServicesOf, caller: CallerOf) -> JobAnswer:
    return await _whole(await services.jobs.get(id, caller.id), request, services)


@router.delete(
    ROUTE + "/{id}",
    response_model=JobAnswer,
    responses=ONE_JOB,
    summary="Stop a job, if it has not ended",
)
async def delete(id: JobId, request: Request, services: ServicesOf, caller: CallerOf) -> JobAnswer:
    job = await services.jobs.cancel(id, caller.id)
    services.runner.wake()
    return await _whole(job, request, services)


@router.head(ROUTE + "/{id}/images/{n}", include_in_schema=False)
@router.get(
    ROUTE + "/{id}/images/{n}",
    response_class=Response,
    responses={
        200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}, **headers(*DRAWN)},
        **answers(404),
    },
    summary="One of its pictures, from 0",
)
async def picture(id: JobId, n: int, services: ServicesOf, caller: CallerOf) -> Response:
    job = await services.jobs.get(id, caller.id)
    images = {image.index: image for image in job.images}
    if n not in images:
        raise ImageNotFound(f"the job has no picture {n}{_why_not(job, n)}", param="n")
    current().note_seed(images[n].receipt["seed"])
    data, content_type = await services.images.get(images[n].name)
    return Response(data, 200, {"Cache-Control": "private, max-age=300"}, content_type)


def _why_not(job: Job, n: int) -> str:
    if not 0 <= n < job.n:
        return f"; it has {job.n}, from 0"
    return f"; it is {job.state}" if job.state in FINAL else f" yet; it is {job.state}"


@router.get(
    ROUTE + "/{id}/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, **headers("x-mezzotint-seed")},
        **answers(404),
    },
    summary="What happens to it, from its beginning or from Last-Event-ID on, to its end",
)
async def events(
    id: JobId,
    request: Request,
    services: ServicesOf,
    caller: CallerOf,
    last_event_id: Annotated[int, Header(ge=0, le=MAX_EVENT_ID)] = 0,
) -> Response:
    # Whether it is the caller's; what follows asks no more.
    current().note_seed(Work.from_json((await services.jobs.get(id, caller.id)).request).first_seed)
    return EventStream(await opened(_events(id, last_event_id, request, services)))


async def _events(
    id: str, after: int, request: Request, services: Services
) -> AsyncGenerator[ServerEvent | None]:
    ended = False
    if after:
        # Who comes back may have nothing to hear for long; the answer begins all the same.
        yield None
    async with aclosing(services.feed.follow(id, after)) as happenings:
        async for event in happenings:
            ended = event.kind in FINAL
            yield await _as_sent(event, request, services)
    if not ended:
        job = await services.jobs.get(id)
        yield ServerEvent((await _whole(job, request, services)).model_dump(), job.state)


async def _as_sent(event: JobEvent, request: Request, services: Services) -> ServerEvent:
    data: dict[str, Any] = dict(event.data)
    if event.kind in FINAL:
        data = (await _whole(await services.jobs.get(event.job_id), request, services)).model_dump()
    elif "name" in data:
        data["url"] = link_to(data.pop("name"), request, services)
    return ServerEvent(data, event.kind, str(event.id))


async def _whole(job: Job, request: Request, services: Services) -> JobAnswer:
    """The job with its pictures, and how far it is."""
    answer = job_answer(job)
    current().note_seed(answer.seeds[0])
    answer.images = image_answers(job, request, services)
    if job.state == "queued":
        answer.progress = 0.0
        answer.position = await services.jobs.position(job)
        answer.eta_s = _foreseen(job, _eta_s(job, answer.position, services), services)
    elif job.state == "running":
        latest = await services.jobs.events.latest(job.id, "progress")
        news = {} if latest is None else latest.data
        answer.progress = news.get("progress", 0.0)
        answer.position = news.get("position")
        answer.eta_s = _foreseen(job, news.get("eta_s"), services)
    elif job.state == "done":
        answer.progress = 1.0
    return answer


def _foreseen(job: Job, eta_s: float | None, services: Services) -> float | None:
    """The estimate; none where the job's deadline would end it before."""
    late = job.deadline is not None and eta_s is not None and services.database.now() + eta_s > job.deadline
    return None if late else eta_s


def _eta_s(job: Job, position: int, services: Services) -> float | None:
    """As if every job ahead cost as much as this one, and all replicas shared the work."""
    reports = services.gateway.reports
    cost_s = Work.from_json(job.request).cost_s
    if not reports or not cost_s:
        return None
    backlog_s = sum(sum(report.backlogs.values()) for report in reports)
    return round((backlog_s + (position + 1) * cost_s) / len(reports), 2)
