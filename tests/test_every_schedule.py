"""Small scenarios under every order in which Trio may run their tasks: not a sample, all of them.

After each: everybody had an answer, one fetch ran at a time, each FetchStarted has found its end, and what is held is
what should be.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio
import trio.testing

from trio_renew import (
    AuthToken,
    BreakerPolicy,
    Closed,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    RefreshPolicy,
    open_provider,
    open_provider_cache,
    open_provider_pool,
    open_resource,
)
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import ScriptedFetch, Sleep, Token, under_every_schedule

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

POLICY = RefreshPolicy(jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


def adds_up(events: list[Event]) -> None:
    started = sum(isinstance(event, FetchStarted) for event in events)
    ended = sum(isinstance(event, FetchSucceeded | FetchFailed | FetchAbandoned) for event in events)
    assert started == ended


async def all_at_once(*calls: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(call, name=str(number))


def test_callers_share_one_fetch() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch("a")
        async with open_resource(fetch) as resource:
            await all_at_once(resource.get, resource.get, resource.get, resource.lease)
        assert fetch.calls == 1

    assert under_every_schedule(scenario).steps >= 24


def test_a_failure_reaches_all_who_joined_and_nobody_else() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(OSError("down"), then="a")
        outcomes: list[object] = []
        async with open_resource(fetch) as resource:

            async def get() -> None:
                try:
                    outcomes.append(await resource.get())
                except OSError as exc:
                    outcomes.append(str(exc))

            await all_at_once(get, get, get)
            assert outcomes == ["down"] * 3
            assert await resource.get() == "a"

    assert under_every_schedule(scenario).steps >= 24


def test_one_leaves_at_the_moment_at_which_the_value_arrives() -> None:
    for when_abandoned in ("finish", "cancel"):

        async def scenario() -> None:
            fetch = ScriptedFetch(then=Sleep(1.0, "a"))
            events: list[Event] = []
            async with open_resource(
                fetch,
                when_abandoned=when_abandoned,  # type: ignore[arg-type]  # noqa: B023 - called in the loop
                observe=events.append,
            ) as resource:

                async def impatient() -> None:
                    with trio.move_on_after(1.0):
                        assert await resource.get() == "a"

                await all_at_once(impatient, impatient, impatient)
                with trio.fail_after(1.5):
                    assert await resource.get() == "a"
            assert fetch.most_running == 1
            adds_up(events)

        assert under_every_schedule(scenario).steps >= 24


def test_clear_against_a_fetch_that_ends() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(Sleep(1.0, "old"), then=Sleep(1.0, "new"))
        events: list[Event] = []
        async with open_resource(fetch, observe=events.append) as resource:

            async def clear() -> None:
                await trio.sleep(1.0)
                await resource.clear()

            async def caller() -> None:
                assert await resource.get() == "old"

            await all_at_once(caller, caller, clear)
            # Whichever came first, what came before the clear() is not kept.
            assert not resource.status().held
            assert await resource.get() == "new"
        adds_up(events)

    assert under_every_schedule(scenario).steps >= 24


def test_refreshes_that_meet() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch("a", then="b")
        async with open_resource(fetch) as resource:
            old = await resource.lease()

            async def rejected() -> None:
                assert await resource.refresh(stale=old) == "b"

            await all_at_once(rejected, rejected, rejected)
            assert fetch.calls == 2
            assert await resource.get() == "b"

    assert under_every_schedule(scenario).steps >= 24


def test_closing_while_callers_wait() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(1.0, "a"))
        events: list[Event] = []
        async with trio.open_nursery() as nursery:
            async with open_resource(fetch, observe=events.append) as resource:

                async def caller() -> None:
                    with suppress(trio.ClosedResourceError):
                        assert await resource.get() == "a"

                nursery.start_soon(caller)
                nursery.start_soon(caller)
                await trio.sleep(1.0)
        assert fetch.running == 0
        assert resource.status().waiting == 0
        adds_up(events)

    assert under_every_schedule(scenario).steps >= 24


def test_a_due_value_is_renewed_once_behind_its_callers() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(Token("a", 60.0), then=Token("b", 60.0))
        async with open_provider(fetch, policy=POLICY) as provider:
            await trio.sleep(50.0)
            seen: list[AuthToken] = []

            async def caller() -> None:
                seen.append(await provider.get())

            await all_at_once(caller, caller, caller)
            await trio.testing.wait_all_tasks_blocked()
            assert {token.secret.reveal() for token in seen} <= {"a", "b"}
            assert fetch.calls == 2
            assert (await provider.get()).secret.reveal() == "b"

    assert under_every_schedule(scenario).steps >= 24


def test_an_invalidation_wins_over_the_resolution_in_progress() -> None:
    async def scenario() -> None:
        calls = 0

        async def resolve(key: str) -> int:
            nonlocal calls
            calls += 1
            number = calls
            await trio.sleep(1.0)
            return number

        async with open_provider_cache(resolve) as cache:

            async def delete() -> None:
                await trio.sleep(1.0)
                assert cache.delete("k")

            async def caller() -> None:
                assert await cache.get("k") == 1

            await all_at_once(caller, caller, delete)
            assert "k" not in cache
            assert await cache.get("k") == 2

    assert under_every_schedule(scenario).steps >= 24


def test_a_value_is_closed_after_its_last_borrower() -> None:
    async def scenario() -> None:
        is_open: set[int] = set()
        number = 0

        class Value:
            def __init__(self) -> None:
                nonlocal number
                number += 1
                self.number = number

        @asynccontextmanager
        async def open_value(key: str) -> AsyncGenerator[Value, None]:
            await trio.lowlevel.checkpoint()
            value = Value()
            is_open.add(value.number)
            try:
                yield value
            finally:
                is_open.remove(value.number)

        async with open_provider_pool(open_value, idle_timeout=0.0) as pool:

            async def borrower() -> None:
                async with pool.borrow("k") as value:
                    assert value.number in is_open
                    await trio.lowlevel.checkpoint()
                    assert value.number in is_open

            async def rotate() -> None:
                await trio.lowlevel.checkpoint()
                pool.delete("k")

            await all_at_once(borrower, borrower, rotate)
            await trio.testing.wait_all_tasks_blocked()
            assert not is_open
            assert pool.status().borrowed == 0

    assert under_every_schedule(scenario).steps >= 24


def test_a_job_has_one_owner_and_its_outcome_reaches_who_joined() -> None:
    async def scenario() -> None:
        async with open_memory_stores() as stores:
            dedupe = stores.dedupe
            owners = 0

            async def one() -> None:
                nonlocal owners
                job_id, is_owner = attrs.astuple(await dedupe.register_or_join("k"))
                if is_owner:
                    owners += 1
                    await dedupe.complete("k", "value", job_id=job_id)
                else:
                    assert await dedupe.wait_for("k", job_id=job_id) == "value"

            await all_at_once(one, one)
            # Who came when it was settled joined nothing, and became an owner.
            assert owners in (1, 2)

    assert under_every_schedule(scenario).steps >= 24


def test_the_cooldown_admits_one_probe() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(OSError("down"), then=Sleep(1.0, Token("a", 60.0)))
        breaker = BreakerPolicy(threshold=1, cooldown=10.0)
        async with open_provider(fetch, policy=POLICY, breaker=breaker, eager=False) as provider:
            with suppress(OSError):
                await provider.get()
            await trio.sleep(10.0)
            await all_at_once(provider.get, provider.get, provider.lease)
            assert fetch.calls == 2
            assert isinstance(provider.status().breaker, Closed)

    assert under_every_schedule(scenario).steps >= 24
