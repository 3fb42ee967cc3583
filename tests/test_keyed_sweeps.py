"""Cancellation, interrupts, invalidation and closing at every step of a cache and a pool."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.lowlevel import disable_ki_protection, enable_ki_protection
from trio.testing import MockClock

import trio_renew._flight
import trio_renew._keyed
import trio_renew._owner
from trio_renew import clear_provider_caches, invalidate_provider, open_provider_cache, open_provider_pool
from trio_renew._keyed._rings import _waits
from trio_renew._keyed._roster import roster
from trio_renew.testing import (
    ScriptedFetch,
    Sleep,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    interrupt_at_every_line,
    under_schedules,
    victim,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import CodeType, FrameType


def check() -> None:
    """Nothing is left behind."""
    assert roster.members == {}
    assert _waits == {}


class Values:
    """Opens values that use a nursery, and knows how many are open."""

    def __init__(self) -> None:
        self.open: set[object] = set()

    @asynccontextmanager
    async def __call__(self, key: str) -> AsyncGenerator[str, None]:
        await trio.sleep(1)
        me = object()
        try:
            self.open.add(me)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                yield key.upper()
                nursery.cancel_scope.cancel()
        finally:
            self.open.discard(me)


def cache_scenario(
    when_abandoned: Any = "finish", second: Any = "B", most_running: int = 1, **options: Any
) -> Callable[[], Awaitable[None]]:
    async def scenario() -> None:
        fetch: ScriptedFetch[Any] = ScriptedFetch(Sleep(1.0, "A"), second, then="C")

        async def resolve(key: str) -> Any:
            return await fetch()

        async with (
            open_provider_cache(resolve, ttl=10, when_abandoned=when_abandoned, **options) as cache,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(cache.get, "a")
            with victim():
                await cache.get("a")
                await trio.sleep(6)
                await cache.get("a")
                await trio.sleep(6)
                await cache.get("a")
            with trio.fail_after(20):
                assert await cache.get("a") in ("A", "B", "C")
            assert fetch.most_running <= most_running
            await trio.sleep(1)
            assert cache.status().waiting == cache.status().resolving == 0

    return scenario


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
def test_a_cancelled_caller_harms_nobody(when_abandoned: str) -> None:
    report = cancel_at_every_checkpoint(cache_scenario(when_abandoned), check)
    assert report.steps > 5


def test_a_cancelled_caller_of_a_failing_source() -> None:
    scenario = cache_scenario(second=ValueError(), refresh_at=0.5, serve_expired_for=30.0)
    assert cancel_at_every_checkpoint(scenario, check).steps > 5


async def pool_scenario() -> None:
    values = Values()
    async with (
        open_provider_pool(values, idle_timeout=5.0) as pool,
        trio.open_nursery() as nursery,
    ):

        async def use() -> None:
            async with pool.borrow("a") as value:
                assert value == "A"
                await trio.sleep(0.5)

        nursery.start_soon(use)
        with victim():
            async with pool.borrow("a"), pool.borrow("b"):
                await trio.sleep(1)
            async with pool.borrow("a"):
                pass
        with trio.fail_after(20):
            async with pool.borrow("a") as value, pool.borrow("b"):
                assert value == "A"
        await trio.sleep(6)
        status = pool.status()
        assert (status.entries, status.borrowed, status.opening) == (0, 0, 0)
    assert not values.open


def test_a_cancelled_borrower_harms_nobody() -> None:
    assert cancel_at_every_checkpoint(pool_scenario, check).steps > 8


def test_closing_at_every_step() -> None:
    async def scenario() -> None:
        values = Values()
        with victim():
            async with (
                open_provider_pool(values, idle_timeout=3.0, ttl=4.0) as pool,
                open_provider_cache(lambda key: trio.sleep(1), negative_ttl=3.0) as cache,  # noqa: ASYNC105 - it is, by the cache
                trio.open_nursery() as nursery,
            ):

                async def use(key: str) -> None:
                    async with pool.borrow(key), pool.borrow("z"):
                        await cache.get(key)
                        await trio.sleep(1)

                for key in "aab":
                    nursery.start_soon(use, key)
                await trio.sleep(8)
        assert not values.open

    assert cancel_at_every_checkpoint(scenario, check).steps > 20


@pytest.mark.parametrize(
    "action", [lambda: invalidate_provider("a"), clear_provider_caches], ids=["invalidate", "clear"]
)
@pytest.mark.parametrize("protect", [enable_ki_protection, disable_ki_protection], ids=["by a signal", "at once"])
def test_invalidation_at_every_step(action: Callable[[], object], protect: Any) -> None:
    @protect
    def act() -> None:
        action()

    assert do_at_every_checkpoint(cache_scenario(most_running=2, refresh_at=0.5), act, check).steps > 5
    assert do_at_every_checkpoint(pool_scenario, act, check).steps > 8


def test_a_crash_at_every_step() -> None:
    current: list[trio.Event] = []

    async def scenario() -> None:
        crash = trio.Event()
        current[:] = [crash]

        @asynccontextmanager
        async def open_value(key: str) -> AsyncGenerator[str, None]:
            async with trio.open_nursery() as nursery:

                async def live() -> None:
                    await crash.wait()
                    if not crashed:
                        crashed.append(key)
                        raise ValueError(key)

                nursery.start_soon(live)
                await trio.sleep(1)
                yield key
                nursery.cancel_scope.cancel()

        crashed: list[str] = []
        async with open_provider_pool(open_value) as pool:
            with victim():
                try:
                    async with pool.borrow("a"):
                        await trio.sleep(1)
                except ExceptionGroup as exc:
                    assert exc.subgroup(ValueError) is not None
            with trio.fail_after(10):
                try:
                    async with pool.borrow("a"):
                        pass
                except ExceptionGroup:
                    async with pool.borrow("a"):
                        pass
            assert pool.status().borrowed == 0

    def crash_it() -> None:
        current[0].set()

    assert do_at_every_checkpoint(scenario, crash_it, check).steps > 4


def test_an_interrupt_at_every_line_of_the_cache() -> None:
    async def scenario() -> None:
        fetch: ScriptedFetch[Any] = ScriptedFetch("A", "B", ValueError(), then="C")

        async def resolve(key: str) -> Any:
            return await fetch()

        async with open_provider_cache(
            resolve, ttl=10, refresh_at=0.5, serve_expired_for=10, tags=lambda key, value: [value]
        ) as cache:
            with trio.fail_after(60):
                await cache.get("a")
                await trio.sleep(6)
                cache.get_nowait("a")
                await trio.sleep(6)
                cache.invalidate_tag("A")
                await trio.sleep(6)
                await cache.get("a")
                cache.delete("a")
                await cache.get("a")
                len(cache)
                invalidate_provider("a")

    report = interrupt_at_every_line(scenario, check, within=trio_renew._keyed)
    assert report.steps > 50


def test_an_interrupt_at_every_line_of_the_pool() -> None:
    opened: list[Values] = []

    async def scenario() -> None:
        values = Values()
        opened[:] = [values]
        async with open_provider_pool(values, idle_timeout=3.0) as pool:
            with trio.fail_after(60):
                async with pool.borrow("a"), pool.borrow("b"):
                    await trio.sleep(1)
                await trio.sleep(5)
                async with pool.borrow("a"):
                    pool.delete("a")
                clear_provider_caches()

    def nothing_is_open() -> None:
        check()
        assert not opened[0].open

    report = interrupt_at_every_line(scenario, nothing_is_open, within=trio_renew._keyed)
    assert report.steps > 50


def test_an_interrupt_at_every_line_of_a_pool_that_goes_on() -> None:
    """Its user takes the interrupt for one of its requests' own affair; values are built on values."""

    class Built(Values):
        pool: Any

        @asynccontextmanager
        async def __call__(self, key: str) -> AsyncGenerator[str, None]:
            async with super().__call__(key) as value:
                if key == "base":
                    yield value
                else:
                    async with self.pool.borrow("base"):
                        yield value

    async def scenario() -> None:
        values = Built()
        async with open_provider_pool(values, idle_timeout=2.0) as pool:
            values.pool = pool

            async def use() -> None:
                try:
                    async with pool.borrow("a") as value:
                        assert value == "A"
                        await trio.sleep(1)
                    pool.delete("base")
                except KeyboardInterrupt:
                    pass

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(use)
                    nursery.start_soon(use)
                async with pool.borrow("a") as value:
                    assert value == "A"
                await trio.sleep(6)
            status = pool.status()
            assert (status.entries, status.borrowed, status.opening) == (0, 0, 0)
            assert not values.open
            assert not pool._residents

    within = [trio_renew._keyed, trio_renew._flight, trio_renew._owner]
    assert interrupt_at_every_line(scenario, check, within=within).steps > 500


def test_an_interrupt_in_the_users_code() -> None:
    here = sys.modules[__name__]
    opened: list[Values] = []

    async def scenario() -> None:
        values = Values()
        opened[:] = [values]
        async with open_provider_pool(values, idle_timeout=3.0) as pool:
            async with pool.borrow("a"):
                pass
            await trio.sleep(5)

    def nothing_is_open() -> None:
        check()
        assert not opened[0].open

    assert interrupt_at_every_line(scenario, nothing_is_open, within=here).steps > 5


def signal_at_every_line(
    scenario: Callable[[], Awaitable[None]], call: Callable[[], object], *, test_clock: bool = True
) -> int:
    """Run a scenario again and again, calling something at its 1st, 2nd ... line of ours, as a signal handler would."""
    package = str(Path(trio_renew._keyed.__file__).parent)
    ours: dict[CodeType, bool] = {}
    lines = 0

    def run(number: int) -> bool:
        nonlocal lines
        lines = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == number:
                    sys.settrace(None)
                    call()
                    return None
            return line

        def enter(frame: FrameType, event: str, argument: object) -> Any:
            code = frame.f_code
            if code not in ours:
                ours[code] = code.co_filename.startswith(package)
            return line if ours[code] else None

        async def traced() -> None:
            before = sys.gettrace()
            sys.settrace(enter)
            try:
                await scenario()
            finally:
                sys.settrace(before)

        trio.run(traced, clock=MockClock(autojump_threshold=0) if test_clock else None)
        check()
        return lines >= number

    number = 1
    while run(number):
        number += 1
    return number


def test_a_signal_at_every_line() -> None:
    """Its handler may ask for an invalidation in the middle of our own steps."""

    async def resolve(key: str) -> str:
        await trio.sleep(1)
        return key

    async def scenario() -> None:
        values = Values()
        async with (
            open_provider_pool(values, idle_timeout=1.0, max_entries=1) as pool,
            open_provider_cache(resolve, ttl=3.0, refresh_at=0.5, max_entries=1) as cache,
        ):
            with trio.fail_after(60):
                async with pool.borrow("a"), pool.borrow("b"):
                    await cache.get("a")
                await cache.get("b")
                await trio.sleep(2)
                await cache.get("b")
                async with pool.borrow("a") as value:
                    assert value == "A"
                await trio.sleep(10)
            status = pool.status()
            assert (status.entries, status.borrowed, status.opening) == (0, 0, 0)
            assert cache.status().resolving == len(cache) == 0
        assert not values.open

    assert signal_at_every_line(scenario, clear_provider_caches) > 500


def test_a_signal_at_every_line_of_a_fast_hit() -> None:
    async def resolve(key: str) -> str:
        return key

    async def scenario() -> None:
        async with open_provider_cache(resolve) as cache:
            await cache.get("a")
            await cache.get("a")
            for _ in range(2):
                with suppress(trio.WouldBlock):
                    assert cache.get_nowait("a") == "a"
            assert await cache.get("a") == "a"

    assert signal_at_every_line(scenario, clear_provider_caches, test_clock=False) > 50


def test_many_users_under_many_schedules() -> None:
    async def scenario() -> None:
        values = Values()
        async with open_provider_pool(values, idle_timeout=1.0, max_entries=2, ttl=3.0) as pool:
            async with trio.open_nursery() as nursery:

                async def use(number: int) -> None:
                    for turn in range(4):
                        key = "abcd"[(number + turn) % 4]
                        with trio.move_on_after(0.5 + number % 3):
                            async with pool.borrow(key) as value:
                                assert value == key.upper()
                                await trio.sleep(0.5 * (number % 4))
                        if (number + turn) % 5 == 0:
                            pool.delete(key)

                for number in range(8):
                    nursery.start_soon(use, number)
            await trio.sleep(5)
            status = pool.status()
            assert (status.entries, status.borrowed, status.opening) == (0, 0, 0)
            assert not values.open

    assert under_schedules(scenario, check, seeds=20).steps == 20
