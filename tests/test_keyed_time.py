"""The cache's and pool's time: Trio's own clock, a wall clock that is stepped, and hits that skip the decision."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_renew import invalidate_provider, open_provider_cache, open_provider_pool
from trio_renew._clock import Clock
from trio_renew._keyed._caching import _MARGIN
from trio_renew._keyed._time import Timeline

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Wall:
    """A wall clock that can be stepped."""

    def __init__(self) -> None:
        self.real = time.time
        self.step = 0.0

    def __call__(self) -> float:
        return self.real() + self.step


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(time, "time", wall)
    return wall


class Source:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def __call__(self, key: Any) -> str:
        self.calls.append(key)
        await trio.lowlevel.checkpoint()
        return f"{key}#{self.calls.count(key)}"


async def test_hits_under_trios_own_clock(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=100.0) as cache:
        for _ in range(3):
            assert await cache.get("a") == "a#1"
            assert cache.get_nowait("a") == "a#1"
        wall.step = 100.0
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert await cache.get("a") == "a#2"


async def test_it_expires_between_the_checkpoint_and_the_answer() -> None:
    async with open_provider_cache(Source(), ttl=0.05) as cache:
        await cache.get("a")
        await cache.get("a")

        async def dawdle() -> None:
            time.sleep(0.06)  # noqa: ASYNC251 - the point of it

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dawdle)
            assert await cache.get("a") == "a#2" or cache.get_nowait("a") == "a#1"


async def test_it_is_dropped_between_the_checkpoint_and_the_answer() -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        await cache.get("a")
        for _ in range(20):  # the scheduler's order is random

            async def drop() -> None:
                cache.delete("a")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drop)
                await cache.get("a")
            await cache.get("a")


@pytest.mark.parametrize("step", [-3600.0, -0.75])
async def test_a_wall_clock_that_is_stepped_back_prolongs_nothing(step: float, wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=0.8) as cache:
        await cache.get("a")
        cache.get_nowait("a")
        cache.get_nowait("a")
        await trio.sleep(0.81)
        wall.step = step
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert await cache.get("a") == "a#2"
        # It heals with the fresh value, whose whole life is before it.
        assert cache.get_nowait("a") == "a#2"
        assert cache.get_nowait("a") == "a#2"


async def test_a_wall_clock_that_stands_still_prolongs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    async with open_provider_cache(Source(), ttl=0.1) as cache:
        await cache.get("a")
        cache.get_nowait("a")
        cache.get_nowait("a")
        await trio.sleep(0.11)
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert await cache.get("a") == "a#2"
        assert await cache.get("a") == "a#2"
        await trio.sleep(0.11)
        assert await cache.get("a") == "a#3"


async def test_a_wall_clock_that_is_behind_still_serves_hits_fast(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=1.0) as cache:
        await cache.get("a")
        wall.step = -100.0
        await trio.sleep(0.1)
        cache.get_nowait("a")
        assert cache._fast_thread
        assert cache._offset == pytest.approx(-100.0 - _MARGIN, abs=0.05)
        cache.get_nowait("a")
        await trio.sleep(0.91)
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")


async def test_when_the_anchor_moves_what_is_left_of_a_life_stays(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=100.0) as cache:
        await cache.get("a")
        wall.step = 50.0  # ahead for a while: half of its life is over
        assert cache.get_nowait("a") == "a#1"
        await cache.get("b")
        wall.step = 0.0
        await cache.get("c")  # a fresh value: the wall clock is right
        assert "a" in cache
        wall.step = 49.0
        assert ("a" in cache, "b" in cache, "c" in cache) == (True, True, True)
        wall.step = 51.0
        assert ("a" in cache, "b" in cache, "c" in cache) == (False, True, True)
        wall.step = 101.0
        assert len(cache) == 0


async def test_a_wall_clock_that_was_ahead_for_a_while_prolongs_nothing(wall: Wall) -> None:
    calls: list[str] = []

    async def resolve(key: str) -> str | None:
        calls.append(key)
        if calls.count(key) == 1 or key == "fine":
            return None if key == "nobody" else key
        raise OSError(key)

    async with open_provider_cache(resolve, ttl=10_000.0, negative_ttl=0.1, refresh_at=0.05) as cache:
        await cache.get("a")
        wall.step = 3600.0
        assert await cache.get("nobody") is None
        cache.get_nowait("a")  # due
        await wait_all_tasks_blocked()
        assert calls == ["a", "nobody", "a"]
        wall.step = 600.0  # back to less: no fresh value has come, so the clock itself goes back
        cache.get_nowait("a")
        await wait_all_tasks_blocked()
        assert "nobody" in cache
        assert len(calls) == 3
        await trio.sleep(0.11)
        assert "nobody" not in cache
        await trio.sleep(0.9)
        cache.get_nowait("a")  # a second after the failure it is tried again
        await wait_all_tasks_blocked()
        assert len(calls) == 4
        # And whatever is stepped, a fresh value is stored in order.
        wall.step = -600.0
        await cache.get("fine")
        assert ("a" in cache, "fine" in cache) == (True, True)


async def test_a_hit_that_skips_the_decision_does_not_miss_what_a_fresh_value_has_seen(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=100.0) as cache:
        await cache.get("a")
        cache.get_nowait("a")
        assert cache._fast_thread
        wall.step = 200.0
        await cache.get("b")  # from here on it is 200 seconds later
        wall.step = 0.0
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")
        assert cache.get_nowait("b") == "b#1"


async def test_a_suspended_machine_serves_nothing_expired(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=100.0) as cache:
        await cache.get("a")
        cache.get_nowait("a")
        cache.get_nowait("a")
        wall.step = 100.0
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")


async def test_the_fast_path_ends_by_itself() -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        cache.get_nowait("a")
        assert cache._fast_thread
        await trio.sleep(1.1)
        assert not cache._fast_thread
        assert cache.get_nowait("a") == "a#1"
        assert cache._fast_thread


async def test_an_observer_may_be_told_while_the_fast_path_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that comes in the very step in which a hit opens the fast path."""
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")

        def late(*_: Any) -> float:
            monkeypatch.undo()
            cache._inbox.append(cache_message)
            return time.time()

        from trio_renew._keyed._roster import Message

        cache_message = Message("key", "a", False)
        cache._slow_down()
        monkeypatch.setattr(time, "time", late)
        cache._speed_up()
        assert not cache._fast_thread
        with pytest.raises(trio.WouldBlock):
            cache.get_nowait("a")


async def test_elsewhere_knows_the_time_as_well(wall: Wall) -> None:
    line = Timeline(Clock(), lambda now: None)
    assert line.elsewhere() == pytest.approx(line.now(), abs=0.1)
    wall.step = -100.0
    assert line.elsewhere() == pytest.approx(line.now(), abs=0.1)
    line.arrived()
    assert line.shift == pytest.approx(-100.0, abs=0.1)
    assert line.elsewhere() == pytest.approx(line.now(), abs=0.1)
    wall.step = 100.0
    assert line.elsewhere() == pytest.approx(line.now(), abs=0.1)


async def test_from_another_thread_what_the_clock_says_counts(wall: Wall) -> None:
    async with open_provider_cache(Source(), ttl=100.0) as cache:
        await cache.get("a")
        wall.step = 100.0
        assert await trio.to_thread.run_sync(invalidate_provider, "a") is False


async def test_the_pools_values_expire_under_trios_own_clock(wall: Wall) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        yield key
        closed.append(key)

    async with open_provider_pool(open_value, idle_timeout=0.05, ttl=10.0) as pool:
        async with pool.borrow("a"):
            pass
        with trio.fail_after(5):
            while not closed:
                await trio.sleep(0.01)
        async with pool.borrow("b"):
            wall.step = 10.0
            assert "b" not in pool


async def test_hits_that_skip_the_decision_are_uses_all_the_same() -> None:
    async with open_provider_cache(Source(), max_entries=2) as cache:
        for use in ("get_nowait", "get"):
            for key in "ab":
                await cache.get(key)
            cache.get_nowait("b")
            assert cache._fast_thread
            if use == "get":
                await cache.get("a")
            else:
                cache.get_nowait("a")
            await cache.get("c")
            assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
            cache.clear()
