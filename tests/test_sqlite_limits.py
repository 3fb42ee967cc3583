"""The rate limits of the SQLite engine beyond the contract: cooldowns, configs, the division, clocks, listings."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings, strategies as st

from trio_renew._policy.capacity import AdaptiveConfig, RateLimitConfig
from trio_renew.abc import RateLimitStatus
from trio_renew.stores._common import RateLimitStats, ResourceInfo
from trio_renew.stores.sqlite import open_sqlite_stores

if TYPE_CHECKING:
    from pathlib import Path


class Hands:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


SMALL = RateLimitConfig(limit=3, window=10.0)
KINDS = pytest.mark.parametrize("kind", ["rate_limit", "adaptive"])


def raw(path: Path, *statements: str) -> list[Any]:
    rows: list[Any] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


# -------------------------------------------------------------------------------------------------------------- windows


async def test_a_window_is_exact(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=SMALL) as stores:
        limits = stores.rate_limit
        assert await limits.get_status("r") == RateLimitStatus(3, 1000.0, 3)
        for _ in range(2):
            assert await limits.acquire("r")
        clock.now = 1004.0
        assert await limits.acquire("r")
        assert not await limits.acquire("r")
        assert await limits.get_status("r") == RateLimitStatus(0, 1010.0, 3)
        assert await limits.get_wait_time("r") == 6.0
        await limits.record("r")
        await limits.record("r")
        assert await limits.get_status("r") == RateLimitStatus(0, 1010.0, 3)
        assert await limits.get_wait_time("r") == 10.0
        clock.now = 1009.999
        assert not await limits.can_proceed("r")
        clock.now = 1010.0
        assert not await limits.can_proceed("r")
        assert await limits.get_status("r") == RateLimitStatus(0, 1014.0, 3)
        clock.now = 1014.0
        assert await limits.get_status("r") == RateLimitStatus(3, 1014.0, 3)
        assert await limits.acquire("r")
        assert raw(tmp_path / "s.db", "SELECT at FROM renew_requests") == [(1014.0,)]


@KINDS
async def test_a_limit_of_zero(tmp_path: Path, kind: str) -> None:
    config = RateLimitConfig(limit=0, window=7.0)
    async with open_sqlite_stores(tmp_path / "s.db", default_config=config, clock=Hands()) as stores:
        limits = getattr(stores, kind)
        assert not await limits.acquire("r")
        assert not await limits.can_proceed("r")
        assert await limits.get_wait_time("r") == 7.0
        assert (await limits.get_status("r")).remaining == 0


@KINDS
async def test_who_sleeps_as_long_as_told_proceeds(tmp_path: Path, kind: str, autojump_clock: Any) -> None:
    config = RateLimitConfig(limit=4, window=0.7)
    async with open_sqlite_stores(tmp_path / "s.db", default_config=config) as stores:
        limits = getattr(stores, kind)
        args = ("user",) if kind == "adaptive" else ()
        for number in range(30):
            await trio.sleep(0.1 * (number % 3))
            while not await limits.acquire("r", *args):
                await trio.sleep(await limits.get_wait_time("r", *args))
                assert await limits.can_proceed("r", *args)


@KINDS
async def test_the_kinds_share_nothing(tmp_path: Path, kind: str) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", default_config=SMALL) as stores:
        mine = getattr(stores, kind)
        other = stores.adaptive if kind == "rate_limit" else stores.rate_limit
        for _ in range(3):
            await mine.record("r")
        await mine.set_cooldown("r", 9e9)
        assert await other.acquire("r", *(("user",) if kind == "rate_limit" else ()))
        assert await other.get_cooldown("r") is None
        await other.clear()
        assert await mine.get_cooldown("r") == 9e9
        await other.reset("r")
        assert (await mine.get_status("r")).remaining == 0


@KINDS
async def test_requests_from_the_future_are_dated_now(tmp_path: Path, kind: str) -> None:
    clock = Hands(9000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=SMALL) as stores:
        limits = getattr(stores, kind)
        args = ("user",) if kind == "adaptive" else ()
        for _ in range(3):
            assert await limits.acquire("r", *args)
        clock.now = 1000.0
        assert not await limits.can_proceed("r", *args)
        assert await limits.get_wait_time("r", *args) == 10.0
        assert (await limits.get_status("r")).reset_at == 1010.0
        clock.now = 1010.0
        assert await limits.acquire("r", *args)


# ------------------------------------------------------------------------------------------------ cooldowns and configs


@KINDS
async def test_cooldowns(tmp_path: Path, kind: str) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=SMALL) as stores:
        limits = getattr(stores, kind)
        args = ("user",) if kind == "adaptive" else ()
        assert await limits.get_cooldown("r") is None
        await limits.set_cooldown("r", 1020.0)
        await limits.set_cooldown("r", 1015.0)
        await limits.set_cooldown("r", 900.0)
        assert await limits.get_cooldown("r") == 1020.0
        assert not await limits.acquire("r", *args)
        assert not await limits.can_proceed("r", *args)
        assert await limits.get_wait_time("r", *args) == 20.0
        assert (await limits.get_status("r")).remaining == 3
        await limits.set_cooldown("r", 1030.0)
        await limits.reset("r")
        assert await limits.get_cooldown("r") == 1030.0
        clock.now = 1029.999
        assert not await limits.acquire("r", *args)
        clock.now = 1030.0
        assert await limits.get_cooldown("r") is None
        assert await limits.acquire("r", *args)
        await limits.set_cooldown("r", 1100.0)
        await limits.clear_cooldown("r")
        await limits.clear_cooldown("unknown")
        assert await limits.get_cooldown("r") is None
        await limits.set_cooldown("r", 1100.0)
        await limits.clear("x")
        assert await limits.get_cooldown("r") == 1100.0
        await limits.clear("r")
        assert await limits.get_cooldown("r") is None
        assert (await limits.get_status("r")).remaining == 3
        for bad in (float("nan"), 1e12, "soon"):
            with pytest.raises((TypeError, ValueError), match="until"):
                await limits.set_cooldown("r", bad)


@KINDS
async def test_a_clock_that_goes_back_prolongs_no_cooldown(tmp_path: Path, kind: str) -> None:
    clock = Hands(5000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        limits = getattr(stores, kind)
        await limits.set_cooldown("r", 5020.0)
        clock.now = 1000.0
        assert await limits.get_cooldown("r") == 1020.0
        assert await limits.get_cooldown("r") == 1020.0
        clock.now = 1020.0
        assert await limits.get_cooldown("r") is None


@KINDS
async def test_a_full_window_hides_no_cooldown_from_a_clock_that_goes_back(tmp_path: Path, kind: str) -> None:
    clock = Hands(5000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=SMALL) as stores:
        limits = getattr(stores, kind)
        args = ("user",) if kind == "adaptive" else ()
        for _ in range(3):
            await limits.record("r", *args)
        await limits.set_cooldown("r", 5005.0)
        clock.now = 1000.0
        assert not await limits.can_proceed("r", *args)
        clock.now = 1010.0
        assert await limits.acquire("r", *args)


@KINDS
async def test_configs_are_of_this_store_object(tmp_path: Path, kind: str) -> None:
    path, clock = tmp_path / "s.db", Hands()
    configs = {"own": RateLimitConfig(limit=1, window=1.0)}
    async with (
        open_sqlite_stores(path, clock=clock, default_config=SMALL, resource_configs=configs) as stores,
        open_sqlite_stores(path, clock=clock, default_config=SMALL) as others,
    ):
        limits, other = getattr(stores, kind), getattr(others, kind)
        assert await limits.get_resource_config("own") == configs["own"]
        assert await limits.get_resource_config("r") == await other.get_resource_config("own") == SMALL
        for _ in range(3):
            await limits.record("r")
        wide = RateLimitConfig(limit=5, window=100.0)
        await limits.set_resource_config("r", wide)
        assert await limits.get_resource_config("r") == wide
        assert (await limits.get_status("r")).remaining == 2
        clock.now += 50
        # What was counted in the shorter window stays counted in the longer one; the other goes by its own.
        assert (await limits.get_status("r")).remaining == 2
        assert (await other.get_status("r")).remaining == 3
        await other.record("r")
        assert (await limits.get_status("r")).remaining == 1
        with pytest.raises(TypeError, match="config"):
            await limits.set_resource_config("r", 5)


@KINDS
async def test_two_bundles_share_the_counts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.db"
    async with (
        open_sqlite_stores(path, default_config=SMALL) as one,
        open_sqlite_stores(path, default_config=SMALL) as two,
    ):
        args = ("user",) if kind == "adaptive" else ()
        granted: list[bool] = []

        async def acquire(stores: Any) -> None:
            granted.append(await getattr(stores, kind).acquire("r", *args))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(acquire, one)
                nursery.start_soon(acquire, two)
        assert sum(granted) == 3


# --------------------------------------------------------------------------------------------------------- the division

ADAPTIVE = AdaptiveConfig(recalculation_interval=30.0)
WIDE = RateLimitConfig(limit=100, window=3600.0)


async def test_the_division_follows_the_users(tmp_path: Path) -> None:
    clock = Hands(100_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        status = await limits.get_status("r")
        assert (status.user_reserved, status.background_max) == (30, 70)
        assert status.reason.startswith("Initial state")
        for _ in range(12):
            await limits.record("r", "user")
        clock.now += 29.999
        assert (await limits.get_status("r")).user_reserved == 30
        assert (await limits.get_status("r")).recent_user_activity == 12
        clock.now += 0.001
        status = await limits.get_status("r")
        assert (status.user_reserved, status.background_max, status.background_paused) == (90, 10, True)
        assert status.remaining == 88
        assert not await limits.acquire("r")
        assert await limits.get_wait_time("r") == 30.0
        clock.now += 10
        assert await limits.get_wait_time("r", "background") == 20.0
        assert await limits.get_wait_time("r", "user") == 0.0
        assert await limits.acquire("r", "user")


async def test_the_users_last_request_is_remembered(tmp_path: Path) -> None:
    clock = Hands(100_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        await limits.record("r", "user")
        clock.now += 1000
        assert (await limits.get_status("r")).user_reserved == 5
        clock.now += 799.999
        assert (await limits.get_status("r")).user_reserved == 5
        clock.now += 30.001
        status = await limits.get_status("r")
        assert (status.user_reserved, status.background_max) == (0, 100)
        # Users are never locked out: they borrow what the background does not use.
        assert await limits.acquire("r", "user")
        clock.now += 80_000
        await limits.cleanup()
        assert (await limits.get_status("r")).user_reserved == 0
        clock.now += 6_400
        assert await limits.cleanup() == 1
        assert (await limits.get_status("r")).user_reserved == 30


async def test_background_work_alone(tmp_path: Path) -> None:
    clock = Hands(100_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        await limits.record("r")
        status = await limits.get_status("r")
        assert (status.user_reserved, status.background_max) == (5, 95)
        assert status.reason.startswith("No user activity yet")
        for _ in range(94):
            assert await limits.acquire("r")
        clock.now += 10
        assert not await limits.acquire("r")
        assert await limits.get_wait_time("r") == 3590.0
        assert await limits.get_wait_time("r", "user") == 0.0


async def test_background_work_without_a_share_waits_for_the_next_division(tmp_path: Path) -> None:
    clock = Hands(100_000.0)
    config = RateLimitConfig(limit=3, window=60.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=config) as stores:
        limits = stores.adaptive
        status = await limits.get_status("r")
        assert (status.user_reserved, status.background_max) == (3, 0)
        clock.now += 10
        assert await limits.get_wait_time("r") == 20.0
        assert not await limits.acquire("r")


async def test_the_division_is_shared(tmp_path: Path) -> None:
    path, clock = tmp_path / "s.db", Hands(100_000.0)
    async with (
        open_sqlite_stores(path, clock=clock, default_config=WIDE) as one,
        open_sqlite_stores(path, clock=clock, default_config=WIDE) as two,
    ):
        await one.adaptive.get_status("r")
        for _ in range(12):
            await two.adaptive.record("r", "user")
        assert (await two.adaptive.get_status("r")).user_reserved == 30
        clock.now += 30
        assert (await two.adaptive.get_status("r")).user_reserved == 90
        assert (await one.adaptive.get_status("r")).background_paused
        await two.adaptive.reset("r")
        assert (await one.adaptive.get_status("r")).user_reserved == 30


async def test_a_new_config_is_divided_at_once(tmp_path: Path) -> None:
    clock = Hands(100_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        await limits.get_status("r")
        await limits.record("r", "user")
        await limits.set_resource_config("r", RateLimitConfig(limit=10, window=3600.0))
        status = await limits.get_status("r")
        assert (status.limit, status.user_reserved, status.background_max) == (10, 5, 5)
        assert status.reason.startswith("Low user activity")


async def test_a_division_from_the_future_is_made_anew(tmp_path: Path) -> None:
    clock = Hands(200_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        await limits.get_status("r")
        await limits.record("r", "user")
        clock.now = 100_000.0
        assert (await limits.get_status("r")).reason.startswith("Low user activity")
        await limits.reset("r")
        await limits.record("r", "user")
        clock.now = 50_000.0
        raw(tmp_path / "s.db", "DELETE FROM renew_requests")
        # The last user request seems to come from the future: it was a moment ago.
        assert (await limits.get_status("r")).reason.startswith("Low user activity")


async def test_users_from_the_future_become_quiet_all_the_same(tmp_path: Path) -> None:
    clock = Hands(200_000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=WIDE) as stores:
        limits = stores.adaptive
        await limits.record("r", "user")
        clock.now = 100_000.0
        assert (await limits.get_status("r")).reason.startswith("Low user activity")
        clock.now += 1799.0
        assert (await limits.get_status("r")).reason.startswith("Recent zero activity")
        clock.now += 30.0
        assert (await limits.get_status("r")).reason.startswith("Sustained zero activity")


async def test_two_may_find_the_division_too_old_at_once(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", default_config=WIDE) as stores:
        window: list[Any] = []

        def make_twice(connection: Any, look: Any) -> None:
            window.append(stores.adaptive._window(connection, "r", look))
            first = stores.adaptive._divided(window[0])
            found = iter([None, first])
            store = type("Late", (type(stores.adaptive),), {"__slots__": (), "_found": lambda *_: next(found)})
            late = store.__new__(store)
            assert late._divided(window[0]) == first

        await stores.adaptive._database.run(make_twice)


@pytest.mark.parametrize("priority", ["User", None, 7])
async def test_a_bad_priority_is_refused(tmp_path: Path, priority: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        for method in ("acquire", "can_proceed", "record", "get_wait_time"):
            with pytest.raises(ValueError, match="priority"):
                await getattr(stores.adaptive, method)("r", priority)
        assert await stores.adaptive.list_resources() == []


# ----------------------------------------------------------------------------------------------------------- for people


@KINDS
async def test_listing_and_counting(tmp_path: Path, kind: str) -> None:
    clock = Hands()
    configs = {"b": RateLimitConfig(limit=1, window=5.0)}
    async with open_sqlite_stores(
        tmp_path / "s.db",
        clock=clock,
        default_config=SMALL,
        resource_configs=configs,
        adaptive_config=AdaptiveConfig(monitoring_window=10.0),
    ) as stores:
        limits = getattr(stores, kind)
        assert await limits.list_resources() == []
        assert await limits.get_stats() == RateLimitStats(0, 0, 0, 0)
        await limits.can_proceed("looked at only")
        await limits.record("c")
        await limits.record("c")
        await limits.record("b")
        await limits.set_cooldown("a", 1006.0)
        assert await limits.list_resources() == [
            ResourceInfo("a", 0, 3, 10.0, 1006.0),
            ResourceInfo("b", 1, 1, 5.0),
            ResourceInfo("c", 2, 3, 10.0),
        ]
        assert await limits.get_stats() == RateLimitStats(3, 2, 2, 3)
        assert await limits.cleanup() == 0
        clock.now += 6
        assert [info.resource for info in await limits.list_resources()] == ["c"]
        await limits.reset("c")
        assert await limits.get_stats() == RateLimitStats(0, 0, 0, 0)
        clock.now += 100
        await limits.cleanup()
        assert raw(tmp_path / "s.db", "SELECT * FROM renew_requests") == []
        assert raw(tmp_path / "s.db", "SELECT * FROM renew_cooldowns") == []
        assert raw(tmp_path / "s.db", "SELECT * FROM renew_splits") == []


async def test_cleanup_counts_the_resources_that_are_forgotten(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, default_config=SMALL) as stores:
        for resource in ("a", "a", "b"):
            await stores.rate_limit.record(resource)
        clock.now += 5
        await stores.rate_limit.record("b")
        clock.now += 5
        assert await stores.rate_limit.cleanup() == 1
        clock.now = 500.0
        assert await stores.rate_limit.cleanup() == 0
        clock.now += 10
        assert await stores.rate_limit.cleanup() == 1


# ---------------------------------------------------------------------------------------------------------------- model

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["acquire", "record", "look", "reset"]), st.sampled_from("ab")),
        st.tuples(st.just("cooldown"), st.sampled_from("ab"), st.sampled_from([-1.0, 3.0, 8.0])),
        st.tuples(st.just("sleep"), st.sampled_from([0.5, 2.0, 5.0, 10.0])),
        st.tuples(st.just("cleanup")),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_a_sliding_window_is_a_list_of_instants(steps: list[Any]) -> None:
    async def main() -> None:
        with TemporaryDirectory() as folder:
            async with open_sqlite_stores(f"{folder}/s.db", default_config=SMALL) as stores:
                await check(stores.rate_limit)

    async def check(limits: Any) -> None:
        now = 0.0
        start = (await limits.get_status("x")).reset_at
        times: dict[str, list[float]] = {"a": [], "b": []}
        until = {"a": 0.0, "b": 0.0}
        for action, *args in steps:
            if action == "sleep":
                await trio.sleep(args[0])
                now += args[0]
                continue
            if action == "cleanup":
                await limits.cleanup()
                continue
            resource = args[0]
            counted = times[resource] = [at for at in times[resource] if now < at + 10]
            free = len(counted) < 3 and now >= until[resource]
            if action == "acquire":
                assert await limits.acquire(resource) == free
                counted.extend([now] * free)
            elif action == "record":
                await limits.record(resource)
                counted.append(now)
            elif action == "reset":
                await limits.reset(resource)
                counted.clear()
            elif action == "cooldown":
                await limits.set_cooldown(resource, start + now + args[1])
                until[resource] = max(until[resource], now + args[1])
            else:
                assert await limits.can_proceed(resource) == free
                status = await limits.get_status(resource)
                assert status == RateLimitStatus(max(0, 3 - len(counted)), start + min(counted or [now - 10]) + 10, 3)
                wait = counted[-3] + 10 - now if len(counted) >= 3 else 0.0
                assert await limits.get_wait_time(resource) == max(wait, until[resource] - now, 0.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
