"""The cache of the memory engine, beyond the contract that all caches share."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import trio
import trio.testing

from trio_renew._errors import StoreError
from trio_renew.stores._common import CacheEntryInfo, CacheStats
from trio_renew.stores.memory import open_memory_stores


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Thing:
    """A value that can be watched."""


class LengthCodec:
    """Takes texts; the bytes are theirs."""

    def encode(self, value: object, /) -> bytes:
        assert isinstance(value, str), "no text"
        return value.encode()

    def decode(self, data: bytes, /) -> object:
        raise AssertionError("the memory engine never decodes")


async def test_it_keeps_the_object_itself(autojump_clock: trio.testing.MockClock) -> None:
    thing = Thing()
    async with open_memory_stores() as stores:
        await stores.cache.set("a", thing, 1.0)
        assert await stores.cache.get("a") is thing


async def test_every_method_is_one_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        cache = stores.cache
        for call in (
            lambda: cache.set("a", 1, 10.0, tags=["t"]),
            lambda: cache.get("a"),
            lambda: cache.get("unknown"),
            lambda: cache.list_entries(),
            lambda: cache.get_lru_items(),
            lambda: cache.get_stats(),
            lambda: cache.cleanup(),
            lambda: cache.invalidate_tag("t"),
            lambda: cache.invalidate_tags([]),
            lambda: cache.delete("a"),
            lambda: cache.clear(),
        ):
            before = trio.current_time()
            with trio.testing.assert_checkpoints():
                await call()
            assert trio.current_time() == before


async def test_a_cancelled_call_has_not_happened(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        cache = stores.cache
        await cache.set("a", 1, 10.0, tags=["t"])
        for call in (
            lambda: cache.set("a", 2, 10.0),
            lambda: cache.delete("a"),
            lambda: cache.clear(),
            lambda: cache.invalidate_tag("t"),
            lambda: cache.cleanup(),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
        assert await cache.get("a") == 1
        assert await cache.invalidate_tag("t") == 1


async def test_without_a_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        with trio.testing.assert_no_checkpoints():
            stores.cache.set_nowait("a", 1, 2.0)
            assert stores.cache.get_nowait("a") == 1
            assert stores.cache.get_nowait("b") is None
        await trio.sleep(2.0)
        assert stores.cache.get_nowait("a") is None


@pytest.mark.parametrize(
    ("args", "tags", "names"),
    [
        (("", 1, 1.0), (), "hash must not be empty"),
        ((1, 1, 1.0), (), "hash must be a str"),
        (("\ud800", 1, 1.0), (), "hash must be text that UTF-8"),
        (("a", None, 1.0), (), "value must not be None"),
        (("a", 1, True), (), "ttl must be a number"),
        (("a", 1, "1"), (), "ttl must be a number"),
        (("a", 1, float("nan")), (), "ttl must be finite"),
        (("a", 1, float("inf")), (), "ttl must be finite"),
        (("a", 1, float("-inf")), (), "ttl must be finite"),
        (("a", 1, 1.0), "tag", "tags must be an iterable of str"),
        (("a", 1, 1.0), b"tag", "tags must be an iterable of str"),
        (("a", 1, 1.0), 7, "tags must be an iterable of str"),
        (("a", 1, 1.0), [""], "tags? must not be empty"),
        (("a", 1, 1.0), [7], "tags? must be a str"),
    ],
)
async def test_bad_arguments_name_themselves_and_change_nothing(args: Any, tags: Any, names: str) -> None:
    async with open_memory_stores() as stores:
        await stores.cache.set("a", "old", 10, tags=["old"])
        with pytest.raises((TypeError, ValueError), match=names):
            await stores.cache.set(*args, tags=tags)
        assert await stores.cache.get("a") == "old"
        assert await stores.cache.invalidate_tag("old") == 1


async def test_bad_arguments_of_the_other_methods() -> None:
    async with open_memory_stores() as stores:
        cache: Any = stores.cache
        for call, names in (
            (lambda: cache.get(""), "hash"),
            (lambda: cache.get(None), "hash"),
            (lambda: cache.delete(""), "hash"),
            (lambda: cache.clear(7), "scope"),
            (lambda: cache.invalidate_tag(""), "tag"),
            (lambda: cache.invalidate_tags("tag"), "tags"),
            (lambda: cache.list_entries(-1), "offset"),
            (lambda: cache.list_entries(0, True), "limit"),
            (lambda: cache.get_lru_items(-1), "limit"),
        ):
            with pytest.raises((TypeError, ValueError), match=names):
                await call()


async def test_it_drops_the_least_recently_used(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(max_items=3) as stores:
        cache = stores.cache
        for key in "abc":
            await cache.set(key, key, 60.0, tags=["t"])
        assert await cache.get("a") == "a"
        await cache.set("b", "B", 60.0, tags=["t"])
        await cache.set("d", "d", 60.0)
        assert [await cache.get(key) for key in "abcd"] == ["a", "B", None, "d"]
        assert await cache.invalidate_tag("t") == 2  # the tag of what was dropped is gone with it


async def test_one_item_is_a_bound_like_any_other(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(max_items=1) as stores:
        for number in range(3):
            await stores.cache.set(f"k{number}", number + 1, 0)
        assert [info.hash for info in await stores.cache.list_entries()] == ["k2"]


async def test_the_total_size_always_holds(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(codec=LengthCodec(), max_total_bytes=10) as stores:
        cache = stores.cache
        for key in "abc":
            await cache.set(key, "xxx", 60.0)
        assert (await cache.get_stats()).total_bytes == 9
        await cache.set("d", "x" * 8, 60.0)
        assert [info.hash for info in await cache.list_entries()] == ["d"]
        assert (await cache.get_stats()).total_bytes == 8
        await cache.set("d", "xx", 60.0)
        assert (await cache.get_stats()).total_bytes == 2
        await cache.set("e", "x" * 8, 60.0)
        assert (await cache.get_stats()).total_bytes == 10
        await cache.delete("d")
        await cache.clear("e")
        assert (await cache.get_stats()).total_bytes == 0


@pytest.mark.parametrize("option", ["max_entry_size_bytes", "max_total_bytes"])
async def test_a_value_that_is_too_large_is_refused_and_the_old_one_is_gone(option: str) -> None:
    options: dict[str, Any] = {option: 5}
    async with open_memory_stores(codec=LengthCodec(), **options) as stores:
        cache = stores.cache
        await cache.set("a", "12345", 60.0, tags=["t"])
        assert await cache.get("a") == "12345"
        with pytest.raises(StoreError, match=rf"'a' has 6 bytes, more than {option}=5"):
            await cache.set("a", "123456", 60.0, tags=["new"])
        assert await cache.get("a") is None
        assert await cache.invalidate_tags(["t", "new"]) == 0
        with pytest.raises(StoreError):
            await cache.set("b", "123456", 60.0)
        assert (await cache.get_stats()).total_items == 0


async def test_a_value_that_cannot_be_measured_is_refused_and_the_old_one_is_gone() -> None:
    async with open_memory_stores(codec=LengthCodec(), max_total_bytes=100) as stores:
        await stores.cache.set("a", "x", 60.0)
        with pytest.raises(StoreError, match="the codec cannot encode the value of 'a': AssertionError") as caught:
            await stores.cache.set("a", 7, 60.0)
        assert isinstance(caught.value.__cause__, AssertionError)
        assert await stores.cache.get("a") is None
        with pytest.raises(StoreError):
            await stores.cache.set("b", 7, 60.0)


async def test_without_a_byte_limit_anything_is_kept() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    async with open_memory_stores(max_items=5) as stores:
        await stores.cache.set("a", cycle, 60.0)
        assert await stores.cache.get("a") is cycle
        assert (await stores.cache.get_stats()).total_bytes is None
        assert (await stores.cache.list_entries())[0].size is None


async def test_listing(autojump_clock: trio.testing.MockClock) -> None:
    clock = SetClock(1000.0)
    async with open_memory_stores(codec=LengthCodec(), max_entry_size_bytes=10, clock=clock) as stores:
        cache = stores.cache
        assert await cache.list_entries() == []
        await cache.set("a", "x", 0)
        await cache.set("b", "xx", 50.0)
        await cache.set("c", "xxx", 5.0)
        clock.now = 1005.0
        await cache.get("a")
        assert await cache.list_entries() == [
            CacheEntryInfo("a", expires_at=0.0, created_at=1000.0, last_accessed=1005.0, size=1),
            CacheEntryInfo("b", expires_at=1050.0, created_at=1000.0, last_accessed=1000.0, size=2),
        ]
        assert [info.hash for info in await cache.get_lru_items()] == ["b", "a"]
        assert [info.hash for info in await cache.get_lru_items(1)] == ["b"]
        await cache.set("a", "x", 0)  # stored anew
        assert [info.hash for info in await cache.list_entries()] == ["b", "a"]


async def test_pages_of_a_listing() -> None:
    async with open_memory_stores() as stores:
        for number in range(5):
            await stores.cache.set(f"k{number}", 1, 0)
        pages = [[info.hash for info in await stores.cache.list_entries(offset, 2)] for offset in (0, 2, 4, 6)]
        assert pages == [["k0", "k1"], ["k2", "k3"], ["k4"], []]


async def test_instants_are_on_the_clock_of_the_house(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        await stores.cache.set("a", 1, 60.0)
        (before,) = await stores.cache.list_entries()
        await trio.sleep(10.0)
        (after,) = await stores.cache.list_entries()
        assert before == after
        assert before.created_at is not None
        assert before.expires_at == before.created_at + 60.0
        assert before.created_at > 1.6e9


async def test_stats(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(codec=LengthCodec(), max_items=4, max_total_bytes=10) as stores:
        cache = stores.cache
        await cache.set("a", "x", 60.0)
        await cache.set("b", "xx", 1.0)
        await trio.sleep(1.0)
        stats = await cache.get_stats()
        assert stats == CacheStats(total_items=2, expired=1, total_bytes=3, max_items=4, max_total_bytes=10)
        assert (stats.item_utilization, stats.memory_utilization) == (0.5, 0.3)
        assert await cache.get("b") is None  # seen and removed
        assert await cache.get_stats() == CacheStats(1, 0, 1, 4, 10)
    stats = CacheStats(1, 0, None)
    assert (stats.item_utilization, stats.memory_utilization) == (None, None)
    assert CacheStats(1, 0, None, max_total_bytes=5).memory_utilization is None


async def test_cleanup_removes_what_has_expired(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        cache = stores.cache
        for number in range(3):
            await cache.set(f"k{number}", 1, 1.0, tags=["t"])
        await cache.set("live", 1, 60.0)
        await cache.set("permanent", 1, 0)
        assert await cache.cleanup() == 0
        await trio.sleep(1.0)
        assert await cache.cleanup() == 3
        assert await cache.cleanup() == 0
        assert (await cache.get_stats()).total_items == 2
        assert await cache.invalidate_tag("t") == 0


async def test_what_has_expired_is_released_without_being_touched(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        thing = Thing()
        watch = weakref.ref(thing)
        await stores.cache.set("a", thing, 30.0)
        del thing
        gc.collect()
        assert watch() is not None
        await trio.sleep(61.0)
        gc.collect()
        assert watch() is None


async def test_the_sweeper_goes_on_while_anything_can_expire(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        await stores.cache.set("long", 1, 100.0)
        await trio.sleep(61.0)
        assert (await stores.cache.get_stats()).total_items == 1
        await stores.cache.set("short", 1, 1.0)
        await trio.sleep(120.0)
        assert (await stores.cache.get_stats()).total_items == 0
        # Nothing can expire any more: no timer is left, and virtual time stands still.
        await stores.cache.set("for ever", 1, 0)
        await trio.sleep(120.0)
        assert autojump_clock.current_time() < 400
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


async def test_a_large_sweep_lets_others_run(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        for number in range(2500):
            stores.cache.set_nowait(f"k{number}", 1, 1.0)
        stores.cache.set_nowait("last", 1, 100.0)
        await trio.sleep(60.0)
        seen: set[int] = set()
        while 1 not in seen:
            seen.add((await stores.cache.get_stats()).total_items)
        assert seen & {1501, 501}  # somebody else ran between its slices


async def test_a_clock_that_goes_back_prolongs_nothing_beyond_its_length() -> None:
    clock = SetClock(1000.0)
    async with open_memory_stores(clock=clock) as stores:
        cache = stores.cache
        await cache.set("a", 1, 10.0)
        clock.now = 1005.0
        await cache.set("b", 1, 10.0)
        await cache.set("c", 1, 0)
        clock.now = 1003.0
        assert await cache.get("a") == 1  # is not from the future, and expires at 1010
        assert (await cache.list_entries())[1] == CacheEntryInfo("b", 1013.0, 1003.0, 1003.0)
        clock.now = 0.0
        assert await cache.get("b") == 1
        clock.now = 9.999
        assert [await cache.get(key) for key in "abc"] == [1, 1, 1]
        clock.now = 10.0
        assert [await cache.get(key) for key in "abc"] == [None, None, 1]


async def test_closed_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        await stores.cache.set("a", 1, 0)
    cache = stores.cache
    for call in (
        lambda: cache.get("a"),
        lambda: cache.set("a", 1, 1.0),
        lambda: cache.delete("a"),
        lambda: cache.clear(),
        lambda: cache.invalidate_tag("t"),
        lambda: cache.invalidate_tags(["t"]),
        lambda: cache.list_entries(),
        lambda: cache.get_lru_items(),
        lambda: cache.get_stats(),
        lambda: cache.cleanup(),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        cache.get_nowait("a")
    with pytest.raises(trio.ClosedResourceError):
        cache.set_nowait("a", 1, 1.0)


async def test_another_thread_is_refused() -> None:
    async with open_memory_stores() as stores:
        with pytest.raises(RuntimeError, match="belong to the Trio run"):
            await trio.to_thread.run_sync(trio.run, stores.cache.get, "a")
