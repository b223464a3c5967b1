"""The engine replicas and the gateways as Ray Serve knows them: all of them asked, one sent to by name.

The gateway's `Fleet` decides which replica draws an order; the router here, which Ray runs in the gateway's
process, finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve import get_deployment_handle
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from mezzotint.backends.base import BackendInfo
from mezzotint.errors import RETRY_AFTER_SECONDS, MezzotintError, ModelLoading, QueueFull, ReplicaLost
from mezzotint.serve.background import is_cancelled
from mezzotint.serve.dispatch import Replicas
from mezzotint.serve.peers import Peers
from mezzotint.serve.telemetry.exposition import Families
from mezzotint.serve.wire import Order, Report, RunStatus, WireEvent

__all__ = ["NamedReplicaRouter", "RayPeers", "RayReplicas"]

# A replica that takes longer to answer all of us counts as silent this time. So does a gateway: clients who
# watch a picture ask once or twice a second.
ANSWER_SECONDS = 1.0
# An interruption is asked for once, and it may be the first thing that this gateway asks the others, whom Ray
# has to find then. One that is slower to answer has been told all the same.
INTERRUPT_SECONDS = 5.0


class NamedReplicaRouter(RequestRouter):  # type: ignore[misc]
    """To the replica that the order names, or else to one that it does not avoid."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        # Where none fits, Ray asks again, and without this at once.
        pending_request.routing_context.should_backoff = True
        order = next((each for each in pending_request.args if isinstance(each, Order)), None)
        if order is None:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if order.replica in by_name:
            return [[by_name[order.replica]]]
        return [[replica for name, replica in by_name.items() if name not in order.avoid]]


@contextmanager
def _as_ours() -> Iterator[None]:
    """Ray's refusals and losses as errors of the tree. What a replica's own code raised is left as it is."""
    try:
        yield
    except BackPressureError:
        raise QueueFull("the server is full", retry_after_s=RETRY_AFTER_SECONDS) from None
    except (DeploymentUnavailableError, ReplicaUnavailableError):
        raise ModelLoading("no replica is ready", retry_after_s=RETRY_AFTER_SECONDS) from None
    except RayTaskError:
        raise
    # The replica, its worker, its node or its memory; or the answer, on its way here.
    except RayError:
        raise _lost() from None
    # A task that was cancelled, in asyncio's words: unless it is from here, its replica was told to end.
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise _lost() from None


def _lost() -> ReplicaLost:
    return ReplicaLost("the replica was lost", retry_after_s=RETRY_AFTER_SECONDS)


class RayReplicas(Replicas):
    """The engine replicas behind a deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True)

    async def info(self) -> BackendInfo:
        try:
            with _as_ours():
                info: BackendInfo = await _alone(self._handle.info.remote)
        except ReplicaLost:
            raise ModelLoading("no replica is ready", retry_after_s=RETRY_AFTER_SECONDS) from None
        return info

    async def reports(self) -> list[Report]:
        return await ask_all(self._handle, "report")

    async def metrics(self) -> list[Families]:
        return await ask_all(self._handle, "metrics")

    async def generate(self, order: Order) -> AsyncGenerator[WireEvent]:
        response = _alone(self._stream.generate.remote, order)
        try:
            with _as_ours():
                async for event in response:
                    yield event
        finally:
            # Nothing happens to a response that has ended; one that no replica took raises why once more. One
            # that none has taken yet is cancelled too, although Ray then complains that it cannot wait for
            # the outcome on an event loop.
            with suppress(Exception):
                response.cancel()


class RayPeers(Peers):
    """The other gateways of a deployment. Each is told who asks, and the asker answers itself nothing."""

    def __init__(self, deployment: str, app: str, name: str) -> None:
        """name: of the gateway that asks."""
        self._deployment = deployment
        self._app = app
        self._name = name

    async def metrics(self) -> list[Families]:
        return await self._ask("metrics")

    async def runs(self, caller_id: str, *, preview: bool) -> list[RunStatus]:
        return await self._ask("run", caller_id, preview)

    async def interrupt(self, caller_id: str) -> None:
        await self._ask("interrupt", caller_id, within_s=INTERRUPT_SECONDS)

    async def _ask(self, method: str, *arguments: Any, within_s: float | None = None) -> list[Any]:
        # Ray keeps the handle. Before the gateway runs, there is none to be had.
        gateways = get_deployment_handle(self._deployment, self._app)
        return await ask_all(gateways, method, self._name, *arguments, within_s=within_s)


def _alone(remote: Callable[..., Any], *arguments: Any) -> Any:
    """Call a replica without the context of the HTTP request: Ray takes two calls of one request for the same
    one, and routes only the first."""
    return Context().run(remote, *arguments)


async def ask_all(
    handle: DeploymentHandle, method: str, *arguments: Any, within_s: float | None = None
) -> list[Any]:
    """What `method` returns on each replica of a deployment that answers in time, by default at once."""
    within_s = ANSWER_SECONDS if within_s is None else within_s
    # Not `results_async`, which has nothing to tell when one replica of many is silent.
    try:
        async with asyncio.timeout(within_s):
            with _as_ours():
                answers = await handle.broadcast(method, *arguments)._fetch_replica_results_async()
    except (TimeoutError, MezzotintError, RayError):
        return []
    found = await asyncio.gather(*(_answer(answer, within_s) for answer in answers))
    return [each for each in found if each is not None]


async def _answer(answer: Any, within_s: float) -> Any:
    try:
        async with asyncio.timeout(within_s):
            with _as_ours():
                return await answer.get_async()
    except (TimeoutError, MezzotintError, RayError):
        return None
