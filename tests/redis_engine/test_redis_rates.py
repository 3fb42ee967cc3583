"""The rate limits on a server: exact windows, cooldowns, configs, and the same division as the formula's."""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings, strategies as st

from trio_renew import AdaptiveConfig, RateLimitConfig
from trio_renew._policy.capacity import capacity_of
from trio_renew.stores.redis import open_redis_stores

if TYPE_CHECKING:
    from .conftest import Server


def microseconds() -> int:
    return time.time_ns() // 1000


def fill(server: Server, key: str, *instants: int, keep: int = 3_600_000_000) -> None:
    """Put requests into a window as if they had been counted at these instants."""
    words = [str(keep), "w"]
    for number, instant in zip(count(), instants, strict=False):
        words += [str(instant), f"m{number}"]
    server.ask("ZADD", key, *words)


async def test_more_come_at_once_than_fit(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=7, window=60.0)
    granted: list[bool] = []

    async def acquire(limits: Any) -> None:
        granted.append(await limits.acquire("a"))

    async with (
        open_redis_stores(server.url, prefix=prefix, default_config=config) as one,
        open_redis_stores(server.url, prefix=prefix, default_config=config) as other,
        trio.open_nursery() as nursery,
    ):
        for _ in range(20):
            nursery.start_soon(acquire, one.rate_limit)
            nursery.start_soon(acquire, other.rate_limit)
    assert sum(granted) == 7


async def test_the_window_is_exact(server: Server, prefix: str) -> None:
    """At exactly one window after the oldest request it has left; the wait says so to the microsecond."""
    config = RateLimitConfig(limit=2, window=0.05)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        limits = stores.rate_limit
        for _ in range(5):
            await limits.reset("a")
            now = microseconds()
            fill(server, f"{prefix}r:a", now, now + 1)
            status = await limits.get_status("a")
            if status.remaining == 0:
                assert status.reset_at == pytest.approx(now / 1e6 + 0.05, abs=1e-6)
            wait = await limits.get_wait_time("a")
            await trio.sleep(wait)
            assert await limits.acquire("a") is True


async def test_more_recorded_than_fit(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=2, window=60.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        now = microseconds()
        fill(server, f"{prefix}r:a", *(now - 30_000_000 + number * 1_000_000 for number in range(5)))
        assert (await stores.rate_limit.get_status("a")).remaining == 0
        # The fourth of the five has to leave.
        assert await stores.rate_limit.get_wait_time("a") == pytest.approx(33, abs=1)


async def test_what_seems_to_come_from_the_future_is_dated_now(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=1, window=10.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        fill(server, f"{prefix}r:a", microseconds() + 1_000_000_000)
        assert await stores.rate_limit.acquire("a") is False
        assert await stores.rate_limit.get_wait_time("a") == pytest.approx(10.0, abs=0.5)
        now = microseconds()
        server.ask("SET", f"{prefix}rc:a", f"0.5 {now + 1_005_000_000} {now + 1_000_000_000}")
        assert await stores.rate_limit.get_cooldown("a") == pytest.approx(now / 1e6 + 5, abs=0.5)
        # It is dated once, at the first look, and then it runs down.
        server.ask("SET", f"{prefix}rc:b", f"0.5 {now + 1_000_200_000} {now + 1_000_000_000}")
        assert await stores.rate_limit.can_proceed("b") is False
        await trio.sleep(0.25)
        assert await stores.rate_limit.get_cooldown("b") is None
        assert await stores.rate_limit.can_proceed("b") is True
        server.ask("HSET", f"{prefix}as:a", "config", "1", "at", str(now + 10**9))
        assert (await stores.adaptive.get_status("a")).reason.startswith("Initial")


async def test_stores_with_different_windows_do_not_cut_each_other_short(server: Server, prefix: str) -> None:
    short, long = RateLimitConfig(limit=5, window=0.01), RateLimitConfig(limit=5, window=60.0)
    async with (
        open_redis_stores(server.url, prefix=prefix, default_config=short) as one,
        open_redis_stores(server.url, prefix=prefix, default_config=long) as other,
    ):
        await other.rate_limit.record("a")
        await trio.sleep(0.02)
        for _ in range(3):
            await one.rate_limit.record("a")
        assert (await other.rate_limit.get_status("a")).remaining == 1
        await trio.sleep(0.02)
        assert (await one.rate_limit.get_status("a")).remaining == 5


async def test_the_longest_times(server: Server, prefix: str) -> None:
    limit = RateLimitConfig(limit=10, window=1e308)
    config = AdaptiveConfig(monitoring_window=1e308, recalculation_interval=1e308, sustained_inactivity_threshold=1e308)
    async with open_redis_stores(
        server.url, prefix=prefix, lease=1e308, default_config=limit, adaptive_config=config
    ) as stores:
        for limits in (stores.rate_limit, stores.adaptive):
            assert await limits.acquire("a") is True
            assert (await limits.get_status("a")).remaining == 9
        await stores.cache.set("a", 1, 1e308)
        assert await stores.cache.get("a") == 1
        job = await stores.dedupe.register_or_join("a")
        assert await stores.dedupe.extend("a", job.job_id) is True


async def test_a_limit_of_zero(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=0, window=7.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        assert await stores.rate_limit.acquire("a") is False
        assert await stores.rate_limit.get_wait_time("a") == 7.0
        for priority in ("user", "background"):
            assert await stores.adaptive.acquire("a", priority) is False
            assert await stores.adaptive.get_wait_time("a", priority) == 7.0


async def test_cooldowns(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        for limits in (stores.rate_limit, stores.adaptive):
            assert await limits.get_cooldown("a") is None
            now = time.time()
            await limits.set_cooldown("a", now + 20)
            await limits.set_cooldown("a", now + 10)
            await limits.set_cooldown("a", now - 10)
            assert await limits.get_cooldown("a") == pytest.approx(now + 20, abs=1e-5)
            assert await limits.can_proceed("a") is False
            assert await limits.acquire("a") is False
            assert await limits.get_wait_time("a") == pytest.approx(20, abs=0.5)
            assert [(info.resource, info.request_count) for info in await limits.list_resources()] == [("a", 0)]
            assert (await limits.get_stats()).rate_limited_resources == 1
            await limits.reset("a")
            assert await limits.get_cooldown("a") is not None
            await limits.clear_cooldown("a")
            assert await limits.acquire("a") is True
            await limits.set_cooldown("a", time.time() + 0.02)
            await trio.sleep(0.025)
            assert await limits.get_cooldown("a") is None
            assert await limits.acquire("a") is True


async def test_configs_belong_to_the_store_object(server: Server, prefix: str) -> None:
    small = RateLimitConfig(limit=1, window=60.0)
    async with (
        open_redis_stores(server.url, prefix=prefix, resource_configs={"a": small}) as one,
        open_redis_stores(server.url, prefix=prefix) as other,
    ):
        for mine, theirs in ((one.rate_limit, other.rate_limit), (one.adaptive, other.adaptive)):
            assert await mine.get_resource_config("a") == small
            assert (await theirs.get_resource_config("a")).limit == 60
            assert await mine.acquire("a") is False or await mine.acquire("a") is False
            await mine.reset("a")
            await mine.record("a")
            await mine.set_resource_config("a", RateLimitConfig(limit=3, window=60.0))
            status = await mine.get_status("a")
            assert (status.limit, status.remaining) == (3, 2)
        with pytest.raises(TypeError, match="config"):
            await one.rate_limit.set_resource_config("a", 3)  # type: ignore[arg-type]


async def test_resources_are_listed_and_counted(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=2, window=60.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        for limits in (stores.rate_limit, stores.adaptive):
            assert await limits.list_resources() == []
            for resource in ("é", "full", "full"):
                await limits.record(resource)
            await limits.can_proceed("only looked at")
            found = [(info.resource, info.request_count, info.limit) for info in await limits.list_resources()]
            assert found == [("full", 2, 2), ("é", 1, 2)]
            stats = await limits.get_stats()
            assert (stats.total_resources, stats.active_resources) == (2, 2)
            assert (stats.rate_limited_resources, stats.total_requests) == (1, 3)
            await limits.clear("f")
            assert [info.resource for info in await limits.list_resources()] == ["é"]
            await limits.clear()
            assert await limits.list_resources() == []


async def test_cleanup_takes_what_has_left_every_window(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=5, window=1.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        now = microseconds()
        old = (now - 5_000_000, now - 4_000_000)
        fill(server, f"{prefix}r:a", *old, now, keep=1_000_000)
        fill(server, f"{prefix}r:b", *old, keep=1_000_000)
        server.ask("ZADD", f"{prefix}r:foreign", "1", "x")
        assert await stores.rate_limit.cleanup() == 2 + 1
        assert await stores.rate_limit.cleanup() == 0
        assert (await stores.rate_limit.get_status("a")).remaining == 4


async def test_what_is_counted_ends_by_itself(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=5, window=0.02)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        await stores.rate_limit.record("a")
        await stores.rate_limit.set_cooldown("a", time.time() + 0.02)
        await trio.sleep(0.05)
        assert server.ask("EXISTS", f"{prefix}r:a", f"{prefix}rc:a") == b":0\r\n"
        await stores.adaptive.acquire("a", "user")
        for kind, most in (("au", 86_400_100), ("as", 30_100)):
            assert 0 < int(server.ask("PTTL", f"{prefix}{kind}:a")[1:]) <= most


# The division of an adaptive limit

AGES = st.lists(st.integers(0, 4000), max_size=25)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(0, 300),
    users=AGES,
    works=st.lists(st.integers(0, 1000), max_size=2),
    high=st.integers(1, 12),
    moderate=st.integers(0, 11),
    pause=st.booleans(),
    scaling=st.sampled_from([0.5, 1.0, 1.4, 2.0, 2.5]),
    least=st.integers(0, 12),
    monitoring=st.sampled_from([100.0, 900.0, 1000.0]),
)
@example(100, [1] * 12, [], 10, 3, True, 2.0, 5, 900.0)
@example(100, [1, 2, 3], [], 10, 3, True, 2.0, 5, 900.0)
@example(100, [400] * 4 + [1], [], 10, 3, True, 2.0, 5, 900.0)
@example(100, [1801], [], 10, 3, True, 2.0, 5, 900.0)
@example(100, [1000], [], 10, 3, True, 2.0, 5, 900.0)
@example(3, [], [5], 10, 3, True, 2.0, 5, 900.0)
async def test_the_server_divides_as_the_formula_does(
    server: Server,
    limit: int,
    users: list[int],
    works: list[int],
    high: int,
    moderate: int,
    pause: bool,
    scaling: float,
    least: int,
    monitoring: float,
) -> None:
    config = AdaptiveConfig(
        monitoring_window=monitoring,
        high_activity_threshold=high,
        moderate_activity_threshold=min(moderate, high - 1),
        background_pause_on_increasing_trend=pause,
        max_user_scaling=scaling,
        min_user_reserved=least,
    )
    prefix = f"{uuid4().hex}:"
    # Half a second off every bound, so that the time which passes meanwhile does not matter.
    now = microseconds() - 500_000
    if users:
        fill(server, f"{prefix}au:a", *(now - age * 1_000_000 for age in users))
    if works:
        fill(server, f"{prefix}ab:a", *(now - age * 1_000_000 for age in works))
    limits = RateLimitConfig(limit=limit, window=60.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=limits, adaptive_config=config) as stores:
        status = await stores.adaptive.get_status("a")
    known = [-age - 0.5 for age in works if age < monitoring]
    wanted = capacity_of(limit, [-age - 0.5 for age in users], known, 0.0, config)
    found = (status.user_reserved, status.background_max, status.background_paused, status.reason)
    assert found == (wanted.user_reserved, wanted.background_max, wanted.background_paused, wanted.reason)
    assert status.recent_user_activity == sum(age + 0.5 < monitoring for age in users)


async def test_a_division_holds_for_its_interval_and_is_shared(server: Server, prefix: str) -> None:
    adaptive = AdaptiveConfig(recalculation_interval=0.05)
    config = RateLimitConfig(limit=100, window=60.0)
    async with (
        open_redis_stores(server.url, prefix=prefix, adaptive_config=adaptive, default_config=config) as one,
        open_redis_stores(server.url, prefix=prefix, adaptive_config=adaptive, default_config=config) as other,
    ):
        started = time.monotonic()
        assert (await one.adaptive.get_status("a")).user_reserved == 30
        for _ in range(12):
            await other.adaptive.record("a", "user")
        status = await other.adaptive.get_status("a")
        if time.monotonic() - started < 0.05:
            assert status.user_reserved == 30
            assert status.recent_user_activity == 12
        await trio.sleep(0.05)
        status = await other.adaptive.get_status("a")
        assert (status.user_reserved, status.background_max, status.background_paused) == (90, 10, True)
        assert status.remaining == 88
        # Another limit is divided at once.
        await one.adaptive.set_resource_config("a", RateLimitConfig(limit=50, window=60.0))
        assert (await one.adaptive.get_status("a")).user_reserved == 45
        await one.adaptive.reset("a")
        assert (await one.adaptive.get_status("a")).reason.startswith("Initial")


async def test_a_config_that_is_set_makes_the_division_anew(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=10, window=60.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        limits = stores.adaptive
        assert (await limits.get_status("a")).reason.startswith("Initial")
        await limits.record("a", "user")
        assert (await limits.get_status("a")).reason.startswith("Initial")
        await limits.set_resource_config("a", RateLimitConfig(limit=10, window=30.0))
        assert (await limits.get_status("a")).reason.startswith("Low user activity")
        assert (await limits.get_status("a")).remaining == 9


async def test_users_borrow_and_the_background_does_not(server: Server, prefix: str) -> None:
    config = RateLimitConfig(limit=10, window=60.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        limits = stores.adaptive
        assert (await limits.get_status("a")).background_max == 5
        assert [await limits.acquire("a") for _ in range(6)] == [True] * 5 + [False]
        assert await limits.can_proceed("a") is False
        assert await limits.get_wait_time("a") == pytest.approx(60, abs=1)
        assert await limits.get_wait_time("a", "user") == 0.0
        assert [await limits.acquire("a", "user") for _ in range(6)] == [True] * 5 + [False]
        assert await limits.get_wait_time("a", "user") == pytest.approx(60, abs=1)
        assert await limits.get_wait_time("a") == pytest.approx(60, abs=1)
        with pytest.raises(ValueError, match="priority"):
            await limits.acquire("a", "nobody")  # type: ignore[arg-type]


async def test_paused_or_without_a_share_the_background_waits_for_the_next_division(
    server: Server, prefix: str
) -> None:
    config = RateLimitConfig(limit=100, window=5.0)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config) as stores:
        now = microseconds()
        fill(server, f"{prefix}au:busy", *(now - number for number in range(12)))
        assert (await stores.adaptive.get_status("busy")).background_paused is True
        assert await stores.adaptive.acquire("busy") is False
        assert await stores.adaptive.get_wait_time("busy") == pytest.approx(30, abs=1)
        assert await stores.adaptive.acquire("busy", "user") is True
        await stores.adaptive.set_resource_config("small", RateLimitConfig(limit=5, window=5.0))
        assert await stores.adaptive.acquire("small") is False
        assert await stores.adaptive.get_wait_time("small") == pytest.approx(30, abs=1)


async def test_how_long_users_are_quiet_is_remembered(server: Server, prefix: str) -> None:
    adaptive = AdaptiveConfig(monitoring_window=0.02, sustained_inactivity_threshold=0.05, recalculation_interval=0.001)
    config = RateLimitConfig(limit=10, window=0.02)
    async with open_redis_stores(server.url, prefix=prefix, default_config=config, adaptive_config=adaptive) as stores:
        await stores.adaptive.acquire("a", "user")
        await trio.sleep(0.06)
        await stores.adaptive.cleanup()
        status = await stores.adaptive.get_status("a")
        assert (status.user_reserved, status.background_max) == (0, 10)
        assert "Sustained" in status.reason
        assert await stores.adaptive.acquire("a", "user") is True
