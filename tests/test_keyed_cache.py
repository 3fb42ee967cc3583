"""The keyed cache: lifetimes, resolution, what is served while the source is down, status and arguments."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_renew import (
    CacheStatus,
    Cleared,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    OwnerClosed,
    ServedExpired,
    open_provider_cache,
)
from trio_renew._keyed._roster import Message
from trio_renew.lowlevel import open_provider_cache_with
from trio_renew.testing import Block, Handoff, ScriptedFetch, Sleep, Stubborn, under_schedules


class Down(Exception):
    """What the scripted sources raise."""


class Thing:
    """A value that can be referred to weakly."""


class Source:
    """Resolves keys by scripts; a key without one gets ``key#n`` for its n-th call."""

    def __init__(self, **scripts: ScriptedFetch[Any]) -> None:
        self.scripts = scripts
        self.calls: list[Any] = []

    async def __call__(self, key: Any) -> Any:
        self.calls.append(key)
        if key in self.scripts:
            return await self.scripts[key]()
        await trio.lowlevel.checkpoint()
        return f"{key}#{self.calls.count(key)}"


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def collect(results: list[Any], call: Any, *args: Any) -> None:
    try:
        results.append(await call(*args))
    except Exception as exc:
        results.append(exc)


# Hits and misses


async def test_a_value_is_resolved_once_and_then_served() -> None:
    source = Source()
    async with open_provider_cache(source) as cache:
        with pytest.raises(trio.WouldBlock) as caught:
            cache.get_nowait("a")
        assert caught.value.__context__ is None
        with assert_checkpoints():
            assert await cache.get("a") == "a#1"
        with assert_checkpoints():
            assert await cache.get("a") == "a#1"
        with assert_no_checkpoints():
            assert cache.get_nowait("a") == "a#1"
        assert await cache.get("b") == "b#1"
        assert source.calls == ["a", "b"]
        assert "a" in cache
        assert "c" not in cache
        assert len(cache) == 2


async def test_the_very_object_is_served_and_falsy_values_are_values() -> None:
    values = {"zero": 0, "empty": "", "false": False, "thing": Thing()}

    async def resolve(key: str) -> object:
        return values[key]

    async with open_provider_cache(resolve) as cache:
        for key, value in values.items():
            assert await cache.get(key) is value
            assert cache.get_nowait(key) is value


async def test_a_hit_is_exactly_one_checkpoint() -> None:
    steps = 0

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += task is me

    me = trio.lowlevel.current_task()
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        for _ in range(3):  # the first finds the way, the next ones take it
            instrument = Steps()
            trio.lowlevel.add_instrument(instrument)
            steps = 0
            await cache.get("a")
            trio.lowlevel.remove_instrument(instrument)
            assert steps == 1


async def test_a_cancelled_hit_or_miss_raises_cancelled_and_starts_nothing() -> None:
    source = Source()
    async with open_provider_cache(source) as cache:
        with trio.CancelScope() as scope:
            scope.cancel()
            await cache.get("a")
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert source.calls == []
        await cache.get("a")
        for _ in range(2):
            with trio.CancelScope() as scope:
                scope.cancel()
                await cache.get("a")
            assert scope.cancelled_caught


async def test_concurrent_callers_share_one_resolution_per_key() -> None:
    source = Source(a=ScriptedFetch(Block("A")), b=ScriptedFetch(Block("B")))
    async with open_provider_cache(source) as cache, trio.open_nursery() as nursery:
        results: list[Any] = []
        for _ in range(5):
            nursery.start_soon(collect, results, cache.get, "a")
            nursery.start_soon(collect, results, cache.get, "b")
        await wait_all_tasks_blocked()
        assert cache.status() == CacheStatus(None, 0, 1024, 2, 10, False)
        source.scripts["a"].release()
        await wait_all_tasks_blocked()
        assert results == ["A"] * 5
        source.scripts["b"].release()
        await wait_all_tasks_blocked()
        assert results == ["A"] * 5 + ["B"] * 5
        assert sorted(source.calls) == ["a", "b"]
        assert cache.status() == CacheStatus(None, 2, 1024, 0, 0, False)


async def test_an_error_is_shared_and_not_remembered() -> None:
    source = Source(a=ScriptedFetch(Block(Down("no")), "A"))
    async with open_provider_cache(source) as cache:
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(collect, results, cache.get, "a")
            await wait_all_tasks_blocked()
            source.scripts["a"].release()
        assert [type(result) for result in results] == [Down] * 3
        assert await cache.get("a") == "A"


async def test_a_failing_resolution_shows_its_own_frames_and_none_of_ours() -> None:
    async def resolve(key: str) -> str:
        await trio.lowlevel.checkpoint()
        raise Down(key)

    async with open_provider_cache(resolve) as cache:
        with pytest.raises(Down) as caught:
            await cache.get("a")
        frames = [entry.frame.code.path for entry in caught.traceback]
        assert str(frames[-1]) == __file__


async def test_the_resolution_is_not_the_callers() -> None:
    source = Source(a=ScriptedFetch(Block("A")))
    async with open_provider_cache(source) as cache:
        with trio.move_on_after(0):
            await cache.get("a")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cache.get, "a")
                await wait_all_tasks_blocked()
                scope.cancel()
        source.scripts["a"].release()
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "A"


async def test_a_resolution_that_all_have_left_can_be_cancelled() -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch(Block("A"), "B"))
    async with open_provider_cache(source, when_abandoned="cancel", observe=events.append) as cache:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cache.get, "a")
                nursery.start_soon(cache.get, "a")
                await wait_all_tasks_blocked()
                scope.cancel()
        await wait_all_tasks_blocked()
        assert source.scripts["a"].cancelled == 1
        assert await cache.get("a") == "B"
    assert names(events)[:2] == ["FetchStarted", "FetchAbandoned"]
    assert events[1] == FetchAbandoned("absent", name=None, key="a")


async def test_a_timeout_is_a_shared_error_at_exactly_that_time(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Stubborn(3.0, "late"), "A"))
    async with open_provider_cache(source, fetch_timeout=5.0) as cache:
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, results, cache.get, "a")
            await trio.sleep(5.0)
            await wait_all_tasks_blocked()
            assert [type(result) for result in results] == [FetchTimeout]
            # Who comes while it unwinds waits, and gets what it brought in spite of all.
            assert await cache.get("a") == "late"
            assert trio.current_time() == 8.0
        assert source.calls == ["a"]


async def test_waiting_for_an_unwinding_resolution_is_bounded(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Stubborn(100.0, Down())))
    async with open_provider_cache(source, fetch_timeout=5.0) as cache:
        with pytest.raises(FetchTimeout, match="took longer"):
            await cache.get("a")
        start = trio.current_time()
        with pytest.raises(FetchTimeout, match="earlier resolution of 'a'"):
            await cache.get("a")
        assert trio.current_time() - start == 5.0
        cache.delete("a")
        await trio.sleep(200)


async def test_nobody_waits_for_an_unwinding_resolution_that_was_invalidated(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Stubborn(100.0, "old"), "new"))
    async with open_provider_cache(source, fetch_timeout=5.0) as cache:
        with pytest.raises(FetchTimeout):
            await cache.get("a")
        async with trio.open_nursery() as nursery:
            results: list[Any] = []
            nursery.start_soon(collect, results, cache.get, "a")
            await wait_all_tasks_blocked()
            assert cache.delete("a") is True
            await wait_all_tasks_blocked()
            assert results == ["new"]
        await trio.sleep(200)
        assert cache.get_nowait("a") == "new"


async def test_a_late_none_is_no_value(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Stubborn(1.0, None), "A"))
    async with open_provider_cache(source, fetch_timeout=5.0, negative_ttl=60.0) as cache:
        with pytest.raises(FetchTimeout):
            await cache.get("a")
        await trio.sleep(2)
        assert "a" not in cache
        assert await cache.get("a") == "A"


# Life


async def test_an_entry_is_good_while_now_is_before_its_deadline(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_cache(source, ttl=60.0) as cache:
        await cache.get("a")
        await trio.sleep(59.5)
        assert cache.get_nowait("a") == await cache.get("a") == "a#1"
        assert "a" in cache
        await trio.sleep(0.5)
        assert "a" not in cache
        assert len(cache) == 0
        assert cache.delete("a") is False
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert await cache.get("a") == "a#2"


async def test_the_default_is_300_seconds(autojump_clock: MockClock) -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        await trio.sleep(299)
        assert "a" in cache
        await trio.sleep(1)
        assert "a" not in cache


async def test_true_is_for_ever(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    async with open_provider_cache(Source(), ttl=True, refresh_at=0.5, observe=events.append) as cache:
        await cache.get("a")
        await trio.sleep(1e9)
        assert cache.get_nowait("a") == "a#1"
    assert events[1] == FetchSucceeded("absent", 0.0, None, 1, name=None, key="a")


@pytest.mark.parametrize("ttl", [False, 0, -10, -0.5])
async def test_never_cached_still_shares_a_resolution(ttl: float) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch(Block("A"), "B"))
    async with open_provider_cache(source, ttl=ttl, negative_ttl=5.0, observe=events.append) as cache:
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(collect, results, cache.get, "a")
            await wait_all_tasks_blocked()
            source.scripts["a"].release()
        assert results == ["A"] * 3
        assert "a" not in cache
        assert len(cache) == 0
        assert await cache.get("a") == "B"
    assert isinstance(events[1], FetchSucceeded)
    assert (events[1].remaining, events[1].generation) == (0.0, 0)


@pytest.mark.parametrize("ttl", ["60", "false", None, math.nan, math.inf, -math.inf, [60]])
async def test_other_ttls_are_refused(ttl: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="ttl"):
        async with open_provider_cache(Source(), ttl=ttl):
            raise AssertionError
    async with open_provider_cache(Source()) as cache:
        with pytest.raises((TypeError, ValueError), match="ttl"):
            cache.set_ttl(ttl)


async def test_jitter_only_shortens(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    async with open_provider_cache(Source(), ttl=100.0, ttl_jitter=0.5, observe=events.append) as cache:
        for key in range(50):
            await cache.get(key)
    lives = [event.remaining for event in events if isinstance(event, FetchSucceeded)]
    assert all(life is not None and 50.0 < life <= 100.0 for life in lives)
    assert len(set(lives)) > 40


async def test_set_ttl_shortens_what_is_stored_and_prolongs_nothing(autojump_clock: MockClock) -> None:
    async with open_provider_cache(Source(), ttl=60.0) as cache:
        await cache.get("a")
        await trio.sleep(15)
        cache.set_ttl(600)
        await cache.get("b")
        await trio.sleep(45)
        assert "a" not in cache
        assert "b" in cache
        cache.set_ttl(50.25)
        await trio.sleep(5)
        assert "b" in cache
        await trio.sleep(0.25)
        assert "b" not in cache


async def test_set_ttl_shortens_entries_that_lived_for_ever_and_releases_them(autojump_clock: MockClock) -> None:
    async def resolve(key: str) -> Thing:
        return Thing()

    async with open_provider_cache(resolve, ttl=True) as cache:
        thing = weakref.ref(await cache.get("a"))
        await trio.sleep(30)
        cache.set_ttl(10)
        assert "a" not in cache
        cache.set_ttl(True)
        assert "a" not in cache
        await trio.sleep(60)
        gc.collect()
        assert thing() is None


async def test_set_ttl_happens_wholly_also_when_the_clock_fails() -> None:
    readings = [1000.0] * 100

    async with open_provider_cache(Source(), ttl=60, clock=lambda: readings[0]) as cache:
        await cache.get("a")
        readings.clear()
        cache.set_ttl(30)
        readings.append(1030.0)
        assert "a" not in cache


async def test_set_ttl_to_never_drops_everything_and_back_stores_again() -> None:
    async with open_provider_cache(Source(), ttl=60) as cache:
        await cache.get("a")
        await cache.get("b")
        cache.set_ttl(False)
        assert len(cache) == 0
        await cache.get("a")
        assert len(cache) == 0
        cache.set_ttl(30)
        await cache.get("a")
        assert len(cache) == 1


async def test_the_ttl_at_the_time_of_storing_counts(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Sleep(5.0, "A")), b=ScriptedFetch(Sleep(5.0, "B")))
    async with open_provider_cache(source, ttl=60) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, "a")
        await trio.sleep(1)
        cache.set_ttl(7)
        await trio.sleep(4)
        await wait_all_tasks_blocked()
        await trio.sleep(6.5)
        assert "a" in cache
        await trio.sleep(0.5)
        assert "a" not in cache
        nursery.start_soon(cache.get, "b")
        await trio.sleep(1)
        cache.set_ttl(0)
        await trio.sleep(10)
        assert "b" not in cache


async def test_none_is_not_remembered_by_default() -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch(None, None, "A"))
    async with open_provider_cache(source, observe=events.append) as cache:
        assert await cache.get("a") is None
        assert "a" not in cache
        assert await cache.get("a") is None
        assert await cache.get("a") == "A"
    assert isinstance(events[1], FetchSucceeded)
    assert (events[1].remaining, events[1].generation) == (None, 0)


async def test_a_remembered_none_is_an_entry(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(None, "A"))
    async with open_provider_cache(source, ttl=10.0, negative_ttl=20.0, ttl_jitter=0.5, max_entries=1) as cache:
        assert await cache.get("a") is None
        assert cache.get_nowait("a") is None
        assert "a" in cache
        assert len(cache) == 1
        await trio.sleep(9.5)  # without jitter, but not beyond the ttl
        assert cache.get_nowait("a") is None
        await trio.sleep(0.5)
        assert "a" not in cache
        assert await cache.get("a") == "A"
        await cache.get("b")
        assert "a" not in cache


async def test_untouched_entries_leave_within_a_minute(autojump_clock: MockClock) -> None:
    things: list[weakref.ref[Thing]] = []

    async def resolve(key: int) -> Thing:
        thing = Thing()
        things.append(weakref.ref(thing))
        return thing

    async with open_provider_cache(resolve, ttl=300, max_entries=2000) as cache:
        for key in range(1000):
            await cache.get(key)
        await trio.sleep(299)
        assert len(cache) == 1000
        await trio.sleep(61)
        gc.collect()
        assert [thing for thing in things if thing() is not None] == []
        assert len(cache) == 0


async def test_they_also_leave_when_a_given_clock_says_so(autojump_clock: MockClock) -> None:
    now = 1000.0

    async def resolve(key: str) -> Thing:
        return Thing()

    async with open_provider_cache(resolve, ttl=3600, clock=lambda: now) as cache:
        thing = weakref.ref(await cache.get("a"))
        await trio.sleep(1e5)
        assert "a" in cache
        now += 3600
        await trio.sleep(60)
        gc.collect()
        assert thing() is None


async def test_a_given_clock_that_goes_back_prolongs_nothing_by_more_than_its_length() -> None:
    now = 10_000.0
    async with open_provider_cache(Source(), ttl=300, clock=lambda: now) as cache:
        await cache.get("a")
        now -= 5000
        assert "a" in cache
        now += 299
        assert "a" in cache
        now += 1
        assert "a" not in cache


async def test_the_bound_drops_the_expired_first_and_then_the_least_recently_used(autojump_clock: MockClock) -> None:
    async with open_provider_cache(Source(), ttl=10, max_entries=3) as cache:
        await cache.get("a")
        await cache.get("b")
        await cache.get("c")
        await cache.get("a")
        cache.get_nowait("b")
        assert "c" in cache  # no use
        await cache.get("d")
        assert "c" not in cache
        await trio.sleep(5)
        await cache.get("e")  # drops a, the least recently used
        assert [key for key in "abcde" if key in cache] == ["b", "d", "e"]
        await trio.sleep(5)  # b and d have expired
        cache.get_nowait("e")
        await cache.get("f")
        await cache.get("g")
        assert [key for key in "abcdefg" if key in cache] == ["e", "f", "g"]


@pytest.mark.parametrize("released", [False, True])
async def test_what_has_expired_is_nothing_whether_its_memory_was_released_or_not(
    released: bool, autojump_clock: MockClock
) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch("A", Down(), "A"))
    async with open_provider_cache(source, ttl=10.0, observe=events.append) as cache:
        await cache.get("a")
        await trio.sleep(100.0 if released else 10.0)
        with pytest.raises(Down):
            await cache.get("a")
        failed = events[-1]
        assert isinstance(failed, FetchFailed)
        assert (failed.remaining, failed.next_attempt_at) == (None, None)
        await cache.get("a")
        await trio.sleep(100.0 if released else 10.0)
        assert cache.delete("a") is False
        assert names(events).count("Cleared") == 0


# Renewal in the background


async def test_a_due_hit_is_served_and_starts_one_background_resolution(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch("A", Block("B")))
    async with open_provider_cache(source, ttl=100, refresh_at=0.5, observe=events.append) as cache:
        await cache.get("a")
        await trio.sleep(49.5)
        cache.get_nowait("a")
        await wait_all_tasks_blocked()
        assert source.calls == ["a"]
        await trio.sleep(0.5)
        assert cache.get_nowait("a") == "A"
        assert await cache.get("a") == "A"
        await wait_all_tasks_blocked()
        assert source.calls == ["a", "a"]
        assert cache.status().resolving == 1
        source.scripts["a"].release()
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "B"
        await trio.sleep(99)
        assert "a" in cache
    assert [event.reason for event in events if isinstance(event, FetchStarted)] == ["absent", "aging"]


async def test_a_failed_background_resolution_is_tried_again_once_a_second(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch("A", then=Down("no")))
    async with open_provider_cache(source, ttl=100, refresh_at=0.5, observe=events.append) as cache:
        await cache.get("a")
        await trio.sleep(50)
        for _ in range(31):
            assert cache.get_nowait("a") == "A"
            await trio.sleep(0.1)
        assert len(source.calls) in (4, 5)
        failures = [event for event in events if isinstance(event, FetchFailed)]
        assert [event.reason for event in failures] == ["aging"] * len(failures)
        assert failures[0].remaining is not None
        assert failures[0].next_attempt_at is not None
        assert failures[0].remaining == pytest.approx(50)
        assert (failures[0].name, failures[0].key) == (None, "a")


async def test_none_from_the_background_replaces_what_is_held(autojump_clock: MockClock) -> None:
    for negative_ttl in (0.0, 5.0):
        source = Source(a=ScriptedFetch("A", None, "B"))
        async with open_provider_cache(source, ttl=100, refresh_at=0.5, negative_ttl=negative_ttl) as cache:
            await cache.get("a")
            await trio.sleep(50)
            assert cache.get_nowait("a") == "A"
            await wait_all_tasks_blocked()
            assert ("a" in cache) == (negative_ttl > 0)
            if negative_ttl:
                assert cache.get_nowait("a") is None
            await trio.sleep(5)
            assert await cache.get("a") == "B"


async def test_who_comes_when_it_has_expired_joins_the_background_resolution(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch("A", Sleep(10.0, "B")))
    async with open_provider_cache(source, ttl=10, refresh_at=0.5) as cache:
        await cache.get("a")
        await trio.sleep(6)
        cache.get_nowait("a")
        await trio.sleep(5)
        assert await cache.get("a") == "B"
        assert trio.current_time() == 16
        assert source.calls == ["a", "a"]


# The source is down


async def test_an_expired_value_is_served_while_the_source_is_down(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch("A", Sleep(2.0, Down("no")), then=Sleep(20.0, Down("still"))))
    async with open_provider_cache(source, ttl=10, serve_expired_for=100, observe=events.append) as cache:
        await cache.get("a")
        await trio.sleep(10)
        assert "a" not in cache
        assert len(cache) == 0
        assert cache.status().entries == 0
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert await cache.get("a") == "A"  # waited for the first resolution
        assert trio.current_time() == 12
        assert await cache.get("a") == "A"  # at once
        assert trio.current_time() == 12
        assert len(source.calls) == 2  # less than a second after the failure
        await trio.sleep(1)
        with assert_checkpoints():
            assert await cache.get("a") == "A"
        assert trio.current_time() == 13
        await wait_all_tasks_blocked()
        assert len(source.calls) == 3
        await trio.sleep(10)
        assert await cache.get("a") == "A"
        await trio.sleep(10.5)  # the background resolution failed half a second ago
        assert await cache.get("a") == "A"
        await wait_all_tasks_blocked()
        assert len(source.calls) == 3
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
    assert [event.age for event in events if isinstance(event, ServedExpired)] == [2.0, 2.0, 3.0, 13.0, 23.5]
    assert all(event.key == "a" for event in events[:-1])
    failed = next(event for event in events if isinstance(event, FetchFailed))
    assert failed.remaining == 0.0
    assert failed.next_attempt_at is not None


async def test_a_success_ends_it(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch("A", Down(), "B", Down(), "C"))
    async with open_provider_cache(source, ttl=10, serve_expired_for=100) as cache:
        await cache.get("a")
        await trio.sleep(10)
        assert await cache.get("a") == "A"
        await trio.sleep(1)
        assert await cache.get("a") == "A"
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "B"
        await trio.sleep(10)
        assert await cache.get("a") == "B"  # waits for the first one again
        await trio.sleep(101)
        assert await cache.get("a") == "C"


async def test_a_none_ends_it_too(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch("A", None, Down()))
    async with open_provider_cache(source, ttl=10, serve_expired_for=100) as cache:
        await cache.get("a")
        await trio.sleep(10)
        assert await cache.get("a") is None
        with pytest.raises(Down):
            await cache.get("a")


async def test_the_grace_ends(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Thing(), then=Down()))
    async with open_provider_cache(source, ttl=10, serve_expired_for=5) as cache:
        thing = weakref.ref(await cache.get("a"))
        await trio.sleep(14)
        assert await cache.get("a") is thing()
        await trio.sleep(1)
        with pytest.raises(Down):
            await cache.get("a")
        source.scripts["a"] = ScriptedFetch(then=Down())
        await trio.sleep(60)
        gc.collect()
        assert thing() is None


async def test_a_failure_before_the_deadline_does_not_count_as_one_after_it(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch("A", Down(), Sleep(3.0, "B")))
    async with open_provider_cache(source, ttl=10, refresh_at=0.5, serve_expired_for=100) as cache:
        await cache.get("a")
        await trio.sleep(9.5)
        cache.get_nowait("a")
        await trio.sleep(0.5)
        assert await cache.get("a") == "B"
        assert trio.current_time() == 13


async def test_an_earlier_resolution_that_does_not_end_leaves_the_expired_value(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch("A", Stubborn(1000.0, Down())))
    async with open_provider_cache(
        source, ttl=10, serve_expired_for=100, fetch_timeout=5.0, when_abandoned="cancel"
    ) as cache:
        await cache.get("a")
        await trio.sleep(10)
        with trio.move_on_after(1):
            await cache.get("a")
        # That one was abandoned, which is no failure; but it does not end.
        assert await cache.get("a") == "A"
        assert trio.current_time() == 16
        cache.delete("a")


async def test_invalidation_and_never_cached_end_the_grace(autojump_clock: MockClock) -> None:
    for end in ("delete", "clear", "tag", "never"):
        source = Source(a=ScriptedFetch("A", then=Down()))
        async with open_provider_cache(source, ttl=10, serve_expired_for=100, tags=lambda key, value: ["t"]) as cache:
            await cache.get("a")
            await trio.sleep(11)
            assert await cache.get("a") == "A"
            if end == "delete":
                assert cache.delete("a") is False
            elif end == "clear":
                assert cache.clear() == 0
            elif end == "tag":
                assert cache.invalidate_tag("t") == 0
            else:
                cache.set_ttl(False)
            with pytest.raises(Down):
                await cache.get("a")


async def test_an_invalidation_from_elsewhere_in_the_step_of_the_failure_ends_the_grace(
    autojump_clock: MockClock,
) -> None:
    def observe(event: Event) -> None:
        if isinstance(event, FetchFailed):
            # As another thread does it, but for the wake-up: those who wait come first.
            cache._inbox.append(Message("key", "a", False))

    source = Source(a=ScriptedFetch("A", then=Down()))
    async with open_provider_cache(source, ttl=10, serve_expired_for=100, observe=observe) as cache:
        await cache.get("a")
        await trio.sleep(10)
        with pytest.raises(Down):
            await cache.get("a")


async def test_entries_in_their_grace_count_and_go_first_one_by_one(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_cache(source, ttl=10, serve_expired_for=100, max_entries=3) as cache:
        await cache.get("a")
        await trio.sleep(1)
        await cache.get("b")
        await trio.sleep(7)
        await cache.get("c")
        await trio.sleep(3)  # a and b are in their grace
        await cache.get("d")  # in a's place
        source.scripts |= {key: ScriptedFetch(then=Down()) for key in "abc"}
        with pytest.raises(Down):
            await cache.get("a")
        assert await cache.get("b") == "b#1"
        assert cache.get_nowait("c") == "c#1"
        assert len(cache) == 2


# The flight's own rules


async def test_the_handoff_can_be_cancelled_and_others_decide_again() -> None:
    source = Source()
    handoff = Handoff(hold={1})
    async with open_provider_cache_with(handoff, source) as cache, trio.open_nursery() as nursery:
        results: list[Any] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(cache.get, "a")
                await handoff.reached()
                nursery.start_soon(collect, results, cache.get, "a")
                await wait_all_tasks_blocked()
                assert cache.status().waiting == 2
                scope.cancel()
        await wait_all_tasks_blocked()
        assert results == ["a#1"]
        assert handoff.claims == 2


async def test_the_handoff_of_a_background_resolution_is_in_its_task(autojump_clock: MockClock) -> None:
    source = Source()
    handoff = Handoff(hold={2})
    async with open_provider_cache_with(handoff, source, ttl=100, refresh_at=0.5) as cache:
        await cache.get("a")
        await trio.sleep(60)
        assert cache.get_nowait("a") == "a#1"
        await handoff.reached(2)
        assert source.calls == ["a"]
        handoff.release()
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "a#2"


async def test_closing_refuses_and_drops_everything(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source(a=ScriptedFetch(Thing()), b=ScriptedFetch(Block("B")))
    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_provider_cache(source, observe=events.append, name="tenants") as cache:
            thing = weakref.ref(await cache.get("a"))
            source.scripts["a"] = ScriptedFetch()
            nursery.start_soon(collect, results, cache.get, "b")
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert [type(result) for result in results] == [trio.ClosedResourceError]
    gc.collect()
    assert thing() is None
    assert len(cache) == 0
    assert "a" not in cache
    assert cache
    with pytest.raises(trio.ClosedResourceError):
        await cache.get("a")
    for call in (
        lambda: cache.get_nowait("a"),
        lambda: cache.delete("a"),
        cache.clear,
        lambda: cache.invalidate_tag("t"),
        lambda: cache.set_ttl(1),
    ):
        with pytest.raises(trio.ClosedResourceError):
            call()
    assert cache.status() == CacheStatus("tenants", 0, 1024, 0, 0, True)
    assert repr(cache) == "<ProviderCache 'tenants' (closed)>"
    assert events[-1] == OwnerClosed(name="tenants", key=None)
    assert names(events)[-2:] == ["FetchAbandoned", "OwnerClosed"]


async def test_an_empty_cache_is_true() -> None:
    async with open_provider_cache(Source()) as cache:
        assert cache
        assert len(cache) == 0
        assert repr(cache) == "<ProviderCache>"


async def test_the_body_can_use_the_cache_while_it_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with open_provider_cache(Source()) as cache:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    assert await cache.get("a") == "a#1"


async def test_an_exception_of_the_body_leaves_as_itself() -> None:
    with pytest.raises(Down):
        async with open_provider_cache(Source()) as cache:
            await cache.get("a")
            raise Down


async def test_what_is_no_exception_ends_the_cache() -> None:
    async def resolve(key: str) -> str:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with open_provider_cache(resolve) as cache:
            with pytest.raises(trio.ClosedResourceError):
                await cache.get("a")
            assert len(cache) == 0


async def test_another_run_is_refused() -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        await cache.get("a")

        def elsewhere() -> None:
            async def main() -> None:
                with pytest.raises(RuntimeError):
                    await cache.get("a")
                with pytest.raises(RuntimeError):
                    await cache.get("b")

            trio.run(main)
            for call in (
                lambda: cache.get_nowait("a"),
                lambda: cache.get_nowait("b"),
                lambda: cache.delete("a"),
                lambda: len(cache),
                lambda: "a" in cache,
            ):
                with pytest.raises(RuntimeError):
                    call()

        await trio.to_thread.run_sync(elsewhere)
        assert cache.get_nowait("a") == "a#1"


async def test_an_unhashable_key_is_a_type_error() -> None:
    async with open_provider_cache(Source()) as cache:
        for call in (cache.get_nowait, cache.delete):
            with pytest.raises(TypeError):
                call([])
        with pytest.raises(TypeError):
            await cache.get([])


async def test_observers_see_a_committed_state_and_may_use_the_cache() -> None:
    seen: list[Any] = []

    def observe(event: Event) -> None:
        if isinstance(event, FetchSucceeded):
            seen.append(cache.get_nowait(event.key))
            cache.delete(event.key)

    async with open_provider_cache(Source(), observe=observe) as cache:
        assert await cache.get("a") == "a#1"
        assert seen == ["a#1"]
        assert "a" not in cache


# Tags


async def test_tags_find_their_entries() -> None:
    events: list[Event] = []
    source = Source(n=ScriptedFetch(None))

    def tags(key: Any, value: Any) -> list[str]:
        return [key[0], key[0], f"none:{value is None}"]

    async with open_provider_cache(source, tags=tags, negative_ttl=60, observe=events.append) as cache:
        for key in ("a1", "a2", "b1", "n"):
            await cache.get(key)
        assert cache.invalidate_tag("a") == 2
        assert cache.invalidate_tag("a") == 0
        assert cache.invalidate_tag("none:True") == 1
        assert [key for key in ("a1", "a2", "b1", "n") if key in cache] == ["b1"]
        cache.delete("b1")
        assert cache.invalidate_tag("b") == 0
    cleared = [event for event in events if isinstance(event, Cleared)]
    assert [event.key for event in cleared] == [None, None, None, "b1", None]


async def test_a_tag_fences_what_is_in_progress() -> None:
    source = Source(a=ScriptedFetch(Block("old"), "new"))
    async with open_provider_cache(source) as cache, trio.open_nursery() as nursery:
        results: list[Any] = []
        nursery.start_soon(collect, results, cache.get, "a")
        await wait_all_tasks_blocked()
        assert cache.invalidate_tag("anything") == 0
        source.scripts["a"].release()
        await wait_all_tasks_blocked()
        assert results == ["old"]
        assert "a" not in cache


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("text", "tags must return an iterable of str, such as a tuple, but it returned str"),
        ([1], "tags must return an iterable of str, but there is a int in it"),
        (5, "tags must return an iterable of str, such as a tuple, but it returned int"),
        (None, "tags must return an iterable of str, such as a tuple, but it returned NoneType"),
        (ValueError("no"), "no"),
    ],
)
async def test_bad_tags_are_a_failed_resolution(tags: Any, message: str) -> None:
    events: list[Event] = []

    def ask(key: str, value: str) -> Any:
        if isinstance(tags, Exception):
            raise tags
        return tags

    async with open_provider_cache(Source(), tags=ask, observe=events.append) as cache:
        with pytest.raises((TypeError, ValueError), match=message):
            await cache.get("a")
        assert "a" not in cache
    assert names(events) == ["FetchStarted", "FetchFailed", "OwnerClosed"]


async def test_tags_are_asked_only_when_a_value_is_stored() -> None:
    asked: list[Any] = []

    def tags(key: Any, value: Any) -> list[str]:
        asked.append((key, value))
        return []

    source = Source(n=ScriptedFetch(None), f=ScriptedFetch(Block("old")))
    async with open_provider_cache(source, tags=tags) as cache:
        await cache.get("a")
        await cache.get("n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.get, "f")
            await wait_all_tasks_blocked()
            cache.delete("f")
            source.scripts["f"].release()
        cache.set_ttl(False)
        await cache.get("b")
    assert asked == [("a", "a#1")]


async def test_a_tag_must_be_text() -> None:
    async with open_provider_cache(Source()) as cache:
        bad: Any = 7
        with pytest.raises(TypeError, match="tag must be a str"):
            cache.invalidate_tag(bad)


# Events and arguments


async def test_generations_grow_with_what_is_kept_and_with_what_is_dropped() -> None:
    events: list[Event] = []
    source = Source(f=ScriptedFetch(Block("old"), Block(Down()), "new"))
    async with open_provider_cache(source, observe=events.append, name="n") as cache:
        await cache.get("a")
        assert cache.delete("a") is True
        assert cache.delete("a") is False
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                results: list[Any] = []
                nursery.start_soon(collect, results, cache.get, "f")
                await wait_all_tasks_blocked()
                assert cache.delete("f") is True
                source.scripts["f"].release()
        assert cache.clear() == 0
        await cache.get("f")
    generations = [
        (type(event).__name__, event.generation) for event in events if isinstance(event, Cleared | FetchSucceeded)
    ]
    assert generations == [
        ("FetchSucceeded", 1),
        ("Cleared", 2),
        ("Cleared", 3),
        ("FetchSucceeded", 2),
        ("Cleared", 4),
        ("Cleared", 5),
        ("FetchSucceeded", 6),
    ]
    assert {event.name for event in events} == {"n"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_entries": 0}, ValueError),
        ({"max_entries": 2.5}, TypeError),
        ({"max_entries": True}, TypeError),
        ({"max_entries": None}, TypeError),
        ({"negative_ttl": -1}, ValueError),
        ({"negative_ttl": math.inf}, ValueError),
        ({"negative_ttl": "1"}, TypeError),
        ({"ttl_jitter": 1}, ValueError),
        ({"ttl_jitter": -0.1}, ValueError),
        ({"ttl_jitter": math.nan}, ValueError),
        ({"ttl_jitter": "x"}, TypeError),
        ({"refresh_at": 1.5}, ValueError),
        ({"refresh_at": True}, TypeError),
        ({"serve_expired_for": -1}, ValueError),
        ({"serve_expired_for": math.nan}, ValueError),
        ({"fetch_timeout": 0}, ValueError),
        ({"fetch_timeout": "x"}, TypeError),
        ({"when_abandoned": "leave"}, ValueError),
        ({"observe": 5}, TypeError),
        ({"clock": 5}, TypeError),
        ({"name": 5}, TypeError),
        ({"bus": 5, "name": "n"}, TypeError),
        ({"tags": 5}, TypeError),
        ({"tags": Source().__call__}, TypeError),
    ],
)
async def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        async with open_provider_cache(Source(), **arguments):
            raise AssertionError


async def test_bad_functions_are_named() -> None:
    bad: Any = lambda: None  # noqa: E731

    def plain(key: str) -> str:
        return key

    for resolve in (None, 5, plain):
        with pytest.raises(TypeError, match="resolve must be an async function of the key"):
            async with open_provider_cache(resolve):  # type: ignore[arg-type]
                raise AssertionError
    with pytest.raises(TypeError, match="after_claim"):
        async with open_provider_cache_with(5, Source()):  # type: ignore[arg-type]
            raise AssertionError
    async with open_provider_cache(bad) as cache:
        with pytest.raises(TypeError):
            await cache.get("a")


async def test_no_timeout_at_all(autojump_clock: MockClock) -> None:
    source = Source(a=ScriptedFetch(Sleep(1e6, "A")))
    async with open_provider_cache(source, fetch_timeout=None) as cache:
        assert await cache.get("a") == "A"


def test_a_late_value_may_console_those_who_were_told_of_the_timeout() -> None:
    seen: set[str] = set()

    async def scenario() -> None:
        source = Source(a=ScriptedFetch(Stubborn(0.0, "late")))
        async with open_provider_cache(source, fetch_timeout=5.0) as cache:
            results: list[Any] = []
            await collect(results, cache.get, "a")
            assert results == ["late"] or isinstance(results[0], FetchTimeout)
            seen.add(type(results[0]).__name__)
            await wait_all_tasks_blocked()
            assert cache.get_nowait("a") == "late"

    under_schedules(scenario, seeds=40)
    assert seen == {"str", "FetchTimeout"}
