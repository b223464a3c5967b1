"""The Ray Serve application: a gateway in front, engine replicas behind it.

`build_app` is also the builder that a Serve config file names: `mezzotint.serve.app:build_app`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from mezzotint.config import SECRETS, Settings, load_settings
from mezzotint.errors import RETRY_AFTER_SECONDS
from mezzotint.serve.http import build_http
from mezzotint.serve.replica import EngineReplica
from mezzotint.serve.routing import NamedReplicaRouter, RayPeers, RayReplicas
from mezzotint.serve.scaling import autoscaling
from mezzotint.serve.services import Services, open_services
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.telemetry.logs import set_up_logs
from mezzotint.serve.wire import RunStatus

__all__ = ["APP_NAME", "application", "build_app"]

APP_NAME = "mezzotint"
# Ray's own name for what it finds with `neuron-ls`.
NEURON_RESOURCE = "neuron_cores"
# The engine bounds its own queue; Ray's bound only has to be wider, so that it is the engine that answers.
HEADROOM = 64
GATEWAY_ONGOING = 4_096
GATEWAY_QUEUED = 1_024
# Whichever replicas they are of. One alone is a device that was not free yet, or a node that was not well; a
# rolling update that was given up for it stays half done.
START_FAILURES = 3
# A step of a large model on a loaded CPU holds the interpreter for a while; that is no illness.
HEALTH_PERIOD_SECONDS = 2.0
HEALTH_TIMEOUT_SECONDS = 30.0
# How often a closing replica looks whether its last request has ended.
SHUTDOWN_POLL_SECONDS = 0.2


class RayEngineReplica(EngineReplica):
    """An engine replica that goes by the name that Ray Serve has given it."""

    def __init__(self, settings: Settings) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        set_up_logs(settings, "engine", name)
        super().__init__(settings, name=name)


@serve.ingress()
class GatewayIngress:
    """The HTTP application in a Serve replica."""

    def __init__(self, settings: Settings, engine: DeploymentHandle) -> None:
        self._settings = settings
        self._engine = engine
        self._stack = AsyncExitStack()
        self._services: Services | None = None
        self._context = serve.get_replica_context()
        self._name = self._context.replica_id.unique_id
        set_up_logs(settings, "gateway", self._name)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve awaits this before it counts the gateway as running: the first request finds a model.
        peers = RayPeers(self._context.deployment, self._context.app_name, self._name)
        opening = open_services(self._settings, RayReplicas(self._engine), self._name, peers)
        self._services = await self._stack.enter_async_context(opening)
        return build_http(self._services)

    # What `RayPeers` asks of each gateway, the asker too, which has nothing to tell itself.

    async def metrics(self, asker: str) -> Families | None:
        """What this gateway has counted."""
        services = self._asked_by(asker)
        return None if services is None else services.metrics.families()

    async def run(self, asker: str, caller_id: str, preview: bool) -> RunStatus | None:
        """The key's latest run here."""
        services = self._asked_by(asker)
        return None if services is None else services.runs.latest_here(caller_id, preview=preview)

    async def interrupt(self, asker: str, caller_id: str) -> None:
        """Interrupt the key's runs here."""
        services = self._asked_by(asker)
        if services is not None:
            services.runs.interrupt_here(caller_id)

    def _asked_by(self, asker: str) -> Services | None:
        return None if asker == self._name else self._services

    async def __del__(self) -> None:
        # Ray Serve awaits this once the gateway's last request has ended.
        await self._stack.aclose()


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """What a Serve config file and `serve run` call, with settings by name; below them is the environment.

    Raises:
        SettingInvalid: an argument that is no setting, or a value that is not accepted.
    """
    return application(load_settings(**args))


def application(settings: Settings, *, start_failures: int = START_FAILURES) -> serve.Application:
    """The application for `serve.run`. A running Ray decides what a replica asks for.

    start_failures: of engines, at which Ray Serve gives up.
    """
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain_s,
        "graceful_shutdown_wait_loop_s": SHUTDOWN_POLL_SECONDS,
        "health_check_period_s": HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
    }
    scaled = autoscaling(settings)
    number = {"num_replicas": settings.replicas} if scaled is None else {"autoscaling_config": scaled}
    engine = serve.deployment(RayEngineReplica, name="engine").options(
        **number,
        max_ongoing_requests=settings.max_queue + HEADROOM,
        max_queued_requests=settings.max_queue,
        max_constructor_retry_count=start_failures,
        request_router_config=RequestRouterConfig(request_router_class=NamedReplicaRouter),
        ray_actor_options=replica_resources(settings, *machine()),
        **common,
    )
    gateway = serve.deployment(GatewayIngress, name="gateway").options(
        num_replicas=settings.gateways,
        max_ongoing_requests=GATEWAY_ONGOING,
        max_queued_requests=GATEWAY_QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_SECONDS},
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    # Ray keeps these arguments, and tells them to whoever starts a replica.
    bare = settings.model_copy(update=dict.fromkeys(SECRETS, ""))
    return gateway.bind(bare.model_copy(update={"database_url": settings.database_url}), engine.bind(bare))


def machine() -> tuple[int, int]:
    """The GPUs of the cluster, and the cores of the smallest node that an engine may come to.

    Without a Ray, as when a config file is only being written: no GPU, and this machine's cores.
    """
    own_cores = len(os.sched_getaffinity(0))
    if not ray.is_initialized():
        return 0, own_cores
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cores = [int(node.get("CPU", 0)) for node in nodes if not gpus or node.get("GPU")]
    return gpus, min((each for each in cores if each), default=own_cores)


def replica_resources(settings: Settings, gpus: int, cores: int) -> dict[str, Any]:
    """What Ray reserves for one engine replica.

    Ray hides the GPUs from an actor that asks for none, and sets a process's threads from its CPUs. Of
    NeuronCores it gives whole ones only, and names them to the actor, in no order (`mezzotint.cores`).
    """
    replicas = max(settings.replicas, settings.max_replicas or 0)
    wants_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and gpus > 0)
    # More replicas than GPUs share them, as many on each; a share that no GPU has left would never be placed.
    share = 1.0 / math.ceil(replicas / max(gpus, 1))
    cpus = settings.threads or max(1, cores // replicas)
    reserved: dict[str, Any] = {"num_cpus": cpus, "num_gpus": share if wants_gpu else 0}
    if settings.device == "neuron" and not settings.stand_in:
        reserved["resources"] = {NEURON_RESOURCE: settings.neuron_cores}
    return reserved
