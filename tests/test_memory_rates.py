"""The rate limits of the memory engine, beyond the contracts that all of them share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from trio_renew._policy.capacity import AdaptiveConfig, RateLimitConfig
from trio_renew.abc import AdaptiveRateLimitStatus, RateLimitStatus
from trio_renew.stores._common import RateLimitStats, ResourceInfo
from trio_renew.stores._memory_life import seconds_until
from trio_renew.stores.memory import (
    MemoryAdaptiveRateLimitStore,
    MemoryRateLimitStore,
    open_memory_stores,
)

Limits = MemoryRateLimitStore | MemoryAdaptiveRateLimitStore
BOTH = pytest.mark.parametrize("kind", ["rate_limit", "adaptive"])


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def only(limit: int, window: float = 10.0) -> RateLimitConfig:
    return RateLimitConfig(limit=limit, window=window)


@BOTH
async def test_every_method_is_one_checkpoint(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        limits: Limits = getattr(stores, kind)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: limits.acquire("a"),
            lambda: limits.can_proceed("a"),
            lambda: limits.record("a"),
            lambda: limits.get_status("a"),
            lambda: limits.get_wait_time("a"),
            lambda: limits.set_cooldown("a", 2e9),
            lambda: limits.get_cooldown("a"),
            lambda: limits.clear_cooldown("a"),
            lambda: limits.set_resource_config("a", only(1)),
            lambda: limits.get_resource_config("a"),
            lambda: limits.list_resources(),
            lambda: limits.get_stats(),
            lambda: limits.reset("a"),
            lambda: limits.cleanup(),
            lambda: limits.clear(),
        ]
        for call in calls:
            before = trio.current_time()
            with trio.testing.assert_checkpoints():
                await call()
            assert trio.current_time() == before


@BOTH
async def test_a_cancelled_call_has_not_happened(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(5)) as stores:
        limits: Limits = getattr(stores, kind)
        await limits.record("a")
        before = await limits.get_status("a")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: limits.acquire("a"),
            lambda: limits.record("a"),
            lambda: limits.reset("a"),
            lambda: limits.clear(),
            lambda: limits.set_cooldown("a", 2e9),
            lambda: limits.set_resource_config("a", only(1)),
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
        assert await limits.get_status("a") == before
        assert await limits.get_cooldown("a") is None


@BOTH
@pytest.mark.parametrize(
    ("method", "args", "names"),
    [
        ("acquire", ("",), "resource"),
        ("can_proceed", (7,), "resource"),
        ("record", ("",), "resource"),
        ("get_status", (None,), "resource"),
        ("get_wait_time", ("",), "resource"),
        ("reset", ("",), "resource"),
        ("set_cooldown", ("", 2e9), "resource"),
        ("set_cooldown", ("a", "soon"), "until"),
        ("set_cooldown", ("a", True), "until"),
        ("set_cooldown", ("a", float("nan")), "until"),
        ("set_cooldown", ("a", float("inf")), "until"),
        ("set_cooldown", ("a", 1.7e12), "until must be in POSIX seconds"),
        ("get_cooldown", ("",), "resource"),
        ("clear_cooldown", ("",), "resource"),
        ("set_resource_config", ("", RateLimitConfig()), "resource"),
        ("set_resource_config", ("a", {"limit": 1}), "config must be a RateLimitConfig"),
        ("get_resource_config", ("",), "resource"),
        ("clear", (7,), "scope"),
    ],
)
async def test_bad_arguments_name_themselves(kind: str, method: str, args: tuple[Any, ...], names: str) -> None:
    async with open_memory_stores() as stores:
        with pytest.raises((TypeError, ValueError), match=names):
            await getattr(getattr(stores, kind), method)(*args)


@pytest.mark.parametrize("method", ["acquire", "can_proceed", "record", "get_wait_time"])
@pytest.mark.parametrize("priority", ["", "admin", None, 1])
async def test_a_priority_is_one_of_two(method: str, priority: Any) -> None:
    async with open_memory_stores() as stores:
        with pytest.raises(ValueError, match="priority must be 'user' or 'background'"):
            await getattr(stores.adaptive, method)("a", priority)


@BOTH
async def test_a_request_counts_for_exactly_one_window(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(2)) as stores:
        limits: Any = getattr(stores, kind)
        args = () if kind == "rate_limit" else ("user",)
        assert (await limits.get_status("a")).reset_at == 1000.0
        await limits.record("a", *args)
        clock.now = 1004.0
        await limits.record("a", *args)
        status = await limits.get_status("a")
        assert (status.remaining, status.reset_at, status.limit) == (0, 1010.0, 2)
        assert await limits.get_wait_time("a", *args) == 6.0
        clock.now = 1009.999
        assert not await limits.acquire("a", *args)
        clock.now = 1010.0
        assert await limits.get_wait_time("a", *args) == 0.0
        assert await limits.acquire("a", *args)
        assert not await limits.acquire("a", *args)
        assert (await limits.get_status("a")).reset_at == 1014.0


async def test_waiting_when_more_than_the_limit_was_recorded() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(2)) as stores:
        for second in range(4):
            clock.now = 1000.0 + second
            await stores.rate_limit.record("a")
        # Two have to leave before one may proceed, and one more for the limit to have room.
        assert await stores.rate_limit.get_wait_time("a") == 9.0
        clock.now = 1012.0
        assert await stores.rate_limit.acquire("a")


@pytest.mark.parametrize("start", [0.1, 0.7, 1234.56, 1.7e9 + 0.123])
@pytest.mark.parametrize("window", [0.1, 0.3, 7.7, 60.0])
async def test_waiting_is_long_enough_whatever_the_rounding(start: float, window: float) -> None:
    clock = SetClock(start)
    async with open_memory_stores(clock=clock, default_config=only(1, window)) as stores:
        for step in range(20):
            assert await stores.rate_limit.acquire("a")
            clock.now += window * step / 20
            clock.now += await stores.rate_limit.get_wait_time("a")


@pytest.mark.parametrize(
    ("now", "deadline"),
    [(0.36134679851370033, 1.7329240194044695), (1.7980267192681443, 7.806590770571897), (1.0, 3.5), (7.0, 5.0)],
)
def test_waiting_reaches_its_deadline_whatever_the_rounding(now: float, deadline: float) -> None:
    wait = seconds_until(deadline, now)
    assert now + wait >= deadline
    assert wait == pytest.approx(max(0.0, deadline - now))


@BOTH
async def test_a_limit_of_zero_never_proceeds(kind: str) -> None:
    async with open_memory_stores(default_config=only(0)) as stores:
        limits: Limits = getattr(stores, kind)
        assert not await limits.acquire("a")
        assert not await limits.can_proceed("a")
        assert await limits.get_wait_time("a") == 10.0
        await limits.record("a")
        assert await limits.get_wait_time("a") == 10.0
        assert (await limits.get_status("a")).remaining == 0


async def test_a_user_waits_for_the_window_when_the_limit_is_zero() -> None:
    async with open_memory_stores(default_config=only(0)) as stores:
        assert not await stores.adaptive.acquire("a", "user")
        assert await stores.adaptive.get_wait_time("a", "user") == 10.0


@BOTH
async def test_cooldowns(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock) as stores:
        limits: Limits = getattr(stores, kind)
        assert await limits.get_cooldown("a") is None
        await limits.clear_cooldown("a")
        await limits.set_cooldown("a", 1010.0)
        assert await limits.get_cooldown("a") == 1010.0
        assert not await limits.acquire("a")
        assert not await limits.can_proceed("a")
        assert await limits.get_wait_time("a") == 10.0
        assert await limits.acquire("b")
        await limits.set_cooldown("a", 1005.0)  # an earlier one
        await limits.set_cooldown("a", 1000.0)  # one that has passed
        assert await limits.get_cooldown("a") == 1010.0
        await limits.set_cooldown("a", 1020.0)
        assert await limits.get_cooldown("a") == 1020.0
        clock.now = 1019.5
        assert not await limits.acquire("a")
        clock.now = 1020.0
        assert await limits.get_wait_time("a") == 0.0
        assert await limits.acquire("a")
        assert await limits.get_cooldown("a") is None
        await limits.set_cooldown("a", 1019.0)
        assert await limits.get_cooldown("a") is None
        await limits.set_cooldown("a", 1030.0)
        await limits.reset("a")
        assert await limits.get_cooldown("a") == 1030.0
        await limits.clear_cooldown("a")
        assert await limits.acquire("a")


@BOTH
async def test_a_cooldown_and_a_full_window_are_both_waited_for(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(1)) as stores:
        limits: Limits = getattr(stores, kind)
        await limits.record("a")
        await limits.set_cooldown("a", 1004.0)
        assert await limits.get_wait_time("a") == (10.0 if kind == "rate_limit" else 30.0)
        await limits.set_cooldown("a", 1040.0)
        assert await limits.get_wait_time("a") == 40.0


@BOTH
async def test_a_cooldown_is_an_instant_on_the_clock_of_the_house(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_memory_stores() as stores:
        limits: Limits = getattr(stores, kind)
        now = (await limits.get_status("a")).reset_at
        assert now > 1.6e9
        await limits.set_cooldown("a", now + 30.0)
        assert await limits.get_wait_time("a") == 30.0
        await trio.sleep(29.5)
        assert not await limits.can_proceed("a")
        await trio.sleep(0.5)
        assert await limits.can_proceed("a")


@BOTH
async def test_a_clock_that_goes_back_prolongs_nothing_beyond_its_length(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(1)) as stores:
        limits: Any = getattr(stores, kind)
        args = () if kind == "rate_limit" else ("user",)
        await limits.record("a", *args)
        await limits.set_cooldown("b", 1030.0)
        clock.now = 0.0
        assert (await limits.get_status("a")).reset_at == 10.0
        assert await limits.get_cooldown("b") == 30.0
        clock.now = 9.5
        assert not await limits.acquire("a", *args)
        clock.now = 10.0
        assert await limits.acquire("a", *args)
        clock.now = 30.0
        assert await limits.get_cooldown("b") is None


@BOTH
async def test_a_window_that_was_short_for_a_while_forgets_nothing(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    config = AdaptiveConfig(min_user_reserved=0, recalculation_interval=0.001)
    async with open_memory_stores(default_config=only(10, 60.0), adaptive_config=config) as stores:
        limits: Any = getattr(stores, kind)
        now = (await limits.get_status("a")).reset_at
        for _ in range(3):
            await limits.record("a")
        await trio.sleep(20.0)
        await limits.set_resource_config("a", only(2, 10.0))
        assert (await limits.get_status("a")).remaining == 2
        assert (await limits.get_status("a")).reset_at == now + 20.0
        await limits.record("a")
        assert (await limits.get_status("a")).remaining == 1
        assert (await limits.get_status("a")).reset_at == now + 30.0
        await limits.record("a")
        assert await limits.get_wait_time("a") == 10.0
        assert not await limits.acquire("a")
        assert await limits.cleanup() == 0
        await limits.set_resource_config("a", only(5, 60.0))
        assert (await limits.get_status("a")).remaining == 0
        assert (await limits.get_status("a")).reset_at == now + 60.0
        assert await limits.get_wait_time("a") == 40.0
        await trio.sleep(40.0)
        assert (await limits.get_status("a")).remaining == 3
        await trio.sleep(20.0)
        assert (await limits.get_status("a")).remaining == 5


@BOTH
async def test_a_cooldown_is_dated_at_the_next_look_whatever_was_asked_for(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(1)) as stores:
        limits: Any = getattr(stores, kind)
        await limits.set_cooldown("a", 1010.0)
        clock.now = 0.0
        await limits.get_status("b")
        clock.now = 9.5
        assert await limits.get_cooldown("a") == 10.0
        clock.now = 10.0
        assert await limits.get_cooldown("a") is None


@BOTH
async def test_a_new_config_keeps_what_is_counted(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(5), resource_configs={"b": only(7)}) as stores:
        limits: Any = getattr(stores, kind)
        args = () if kind == "rate_limit" else ("user",)
        assert await limits.get_resource_config("a") == only(5)
        assert await limits.get_resource_config("b") == only(7)
        for _ in range(4):
            await limits.record("a", *args)
        await limits.set_resource_config("a", only(6, 20.0))
        await limits.set_resource_config("c", only(1))
        assert await limits.get_resource_config("a") == only(6, 20.0)
        assert (await limits.get_status("a")).remaining == 2
        await trio.sleep(10.0)
        assert (await limits.get_status("a")).remaining == 2
        await limits.set_resource_config("a", only(3, 5.0))
        assert (await limits.get_status("a")).remaining == 3


@BOTH
async def test_listing_stats_and_clear(kind: str) -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(2)) as stores:
        limits: Limits = getattr(stores, kind)
        assert await limits.list_resources() == []
        assert await limits.get_stats() == RateLimitStats(0, 0, 0, 0)
        await limits.get_status("looked at")
        for resource in ("b:full", "b:full", "a:one"):
            await limits.record(resource)
        await limits.set_cooldown("c", 1015.0)
        assert await limits.list_resources() == [
            ResourceInfo("a:one", 1, 2, 10.0, None),
            ResourceInfo("b:full", 2, 2, 10.0, None),
            ResourceInfo("c", 0, 2, 10.0, 1015.0),
        ]
        assert await limits.get_stats() == RateLimitStats(3, 2, 2, 3)
        await limits.clear("b:")
        assert await limits.get_stats() == RateLimitStats(2, 1, 1, 1)
        await limits.record("a:one")
        clock.now = 1010.0
        assert await limits.cleanup() == 2
        assert await limits.list_resources() == [ResourceInfo("c", 0, 2, 10.0, 1015.0)]
        clock.now = 1015.0
        assert await limits.cleanup() == 1
        assert await limits.cleanup() == 0
        await limits.record("a")
        await limits.set_cooldown("a", 1100.0)
        await limits.clear()
        assert await limits.list_resources() == []
        assert await limits.acquire("a", *(() if kind == "rate_limit" else ("user",)))


@BOTH
async def test_what_is_over_is_forgotten(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        limits: Any = getattr(stores, kind)
        args = () if kind == "rate_limit" else ("user",)
        now = (await limits.get_status("a")).reset_at
        for number in range(100):
            await limits.record(f"k{number}", *args)
            await limits.set_cooldown(f"k{number}", now + 90.0)
        await trio.sleep(2 * 86_400.0)
        assert not limits._records
        assert not limits._cooldowns
        await trio.sleep(120.0)
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


@BOTH
async def test_a_cooldown_alone_is_forgotten_too(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        limits: Limits = getattr(stores, kind)
        now = (await limits.get_status("a")).reset_at
        await trio.sleep(200.0)
        await limits.set_cooldown("b", now + 210.0)
        await trio.sleep(200.0)
        assert not limits._cooldowns


async def test_the_plain_status_is_frozen_and_complete(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(clock=SetClock(), default_config=only(5)) as stores:
        await stores.rate_limit.record("a")
        assert await stores.rate_limit.get_status("a") == RateLimitStatus(remaining=4, reset_at=1010.0, limit=5)


# -------------------------------------------------------------------------------------------------------- adaptive


async def test_the_adaptive_status_is_flat_and_complete() -> None:
    async with open_memory_stores(clock=SetClock(), default_config=only(100)) as stores:
        adaptive = stores.adaptive
        await adaptive.record("a", "user")
        await adaptive.record("a", "user")
        for _ in range(3):
            await adaptive.record("a")
        assert await adaptive.get_status("a") == AdaptiveRateLimitStatus(
            remaining=95,
            reset_at=1010.0,
            limit=100,
            user_reserved=30,
            background_max=70,
            background_paused=False,
            recent_user_activity=2,
            reason="Low user activity (2 requests/15min) - background scale up",
        )


async def test_a_division_holds_for_its_interval() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(100, 60.0)) as stores:
        adaptive = stores.adaptive
        before = await adaptive.get_status("a")
        assert before.reason.startswith("Initial state")
        for _ in range(12):
            await adaptive.record("a", "user")
        clock.now = 1029.999
        held = await adaptive.get_status("a")
        assert (held.user_reserved, held.reason) == (before.user_reserved, before.reason)
        assert held.recent_user_activity == 12
        clock.now = 1030.0
        after = await adaptive.get_status("a")
        assert (after.user_reserved, after.background_paused) == (90, True)
        assert after.reason.startswith("High user activity (12 requests/15min)")


async def test_a_new_config_makes_the_division_anew(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(10)) as stores:
        assert (await stores.adaptive.get_status("a")).background_max == 5
        await stores.adaptive.set_resource_config("a", only(100))
        status = await stores.adaptive.get_status("a")
        assert (status.user_reserved, status.background_max, status.remaining) == (30, 70, 100)


async def test_background_work_pauses_and_waits_for_the_next_recalculation() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(100)) as stores:
        adaptive = stores.adaptive
        for _ in range(12):
            await adaptive.record("a", "user")
        assert not await adaptive.acquire("a", "background")
        assert await adaptive.can_proceed("a", "user")
        clock.now = 1012.0
        assert await adaptive.get_wait_time("a", "background") == 18.0
        assert await adaptive.get_wait_time("a", "user") == 0.0


async def test_without_a_share_background_work_waits_for_the_next_recalculation() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(5)) as stores:
        assert not await stores.adaptive.acquire("a")
        clock.now = 1010.0
        assert await stores.adaptive.get_wait_time("a") == 20.0


async def test_background_work_waits_for_its_share() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(10)) as stores:
        adaptive = stores.adaptive
        for second in range(5):
            clock.now = 1000.0 + second
            assert await adaptive.acquire("a")
        assert not await adaptive.acquire("a")
        assert await adaptive.get_wait_time("a") == 6.0
        for _ in range(5):
            assert await adaptive.acquire("a", "user")
        assert not await adaptive.acquire("a", "user")
        assert await adaptive.get_wait_time("a", "user") == 6.0
        clock.now = 1010.0
        assert await adaptive.acquire("a")
        # One of the background's has left, but the users' five and its own five fill the limit.
        assert await adaptive.get_wait_time("a", "user") == 1.0


async def test_background_work_waits_for_the_whole_limit_as_well() -> None:
    clock = SetClock()
    config = AdaptiveConfig(high_activity_threshold=100, moderate_activity_threshold=50)
    async with open_memory_stores(clock=clock, default_config=only(10), adaptive_config=config) as stores:
        adaptive = stores.adaptive
        for _ in range(10):
            assert await adaptive.acquire("a", "user")
        clock.now = 1004.0
        assert not await adaptive.acquire("a", "background")
        assert await adaptive.get_wait_time("a", "background") == 6.0


async def test_cleaning_up_keeps_a_division_for_its_interval() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(100)) as stores:
        before = await stores.adaptive.get_status("a")
        clock.now = 1029.0
        await stores.adaptive.cleanup()
        for _ in range(12):
            await stores.adaptive.record("a", "user")
        assert (await stores.adaptive.get_status("a")).reason == before.reason
        clock.now = 1030.0
        assert (await stores.adaptive.get_status("a")).reason.startswith("High user activity")


async def test_after_a_long_silence_users_are_not_locked_out(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(100)) as stores:
        adaptive = stores.adaptive
        await adaptive.record("a", "user")
        await trio.sleep(1799.0)
        assert (await adaptive.get_status("a")).user_reserved == 5
        await trio.sleep(1.0 + 30.0)
        status = await adaptive.get_status("a")
        assert (status.user_reserved, status.background_max) == (0, 100)
        assert status.reason.startswith("Sustained zero activity")
        assert await adaptive.can_proceed("a", "user")
        assert await adaptive.get_wait_time("a", "user") == 0.0
        assert await adaptive.acquire("a", "user")
        await trio.sleep(80_000.0)
        assert (await adaptive.get_status("a")).user_reserved == 0  # remembered for a day
        await trio.sleep(86_400.0)
        assert (await adaptive.get_status("a")).reason.startswith("Initial state")


async def test_history_is_kept_for_the_longer_one_of_the_two_windows(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(200, 3600.0)) as stores:
        adaptive = stores.adaptive
        for _ in range(100):
            await adaptive.record("a")
        await trio.sleep(16 * 60.0)
        status = await adaptive.get_status("a")
        assert status.remaining == 100
        assert status.reason.startswith("No user activity yet")
    async with open_memory_stores(default_config=only(200, 60.0)) as stores:
        adaptive = stores.adaptive
        for _ in range(4):
            await adaptive.record("a", "user")
        await adaptive.record("b")
        await trio.sleep(600.0)
        status = await adaptive.get_status("a")
        assert (status.remaining, status.recent_user_activity) == (200, 4)
        assert (await adaptive.get_status("b")).reason.startswith("No user activity yet")
        await trio.sleep(300.0)
        assert (await adaptive.get_status("a")).recent_user_activity == 0
        assert (await adaptive.get_status("b")).reason.startswith("Initial state")


async def test_a_clock_that_goes_back_does_not_hold_a_division_for_longer() -> None:
    clock = SetClock()
    async with open_memory_stores(clock=clock, default_config=only(100)) as stores:
        adaptive = stores.adaptive
        await adaptive.record("a")
        await adaptive.get_status("a")
        for _ in range(12):
            await adaptive.record("a", "user")
        clock.now = 0.0
        assert (await adaptive.get_status("a")).reason.startswith("No user activity yet")
        clock.now = 30.0
        status = await adaptive.get_status("a")
        assert status.reason.startswith("High user activity")
        assert status.recent_user_activity == 12


async def test_the_two_limits_of_a_bundle_count_for_themselves(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(default_config=only(2)) as stores:
        for _ in range(2):
            await stores.adaptive.record("a")
        await stores.adaptive.set_cooldown("a", 2e9)
        assert await stores.rate_limit.acquire("a")
        await stores.rate_limit.clear()
        assert (await stores.adaptive.get_status("a")).remaining == 0


@BOTH
async def test_closed_is_closed(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        limits: Limits = getattr(stores, kind)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: limits.acquire("a"),
        lambda: limits.can_proceed("a"),
        lambda: limits.record("a"),
        lambda: limits.get_status("a"),
        lambda: limits.get_wait_time("a"),
        lambda: limits.reset("a"),
        lambda: limits.set_cooldown("a", 2e9),
        lambda: limits.get_cooldown("a"),
        lambda: limits.clear_cooldown("a"),
        lambda: limits.set_resource_config("a", only(1)),
        lambda: limits.get_resource_config("a"),
        lambda: limits.list_resources(),
        lambda: limits.get_stats(),
        lambda: limits.cleanup(),
        lambda: limits.clear(),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
