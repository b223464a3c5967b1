"""What the gateway hears of Ray: its refusals as errors of the tree. The handle is a fake; no Ray runs."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import GenerationRequest
from mezzotint.errors import MezzotintError, ModelLoading, QueueFull, ReplicaLost
from mezzotint.resolving import resolve
from mezzotint.serve.wire import Order


class RefusingHandle:
    """A deployment handle each of whose calls ends in one exception of Ray's."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = self.cancelled = 0
        self.info = self.generate = self

    def options(self, *, stream: bool) -> RefusingHandle:
        return self

    def remote(self, *_: object) -> RefusingHandle:
        return self

    def __await__(self) -> Any:
        self.asked += 1
        raise self.error

    async def __aiter__(self) -> AsyncIterator[None]:
        raise self.error
        yield

    def cancel(self) -> None:
        self.cancelled += 1


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
    handle = RefusingHandle(getattr(exceptions, name)(*arguments))
    with pytest.raises(kind) as refused:
        await RayReplicas(handle).info()
    assert refused.value.retry_after_s
    with pytest.raises(kind) as refused:
        await anext(RayReplicas(handle).generate(order()))
    assert refused.value.retry_after_s
    assert handle.cancelled == 1


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
@pytest.mark.parametrize("kind", every_loss(), ids=lambda kind: kind.__name__)
async def test_whatever_ray_loses_is_told_as_a_lost_replica(kind: type[Exception]) -> None:
    from mezzotint.serve.routing import RayReplicas

    # What its own constructor takes is Ray's.
    handle = RefusingHandle(kind.__new__(kind))
    with pytest.raises(ModelLoading):
        await RayReplicas(handle).info()
    with pytest.raises(ReplicaLost) as lost:
        await anext(RayReplicas(handle).generate(order()))
    assert lost.value.retry_after_s


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
        while handle.asked < 3 and not starting.done():
            await asyncio.sleep(0.01)
    assert not starting.done()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
