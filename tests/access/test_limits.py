"""Keys and limits, held by two gateways on one database."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from mezzotint.config import Settings
from mezzotint.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    MezzotintError,
    PermissionDenied,
    QueueFull,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from mezzotint.serve.access import access as module
from mezzotint.serve.access import cache, usage
from mezzotint.serve.access.access import Access, is_loopback, open_access, requires_keys
from mezzotint.serve.access.cache import KeyCache
from mezzotint.serve.access.caller import ANYONE, Caller
from mezzotint.serve.access.limits import LEASE_SECONDS, check_possible
from mezzotint.serve.access.usage import UsageLog
from mezzotint.serve.stores import database
from mezzotint.serve.stores.database import open_database
from mezzotint.serve.stores.keys import HOUR_SECONDS, KeyStore, NewKey, read_key
from tests.api.inprocess import usage_written
from tests.waiting import until

NEW = NewKey("alice")


class Clock:
    def __init__(self) -> None:
        # Early in an hour, so that a test does not cross into the next.
        self.time = 1_800_000_000.0 - 1_800_000_000.0 % HOUR_SECONDS + 5.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Gateways:
    """`one` and `other` have each its own connections."""

    one: Access
    other: Access
    keys: KeyStore
    clock: Clock

    async def caller(self, **limits: object) -> Caller:
        key, _ = await self.keys.create(replace(NEW, **limits))  # type: ignore[arg-type]
        return key.caller


@pytest.fixture
async def gateways(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateways]:
    monkeypatch.setattr(module, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.02)
    clock = Clock()
    async with AsyncExitStack() as stack:
        accesses = []
        for _ in range(2):
            database = await stack.enter_async_context(open_database(database_url))
            database.now = clock
            accesses.append(await stack.enter_async_context(open_access(database, requires_keys=True)))
        yield Gateways(*accesses, KeyStore(database), clock)


async def test_a_key_is_known_on_every_gateway_by_bearer_basic_and_header(gateways: Gateways) -> None:
    key, text = await gateways.keys.create(replace(NEW, max_priority="high", models=("demo",)))
    basic = base64.b64encode(f"user:{text}".encode()).decode()
    for access in (gateways.one, gateways.other):
        assert await access.authenticate(f"Bearer {text}") == key.caller
        assert await access.authenticate(f"bearer  {text} ") == key.caller
        assert await access.authenticate(f"Basic {basic}") == key.caller
        assert await access.authenticate(None, text) == key.caller
        assert await access.find(key.caller.id) == key.caller


async def test_a_key_is_nowhere_in_the_database(gateways: Gateways, database_url: str) -> None:
    _, text = await gateways.keys.create(NEW)
    secret = text.split("-", 2)[2]
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    [key] = await gateways.keys.list()
    assert secret not in repr(key)


async def refusal(access: Access, header: str | None, value: str | None = None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await access.authenticate(header, value)
    return caught.value.message


async def test_every_wrong_key_is_refused_with_the_same_words(gateways: Gateways) -> None:
    key, text = await gateways.keys.create(NEW)
    revoked, revoked_text = await gateways.keys.create(NEW)
    await gateways.keys.revoke(revoked.caller.id)
    _, expired_text = await gateways.keys.create(replace(NEW, expires_s=10.0))
    gateways.clock.time += 10.0
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {text}x",
        f"Bearer {text[:-1]}",
        f"Bearer mk-{key.caller.id}-",
        f"Bearer mk-{key.caller.id}-{'A' * 43}",
        f"Bearer mk-aaaaaaaa-{'A' * 43}",
        f"Bearer {revoked_text}",
        f"Bearer {expired_text}",
        f"Token {text}",
        text,
        "Basic !!!",
        "Basic é",
        f"Basic {base64.b64encode(bytes([255, 254])).decode()}",
        f"Basic {base64.b64encode(b':mk-' + bytes(8) + b'-secret').decode()}",
        f"Bearer {'é' * 40}",
        "Bearer " + "x" * 100_000,
    ]
    words = {await refusal(gateways.one, header) for header in wrong}
    assert len(words) == 1
    # A right key beside a wrong `Authorization` does not help.
    await refusal(gateways.one, "Bearer wrong", text)


async def test_a_revoked_key_is_refused_within_a_second_on_every_gateway(gateways: Gateways) -> None:
    key, text = await gateways.keys.create(NEW)
    for access in (gateways.one, gateways.other):
        await access.authenticate(f"Bearer {text}")
    assert await gateways.keys.revoke(key.caller.id)
    revoked_at = time.monotonic()
    assert cache.FRESH_SECONDS < 1.0
    for access in (gateways.one, gateways.other):
        while await is_let_in(access, text):
            # And what a busy machine adds to it.
            assert time.monotonic() - revoked_at < 30.0
            await asyncio.sleep(0.01)
    with pytest.raises(Unauthenticated):
        await gateways.one.find(key.caller.id)
    assert not await gateways.keys.revoke("unknown")


async def is_let_in(access: Access, key: str) -> bool:
    try:
        await access.authenticate(f"Bearer {key}")
    except Unauthenticated:
        return False
    return True


async def test_strangers_keys_do_not_take_the_database_from_known_ones(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(cache, "UNKNOWN_SECONDS", 600.0)
    key, text = await gateways.keys.create(NEW)
    await gateways.one.authenticate(f"Bearer {text}")
    asking: set[str] = set()
    most, go_on = 0, asyncio.Event()
    find = KeyStore.find

    async def slow(self: KeyStore, id: str) -> object:
        nonlocal most
        if id != key.caller.id:
            asking.add(id)
            most = max(most, len(asking))
            await go_on.wait()
            asking.discard(id)
        return await find(self, id)

    monkeypatch.setattr(KeyStore, "find", slow)
    wrong = [f"Bearer mk-{number:08}-{'A' * 43}" for number in range(50)]
    strangers = [asyncio.create_task(refusal(gateways.one, each)) for each in wrong]
    while not asking:
        await asyncio.sleep(0)
    assert await gateways.one.authenticate(f"Bearer {text}") == key.caller
    go_on.set()
    await asyncio.gather(*strangers)
    assert 0 < most <= cache.UNKNOWN_AT_ONCE


async def test_a_key_revoked_while_it_was_idle_does_not_come_back_when_the_database_goes(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = await gateways.keys.create(NEW)
    good, good_text = await gateways.keys.create(NEW)
    for each in (text, good_text):
        await gateways.other.authenticate(f"Bearer {each}")
    await gateways.keys.revoke(key.caller.id)
    revoked_at = time.monotonic()
    # Nobody uses either key; the gateway looks at them by itself.
    async with asyncio.timeout(60):
        while gateways.other._keys._known[key.caller.id].asked_at < revoked_at:
            await asyncio.sleep(0.02)

    async def no_answer(work: object) -> object:
        raise StoreUnavailable("the database does not answer", retry_after_s=1.0)

    monkeypatch.setattr(gateways.other._limits._database, "read", no_answer)
    monkeypatch.setattr(cache, "FRESH_SECONDS", 0.0)
    await refusal(gateways.other, f"Bearer {text}")
    assert await gateways.other.authenticate(f"Bearer {good_text}") == good.caller


async def test_a_key_that_was_not_looked_at_while_the_database_answered_does_not_go_on_without(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = await gateways.keys.create(NEW)
    known = KeyCache(gateways.keys)
    await known.find(read_key(text) or "")
    monkeypatch.setattr(cache, "CONFIRMED_SECONDS", 0.0)
    other, _ = await gateways.keys.create(NEW)
    assert await known.find(other.caller.id) == other

    async def no_answer(work: object) -> object:
        raise StoreUnavailable("the database does not answer", retry_after_s=1.0)

    monkeypatch.setattr(gateways.keys._database, "read", no_answer)
    monkeypatch.setattr(cache, "FRESH_SECONDS", 0.0)
    with pytest.raises(StoreUnavailable):
        await known.find(read_key(text) or "")
    assert await known.find(other.caller.id) == other


async def test_no_more_keys_are_kept_in_sight_than_one_query_takes(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_KNOWN", 3)
    made = [(await gateways.keys.create(NEW))[0] for _ in range(5)]
    known = KeyCache(gateways.keys)
    for key in made:
        assert await known.find(key.caller.id) == key
    assert list(known._known) == [key.caller.id for key in made[2:]]


async def test_beyond_a_number_of_unknown_keys_more_are_told_to_come_back_at_once(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "UNKNOWN_SECONDS", 600.0)
    go_on = asyncio.Event()
    find = KeyStore.find

    async def slow(self: KeyStore, id: str) -> object:
        await go_on.wait()
        return await find(self, id)

    monkeypatch.setattr(KeyStore, "find", slow)
    wrong = [f"Bearer mk-{number:08}-{'A' * 43}" for number in range(200)]
    strangers = [asyncio.create_task(gateways.one.authenticate(each)) for each in wrong]
    await asyncio.wait(strangers, timeout=1.0)
    async with asyncio.timeout(60):
        while sum(each.done() for each in strangers) < 200 - cache.MAX_UNKNOWN:
            await asyncio.sleep(0.02)
    done = [each for each in strangers if each.done()]
    waiting = [each for each in strangers if not each.done()]
    assert len(waiting) == cache.MAX_UNKNOWN
    for each in done:
        error = each.exception()
        assert isinstance(error, StoreUnavailable)
        assert error.retry_after_s
    # Those whose clients leave make room.
    _, text = await gateways.keys.create(NEW)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(gateways.one._keys._asking_unknown) == cache.UNKNOWN_AT_ONCE
    go_on.set()
    assert await gateways.one.authenticate(f"Bearer {text}")
    async with asyncio.timeout(60):
        while gateways.one._keys._asking_unknown:
            await asyncio.sleep(0)


async def test_an_unknown_key_is_not_waited_for_without_end(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "UNKNOWN_SECONDS", 0.1)
    hanging = asyncio.Event()

    async def hang(self: KeyStore, id: str) -> object:
        return await hanging.wait()

    monkeypatch.setattr(KeyStore, "find", hang)
    wrong = [f"Bearer mk-{number:08}-{'A' * 43}" for number in range(cache.UNKNOWN_AT_ONCE)]
    strangers = [asyncio.create_task(gateways.one.authenticate(each)) for each in wrong]
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        async with asyncio.timeout(60):
            await gateways.one.authenticate(f"Bearer mk-stranger-{'A' * 43}")
    for each in strangers:
        each.cancel()
    await asyncio.gather(*strangers, return_exceptions=True)


async def test_requests_with_one_key_ask_the_database_once(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = await gateways.keys.create(NEW)
    asked = 0
    find = KeyStore.find

    async def counted(self: KeyStore, id: str) -> object:
        nonlocal asked
        asked += 1
        return await find(self, id)

    monkeypatch.setattr(KeyStore, "find", counted)
    await asyncio.gather(*(gateways.one.authenticate(f"Bearer {text}") for _ in range(50)))
    assert asked == 1


async def test_the_rate_is_one_for_all_gateways_and_the_refusal_says_when_to_come_back(
    gateways: Gateways,
) -> None:
    caller = await gateways.caller(requests_per_minute=6)

    async def ask(access: Access) -> float | None:
        try:
            async with access.admit(caller, images=1, compute_s=1.0):
                return None
        except RateLimited as refused:
            return refused.retry_after_s

    answers = await asyncio.gather(*(ask((gateways.one, gateways.other)[i % 2]) for i in range(10)))
    assert answers.count(None) == 6
    wait = max(answer for answer in answers if answer is not None)
    assert wait == pytest.approx(10.0, abs=0.01)
    gateways.clock.time += wait - 0.2
    assert await ask(gateways.one) is not None
    gateways.clock.time += 0.2
    assert await ask(gateways.other) is None
    assert await ask(gateways.one) is not None


async def test_the_concurrency_is_one_for_all_gateways(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=3)
    async with gateways.one.admit(caller, images=2, compute_s=7.0):
        with pytest.raises(RateLimited) as caught:
            async with gateways.other.admit(caller, images=2, compute_s=1.0):
                pass
        # By then the first should be done.
        assert caught.value.retry_after_s == pytest.approx(7.0, abs=0.1)
        async with gateways.other.admit(caller, images=1, compute_s=1.0):
            pass
    async with gateways.other.admit(caller, images=3, compute_s=1.0):
        pass


async def test_as_many_at_once_as_allowed_and_not_one_more(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=4)
    inside = most = refused = 0

    async def ask(access: Access) -> None:
        nonlocal inside, most, refused
        try:
            async with access.admit(caller, images=1, compute_s=1.0):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.05)
                inside -= 1
        except RateLimited:
            refused += 1

    await asyncio.gather(*(ask((gateways.one, gateways.other)[i % 2]) for i in range(16)))
    assert most <= 4
    assert refused <= 12


async def test_a_caller_that_is_cancelled_gives_its_place_back(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=1)
    entered = asyncio.Event()

    async def draw() -> None:
        async with gateways.one.admit(caller, images=1, compute_s=1.0):
            entered.set()
            await asyncio.Event().wait()

    drawing = asyncio.create_task(draw())
    await entered.wait()
    drawing.cancel()
    await asyncio.gather(drawing, return_exceptions=True)
    async with gateways.other.admit(caller, images=1, compute_s=1.0):
        pass


async def test_a_caller_that_leaves_while_it_is_admitted_takes_nothing(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=1, compute_s_per_day=100.0)
    locked, go_on = asyncio.Event(), asyncio.Event()
    take = gateways.one._limits._lock

    async def held_up(*arguments: Any) -> float:
        locked.set()
        await go_on.wait()
        return await take(*arguments)

    gateways.one._limits._lock = held_up  # type: ignore[method-assign]

    async def draw() -> None:
        async with gateways.one.admit(caller, images=1, compute_s=60.0):
            raise AssertionError("admitted")

    drawing = asyncio.create_task(draw())
    await locked.wait()
    drawing.cancel()
    await asyncio.gather(drawing, return_exceptions=True)
    go_on.set()
    # In no time to wait for: the lease would end by itself.
    async with asyncio.timeout(60):
        while True:
            try:
                async with gateways.other.admit(caller, images=1, compute_s=60.0):
                    break
            except RateLimited:
                await asyncio.sleep(0.01)


async def test_what_a_killed_gateway_held_comes_back_when_its_leases_end(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=1)
    # Held by nobody that could renew it.
    await gateways.other._limits.take(caller, 1, 1.0)
    with pytest.raises(RateLimited):
        async with gateways.one.admit(caller, images=1, compute_s=1.0):
            pass
    gateways.clock.time += LEASE_SECONDS + 0.1
    async with gateways.one.admit(caller, images=1, compute_s=1.0):
        pass


async def test_a_long_drawing_keeps_its_place(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=1)
    async with gateways.one.admit(caller, images=1, compute_s=1.0):
        for _ in range(3):
            gateways.clock.time += LEASE_SECONDS - 1
            await renewed(gateways, caller)
            with pytest.raises(RateLimited):
                async with gateways.other.admit(caller, images=1, compute_s=1.0):
                    pass


async def test_a_place_is_kept_however_long_the_database_takes_for_what_else_is_written(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, turns, caller = Clock(), 0, Caller("key", concurrent_images=1)
    monkeypatch.setattr(module, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock), raising=False)

    async def take_long() -> None:
        nonlocal turns
        turns += 1
        clock.time += LEASE_SECONDS / 4

    async with open_database(database_url) as database, open_access(database, requires_keys=True) as access:
        database.now = clock
        monkeypatch.setattr(access._usage, "flush", take_long)
        async with access.admit(caller, images=1, compute_s=1.0):
            begun = turns
            await until(lambda: turns >= begun + 8, "twice the time of a lease")
            with pytest.raises(RateLimited):
                async with access.admit(caller, images=1, compute_s=1.0):
                    pass


async def renewed(gateways: Gateways, caller: Caller) -> None:
    from sqlalchemy import select

    from mezzotint.serve.stores.tables import leases

    database = gateways.keys._database
    statement = select(leases.c.expires).where(leases.c.key_id == caller.id)
    async with asyncio.timeout(60):
        while (
            await database.read(lambda connection: connection.scalar(statement)) or 0
        ) < gateways.clock.time + LEASE_SECONDS - 0.5:
            await asyncio.sleep(0.01)


async def test_the_quota_is_one_for_all_gateways_and_of_any_24_hours(gateways: Gateways) -> None:
    caller = await gateways.caller(compute_s_per_day=100.0)
    async with gateways.one.admit(caller, images=1, compute_s=60.0):
        pass
    gateways.clock.time += 2 * HOUR_SECONDS
    async with gateways.other.admit(caller, images=1, compute_s=40.0):
        pass
    with pytest.raises(RateLimited) as caught:
        async with gateways.one.admit(caller, images=1, compute_s=1.0):
            pass
    assert caught.value.retry_after_s == pytest.approx(23 * HOUR_SECONDS - 5.0, abs=1.0)
    gateways.clock.time += caught.value.retry_after_s or 0.0
    async with gateways.one.admit(caller, images=1, compute_s=60.0):
        pass
    with pytest.raises(RateLimited):
        async with gateways.one.admit(caller, images=1, compute_s=1.0):
            pass


async def test_what_is_given_back_is_of_the_hour_that_was_charged(gateways: Gateways) -> None:
    caller = await gateways.caller(compute_s_per_day=100.0)

    async def fail_after_an_hour() -> None:
        async with gateways.one.admit(caller, images=1, compute_s=100.0):
            gateways.clock.time += HOUR_SECONDS
            raise GenerationFailed("broken")

    with pytest.raises(GenerationFailed):
        await fail_after_an_hour()
    await usage_written(gateways.one)
    # That hour no longer counts, and the next one does.
    gateways.clock.time += 24 * HOUR_SECONDS
    async with gateways.one.admit(caller, images=1, compute_s=100.0):
        pass
    with pytest.raises(RateLimited):
        async with gateways.one.admit(caller, images=1, compute_s=1.0):
            pass


@pytest.mark.parametrize(
    ("error", "charged"),
    [
        (QueueFull("full"), 0.0),
        (GenerationFailed("broken"), 0.0),
        (InvalidRequest("no"), 0.0),
        (DeadlineExceeded("late"), 10.0),
        (asyncio.CancelledError(), 10.0),
    ],
)
async def test_only_what_was_drawn_is_charged(
    gateways: Gateways, error: BaseException, charged: float
) -> None:
    caller = await gateways.caller(compute_s_per_day=100.0)
    with pytest.raises(type(error)):
        async with gateways.one.admit(caller, images=1, compute_s=10.0):
            raise error
    await usage_written(gateways.one)
    [key] = await gateways.keys.list()
    assert key.used_compute_s == charged
    assert key.rejected == (0 if charged else 1)


@pytest.mark.parametrize(
    ("error", "drawn", "goes_on", "charged"),
    [
        (QueueFull("full"), 3, False, 6.0),
        (RuntimeError("a bug"), 0, False, 0.0),
        (RuntimeError("a bug"), 1, False, 2.0),
        (DeadlineExceeded("late"), 3, False, 8.0),
        (asyncio.CancelledError(), 3, False, 8.0),
        (asyncio.CancelledError(), 3, True, 6.0),
        (asyncio.CancelledError(), 0, True, 0.0),
    ],
)
async def test_of_several_pictures_those_that_were_drawn_are_charged(
    gateways: Gateways, error: BaseException, drawn: int, goes_on: bool, charged: float
) -> None:
    caller = await gateways.caller(compute_s_per_day=100.0)

    async def draw() -> None:
        async with gateways.one.admit(caller, images=4, compute_s=8.0) as admission:
            admission.drawn, admission.goes_on = drawn, goes_on
            raise error

    with pytest.raises(type(error)):
        await draw()
    await usage_written(gateways.one)
    [key] = await gateways.keys.list()
    assert (key.used_compute_s, key.used_images) == (charged, charged / 2)
    assert key.rejected == (0 if charged or goes_on else 1)


async def test_what_no_waiting_would_let_in_is_denied_rather_than_delayed(gateways: Gateways) -> None:
    caller = await gateways.caller(concurrent_images=2, compute_s_per_day=10.0)
    for images, compute_s in ((3, 1.0), (1, 11.0)):
        with pytest.raises(PermissionDenied):
            async with gateways.one.admit(caller, images=images, compute_s=compute_s):
                pass


async def test_what_is_just_too_much_reads_as_too_much() -> None:
    caller = replace(ANYONE, compute_s_per_day=5.0)
    check_possible(caller, 1, 5.0)
    with pytest.raises(
        PermissionDenied, match=r"^this takes 5\.1 s of an engine; this key has 5\.0 s a day$"
    ):
        check_possible(caller, 1, 5.02)


async def test_usage_of_all_gateways_is_added_up_and_shown(gateways: Gateways) -> None:
    caller = await gateways.caller()
    for access in (gateways.one, gateways.other, gateways.one):
        async with access.admit(caller, images=2, compute_s=3.5):
            pass
    limited = await gateways.caller(requests_per_minute=1)
    for _ in range(3):
        try:
            async with gateways.other.admit(limited, images=1, compute_s=1.0):
                pass
        except RateLimited:
            pass
    async with asyncio.timeout(60):
        while True:
            shown = {key.caller.id: key for key in await gateways.keys.list()}
            if shown[caller.id].used_images == 6 and shown[limited.id].rejected == 2:
                break
            await asyncio.sleep(0.02)
    assert shown[caller.id].used_compute_s == pytest.approx(10.5)
    assert (shown[limited.id].used_images, shown[limited.id].used_compute_s) == (1, 1.0)


@pytest.mark.parametrize("how", ["the writer is stopped", "the database is slow"])
async def test_usage_that_is_written_though_nobody_waits_for_it_is_counted_once(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    caller = await gateways.caller()
    log = UsageLog(gateways.keys._database)
    writing, go_on, add = asyncio.Event(), asyncio.Event(), usage.add_usage

    async def slow(*arguments: Any, **values: Any) -> None:
        await add(*arguments, **values)
        writing.set()
        while not go_on.is_set():
            # As a driver that waits on for the server, whoever has left.
            with suppress(asyncio.CancelledError):
                await go_on.wait()

    monkeypatch.setattr(usage, "add_usage", slow)
    if how == "the database is slow":
        monkeypatch.setattr(database, "ANSWER_SECONDS", 0.05)
    log.add(caller.id, images=1)
    flushing = asyncio.create_task(log.flush())
    await writing.wait()
    if how == "the writer is stopped":
        flushing.cancel()
    [left] = await asyncio.gather(flushing, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError | StoreUnavailable)
    monkeypatch.undo()
    go_on.set()
    store = gateways.keys._database
    async with asyncio.timeout(60):
        while store._tasks:
            await asyncio.sleep(0.01)
    store._writes.reason = ""
    await log.flush()
    [key] = await gateways.keys.list()
    assert key.used_images == 1


async def test_usage_that_could_not_be_written_is_written_later(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = await gateways.caller()
    log = UsageLog(gateways.keys._database)
    monkeypatch.setattr(database, "RETRY_SECONDS", 600.0)

    async def fail(*_: Any, **__: Any) -> None:
        raise OSError("gone")

    log.add(caller.id, images=1)
    with monkeypatch.context() as patch:
        patch.setattr(usage, "add_usage", fail)
        with pytest.raises(StoreUnavailable):
            await log.flush()
    # Refused at once, for the database is not asked again so soon.
    with pytest.raises(StoreUnavailable):
        await log.flush()
    gateways.keys._database._writes.reason = ""
    await log.flush()
    [key] = await gateways.keys.list()
    assert key.used_images == 1


async def test_without_its_database_known_keys_go_on_and_unknown_ones_are_unavailable(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = await gateways.keys.create(replace(NEW, requests_per_minute=1))
    _, unknown = await gateways.keys.create(NEW)
    access = gateways.one
    await access.authenticate(f"Bearer {text}")
    database = access._limits._database

    async def no_answer(work: object, settled: Callable[[bool], None] | None = None) -> object:
        if settled is not None:
            settled(False)
        raise StoreUnavailable("the database does not answer", retry_after_s=1.0)

    monkeypatch.setattr(database, "read", no_answer)
    monkeypatch.setattr(database, "write", no_answer)
    # What is known of the key is too old not to look.
    monkeypatch.setattr(cache, "FRESH_SECONDS", 0.0)
    caller = await access.authenticate(f"Bearer {text}")
    assert caller == key.caller
    with pytest.raises(StoreUnavailable):
        await access.authenticate(f"Bearer {unknown}")
    for _ in range(3):
        async with access.admit(caller, images=1, compute_s=2.0):
            pass
    monkeypatch.undo()
    # What was used meanwhile is written when the database is back.
    await access.close()
    used = {each.caller.id: each.used_compute_s for each in await gateways.keys.list()}
    assert used[caller.id] == 6.0


async def test_an_open_server_takes_any_key_for_anyone_without_asking_the_database(
    database_url: str,
) -> None:
    async with open_database(database_url) as database, open_access(database, requires_keys=False) as access:
        for header in (None, "Bearer sk-anything"):
            assert await access.authenticate(header) == ANYONE
        assert await access.find("whoever") == ANYONE
        async with access.admit(ANYONE, images=1_000, compute_s=1e9):
            pass


@pytest.mark.parametrize(
    ("host", "auth", "required"),
    [
        ("127.0.0.1", "auto", False),
        ("127.8.9.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),
        ("::", "auto", True),
        ("10.0.0.1", "auto", True),
        ("localhost.example", "auto", True),
        ("127.0.0.1", "on", True),
        ("0.0.0.0", "off", False),
    ],
)
def test_keys_are_required_unless_bound_to_loopback_or_told_otherwise(
    host: str, auth: str, required: bool
) -> None:
    assert requires_keys(Settings(host=host, auth=auth)) is required  # type: ignore[arg-type]
    assert is_loopback("127.0.0.1")


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"expires_s": 0.0},
        {"requests_per_minute": 0},
        {"concurrent_images": -1},
        {"compute_s_per_day": float("nan")},
        {"compute_s_per_day": float("inf")},
        {"max_priority": "top"},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(gateways: Gateways, bad: dict[str, object]) -> None:
    with pytest.raises(MezzotintError) as caught:
        await gateways.keys.create(replace(NEW, **bad))  # type: ignore[arg-type]
    assert caught.value.param == next(iter(bad))


@pytest.mark.parametrize("text", ["", "mk", "mk-", "mk-abc-x", "sk-abcdefgh-x", "mk-abcdefgh-", "mk--x"])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert read_key(text) is None
