"""Rings: resolutions that would wait for each other for ever."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import ReentrantFetchError, open_provider_cache, open_provider_pool, open_resource
from trio_renew._keyed._rings import _waits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Any:
    yield
    assert _waits == {}


async def collect(results: dict[Any, Any], call: Any, key: Any) -> None:
    try:
        results[key] = await call(key)
    except Exception as exc:
        results[key] = exc


async def test_a_resolution_that_asks_for_itself() -> None:
    async def resolve(key: str) -> str:
        return await cache.get(key)

    async with open_provider_cache(resolve) as cache:
        with pytest.raises(ReentrantFetchError, match="'a'"):
            await cache.get("a")


async def test_a_ring_of_three() -> None:
    following = {"a": "b", "b": "c", "c": "a"}

    async def resolve(key: str) -> str:
        return await cache.get(following[key])

    async with open_provider_cache(resolve) as cache:
        with pytest.raises(ReentrantFetchError):
            await cache.get("a")


async def test_through_a_child_task() -> None:
    async def resolve(key: str) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "b" if key == "a" else "a")
        return key

    async with open_provider_cache(resolve) as cache:
        with pytest.raises(ExceptionGroup) as caught:
            await cache.get("a")
        assert caught.group_contains(ReentrantFetchError)


async def test_entered_from_two_sides_at_once(autojump_clock: MockClock) -> None:
    async def resolve(key: str) -> str:
        await trio.sleep(1)
        return await cache.get("b" if key == "a" else "a")

    async with open_provider_cache(resolve) as cache:
        results: dict[Any, Any] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, results, cache.get, "a")
            nursery.start_soon(collect, results, cache.get, "b")
        assert [type(results[key]) for key in "ab"] == [ReentrantFetchError] * 2
        assert trio.current_time() == 1


async def test_over_two_caches_and_a_pool() -> None:
    async def resolve_tenant(key: str) -> str:
        return await issuers.get(key)

    async def resolve_issuer(key: str) -> str:
        async with pool.borrow(key) as value:
            return value

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        yield await tenants.get(key)

    async with (
        open_provider_cache(resolve_tenant) as tenants,
        open_provider_cache(resolve_issuer) as issuers,
        open_provider_pool(open_value) as pool,
    ):
        with pytest.raises(ReentrantFetchError):
            await tenants.get("a")
        with pytest.raises(ReentrantFetchError):
            async with pool.borrow("a"):
                raise AssertionError


async def test_an_opening_that_borrows_itself() -> None:
    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        async with pool.borrow(key) as value:
            yield value

    async with open_provider_pool(open_value) as pool:
        with pytest.raises(ReentrantFetchError):
            async with pool.borrow("a"):
                raise AssertionError


async def test_no_ring_is_no_error() -> None:
    async def resolve(key: int) -> int:
        return key if key < 2 else await cache.get(key - 1) + await cache.get(key - 2)

    async with open_provider_cache(resolve) as cache:
        assert await cache.get(30) == 832040


async def test_two_who_want_the_same_third_are_no_ring(autojump_clock: MockClock) -> None:
    async def resolve(key: str) -> str:
        if key == "c":
            await trio.sleep(1)
            return "C"
        return await cache.get("c")

    async with open_provider_cache(resolve) as cache:
        results: dict[Any, Any] = {}
        async with trio.open_nursery() as nursery:
            for key in "abc":
                nursery.start_soon(collect, results, cache.get, key)
        assert results == {"a": "C", "b": "C", "c": "C"}


async def test_one_resolution_may_wait_twice_on_another(autojump_clock: MockClock) -> None:
    async def resolve(key: str) -> str:
        if key == "b":
            await trio.sleep(1)
            return "B"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "b")
            nursery.start_soon(cache.get, "b")
        return "A"

    async with open_provider_cache(resolve) as cache:
        assert await cache.get("a") == "A"


async def test_a_hit_is_never_refused(autojump_clock: MockClock) -> None:
    calls: list[str] = []

    async def resolve(key: str) -> str:
        calls.append(key)
        if len(calls) == 1:
            return "old"
        return f"new, not {await cache.get(key)}, not {cache.get_nowait(key)}"

    async with open_provider_cache(resolve, ttl=100, refresh_at=0.5) as cache:
        await cache.get("a")
        await trio.sleep(50)
        cache.get_nowait("a")
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "new, not old, not old"


async def test_a_task_that_outlives_the_resolution_is_not_inside_of_it() -> None:
    go = trio.Event()
    results: dict[Any, Any] = {}

    async def later() -> None:
        await go.wait()
        await collect(results, cache.get, "a")

    async def resolve(key: str) -> str:
        if not go.is_set():
            nursery.start_soon(later)
        return "A"

    async with open_provider_cache(resolve, ttl=0) as cache, trio.open_nursery() as nursery:
        await cache.get("a")
        go.set()
        await wait_all_tasks_blocked()
        assert results == {"a": "A"}


async def test_a_ring_over_an_unwinding_resolution(autojump_clock: MockClock) -> None:
    """A fetch that cleans up for long, and asks for its own key while it does."""
    caught: list[Exception] = []

    async def resolve(key: str) -> str:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await cache.get(key)
                except Exception as exc:
                    caught.append(exc)
        raise AssertionError

    async with open_provider_cache(resolve, when_abandoned="cancel") as cache:
        with trio.move_on_after(1):
            await cache.get("a")
        await wait_all_tasks_blocked()
        assert [type(error) for error in caught] == [ReentrantFetchError]


async def test_a_resource_between_two_keys_does_not_hide_the_ring() -> None:
    async def resolve(key: str) -> str:
        async def fetch() -> str:
            return await cache.get("a")

        async with open_resource(fetch) as resource:
            return await resource.get()

    async with open_provider_cache(resolve) as cache:
        with pytest.raises(ReentrantFetchError):
            await cache.get("a")


async def test_one_resolution_may_wait_on_two_at_once(autojump_clock: MockClock) -> None:
    async def resolve(key: str) -> str:
        if key != "a":
            await trio.sleep(ord(key))
            return key
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "b")
            nursery.start_soon(cache.get, "c")
        return "A"

    async with open_provider_cache(resolve, fetch_timeout=None) as cache:
        assert await cache.get("a") == "A"
