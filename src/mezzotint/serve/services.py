"""What the routes work with, made once for each gateway process, and taken down with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mezzotint.config import Settings
from mezzotint.serve.access.access import Access, open_access, requires_keys
from mezzotint.serve.background import in_background
from mezzotint.serve.dispatch import Replicas
from mezzotint.serve.gateway import Gateway, open_gateway
from mezzotint.serve.jobs.feed import Feed
from mezzotint.serve.jobs.runner import JobRunner
from mezzotint.serve.peers import NoPeers, Peers
from mezzotint.serve.runs import Runs
from mezzotint.serve.stores.database import Database, open_database
from mezzotint.serve.stores.images import ImageStore, open_images
from mezzotint.serve.stores.janitor import keep_clean
from mezzotint.serve.stores.jobs import JobStore
from mezzotint.serve.telemetry.job_metrics import JobMetrics
from mezzotint.serve.telemetry.metrics import GatewayMetrics, Gathering
from mezzotint.serve.telemetry.tracing import Tracing

__all__ = ["Services", "open_services"]


@dataclass(frozen=True)
class Services:
    settings: Settings
    gateway: Gateway
    database: Database
    access: Access
    jobs: JobStore
    images: ImageStore
    feed: Feed
    runner: JobRunner
    metrics: GatewayMetrics
    series: Gathering
    tracing: Tracing
    runs: Runs


@asynccontextmanager
async def open_services(
    settings: Settings, replicas: Replicas, name: str = "here", peers: Peers | None = None
) -> AsyncIterator[Services]:
    """Within, every service runs; on the way out each ends what it began, the last opened first.

    name: this gateway's, among all that ever were. peers: the other gateways, if there may be any.

    Raises:
        SettingInvalid: a store that a setting names cannot be opened.
    """
    peers = peers or NoPeers()
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        tracing = Tracing.to(settings.otlp_endpoint, "gateway", name)
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        metrics = GatewayMetrics(name)
        await open_(in_background(metrics.watch_lag()))
        database = await open_(open_database(settings.database_url))
        images = await open_(open_images(settings.image_store, settings.image_ttl_s, database.now))
        metrics.watch_stores(database=database, images=images)
        jobs = JobStore(database, settings.max_jobs)
        metrics.watch_jobs(jobs.ended)
        access = await open_(open_access(database, requires_keys=requires_keys(settings)))
        await open_(keep_clean(database, jobs, images, settings.job_ttl_s))
        gateway = await open_(
            open_gateway(replicas, settings.deadline_s, tracing, gateways=settings.gateways)
        )
        metrics.watch_orders(gateway)
        feed = await open_(Feed(jobs))
        runner = JobRunner(
            gateway, access, jobs, images, gateways=settings.gateways, ttl_s=settings.job_ttl_s
        )
        await open_(runner)
        yield Services(
            settings=settings,
            gateway=gateway,
            database=database,
            access=access,
            jobs=jobs,
            images=images,
            feed=feed,
            runner=runner,
            metrics=metrics,
            series=Gathering(metrics, replicas.metrics, JobMetrics(jobs).families, peers.metrics),
            tracing=tracing,
            runs=Runs(peers),
        )
