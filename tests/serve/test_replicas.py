"""What the gateway hears of Ray: its refusals as errors of the tree. The handle is a fake; no Ray runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import GenerationRequest, resolve
from mezzotint.errors import MezzotintError, ModelLoading, QueueFull
from mezzotint.serve.wire import Order


class RefusingHandle:
    """A deployment handle each of whose calls ends in one exception of Ray's."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.cancelled = 0
        self.info = self.generate = self

    def options(self, *, stream: bool) -> RefusingHandle:
        return self

    def remote(self, *_: object) -> RefusingHandle:
        return self

    def __await__(self) -> Any:
        raise self.error

    async def __aiter__(self) -> AsyncIterator[None]:
        raise self.error
        yield

    def cancel(self) -> None:
        self.cancelled += 1


REFUSALS: dict[str, tuple[tuple[object, ...], type[MezzotintError]]] = {
    "BackPressureError": ((9, 8), QueueFull),
    "RayActorError": ((), ModelLoading),
    "DeploymentUnavailableError": (("engine",), ModelLoading),
}


@pytest.mark.filterwarnings("ignore")  # of Ray's own, when it is imported
@pytest.mark.parametrize("name", REFUSALS)
async def test_what_ray_refuses_is_told_as_an_error_that_will_pass(name: str) -> None:
    import ray.exceptions
    from ray.serve import exceptions

    from mezzotint.serve.routing import RayReplicas

    arguments, kind = REFUSALS[name]
    raised = getattr(exceptions, name, None) or getattr(ray.exceptions, name)
    handle = RefusingHandle(raised(*arguments))
    with pytest.raises(kind) as refused:
        await RayReplicas(handle).info()
    assert refused.value.retry_after_s
    with pytest.raises(kind) as refused:
        await anext(RayReplicas(handle).generate(Order(resolve(GenerationRequest("a"), FAKE_LIMITS))))
    assert refused.value.retry_after_s
    assert handle.cancelled == 1
