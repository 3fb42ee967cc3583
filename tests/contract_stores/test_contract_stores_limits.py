"""What every engine's rate limits promise beyond the contract suites: cooldowns, waits, configs, the division."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio

from trio_renew import AdaptiveConfig, RateLimitConfig

if TYPE_CHECKING:
    from .conftest import Engine

KINDS: tuple[Literal["rate_limit", "adaptive"], ...] = ("rate_limit", "adaptive")
EAGER = AdaptiveConfig(high_activity_threshold=3, moderate_activity_threshold=1, recalculation_interval=5.0)


async def now_of(limits: Any) -> float:
    """Give the instant that the store takes for now."""
    return float((await limits.get_status("nobody's resource")).reset_at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cooldown_refuses_until_its_end(engine: Engine, kind: str) -> None:
    """Acquire and can_proceed refuse, waiting counts it, record and status do not care, and then it is over."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        assert await limits.get_cooldown("a") is None
        until = await now_of(limits) + engine.unit
        await limits.set_cooldown("a", until)
        assert await limits.get_cooldown("a") == until
        assert not await limits.acquire("a")
        assert not await limits.can_proceed("a")
        wait = await limits.get_wait_time("a")
        assert 0 < wait <= engine.unit + 1e-5
        await limits.record("a")
        status = await limits.get_status("a")
        assert (status.remaining, status.limit) == (4, 5)
        info = (await limits.list_resources())[0]
        assert (info.resource, info.request_count, info.limit, info.window) == ("a", 1, 5, 60.0)
        assert info.cooldown_until == until
        assert (await limits.get_stats()).rate_limited_resources == 1
        # Others are free: other resources, and the other kind of limit.
        assert await limits.acquire("b")
        assert await getattr(stores, KINDS[1 - KINDS.index(kind)]).acquire("a")
        await trio.sleep(wait + (0.0 if engine.virtual else 0.002))
        assert await limits.get_cooldown("a") is None
        assert await limits.get_wait_time("a") == 0
        assert await limits.acquire("a")

    roomy = AdaptiveConfig(min_user_reserved=1)
    engine.run(scenario, default_config=RateLimitConfig(limit=5, window=60.0), adaptive_config=roomy)


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_cooldowns_the_later_one_stays(engine: Engine, kind: str) -> None:
    """One that has passed changes nothing; a reset leaves it, clear_cooldown and clear do not."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        # Instants have more digits than any server's clock.
        now = await now_of(limits) + 1 / 3e6
        for past in (now - 1, now - 1e-5, 0, -5.0, -1e11):
            await limits.set_cooldown("a", past)
            assert await limits.get_cooldown("a") is None
        await limits.set_cooldown("a", now + 50)
        for earlier in (now + 20, now - 1, 0, now + 50):
            await limits.set_cooldown("a", earlier)
            assert await limits.get_cooldown("a") == now + 50
        await limits.set_cooldown("a", now + 80)
        assert await limits.get_cooldown("a") == now + 80
        await limits.reset("a")
        assert not await limits.can_proceed("a")
        await limits.clear_cooldown("a")
        await limits.clear_cooldown("nobody")
        assert await limits.can_proceed("a")
        await limits.set_cooldown("a", now + 80)
        await limits.clear()
        assert await limits.can_proceed("a")
        for bad in (float("nan"), float("inf"), "soon", None, True, time.time() * 1000, 10**400):
            with pytest.raises((TypeError, ValueError), match=r"^until"):
                await limits.set_cooldown("a", bad)
        assert await limits.get_cooldown("a") is None

    engine.run(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_limit_nobody_ever_proceeds(engine: Engine, kind: str) -> None:
    """Waiting is the window, or a longer cooldown."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        for args in [("a",)] if kind == "rate_limit" else [("a", "user"), ("a", "background")]:
            assert not await limits.acquire(*args)
            assert not await limits.can_proceed(*args)
            assert await limits.get_wait_time(*args) == 7.0
            await limits.record(*args)
            assert await limits.get_wait_time(*args) == 7.0
        status = await limits.get_status("a")
        assert (status.remaining, status.limit) == (0, 0)
        await limits.set_cooldown("a", await now_of(limits) + 50)
        assert 40 < await limits.get_wait_time("a") <= 50.001

    engine.run(scenario, default_config=RateLimitConfig(limit=0, window=7.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_may_be_as_large_as_an_integer(engine: Engine, kind: str) -> None:
    """So one says "no limit"."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        for _ in range(3):
            assert await limits.acquire("a")
        status = await limits.get_status("a")
        assert status.limit == sys.maxsize
        assert status.remaining == sys.maxsize - 3
        assert await limits.get_wait_time("a") == 0
        if kind == "adaptive":
            assert status.user_reserved + status.background_max == sys.maxsize

    engine.run(scenario, default_config=RateLimitConfig(limit=sys.maxsize, window=60.0))


@pytest.mark.parametrize("kind", KINDS)
def test_another_config_keeps_what_is_counted(engine: Engine, kind: str) -> None:
    """Smaller or larger, longer; and it is this resource's only."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        for _ in range(3):
            assert await limits.acquire("a")
        for limit in (3, 2, 4, 100):
            config = RateLimitConfig(limit=limit, window=1000.0)
            await limits.set_resource_config("a", config)
            assert await limits.get_resource_config("a") == config
            status = await limits.get_status("a")
            assert (status.limit, status.remaining) == (limit, max(0, limit - 3))
            if kind == "adaptive":
                assert status.user_reserved + status.background_max == limit
            user = ("a", "user") if kind == "adaptive" else ("a",)
            assert await limits.can_proceed(*user) == (limit > 3)
            assert (await limits.get_wait_time(*user) > 0) == (limit <= 3)
        assert await limits.get_resource_config("b") == RateLimitConfig(limit=10, window=60.0)
        assert (await limits.get_status("b")).limit == 10
        assert await limits.get_resource_config("c") == RateLimitConfig(limit=1, window=60.0)
        for bad in (None, 5, {"limit": 5}):
            with pytest.raises(TypeError, match=r"^config"):
                await limits.set_resource_config("a", bad)
        assert (await limits.get_resource_config("a")).limit == 100

    given = {"c": RateLimitConfig(limit=1, window=60.0)}
    engine.run(scenario, default_config=RateLimitConfig(limit=10, window=60.0), resource_configs=given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_window_takes_effect_for_what_is_counted(engine: Engine, kind: str) -> None:
    """A request that was about to leave stays for the longer one."""

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        await limits.record("a")
        await limits.set_resource_config("a", RateLimitConfig(limit=10, window=100 * engine.unit))
        await engine.pass_by(engine.unit)
        assert (await limits.get_status("a")).remaining == 9
        await limits.record("a")
        await limits.cleanup()
        assert (await limits.get_status("a")).remaining == 8

    engine.run(scenario, default_config=RateLimitConfig(limit=10, window=engine.unit))


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_is_the_store_objects_own(sharing: Engine, kind: str) -> None:
    """What is counted is everybody's."""

    async def main() -> None:
        config = RateLimitConfig(limit=10, window=60.0)
        async with sharing.open(default_config=config) as one, sharing.open(default_config=config) as two:
            here, there = getattr(one, kind), getattr(two, kind)
            await here.set_resource_config("a", RateLimitConfig(limit=2, window=60.0))
            assert (await there.get_resource_config("a")).limit == 10
            for _ in range(2):
                await there.record("a")
            assert not await here.acquire("a")
            assert await there.acquire("a")
            assert (await there.get_status("a")).remaining == 7
            assert (await here.get_status("a")).remaining == 0
            await here.set_cooldown("a", await now_of(here) + 50)
            assert not await there.can_proceed("a")
            await there.clear_cooldown("a")
            assert await here.get_cooldown("a") is None

    sharing.run_alone(main)


def test_the_two_kinds_share_nothing(engine: Engine) -> None:
    """Counting, resetting, clearing and cooling one leaves the other."""

    async def scenario(stores: Any) -> None:
        for one, other in ((stores.rate_limit, stores.adaptive), (stores.adaptive, stores.rate_limit)):
            for _ in range(5):
                await one.record("a")
            assert (await other.get_status("a")).remaining == 5
            await other.record("a")
            await one.set_cooldown("a", 9e10)
            await other.set_cooldown("a", 8e10)
            await one.reset("a")
            assert (await other.get_status("a")).remaining == 4
            await one.clear()
            assert await other.get_cooldown("a") == 8e10
            await other.clear()

    engine.run(scenario, default_config=RateLimitConfig(limit=5, window=60.0))


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_not_proceed_is_told_to_wait(local: Engine, kind: str) -> None:
    """Whatever has happened: no wait exactly when one may proceed, and after the wait one may."""
    chosen = random.Random(17)

    async def scenario(stores: Any) -> None:
        limits = getattr(stores, kind)
        config = RateLimitConfig(limit=4, window=20.0)
        for _ in range(250):
            user = ("a", chosen.choice(["user", "background"])) if kind == "adaptive" else ("a",)
            what = chosen.randrange(12)
            if what < 6:
                await limits.record(*user)
            elif what == 6:
                await limits.set_cooldown("a", await now_of(limits) + chosen.choice([0.1, 3.0, 15.0]))
            elif what == 7:
                config = RateLimitConfig(limit=chosen.randrange(1, 6), window=chosen.choice([5.0, 20.0]))
                await limits.set_resource_config("a", config)
            else:
                await trio.sleep(chosen.choice([0.1, 1 / 3, 2.0, 7.7]))
            wait = await limits.get_wait_time(*user)
            assert wait >= 0
            may = await limits.can_proceed(*user)
            assert may == (wait == 0)
            if not may and what > 9:
                tries = 0
                while not await limits.acquire(*user):
                    # Of an adaptive limit the division may change meanwhile.
                    assert tries < (1 if kind == "rate_limit" else 400)
                    await trio.sleep(await limits.get_wait_time(*user))
                    tries += 1
            status = await limits.get_status("a")
            assert 0 <= status.remaining <= status.limit == config.limit

    local.run(scenario, default_config=RateLimitConfig(limit=4, window=20.0), adaptive_config=EAGER)


def test_paused_background_work_waits_for_the_next_recalculation(engine: Engine) -> None:
    """And users do not wait."""

    async def scenario(stores: Any) -> None:
        limits = stores.adaptive
        for _ in range(3):
            await limits.record("a", "user")
        status = await limits.get_status("a")
        assert status.background_paused
        assert status.reason.startswith("High user activity")
        assert (status.user_reserved, status.background_max, status.recent_user_activity) == (90, 10, 3)
        assert not await limits.can_proceed("a")
        assert not await limits.acquire("a", "background")
        assert 0 < await limits.get_wait_time("a") <= 5.0
        assert await limits.get_wait_time("a", "user") == 0
        assert await limits.acquire("a", "user")
        if engine.virtual:
            await trio.sleep(2.0)
            assert await limits.get_wait_time("a") == 3.0
            await limits.set_cooldown("a", await now_of(limits) + 4.0)
            assert await limits.get_wait_time("a") == pytest.approx(4.0)

    engine.run(scenario, default_config=RateLimitConfig(limit=100, window=60.0), adaptive_config=EAGER)


def test_background_work_without_a_share_waits_for_the_next_recalculation(engine: Engine) -> None:
    """A limit of one is the users'."""

    async def scenario(stores: Any) -> None:
        limits = stores.adaptive
        status = await limits.get_status("a")
        assert (status.user_reserved, status.background_max, status.background_paused) == (1, 0, False)
        assert not await limits.acquire("a")
        assert 0 < await limits.get_wait_time("a") <= 5.0
        assert await limits.acquire("a", "user")
        assert not await limits.acquire("a", "user")
        assert 50 < await limits.get_wait_time("a", "user") <= 60.0

    engine.run(scenario, default_config=RateLimitConfig(limit=1, window=60.0), adaptive_config=EAGER)


def test_users_are_never_locked_out(engine: Engine) -> None:
    """After a long silence everything is the background's share, and a user may proceed all the same."""
    quiet = AdaptiveConfig(
        monitoring_window=engine.unit / 2,
        recalculation_interval=engine.unit / 10,
        sustained_inactivity_threshold=engine.unit,
        high_activity_threshold=50,
    )

    async def scenario(stores: Any) -> None:
        limits = stores.adaptive
        await limits.record("a", "user")
        await engine.pass_by(engine.unit)
        status = await limits.get_status("a")
        assert status.reason.startswith("Sustained zero activity")
        assert (status.user_reserved, status.background_max, status.recent_user_activity) == (0, 10, 0)
        assert await limits.can_proceed("a", "user")
        assert await limits.get_wait_time("a", "user") == 0
        assert await limits.acquire("a", "user")

    engine.run(scenario, default_config=RateLimitConfig(limit=10, window=60.0), adaptive_config=quiet)


def test_store_objects_share_the_division(sharing: Engine) -> None:
    """The one that looks first makes it, for all, until its interval is over."""

    async def main() -> None:
        config = {"default_config": RateLimitConfig(limit=100, window=60.0), "adaptive_config": EAGER}
        async with sharing.open(**config) as one, sharing.open(**config) as two:
            first = await one.adaptive.get_status("a")
            assert first.reason.startswith("Initial state")
            for _ in range(4):
                await two.adaptive.record("a", "user")
            second = await two.adaptive.get_status("a")
            assert (second.reason, second.user_reserved) == (first.reason, first.user_reserved)
            assert second.recent_user_activity == 4
            await two.adaptive.reset("a")
            for _ in range(4):
                await two.adaptive.record("a", "user")
            assert (await two.adaptive.get_status("a")).reason.startswith("High")
            assert (await one.adaptive.get_status("a")).background_paused
            assert not await one.adaptive.acquire("a")

    sharing.run_alone(main)


def test_bad_arguments_count_nothing(engine: Engine) -> None:
    """They are named."""

    async def scenario(stores: Any) -> None:
        for limits in (stores.rate_limit, stores.adaptive):
            bad: Any
            for bad in ("", None, 5, b"a", [], "\ud800"):
                for name in ("acquire", "can_proceed", "record", "get_status", "reset", "get_wait_time"):
                    with pytest.raises((TypeError, ValueError), match=r"^resource"):
                        await getattr(limits, name)(bad)
                for name in ("get_cooldown", "clear_cooldown", "get_resource_config"):
                    with pytest.raises((TypeError, ValueError), match=r"^resource"):
                        await getattr(limits, name)(bad)
        priority: Any
        for priority in ("USER", "", None, 5, [], True):
            for name in ("acquire", "can_proceed", "record", "get_wait_time"):
                with pytest.raises((TypeError, ValueError), match=r"^priority"):
                    await getattr(stores.adaptive, name)("a", priority)
        assert await stores.rate_limit.list_resources() == await stores.adaptive.list_resources() == []

    engine.run(scenario)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("limit", value) for value in (-1, 1.0, True, None, "5")],
        *[("window", value) for value in (0, -1, float("nan"), float("inf"), True, None, "5", 10**400)],
    ],
    ids=lambda given: str(given)[:9],
)
def test_a_bad_limit_is_named(field: str, value: Any) -> None:
    """Before it comes to any store."""
    with pytest.raises((TypeError, ValueError), match=f"^{field}"):
        RateLimitConfig(**{field: value})


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_goes_back(local: Engine, kind: str) -> None:
    """What seems to come from the future is dated now: nothing lasts longer than its own length from then."""
    now = 1_000_000.0

    async def scenario(stores: Any) -> None:
        nonlocal now
        limits, dedupe, cache = getattr(stores, kind), stores.dedupe, stores.cache
        await limits.record("a")
        await limits.set_cooldown("b", now + 30)
        job = await dedupe.register_or_join("j")
        await cache.set("k", "v", 20.0)
        now -= 5000.0
        assert (await limits.get_status("a")).remaining == 4
        assert (await limits.get_status("a")).reset_at == now + 60
        assert await limits.get_cooldown("b") == now + 30
        assert await limits.get_wait_time("b") == 30
        assert await dedupe.is_in_progress("j")
        assert await cache.get("k") == "v"
        assert (await cache.list_entries())[0].expires_at == now + 20
        assert (await dedupe.list_jobs())[0].expires_at == now + 10
        now += 10.0
        assert not await dedupe.is_in_progress("j")
        assert not await dedupe.extend("j", job.job_id)
        now += 10.0
        assert await cache.get("k") is None
        now += 10.0
        assert await limits.get_cooldown("b") is None
        now += 30.0
        assert (await limits.get_status("a")).remaining == 5
        # A jump forward ends things at once.
        await limits.record("a")
        await dedupe.register_or_join("j")
        now += 1e6
        assert (await limits.get_status("a")).remaining == 5
        assert (await dedupe.register_or_join("j")).is_owner

    config = RateLimitConfig(limit=5, window=60.0)
    local.run(scenario, default_config=config, lease=10.0, clock=lambda: now)


def test_history_is_kept_for_the_longer_of_the_two_windows(engine: Engine) -> None:
    """What is counted does not go with the monitoring window, nor activity with the rate window."""
    unit = engine.unit
    short = AdaptiveConfig(monitoring_window=unit, recalculation_interval=unit / 10, min_user_reserved=1)
    given = {"b": RateLimitConfig(limit=100, window=unit)}

    async def scenario(stores: Any) -> None:
        limits = stores.adaptive
        for _ in range(3):
            assert await limits.acquire("a", "user")
            assert await limits.acquire("a")
        await engine.pass_by(unit)
        assert await limits.acquire("a", "user")
        await limits.cleanup()
        status = await limits.get_status("a")
        assert (status.remaining, status.recent_user_activity) == (93, 1)
        assert (await limits.list_resources())[0].request_count == 7

    engine.run(scenario, default_config=RateLimitConfig(100, 100 * unit), adaptive_config=short)
    engine.prefix += "other:"
    engine.place += ".other" if engine.kind == "sqlite" else ""

    async def the_other_way_round(stores: Any) -> None:
        limits = stores.adaptive
        for _ in range(3):
            await limits.record("b", "user")
            await limits.record("b")
        await engine.pass_by(unit)
        await limits.record("b")
        await limits.cleanup()
        status = await limits.get_status("b")
        assert (status.remaining, status.recent_user_activity) == (99, 3)
        assert status.reason.startswith("Moderate user activity")

    long = AdaptiveConfig(monitoring_window=100 * unit, recalculation_interval=unit / 10)
    engine.run(the_other_way_round, resource_configs=given, adaptive_config=long)


def test_the_oldest_request_of_either_kind_leaves_first(engine: Engine) -> None:
    """``reset_at`` says when, and without requests it is now."""
    unit = engine.unit

    async def scenario(stores: Any) -> None:
        limits = stores.adaptive
        start = await now_of(limits)
        await limits.record("a", "background")
        await trio.sleep(unit / 4)
        await limits.record("a", "user")
        first = (await limits.get_status("a")).reset_at
        assert start + 2 * unit <= first <= start + 2 * unit + (0 if engine.virtual else 0.1)
        await trio.sleep(first - await now_of(limits) + (0 if engine.virtual else 0.002))
        second = (await limits.get_status("a")).reset_at
        assert first < second
        assert second - first >= unit / 4 - 1e-5
        await limits.reset("a")
        now = await now_of(limits)
        assert 0 <= (await limits.get_status("a")).reset_at - now < 0.1

    engine.run(scenario, default_config=RateLimitConfig(10, 2 * unit))
