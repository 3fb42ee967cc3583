"""A KeyboardInterrupt at every line of what a cache does, after which the program goes on with the same cache.

A new caller gets a value within one virtual second, nobody waits, one resolution per key runs at a time, what is
aging is renewed in the background, what has ended is released, and the events add up. Where the interrupt struck the
user's code in a task of the cache, the cache has closed instead.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_renew._keyed
from trio_renew import (
    Cleared,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    ProviderCache,
    clear_provider_caches,
    invalidate_provider,
)
from trio_renew._keyed._rings import _waits
from trio_renew._keyed._roster import roster
from trio_renew.lowlevel import open_provider_cache_with
from trio_renew.testing import interrupt_at_every_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Cache = ProviderCache[str, str]

#: The user's code, which is here, and the rooms of one cache.
WITHIN = [sys.modules[__name__], trio_renew._keyed, trio_renew._owner, trio_renew._flight, trio_renew._events]


class Source:
    """Resolves a key to a text that is another one each time, or fails as it is told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asks: Callable[[], Awaitable[object]] | None = None
        self.calls = 0
        self.running: list[str] = []

    @trio.lowlevel.enable_ki_protection
    async def __call__(self, key: str) -> str:
        self.calls += 1
        assert key not in self.running
        self.running.append(key)
        try:
            return await self.resolve(key)
        finally:
            self.running.remove(key)

    @trio.lowlevel.disable_ki_protection
    async def resolve(self, key: str) -> str:
        await trio.sleep(0.2)
        if self.asks is not None and key == "a":
            await self.asks()
        if self.error is not None:
            raise self.error
        return f"{key}{self.calls}"


class Observer:
    """Notes what it is told, and then does something that can be interrupted."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last: Event | None = None

    @trio.lowlevel.enable_ki_protection
    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.look(event)

    @trio.lowlevel.disable_ki_protection
    def look(self, event: Event) -> None:
        self.last = event

    def adds_up(self) -> None:
        starts = sum(isinstance(event, FetchStarted) for event in self.events)
        ends = sum(isinstance(event, FetchSucceeded | FetchFailed | FetchAbandoned) for event in self.events)
        assert starts == ends
        assert [isinstance(event, OwnerClosed) for event in self.events].index(True) == len(self.events) - 1


def tags(key: str, value: str) -> list[str]:
    return [key, "all"]


async def hook() -> None:
    await trio.lowlevel.checkpoint()


async def nowait(cache: Cache) -> None:
    try:
        cache.get_nowait("a")
    except trio.WouldBlock:
        pass
    await trio.sleep(0.5)  # so that what it has started is interrupted, too


async def look(cache: Cache) -> None:
    len(cache)
    assert "b" not in cache
    cache.status()
    cache.set_ttl(9.0)


async def drop(call: Callable[[], object]) -> None:
    call()


async def ask(cache: Cache) -> None:
    """From inside of another resolution."""
    await cache.get("a")


OPERATIONS: dict[str, Callable[[Cache], Awaitable[object]]] = {
    "get": lambda cache: cache.get("a"),
    "get_nowait": nowait,
    "delete": lambda cache: drop(lambda: cache.delete("a")),
    "clear": lambda cache: drop(cache.clear),
    "invalidate_tag": lambda cache: drop(lambda: cache.invalidate_tag("all")),
    "invalidate_provider": lambda cache: drop(lambda: invalidate_provider("a")),
    "clear_provider_caches": lambda cache: drop(clear_provider_caches),
    "look": look,
}


async def empty(cache: Cache, source: Source) -> None:
    pass


async def good(cache: Cache, source: Source) -> None:
    await cache.get("a")


async def aging(cache: Cache, source: Source) -> None:
    await cache.get("a")
    await trio.sleep(6)


async def expired(cache: Cache, source: Source) -> None:
    await cache.get("a")
    await trio.sleep(60)


async def grace(cache: Cache, source: Source) -> None:
    await cache.get("a")
    await trio.sleep(12)
    source.error = OSError("down")


async def down(cache: Cache, source: Source) -> None:
    await grace(cache, source)
    await cache.get("a")


async def inside(cache: Cache, source: Source) -> None:
    async def ask() -> None:
        await cache.get("b")

    source.asks = ask


STATES = {state.__name__: state for state in (empty, good, aging, expired, grace, down, inside)}


async def goes_on(cache: Cache, source: Source) -> None:
    """It works as if nothing had happened."""
    source.error = source.asks = None
    await trio.sleep(25)
    with trio.fail_after(1):
        value = await cache.get("a")
    assert cache.get_nowait("a") == value
    status = cache.status()
    assert (status.resolving, status.waiting, len(cache)) == (0, 0, 1)
    # Renewed in the background.
    await trio.sleep(6)
    assert await cache.get("a") == value
    await trio.sleep(1)
    assert await cache.get("a") != value
    # Dropped.
    assert cache.delete("a")
    assert "a" not in cache
    with trio.fail_after(1):
        await cache.get("a")
        await cache.get("b")
    assert cache.invalidate_tag("b") == 1
    # Released without being touched.
    await trio.sleep(100)
    assert not cache._entries.map
    assert not cache._entries._tagged
    assert not _waits


def sweep(
    calm: Any,
    operation: str,
    state: str,
    *,
    others: int = 1,
    after_claim: Callable[[], Awaitable[object]] | None = None,
    **options: Any,
) -> int:
    async def scenario() -> None:
        quiet = calm()
        source, observer = Source(), Observer()
        options.setdefault("ttl", 10.0)
        tasks = trio.lowlevel.current_statistics().tasks_living
        try:
            async with open_provider_cache_with(
                after_claim, source, refresh_at=0.5, serve_expired_for=20.0, tags=tags, observe=observer, **options
            ) as cache:
                await STATES[state](cache, source)

                async def another() -> None:
                    try:
                        await cache.get("a")
                    except (KeyboardInterrupt, trio.ClosedResourceError, OSError):
                        pass

                async with trio.open_nursery() as nursery:
                    for _ in range(others):
                        nursery.start_soon(another)
                    await quiet.survive(lambda: OPERATIONS[operation](cache), trio.ClosedResourceError, OSError)
                    with trio.fail_after(2):
                        while nursery.child_tasks:
                            await trio.sleep(0.1)
                await goes_on(cache, source)
        except KeyboardInterrupt:
            pass  # it struck the user's code in a task of the cache
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        with pytest.raises(trio.ClosedResourceError):
            await cache.get("a")
        status = cache.status()
        assert (status.closed, status.entries, status.resolving, status.waiting) == (True, 0, 0, 0)
        observer.adds_up()
        assert not source.running
        assert not roster.members
        assert not _waits

    return interrupt_at_every_line(scenario, within=WITHIN).steps


@pytest.mark.parametrize(
    ("operation", "state"),
    [
        *(("get", state) for state in STATES),
        *(("get_nowait", state) for state in ("empty", "aging", "down")),
        *((operation, "good") for operation in OPERATIONS if operation not in ("get", "get_nowait")),
        *((operation, "empty") for operation in ("delete", "clear", "invalidate_tag")),
    ],
)
def test_it_goes_on_in_each_state(calm: Any, operation: str, state: str) -> None:
    assert sweep(calm, operation, state) >= 2


@pytest.mark.parametrize(
    ("operation", "state", "options"),
    [
        *(("get", state, {"after_claim": hook}) for state in ("empty", "inside")),
        ("get_nowait", "aging", {"after_claim": hook}),
        *(("get", state, {"when_abandoned": "cancel", "others": others}) for state in ("empty",) for others in (0, 2)),
    ],
)
def test_it_goes_on_with_a_hook_and_with_cancelled_fetches(
    calm: Any, operation: str, state: str, options: dict[str, Any]
) -> None:
    assert sweep(calm, operation, state, **options) >= 10


@pytest.mark.parametrize("operation", ["delete", "clear", "invalidate_tag", "invalidate_provider"])
def test_a_drop_is_one_step(calm: Any, operation: str) -> None:
    async def scenario() -> None:
        quiet = calm()
        observer = Observer()
        async with open_provider_cache_with(None, Source(), refresh_at=0.5, tags=tags, observe=observer) as cache:
            await aging(cache, Source())
            await trio.sleep(200)
            cache.get_nowait("a")  # a resolution is in progress
            await trio.sleep(0.1)
            await quiet.survive(lambda: OPERATIONS[operation](cache))
            dropped = any(isinstance(event, Cleared) for event in observer.events)
            assert ("a" in cache) == (not dropped)
            await trio.sleep(1)
            assert ("a" in cache) == (not dropped)

    assert interrupt_at_every_line(scenario, within=WITHIN).steps >= 2


@pytest.mark.parametrize("call", ["invalidate_provider", "clear_provider_caches"])
def test_an_invalidation_reaches_all_caches_or_none(calm: Any, call: str) -> None:
    async def scenario() -> None:
        quiet = calm()
        observers = [Observer(), Observer()]
        async with AsyncExitStack() as stack:
            caches = [
                await stack.enter_async_context(open_provider_cache_with(None, Source(), observe=observer))
                for observer in observers
            ]
            for cache in caches:
                await cache.get("a")
            await quiet.survive(lambda: OPERATIONS[call](caches[0]))
            told = [any(isinstance(event, Cleared) for event in observer.events) for observer in observers]
            held = ["a" in cache for cache in caches]
            assert told[0] == told[1]
            assert held == [not told[0]] * 2

    assert interrupt_at_every_line(scenario, within=WITHIN).steps >= 2


def test_opening_and_closing(calm: Any) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer = Source(), Observer()
        tasks = trio.lowlevel.current_statistics().tasks_living
        opened: list[Cache] = []
        outcomes: list[str] = []

        async def wait(cache: Cache) -> None:
            try:
                outcomes.append(await cache.get("a"))
            except trio.ClosedResourceError:
                outcomes.append("closed")

        async def use() -> None:
            async with open_provider_cache_with(None, source, observe=observer) as cache:
                opened.append(cache)
                nursery.start_soon(wait, cache)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            await quiet.survive(use)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert outcomes in ([], ["closed"])
        assert not source.running
        assert not roster.members
        if opened:
            observer.adds_up()
        with trio.fail_after(1):
            async with open_provider_cache_with(None, source) as cache:
                await cache.get("a")

    assert interrupt_at_every_line(scenario, within=WITHIN).steps > 10
