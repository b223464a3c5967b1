"""The Ray Serve application: a gateway in front, engine replicas behind it.

`build_app` is also the builder that a Serve config file names: `mezzotint.serve.app:build_app`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from mezzotint.backends.base import BackendInfo
from mezzotint.config import Settings
from mezzotint.core import GenerationRequest
from mezzotint.errors import ModelLoading, QueueFull
from mezzotint.serve.gateway import Gateway, Replicas
from mezzotint.serve.http import build_http
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.wire import WireEvent

__all__ = ["APP_NAME", "build_app"]

APP_NAME = "mezzotint"
# The engine bounds its own queue; Ray's bound only has to be wider, so that it is the engine that answers.
HEADROOM = 64
GATEWAY_ONGOING = 4_096
GATEWAY_QUEUED = 1_024
RETRY_AFTER_SECONDS = 2.0
# A step of a large model on a loaded CPU holds the interpreter for a while; that is no illness.
HEALTH_PERIOD_SECONDS = 5.0
HEALTH_TIMEOUT_SECONDS = 30.0
# How often a closing replica looks whether its last request has ended.
SHUTDOWN_POLL_SECONDS = 0.2


@contextmanager
def _as_ours(*, lost: str) -> Iterator[None]:
    """Ray's refusals as errors of the tree; `lost` is the message where there is no replica to answer."""
    try:
        yield
    except BackPressureError:
        raise QueueFull("the server is full", retry_after_s=RETRY_AFTER_SECONDS) from None
    except (RayActorError, DeploymentUnavailableError):
        raise ModelLoading(lost, retry_after_s=RETRY_AFTER_SECONDS) from None


class RayReplicas(Replicas):
    """The engine replicas behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True)

    async def info(self) -> BackendInfo:
        with _as_ours(lost="no replica is ready"):
            info: BackendInfo = await self._handle.info.remote()
        return info

    async def generate(self, request: GenerationRequest, format: str) -> AsyncGenerator[WireEvent]:
        response = self._stream.generate.remote(request, format)
        try:
            with _as_ours(lost="the replica was lost while drawing"):
                async for event in response:
                    yield event
        finally:
            # Nothing happens to a response that has ended. One that no replica has taken yet is cancelled
            # too, although Ray then complains that it cannot wait for the outcome on an event loop.
            with suppress(RuntimeError):
                response.cancel()


@serve.ingress()
class GatewayIngress:
    """The HTTP application in a Serve replica."""

    def __init__(self, settings: Settings, engine: DeploymentHandle) -> None:
        self._gateway = Gateway(RayReplicas(engine), settings.deadline_s)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve awaits this before it counts the gateway as running: the first request finds a model.
        await self._gateway.start()
        return build_http(self._gateway)


def build_app(settings: Settings) -> serve.Application:
    """The application for `serve.run`. Needs a running Ray, whose GPUs decide what a replica asks for."""
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain_s,
        "graceful_shutdown_wait_loop_s": SHUTDOWN_POLL_SECONDS,
        "health_check_period_s": HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
    }
    engine = serve.deployment(EngineReplica, name="engine").options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_queue + HEADROOM,
        max_queued_requests=settings.max_queue,
        max_constructor_retry_count=1,
        ray_actor_options=replica_resources(settings, int(ray.cluster_resources().get("GPU", 0))),
        **common,
    )
    gateway = serve.deployment(GatewayIngress, name="gateway").options(
        num_replicas=1,
        max_ongoing_requests=GATEWAY_ONGOING,
        max_queued_requests=GATEWAY_QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_SECONDS},
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    return gateway.bind(settings, engine.bind(settings))


def replica_resources(settings: Settings, gpus: int) -> dict[str, float]:
    """What Ray reserves for one engine replica.

    Ray hides the GPUs from an actor that asks for none, and sets a process's threads from its CPUs.
    """
    wants_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and gpus > 0)
    # More replicas than GPUs share them evenly.
    share = 1.0 if gpus >= settings.replicas else max(gpus, 1) / settings.replicas
    cpus = settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.replicas)
    return {"num_cpus": cpus, "num_gpus": share if wants_gpu else 0}
