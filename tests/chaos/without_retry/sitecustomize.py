"""On the path of a server's processes, this takes the gateway's second attempt away."""

import sys
from contextlib import aclosing

if any("default_worker" in argument for argument in sys.orig_argv):
    from mezzotint.serve.dispatch import Dispatcher

    async def one_attempt(self, prepared, *, progress=True):  # type: ignore[no-untyped-def]
        order = self._order(prepared, (), progress, admitted=False)
        with self._fleet.sending(order.replica, prepared.request):
            async with aclosing(self._attempt(order, prepared.deadline)) as events:
                async for event in events:
                    yield event

    Dispatcher.stream = one_attempt
