"""What the gateway hears of Ray: its refusals as errors of the tree. The handle is a fake, its responses are
Ray's own; no Ray runs."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import GenerationRequest
from mezzotint.errors import MezzotintError, ModelLoading, QueueFull, ReplicaLost
from mezzotint.resolving import resolve
from mezzotint.serve.wire import Order


class RefusingHandle:
    """A deployment handle each of whose calls ends in one exception, told as Ray's own responses tell it."""

    def __init__(self, error: Exception, *, by: Literal["router", "replica"] = "replica") -> None:
        self.error, self.by = error, by
        self.responses: list[Any] = []
        self.info = SimpleNamespace(remote=lambda: self._respond(is_streaming=False))
        self.generate = SimpleNamespace(remote=lambda order: self._respond(is_streaming=True))

    def options(self, *, stream: bool) -> RefusingHandle:
        return self

    def broadcast(self, method: str, *arguments: object) -> Any:
        from ray.serve.handle import DeploymentBroadcastResponse

        async def answers() -> list[Any]:
            if self.by == "router":
                raise self.error
            return [self._result(is_streaming=False)]

        return DeploymentBroadcastResponse(answers(), None)

    def _respond(self, *, is_streaming: bool) -> Any:
        from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

        taken: Future[Any] = Future()
        if self.by == "router":
            taken.set_exception(self.error)
        else:
            taken.set_result(self._result(is_streaming=is_streaming))
        kind = DeploymentResponseGenerator if is_streaming else DeploymentResponse
        self.responses.append(kind(taken, SimpleNamespace(request_id="a")))
        return self.responses[-1]

    def _result(self, *, is_streaming: bool) -> Any:
        from ray import ObjectRefGenerator
        from ray.serve._private.replica_result import ActorReplicaResult

        error = self.error

        # In place of the objects that a replica's answer is kept in, which want a Ray that runs.
        class Object:
            def __await__(self) -> Any:
                raise error

        class Objects(ObjectRefGenerator):
            def __init__(self) -> None:
                pass

            def __del__(self) -> None:
                pass

            async def __anext__(self) -> Object:
                return Object()

        class Result(ActorReplicaResult):
            def cancel(self) -> None:
                pass

        kept = Objects() if is_streaming else Object()
        return Result(kept, SimpleNamespace(is_streaming=is_streaming, request_id="a"))


REFUSALS: dict[str, tuple[tuple[object, ...], type[MezzotintError]]] = {
    "BackPressureError": ((9, 8), QueueFull),
    "DeploymentUnavailableError": (("engine",), ModelLoading),
    "ReplicaUnavailableError": (("a",), ModelLoading),
}


def order() -> Order:
    return Order(resolve(GenerationRequest("a"), FAKE_LIMITS))


@pytest.mark.filterwarnings("ignore")  # of Ray's own, when it is imported
@pytest.mark.parametrize("name", REFUSALS)
async def test_what_ray_refuses_is_told_as_an_error_that_will_pass(name: str) -> None:
    from ray.serve import exceptions

    from mezzotint.serve.routing import RayReplicas

    arguments, kind = REFUSALS[name]
    handle = RefusingHandle(getattr(exceptions, name)(*arguments), by="router")
    with pytest.raises(kind) as refused:
        await RayReplicas(handle).info()
    assert refused.value.retry_after_s
    with pytest.raises(kind) as refused:
        await anext(RayReplicas(handle).generate(order()))
    assert refused.value.retry_after_s
    assert handle.responses[-1].cancelled()


def every_loss() -> list[type[Exception]]:
    """Every error that Ray has, but those of a replica's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.exceptions import RayError, RayTaskError

    found, new = set(), {RayError}
    while new:
        found |= new
        new = {each for kind in new for each in kind.__subclasses__()} - found
    return sorted(
        (kind for kind in found if not issubclass(kind, RayTaskError)), key=lambda kind: kind.__name__
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["router", "replica"])
@pytest.mark.parametrize("kind", every_loss(), ids=lambda kind: kind.__name__)
async def test_whatever_ray_loses_is_told_as_a_lost_replica(
    kind: type[Exception], by: Literal["router", "replica"]
) -> None:
    from mezzotint.serve.routing import RayReplicas

    # What its own constructor takes is Ray's.
    handle = RefusingHandle(kind.__new__(kind), by=by)
    assert await RayReplicas(handle).reports() == []
    with pytest.raises(ModelLoading):
        await RayReplicas(handle).info()
    with pytest.raises(ReplicaLost) as lost:
        await anext(RayReplicas(handle).generate(order()))
    assert lost.value.retry_after_s


@pytest.mark.filterwarnings("ignore")
async def test_whoever_cancels_the_asking_hears_of_no_loss() -> None:
    from mezzotint.serve.routing import RayReplicas

    asked: asyncio.Queue[None] = asyncio.Queue()

    async def wait() -> None:
        asked.put_nowait(None)
        await asyncio.Event().wait()

    class Silent(RefusingHandle):
        def _result(self, *, is_streaming: bool) -> Any:
            return SimpleNamespace(get_async=wait, __anext__=wait, cancel=lambda: None)

    replicas = RayReplicas(Silent(RuntimeError()))
    for asking in (replicas.info(), anext(replicas.generate(order())), replicas.reports()):
        task = asyncio.ensure_future(asking)
        await asyncio.wait_for(asked.get(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.filterwarnings("ignore")
async def test_what_a_replicas_own_code_raised_is_no_loss() -> None:
    from ray.exceptions import RayTaskError

    from mezzotint.serve.routing import RayReplicas

    handle = RefusingHandle(RayTaskError("generate", "a traceback", ValueError("a bug")))
    with pytest.raises(RayTaskError):
        await anext(RayReplicas(handle).generate(order()))


@pytest.mark.filterwarnings("ignore")
async def test_a_gateway_waits_for_a_replica_whatever_ray_loses_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.exceptions import OutOfMemoryError

    from mezzotint.serve.gateway import Gateway
    from mezzotint.serve.routing import RayReplicas

    monkeypatch.setattr("mezzotint.serve.gateway.RETRY_AFTER_SECONDS", 0.01)
    handle = RefusingHandle(OutOfMemoryError("killed"))
    starting = asyncio.create_task(Gateway(RayReplicas(handle), 1.0).start())
    async with asyncio.timeout(60):
        while len(handle.responses) < 3 and not starting.done():
            await asyncio.sleep(0.01)
    assert not starting.done()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
